"""Which kinds of item got better or worse, and which fields of answers: corrected for all.

A kind is a value of a field of the documents. Fields are those of answers in JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np

from rankwise.findings.options import Option, OptionGains, OptionName, TrainTaskFinding
from rankwise.findings.pairs import interval_of
from rankwise.findings.stats.estimates import (
    Estimate,
    holm,
    holm_levels,
    mean_over_tasks,
    zero_p_value,
)
from rankwise.findings.stats.items import POINTS, Floats, Items, Mask, gives_an_error
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.results import TaskItems
from rankwise.records.study import Interval, Relation, Unit

FIELD_OF_ANSWERS = "field"
"""Stands in place of a field of documents: the kinds are the fields of answers."""


class SliceChange(Record):
    """An option's change from the base on the items of one kind, seeds averaged.

    ``by`` is the field of the documents, and ``kind`` its value; for a field of answers, which is
    right or wrong by itself, ``by`` is "field" and ``kind`` its name. ``base`` is the base's score.
    ``change`` is positive where the option is better, and has the bounds at which Holm's procedure
    holds it against zero, over all kinds, tasks and options: ``verdict`` is that of the interval.
    """

    option: OptionName
    task: str
    relation: Relation
    by: str
    kind: str
    unit: Unit
    num_examples: int
    base: float
    change: Interval
    p_value: float
    holm_p_value: float
    verdict: Literal["better", "worse", "cannot_tell"]

    @property
    def where(self) -> str:
        """The kind in a sentence."""
        if self.by == FIELD_OF_ANSWERS:
            return f"in the field {self.kind}"
        return f"where {self.by} is {self.kind}"


class TrainTaskSlices(TrainTaskFinding):
    """The kinds of item by one field of their documents, and the fields of answers.

    ``field`` is that of the documents; None where the study names none.
    """

    field: str | None
    rows: tuple[SliceChange, ...]


def slices(source: OptionGains, *_: object) -> TrainTaskSlices | None:
    """The changes by kind of item; None where the study names no field and no answer has any.

    Kinds of fewer than two items are left out. Exploratory: no recommendation rests on it.
    """
    field = source.results.study.config.evaluation.slice
    parts = list(_parts(source))
    if field is None and not parts:
        return None
    p_values = [zero_p_value(estimate) for _, estimate in parts]
    levels = holm_levels(p_values, 1.0 - source.confidence)
    rows: list[SliceChange] = []
    for (change_of, estimate), level, p_value, corrected in zip(
        parts, levels, p_values, holm(p_values), strict=True
    ):
        change = interval_of(estimate, 1.0 - level)
        verdict = ("worse", "cannot_tell", "better")[change.sign() + 1]
        rows.append(
            change_of(change=change, p_value=p_value, holm_p_value=corrected, verdict=verdict)
        )
    return source.found(
        TrainTaskSlices,
        field=field,
        rows=tuple(rows),
        statements=tuple(_statements(field, rows)),
    )


def _statements(field: str | None, rows: Sequence[SliceChange]) -> Iterator[str]:
    """What is shown, or that nothing is."""
    corrected = f"corrected for {quantities.counted(len(rows), 'comparison')}"
    shown = [row for row in rows if row.verdict != "cannot_tell"]
    if not rows:
        yield f"No task's items have the field {field!r} (evaluation.slice)."
    elif not shown:
        what = " or ".join(dict.fromkeys(row.by for row in rows))
        yield f"No {what} is shown to have got better or worse ({corrected})."
    for row in shown:
        yield (
            f"{row.option.label} is {row.verdict} on {row.task} {row.where}: "
            f"{quantities.with_interval(row.change, row.unit)} on "
            f"{quantities.counted(row.num_examples, 'item')}, {corrected}."
        )


def _parts(source: OptionGains) -> Iterator[tuple[partial[SliceChange], Estimate]]:
    """Every change on items of one kind, without its bounds, and its estimate."""
    results = source.results
    for relation, tasks in results.tasks.items():
        for task in tasks:
            if task not in results.base.items:
                continue
            for option in source.options:
                for by, kind, of_kind, base, gains in _kinds(source, option, task):
                    # a run may have answered a part
                    its = of_kind & ~np.isnan(gains.values).any(axis=0)
                    part = gains._replace(
                        values=gains.values[:, its],
                        clusters=None if gains.clusters is None else gains.clusters[its],
                        scored=None if gains.scored is None else gains.scored[its],
                    )
                    if not gives_an_error(part):
                        continue
                    change_of = partial(
                        SliceChange,
                        option=option.name,
                        task=task,
                        relation=relation,
                        by=by,
                        kind=kind,
                        unit=results.base.items[task].unit,
                        num_examples=int(its.sum()),
                        base=float(base[its].mean()),
                    )
                    yield change_of, mean_over_tasks([part])


def _kinds(
    source: OptionGains, option: Option, task: str
) -> Iterator[tuple[str, str, Mask, Floats, Items]]:
    """The kinds of a task's items: ``by``, ``kind``, which items, the base's values, the gains.

    The first two are as in ``SliceChange``; the others are of all items, in the order of the gains.
    """
    items, field = source.results.base.items[task], source.results.study.config.evaluation.slice
    if items.slices is not None and field is not None:
        kinds = np.asarray(items.slices)[np.argsort(items.doc_ids)]
        base = source.pair(source.results.base, task).base
        (gains,) = source.items([source.gains(option.runs, task)], [task])
        for kind in dict.fromkeys(items.slices):
            yield field, kind, kinds == kind, base, gains
    for name in items.fields:
        base = _right(items, items, name)
        values = [_right(run.items[task], items, name) - base for run in option.runs]
        gains = Items(np.stack(values), POINTS, clusters=source.clusters(task))
        yield FIELD_OF_ANSWERS, name, ~np.isnan(base), base, gains


def _right(own: TaskItems, base: TaskItems, field: str) -> Floats:
    """(items,) in points: whether a field is right, in the order of the base's ``doc_id``.

    NaN where an item has no such field, and where a model has not answered it.
    """
    scored = own.scored or own
    none = (None,) * len(scored.doc_ids)
    right = dict(zip(scored.doc_ids, scored.fields.get(field, none), strict=True))
    values = [right.get(doc_id) for doc_id in sorted(base.doc_ids)]
    return POINTS * np.asarray(values, dtype=np.float64)
