"""Behaviour on short prompts on the page: every model beside the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rankwise.findings.behaviour import ModelBehaviour, TrainTaskBehaviour, TraitChange
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.parts import (
    Cell,
    Column,
    ReportSection,
    Table,
    TitledTable,
    TrainedTask,
    grouped_table,
    stated,
)

Row = tuple[ModelBehaviour, TraitChange]


def behaviour_section(found: Sequence[TrainTaskBehaviour]) -> ReportSection:
    """A table for each trained task.

    Args:
        found: at least one.
    """
    tasks = TrainedTask.each(found)
    confidence = quantities.percent(found[0].confidence)
    remarks = [
        "Every model answers the same short prompts, greedily, in at most 64 tokens. What code can "
        "see in the answers is compared with the base, prompt by prompt: phrases of refusal, "
        "words, whether a format that was asked for is kept, the language, and repeated runs of "
        f"four words. Intervals are {confidence}, one at a time: exploratory.",
        *stated(tasks),
    ]
    return ReportSection(
        name="behaviour",
        title="Behaviour on short prompts",
        remarks=remarks,
        tables=[TitledTable(task.heading, _table(part)) for part, task in tasks],
        files={"behaviour.csv": cells.csv_text(_rows(found))},
    )


def _table(found: TrainTaskBehaviour) -> Table:
    columns: list[Column[Row]] = [
        Column("Model", lambda row: row[0].label),
        Column("Base", lambda row: _number(row[1].base)),
        Column("Model", lambda row: _number(row[1].adapted)),
        Column("Difference", lambda row: _difference(row[1])),
    ]
    pairs = [(model, change) for model in found.models for change in model.changes]
    groups = [
        (
            quantities.capital(trait),
            "words" if its[0][1].unit == "words" else _SHARES[trait],
            its,
        )
        for trait in dict.fromkeys(change.trait for _, change in pairs)
        for its in [[pair for pair in pairs if pair[1].trait == trait]]
    ]
    caption = (
        f"Trained on {found.train_task}: the base and each model, seeds averaged, and the "
        f"difference, {quantities.percent(found.confidence)} intervals."
    )
    return grouped_table(caption, columns, groups)


_SHARES = {
    "refuses": "% of all prompts",
    "keeps the format": "% of prompts that ask for one",
    "keeps the language": "% of prompts in words",
    "repeats itself": "% of the runs of four words",
}


def _number(value: float) -> str:
    return quantities.formatted(value, ".1f")


def _difference(change: TraitChange) -> Cell:
    size = f"{quantities.size(change.num_prompts)} prompts"
    return cells.formatted(change.difference, "+.1f")._replace(note=size)


def _rows(found: Sequence[TrainTaskBehaviour]) -> Iterator[dict[str, Any]]:
    """One row for each model and trait."""
    for part in found:
        for model in part.models:
            for change in model.changes:
                yield {
                    "train_task": part.train_task,
                    "model": model.label,
                    "kind": model.kind,
                    "rank": model.rank,
                    "num_seeds": model.num_seeds,
                    "trait": change.trait,
                    "unit": change.unit,
                    "num_prompts": change.num_prompts,
                    "base": change.base,
                    "adapted": change.adapted,
                    **cells.csv_row(change.difference, "difference"),
                }
