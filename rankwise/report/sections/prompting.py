"""A prompt instead of a training."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.findings.prompting import PromptBeside, PromptRow, TrainTaskPrompting
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.parts import (
    Column,
    ReportSection,
    Shown,
    Table,
    grouped_table,
    section,
    table,
)


def prompting_section(found: Sequence[TrainTaskPrompting]) -> ReportSection:
    """Two tables for each trained task."""
    about = [
        "The base with training rows before each question, as lm-eval writes examples; nothing is "
        "trained. It is scored on the same items, so all differences are paired; several draws of "
        "the rows are its seeds. What it knew before stays by construction. What it costs is "
        "tokens, in every question. Intervals are "
        f"{quantities.percent(found[0].confidence)}, one at a time: exploratory."
    ]
    about += cells.of_one_seed(max(row.num_draws for part in found for row in part.rows))

    def show(part: TrainTaskPrompting) -> Shown:
        tables = [("", _table(part))]
        if any(row.beside for row in part.rows):
            tables.append(("Against a training", _beside_table(part)))
        return Shown(part.statements, tables=tables)

    return section("prompting", "A prompt instead", about, found, show)


def _table(found: TrainTaskPrompting) -> Table:
    columns: list[Column[PromptRow]] = [
        Column("Examples", lambda row: row.shots),
        Column("Draws", lambda row: row.num_draws),
        Column("Tokens", lambda row: cells.number(row.context_tokens, ",.0f"), "of a question"),
        Column.optional("More", lambda row: cells.number(row.more_tokens, ",.0f"), "than without"),
        Column("Gain", lambda row: cells.sized(row.gain), found.unit),
    ]
    caption = cells.changes_caption(found.train_task, found.confidence)
    return table(caption, columns, found.rows)


def _beside_table(found: TrainTaskPrompting) -> Table:
    columns: list[Column[PromptBeside]] = [
        Column("Against", lambda row: row.label),
        Column("Difference", lambda row: cells.mean(row.difference), found.unit),
        Column.text("Gains", lambda row: row.gains),
    ]
    groups = [
        (quantities.counted(row.shots, "example") if row.shots else "No example", "", row.beside)
        for row in found.rows
    ]
    margin = quantities.amount(found.delta, found.unit)
    caption = (
        f"The prompt less the training. As much: the interval ends above -δ, {margin}. Less: it "
        "ends below zero, and not above -δ."
    )
    return grouped_table(caption, columns, groups)
