"""Variants of LoRA on the page: a table for each trained task, each beside LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rankwise.findings.variants import TrainTaskVariants, VariantRow
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.parts import (
    Column,
    ReportSection,
    Table,
    TitledTable,
    TrainedTask,
    grouped_table,
    stated,
)


def variant_section(found: Sequence[TrainTaskVariants]) -> ReportSection:
    """A table for each trained task.

    Args:
        found: at least one.
    """
    tasks = TrainedTask.each(found)
    alike = "the same rank" if found[0].match == "rank" else "about as many trained weights"
    remarks = [
        f"Each variant is trained alone, by PEFT, beside LoRA of {alike}: on the same rows in the "
        "same order, with the same schedule and clipping. The difference is that from LoRA at the "
        "learning rate at which LoRA gains most. The recommendation is about LoRA's ranks and "
        f"knows no variant. Intervals are {quantities.percent(found[0].confidence)}, one at a "
        "time: exploratory.",
        *stated(tasks),
    ]
    for part, task in tasks:
        remarks += cells.left_out(part.left_out, task.after)
    return ReportSection(
        name="variants",
        title="Variants of LoRA",
        remarks=remarks,
        figures=[],
        tables=[TitledTable(task.heading, _table(part)) for part, task in tasks if part.rows],
        files={"variants.csv": cells.csv_text(_rows(found))},
    )


def _table(found: TrainTaskVariants) -> Table:
    has_retention = any(row.retention is not None for row in found.rows)
    is_compared = any(row.lead is not None for row in found.rows)
    columns: list[Column[VariantRow]] = [
        Column("Variant", lambda row: row.label),
        Column("Trained weights", lambda row: quantities.parameters(row.num_parameters)),
        Column(
            "Learning rate",
            lambda row: (
                quantities.learning_rate(row.learning_rate)
                + (" (best)" if row.is_best_rate and row.num_rates > 1 else "")
            ),
        ),
        Column("Gain", lambda row: cells.mean(row.gain, has_size=True), found.unit),
        Column(
            "Against LoRA",
            lambda row: cells.mean(row.lead),
            f"difference, {found.unit}",
            is_shown=is_compared,
        ),
        Column(
            "Retention",
            lambda row: cells.mean(row.retention, has_size=True),
            "change, points",
            is_shown=has_retention,
        ),
        Column(
            "Against LoRA",
            lambda row: cells.mean(row.retention_lead),
            "difference, points",
            is_shown=is_compared and has_retention,
        ),
        Column("Training", lambda row: quantities.seconds(row.train_seconds), "all seeds"),
    ]
    caption = (
        f"Trained on {found.train_task}: changes from the base, seeds averaged, paired over the "
        f"same items, {quantities.percent(found.confidence)} intervals."
    )
    ranks = dict.fromkeys(row.beside_rank for row in found.rows)
    groups = [
        (f"Beside rank {rank}", "", [row for row in found.rows if row.beside_rank == rank])
        for rank in ranks
    ]
    return grouped_table(caption, columns, groups)


def _rows(found: Sequence[TrainTaskVariants]) -> Iterator[dict[str, Any]]:
    for part in found:
        for row in part.rows:
            yield {
                "train_task": part.train_task,
                "variant": row.variant,
                "label": row.label,
                "beside_rank": row.beside_rank,
                "beside": row.beside,
                "learning_rate": row.learning_rate,
                "is_best_rate": row.is_best_rate,
                "num_parameters": row.num_parameters,
                "num_seeds": row.num_seeds,
                "train_seconds": row.train_seconds,
                **cells.csv_row(row.gain, "gain", cells.SIZE_AND_UNIT),
                **cells.csv_row(row.lead, "lead"),
                **cells.csv_row(row.retention, "retention", cells.SIZE_AND_UNIT),
                **cells.csv_row(row.retention_lead, "retention_lead"),
            }
