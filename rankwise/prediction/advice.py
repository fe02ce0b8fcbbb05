"""A rank before training, with what choosing so has cost on tasks that were not seen; or why not.

The answer rests on the record of the ridge, which is fitted on a collection: where it is not shown
to be better than every constant, there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rankwise.prediction.collected import CollectedStudy
from rankwise.prediction.curves import Question, RankCurve, curve_of
from rankwise.prediction.judge import (
    MIN_TASKS,
    Judged,
    Judgement,
    bound_of_new_task,
    judge,
)
from rankwise.prediction.learned import FEATURES, RIDGE, on_axis
from rankwise.prediction.predictors import CONSTANTS, choose
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.study import Interval

NEW_TASK_CONFIDENCE = 0.8
"""Of the bound of one more task; with eight tasks no bound holds at 90 %."""
MARGIN = 0.5
"""A feature may lie beyond the collection's ends by this share of its range."""
SAME_BASE = "model_parameters"
_POINTS = "base_accuracy"  # measured where points decide


class Regret(Interval):
    """Points below the best rank, a mean over tasks that were left out, with 95 % bounds."""

    predictor: str


class ExpectedRank(Record):
    """What is expected of a rank, in points; retention is None where too few studies have any."""

    rank: int
    gain: float
    retention: float | None


class Advice(Record):
    """``rank`` is None where it cannot be said, and ``reasons`` say why.

    ``chosen`` is the rank of the ridge, and ``by_rank`` what it expects, also where its record is
    not good enough. ``regret`` is that of the ridge and ``constants`` those of each constant.
    ``new_task_regret`` is not exceeded on one more task at ``NEW_TASK_CONFIDENCE``; None where
    there are too few tasks. All are None or empty where the collection does not apply.
    """

    rank: int | None
    reasons: tuple[str, ...]
    chosen: int | None = None
    num_studies: int
    num_tasks: int
    features: Mapping[str, float]
    regret: Regret | None = None
    constants: tuple[Regret, ...] = ()
    new_task_regret: float | None = None
    by_rank: tuple[ExpectedRank, ...] = ()


class _Grounds(NamedTuple):
    """The curves of a collection, with the features alone that the question has too."""

    question: Question
    curves: tuple[RankCurve, ...]

    @property
    def num_tasks(self) -> int:
        return len({curve.task for curve in self.curves})


def advise(
    studies: Sequence[CollectedStudy], features: Mapping[str, float], ranks: Sequence[int]
) -> Advice:
    """The rank that is expected to gain most, from what is known before training.

    Args:
        studies: a collection.
        features: of the study that is to be trained, by name.
        ranks: that it may choose from.
    """
    grounds = _grounds(studies, Question(features, tuple(sorted(ranks))))
    known: dict[str, Any] = {
        "num_studies": len(grounds.curves),
        "num_tasks": grounds.num_tasks,
        "features": dict(features),
    }
    outside = tuple(_outside(grounds))
    if outside:
        return Advice(rank=None, reasons=outside, **known)
    judgement = judge(grounds.curves, "gain", (*CONSTANTS, RIDGE))
    ridge = judgement.of(RIDGE.name)
    assert ridge is not None  # it needs no feature
    chosen = choose(RIDGE.fit(grounds.curves, "gain"), grounds.question).rank
    return Advice(
        rank=chosen if ridge.beats_the_constants else None,
        reasons=() if ridge.beats_the_constants else (_not_better(judgement, ridge),),
        chosen=chosen,
        regret=_regret(ridge),
        constants=tuple(_regret(each) for each in judgement.judged if each.kind == "constant"),
        new_task_regret=bound_of_new_task(list(ridge.by_task.values()), NEW_TASK_CONFIDENCE),
        by_rank=tuple(_expected(grounds)),
        **known,
    )


def _grounds(studies: Sequence[CollectedStudy], question: Question) -> _Grounds:
    curves = [curve for study in studies if (curve := curve_of(study)) is not None]
    limited = [
        curve._replace(
            question=curve.question._replace(
                features={
                    name: value
                    for name, value in curve.question.features.items()
                    if name in question.features
                }
            )
        )
        for curve in curves
    ]
    return _Grounds(question, tuple(limited))


def _outside(grounds: _Grounds) -> Iterator[str]:
    """Why the collection says nothing of this study, one sentence each; nothing where it does."""
    question, curves = grounds
    if grounds.num_tasks < MIN_TASKS:
        yield (
            f"the collection has studies of {quantities.counted(grounds.num_tasks, 'task')} in "
            f"points, and {MIN_TASKS} are needed; add finished studies with `rankwise collect`"
        )
        return
    if _POINTS not in question.features:
        yield "the study is judged by its loss, and the collection in points"
    ranks = {rank for curve in curves for rank in curve.ranks}
    for rank in question.ranks:
        if not min(ranks) <= rank <= max(ranks):
            yield f"rank {rank} is outside the collection, which has {min(ranks)} to {max(ranks)}"
    for name in (SAME_BASE, *FEATURES):
        known = [curve.question.features.get(name) for curve in curves]
        if name in question.features and None not in known:
            yield from _beyond(name, question.features[name], [v for v in known if v is not None])


def _beyond(name: str, value: float, known: Sequence[float]) -> Iterator[str]:
    """A sentence where a feature is too far from those of the collection."""
    here, low, high = (on_axis(name, each) for each in (value, min(known), max(known)))
    reach = MARGIN * (high - low)
    if not low - reach <= here <= high + reach:
        yield (
            f"{name} is {quantities.number(value)}, and the collection has "
            f"{quantities.number(min(known))} to {quantities.number(max(known))}"
        )


def _not_better(judgement: Judgement, ridge: Judged) -> str:
    best = judgement.best_constant
    return (
        "nothing is shown to choose better than a constant: on tasks that were left out the ridge "
        f"came out {_points(ridge)} below the best rank, and {best.name!r} {_points(best)}"
    )


def _points(judged: Judged) -> str:
    return quantities.with_interval(_regret(judged), "points", signed=False)


def _regret(judged: Judged) -> Regret:
    value, lower, upper = judged.regret
    return Regret(predictor=judged.name, estimate=value, lower=lower, upper=upper)


def _expected(grounds: _Grounds) -> Iterator[ExpectedRank]:
    gain = RIDGE.fit(grounds.curves, "gain")(grounds.question)
    measured = [curve for curve in grounds.curves if curve.has("retention")]
    retention = (
        RIDGE.fit(measured, "retention")(grounds.question)
        if len({curve.task for curve in measured}) >= MIN_TASKS
        else np.full(len(gain), np.nan)
    )
    for rank, up, kept in zip(grounds.question.ranks, gain, retention, strict=True):
        yield ExpectedRank(
            rank=rank, gain=float(up), retention=None if np.isnan(kept) else float(kept)
        )
