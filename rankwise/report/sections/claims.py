"""The paper's claims, and what the study shows about them."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.findings.claims import Claim
from rankwise.report.parts import Column, ReportSection, TitledTable, grouped_table


def claims_section(claims: Sequence[Claim]) -> ReportSection:
    """Every claim with its verdict and all of its numbers."""
    evidence = grouped_table(
        "One shown case contradicts a claim about all ranks or tasks, and supports a claim that "
        "something can happen. The intervals of one claim hold together.",
        [Column[str]("Evidence", lambda sentence: sentence)],
        [(claim.statement, claim.verdict, claim.evidence) for claim in claims],
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
