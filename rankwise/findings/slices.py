"""Which kinds of item got better or worse: changes for each value of a field, corrected for all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from rankwise.findings.options import OptionGains, OptionName
from rankwise.findings.stats.estimates import (
    Estimate,
    holm,
    holm_levels,
    mean_over_tasks,
    zero_p_value,
)
from rankwise.findings.stats.items import Items
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.recommendation import Bound
from rankwise.records.results import MIN_ITEMS
from rankwise.records.study import Relation, Unit


class SliceChange(Record):
    """An option's change from the base on the items of one kind, seeds averaged.

    ``change`` is positive where the option is better, and has the bounds at which Holm's procedure
    holds it against zero, over all kinds, tasks and options: ``verdict`` is that of the interval.
    """

    option: OptionName
    task: str
    relation: Relation
    kind: str
    unit: Unit
    num_examples: int
    change: Bound
    p_value: float
    holm_p_value: float
    verdict: Literal["better", "worse", "cannot_tell"]


class TrainTaskSlices(Record):
    """The kinds of item by one field of their documents, of every task that has it."""

    train_task: str
    field: str
    confidence: float
    rows: tuple[SliceChange, ...]

    @property
    def statements(self) -> tuple[str, ...]:
        """What is shown, or that nothing is."""
        if not self.rows:
            return (f"No task's items have the field {self.field!r} (evaluation.slice).",)
        shown = [row for row in self.rows if row.verdict != "cannot_tell"]
        corrected = f"corrected for {quantities.counted(len(self.rows), 'comparison')}"
        if not shown:
            return (f"No {self.field} is shown to have got better or worse ({corrected}).",)
        return tuple(
            f"{row.option.label} is {row.verdict} on {row.task} where {self.field} is {row.kind}: "
            f"{quantities.with_interval(row.change, row.unit)} on "
            f"{quantities.counted(row.num_examples, 'item')}, {corrected}."
            for row in shown
        )


class _Part(NamedTuple):
    option: OptionName
    task: str
    relation: Relation
    kind: str
    num_items: int
    estimate: Estimate


def slices(source: OptionGains) -> TrainTaskSlices | None:
    """The changes by kind of item; None where the study names no field.

    Kinds of fewer than two items are left out. Exploratory: no recommendation rests on it.
    """
    field = source.results.study.config.evaluation.slice
    if field is None:
        return None
    parts = list(_parts(source))
    p_values = [zero_p_value(part.estimate) for part in parts]
    levels = holm_levels(p_values, 1.0 - source.confidence)
    rows = [
        _row(source, part, 1.0 - level, p_value, corrected)
        for part, level, p_value, corrected in zip(
            parts, levels, p_values, holm(p_values), strict=True
        )
    ]
    return TrainTaskSlices(
        train_task=source.results.train_task,
        field=field,
        confidence=source.confidence,
        rows=tuple(rows),
    )


def _parts(source: OptionGains) -> Iterator[_Part]:
    results = source.results
    for relation, tasks in results.tasks.items():
        for task in tasks:
            items = results.base.items.get(task)
            if items is None or items.slices is None:
                continue
            kinds = np.asarray(items.slices)[np.argsort(items.doc_ids)]
            clusters, scored = source.clusters(task), source.scored(task)
            for option in source.options:
                gains = source.gains(option.runs, task)
                for kind in dict.fromkeys(items.slices):
                    its = kinds == kind
                    part = Items(
                        gains[:, its],
                        source.item_size(task),
                        clusters=None if clusters is None else clusters[its],
                        scored=None if scored is None else scored[its],
                    )
                    if part.num_scored < MIN_ITEMS:
                        continue
                    estimate = mean_over_tasks([part])
                    yield _Part(option.name, task, relation, kind, int(its.sum()), estimate)


def _row(
    source: OptionGains, part: _Part, level: float, p_value: float, corrected: float
) -> SliceChange:
    lower, upper = part.estimate.interval(level)
    change = Bound(estimate=part.estimate.value, lower=lower, upper=upper)
    return SliceChange(
        option=part.option,
        task=part.task,
        relation=part.relation,
        kind=part.kind,
        unit=source.results.base.items[part.task].unit,
        num_examples=part.num_items,
        change=change,
        p_value=p_value,
        holm_p_value=corrected,
        verdict=("worse", "cannot_tell", "better")[change.sign() + 1],
    )
