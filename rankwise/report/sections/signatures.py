"""What went wrong and what to do next."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.findings.signatures.found import not_looked_for
from rankwise.findings.signatures.signature import SIGNATURES, TITLES, Signature
from rankwise.records import quantities
from rankwise.records.results import StudyResults
from rankwise.report.cells import Cell
from rankwise.report.parts import Column, ReportSection, Table, shows, titled

_WHOLE_STUDY = "all models"


@shows("signatures")
def signature_section(found: Sequence[Signature], results: StudyResults) -> ReportSection:
    """A table of all that was found; what was looked for in vain, and what could not be."""
    confidence, lacked = results.study.config.recommendation.confidence, not_looked_for(results)
    names = {part.name for part in found}
    absent = [TITLES[n].lower() for n in SIGNATURES if n not in names and n not in lacked]
    remarks = [f"Looked for and not found: {'; '.join(absent)}."] if absent else []
    if lacked:
        lacking = "; ".join(f"{TITLES[name].lower()} ({why})" for name, why in lacked.items())
        remarks.append(f"Not checked, because the data is missing: {lacking}.")
    several = len({part.train_task for part in found}) > 1
    table = Table.of(
        f"Judged by the bounds of {quantities.percent(confidence)} intervals, seeds averaged. Each "
        "interval is by itself: among many comparisons a few of these appear by chance. A share "
        "of items is in points.",
        found,
        Column("title", "What"),
        Column(lambda signature: signature.label or _WHOLE_STUDY, "Model", is_text=True),
        Column(lambda signature: signature.task or None, "Task", is_text=True),
        Column(_judged, "Judged", "estimate and interval"),
        Column("statement", "In words"),
        Column("advice", "What to do next"),
        by=lambda row: f"Trained on {row.train_task}" if several else "",
        file="signatures",
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
