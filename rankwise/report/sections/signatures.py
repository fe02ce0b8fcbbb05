"""What went wrong and what to do next, and what the study shows about the paper's claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rankwise.findings.claims import Claim
from rankwise.findings.signatures.found import SIGNATURES, TITLES, Signature, SignatureName
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.parts import (
    Cell,
    Column,
    ReportSection,
    Table,
    TitledTable,
    flat,
    grouped_table,
)

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
    return ReportSection(
        name="failure-signatures",
        title="Failure signatures",
        remarks=_remarks(found, not_looked_for),
        tables=(TitledTable("What was found", _table(found, confidence)),) if found else (),
        files={"signatures.csv": cells.csv_text(map(flat, found))} if found else {},
    )


def watch_points(found: Iterable[Signature]) -> list[str]:
    """One sentence for each kind of failure: what, of which options, and what to do next."""
    labels: dict[tuple[str, str], list[str]] = {}
    for each in found:
        labels.setdefault((each.title, each.advice), []).append(each.label or _WHOLE_STUDY)
    return [
        f"{title} ({quantities.listed(list(dict.fromkeys(where)))}). {advice}"
        for (title, advice), where in labels.items()
    ]


def _remarks(found: Sequence[Signature], not_looked_for: Mapping[SignatureName, str]) -> list[str]:
    names = {part.name for part in found}
    absent = [TITLES[n].lower() for n in SIGNATURES if n not in names and n not in not_looked_for]
    listed = "; ".join(absent)
    remarks = [f"Looked for and not found: {listed}."] if absent else []
    if not_looked_for:
        lacking = "; ".join(
            f"{TITLES[name].lower()} ({why})" for name, why in not_looked_for.items()
        )
        remarks.append(f"Not looked for, for want of data: {lacking}.")
    return remarks


def _table(found: Sequence[Signature], confidence: float) -> Table:
    columns: list[Column[Signature]] = [
        Column("What", lambda signature: signature.title),
        Column("Model", lambda signature: signature.label or _WHOLE_STUDY, is_text=True),
        Column("Task", lambda signature: signature.task or None, is_text=True),
        Column("Judged", _judged, "estimate and interval"),
        Column("In words", lambda signature: signature.statement, is_text=True),
        Column("What to do next", lambda signature: signature.advice, is_text=True),
    ]
    caption = (
        f"Judged by the bounds of {quantities.percent(confidence)} intervals, seeds averaged. Each "
        "interval is by itself: among many comparisons a few of these appear by chance. A share "
        "of items is in points."
    )
    tasks = dict.fromkeys(part.train_task for part in found)
    groups = [
        (
            f"Trained on {name}" if len(tasks) > 1 else "",
            "",
            [part for part in found if part.train_task == name],
        )
        for name in tasks
    ]
    return grouped_table(caption, columns, groups)


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


def claims_section(claims: Sequence[Claim]) -> ReportSection:
    """Every claim with its verdict and all of its numbers."""
    evidence = grouped_table(
        "One shown case contradicts a claim about all ranks or tasks, and supports a claim that "
        "something can happen. The intervals of one claim hold together.",
        [Column[str]("Evidence", lambda sentence: sentence)],
        [(claim.statement, claim.judgement, claim.evidence) for claim in claims],
    )
    counts = {
        verdict: sum(claim.verdict == verdict for claim in claims)
        for verdict in ("supported", "contradicted", "undecided", "not tested")
    }
    said = ", ".join(f"{number} {verdict}" for verdict, number in counts.items() if number)
    return ReportSection(
        name="claims",
        title="The paper's claims",
        remarks=(f"Of {len(claims)} claims of arXiv:2512.15634: {said}.",),
        tables=(TitledTable("Claim by claim", evidence),),
    )
