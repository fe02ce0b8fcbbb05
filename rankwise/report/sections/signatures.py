"""What went wrong and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rankwise.findings.signatures.signature import SIGNATURES, TITLES, Signature, SignatureName
from rankwise.records import quantities
from rankwise.records.grouping import grouped
from rankwise.report.cells import Cell
from rankwise.report.parts import Column, ReportSection, Table, titled

_WHOLE_STUDY = "all models"


def signature_section(
    found: Sequence[Signature], not_looked_for: Mapping[SignatureName, str], confidence: float
) -> ReportSection:
    """A table of all that was found; what was looked for in vain, and what could not be.

    Args:
        found: the failure signatures of a study.
        not_looked_for: those that it cannot show, with what it lacks.
        confidence: of the intervals, 0..1.
    """
    names = {part.name for part in found}
    absent = [TITLES[n].lower() for n in SIGNATURES if n not in names and n not in not_looked_for]
    remarks = [f"Looked for and not found: {'; '.join(absent)}."] if absent else []
    if not_looked_for:
        lacking = "; ".join(
            f"{TITLES[name].lower()} ({why})" for name, why in not_looked_for.items()
        )
        remarks.append(f"Not checked, because the data is missing: {lacking}.")
    by_task = grouped((part.train_task, part) for part in found)
    table = Table.grouped(
        f"Judged by the bounds of {quantities.percent(confidence)} intervals, seeds averaged. Each "
        "interval is by itself: among many comparisons a few of these appear by chance. A share "
        "of items is in points.",
        [
            (f"Trained on {name}" if len(by_task) > 1 else "", "", parts)
            for name, parts in by_task.items()
        ],
        Column("title", "What"),
        Column(lambda signature: signature.label or _WHOLE_STUDY, "Model", is_text=True),
        Column(lambda signature: signature.task or None, "Task", is_text=True),
        Column(_judged, "Judged", "estimate and interval"),
        Column("statement", "In words"),
        Column("advice", "What to do next"),
    )
    tables = titled({"What was found": table})
    return ReportSection("failure-signatures", "Failure signatures", remarks, tables=tables)


def _judged(signature: Signature) -> Cell | None:
    estimate, lower, upper = signature.estimate, signature.lower, signature.upper
    if estimate is None or signature.unit is None:
        return None
    interval = ""
    if lower is not None and upper is not None:
        interval = quantities.score_interval(lower, upper, signature.unit)
    size = "" if signature.num_items is None else quantities.size(signature.num_items)
    size += quantities.in_clusters(signature.num_clusters)
    return Cell(quantities.amount(estimate, signature.unit), interval, size)
