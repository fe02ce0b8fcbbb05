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
from rankwise.prediction.learned import RIDGE, RIDGE_FEATURES, on_axis
from rankwise.prediction.predictors import CONSTANTS, choose
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.study import Interval

NEW_TASK_CONFIDENCE = 0.8
"""Of the bound of one more task; with eight tasks no bound holds at 90 %."""
MARGIN = 0.5
"""A feature may lie beyond the collection's ends by this share of its range."""


class Planned(NamedTuple):
    """A study that is to be trained, as its plan tells: no weights were read.

    Attributes:
        base_fingerprint: hash of the base's weights.
        target_modules: that LoRA adapts.
        ranks: that it may choose from.
        is_in_points: whether the gain is judged in points; else by a loss.
        features: that the plan alone gives, by name.
    """

    base_fingerprint: str
    target_modules: tuple[str, ...]
    ranks: tuple[int, ...]
    is_in_points: bool
    features: Mapping[str, float]


class Regret(Interval):
    """Points below the best of the study's ranks, a mean over tasks left out, with 95 % bounds."""

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
    ``new_task_regret`` is about what one more task stays below at ``NEW_TASK_CONFIDENCE``; None
    where there are too few tasks. All are None or empty where the collection does not apply.
    ``dropped`` are features of the ridge that this study has and a study of the collection lacks.
    """

    rank: int | None
    reasons: tuple[str, ...]
    chosen: int | None = None
    num_studies: int
    num_tasks: int
    features: Mapping[str, float]
    dropped: tuple[str, ...] = ()
    regret: Regret | None = None
    constants: tuple[Regret, ...] = ()
    new_task_regret: float | None = None
    by_rank: tuple[ExpectedRank, ...] = ()


class _Grounds(NamedTuple):
    """The curves of a collection that are of the question's kind, over its ranks alone."""

    question: Question
    curves: tuple[RankCurve, ...]

    @property
    def num_tasks(self) -> int:
        return len({curve.task for curve in self.curves})

    @property
    def dropped(self) -> tuple[str, ...]:
        """Features of the ridge that the question has, and not all curves."""
        return tuple(
            name
            for name in RIDGE_FEATURES
            if name in self.question.features
            and any(name not in curve.question.features for curve in self.curves)
        )


def reasons_against(
    studies: Sequence[CollectedStudy], study: Planned, features: Mapping[str, float]
) -> tuple[str, ...]:
    """Why the collection says nothing of this study, one sentence each; empty where it does.

    Args:
        studies: a collection.
        study: that is to be trained.
        features: of it, as far as they are known.
    """
    return tuple(_outside(study, _grounds(studies, study, features)))


def advise(
    studies: Sequence[CollectedStudy], study: Planned, features: Mapping[str, float]
) -> Advice:
    """The rank that is expected to gain most, from what is known before training.

    Learned from, and judged on, are studies with this base and these modules that have all ranks
    of this study, over these ranks.

    Args:
        studies: a collection.
        study: that is to be trained.
        features: of it, by name.
    """
    grounds = _grounds(studies, study, features)
    known: dict[str, Any] = {
        "num_studies": len(grounds.curves),
        "num_tasks": grounds.num_tasks,
        "features": dict(features),
        "dropped": grounds.dropped,
    }
    outside = tuple(_outside(study, grounds))
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


def _grounds(
    studies: Sequence[CollectedStudy], study: Planned, features: Mapping[str, float]
) -> _Grounds:
    question = Question(features, tuple(sorted(study.ranks)))
    return _Grounds(
        question,
        tuple(
            asked.with_features(features)
            for each in studies
            if each.base_model.fingerprint == study.base_fingerprint
            and set(each.training.target_modules) == set(study.target_modules)
            and (curve := curve_of(each)) is not None
            and (asked := curve.at(question.ranks)) is not None
        ),
    )


def _outside(study: Planned, grounds: _Grounds) -> Iterator[str]:
    """Sentences."""
    question, curves = grounds
    ranks = quantities.listed([str(rank) for rank in question.ranks])
    if not study.is_in_points:
        yield "the study is judged by its loss, and the collection in points"
    if len(question.ranks) < 2:
        yield f"the study has rank {ranks} alone, and a choice needs two ranks"
    elif grounds.num_tasks < MIN_TASKS:
        yield (
            f"the collection has studies of {quantities.counted(grounds.num_tasks, 'task')} in "
            f"points with this base, {quantities.modules(study.target_modules)} adapted, ranks "
            f"{ranks} and two seeds, and {MIN_TASKS} are needed; add finished studies with "
            "`rankwise collect`"
        )
    else:
        for name in RIDGE_FEATURES:
            if name in question.features and name not in grounds.dropped:
                known = [curve.question.features[name] for curve in curves]
                yield from _beyond(name, question.features[name], known)


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
