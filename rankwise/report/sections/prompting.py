"""A prompt instead of a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankwise.findings.prompting import TrainTaskPrompting
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.parts import Column, ReportSection, Shown, Table, shows


@shows("prompting")
def prompting_section(found: Sequence[TrainTaskPrompting], *_: object) -> ReportSection:
    """Two tables for each trained task."""
    about = [
        "The base with training rows before each question, as lm-eval writes examples; nothing is "
        "trained. It is scored on the same items, so all differences are paired; several draws of "
        "the rows are its seeds. What it knew before stays by construction. What it costs is "
        "tokens, in every question. Intervals are "
        f"{quantities.percent(found[0].confidence)}, one at a time: exploratory.",
        *cells.of_one_seed(max(row.num_seeds for part in found for row in part.rows)),
    ]

    return ReportSection.of("prompting", "A prompt instead", about, found, _shown)


def _shown(found: TrainTaskPrompting) -> Iterator[Shown]:
    yield Table.of(
        cells.changes_caption(found.train_task, found.confidence),
        found.alone,
        Column("shots", "Examples"),
        Column("num_seeds", "Draws"),
        Column("context_tokens", "Tokens", "of a question", ",.0f"),
        Column("more_tokens", "More", "than without", ",.0f"),
        Column("gain", "Gain", found.unit, cells.sized),
        file="prompting",
        records=found.rows,
    )
    margin = quantities.amount(found.delta, found.unit)
    beside = Table.of(
        f"The prompt less the training. As much: the interval ends above -δ, {margin}. Less: it "
        "ends below zero, and not above -δ.",
        [row for row in found.rows if row.lead is not None],
        Column("against", "Against"),
        Column("lead", "Difference", found.unit),
        Column("gains", "Gains"),
        by=lambda row: quantities.capital(row.label),
    )
    yield "Against a training", beside
