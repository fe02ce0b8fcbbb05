"""The paper's claims, and what the study shows about them."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.findings.claims import Claim
from rankwise.report.parts import Cell, Heading, ReportSection, RowGroup, Table, TitledTable


def claims_section(claims: Sequence[Claim]) -> ReportSection:
    """Every claim with its verdict and all of its numbers."""
    groups = tuple(
        RowGroup(
            claim.statement,
            claim.verdict,
            tuple((Cell(sentence),) for sentence in claim.evidence),
        )
        for claim in claims
    )
    table = Table(
        "One shown case contradicts a claim about all ranks or tasks, and supports a claim that "
        "something can happen. The intervals of one claim hold together.",
        (Heading("Evidence"),),
        groups,
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
        tables=(TitledTable("Claim by claim", table),),
    )
