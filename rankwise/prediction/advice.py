"""A rank before training, with what choosing so has cost on tasks that were not seen; or why not.

The answer rests on the record of the ridge, which is fitted on a collection: where it is not shown
to be better than every constant, there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rankwise.prediction.collected import CollectedStudy, is_of_probe
from rankwise.prediction.curves import Question, RankCurve, curve_of
from rankwise.prediction.judge import (
    MIN_TASKS,
    Judged,
    Judgement,
    bound_of_new_task,
    judge,
)
from rankwise.prediction.learned import RIDGE, RIDGE_FEATURES
from rankwise.prediction.predictors import CONSTANTS, Choice, choose
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.study import Interval

NEW_TASK_CONFIDENCE = 0.8
"""Of the bound of one more task; with seven tasks no bound holds at 90 %."""
MARGIN = 0.5
"""A feature may lie beyond the collection's ends by this share of its range."""
DOUBLING = 1.0
"""One whose logarithm counts may lie beyond them by a factor of 2, whatever its range."""
ALIKE = 0.1
"""Proportions of rates and of alpha may differ by this share, for what is rounded."""


class Planned(NamedTuple):
    """A study that is to be trained, as its plan tells: no weights were read.

    Attributes:
        base_fingerprint: hash of the base's weights.
        target_modules: that LoRA adapts.
        ranks: that it may choose from.
        rates: of each rank, the median where it has several; a tuned rate is what tuning begins at.
        alphas: of each rank, as in ``CollectedRun``.
        is_in_points: whether the gain is judged in points; else by a loss.
        features: that the plan alone gives, by name.
    """

    base_fingerprint: str
    target_modules: tuple[str, ...]
    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    alphas: tuple[float, ...]
    is_in_points: bool
    features: Mapping[str, float]


class Regret(Interval):
    """Points below the best of the study's ranks, a mean over tasks left out, with 95 % bounds.

    The best rank is chosen on other seeds and items than it is measured on, and that choice may
    miss it. So a regret is too low, and may be below 0; as all are by the same amount, their
    differences are not.
    """

    predictor: str


class ExpectedRank(Record):
    """A rank, and how many points less than with the one that is chosen the gain is expected."""

    rank: int
    below_chosen: float


class Advice(Record):
    """``rank`` is None where it cannot be said, and ``reasons`` say why.

    ``chosen`` is the rank of the ridge, also where its record is not good enough; ``by_rank`` is
    empty then. ``regret`` is that of the ridge and ``constants`` those of each constant.
    ``new_task_regret`` is about what one more task stays below at ``NEW_TASK_CONFIDENCE``, at
    least 0; None where there are too few tasks. All are None or empty where the collection does not
    apply.
    ``dropped`` are features of the ridge that this study has and a study of the collection lacks,
    or has of a probe of another rank.
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
    """The curves of a collection that are of the question's kind, over its ranks alone.

    The question and the curves have the same features; ``dropped`` are those that others lack.
    """

    question: Question
    curves: tuple[RankCurve, ...]
    alphas: tuple[float, ...]
    """Of the smallest rank, of each curve."""
    dropped: tuple[str, ...]

    @property
    def num_tasks(self) -> int:
        return len({curve.task for curve in self.curves})


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
    of this study, over these ranks, with rates and alphas in the same proportions.

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
    choice = choose(RIDGE.fit(grounds.curves, "gain"), grounds.question)
    is_better = ridge.beats_the_constants
    most = bound_of_new_task(list(ridge.by_task.values()), NEW_TASK_CONFIDENCE)
    return Advice(
        rank=choice.rank if is_better else None,
        reasons=() if is_better else (_not_better(judgement, ridge, grounds),),
        chosen=choice.rank,
        regret=_regret(ridge),
        constants=tuple(_regret(each) for each in judgement.judged if each.kind == "constant"),
        new_task_regret=None if most is None else max(most, 0.0),
        by_rank=tuple(_expected(grounds.question, choice)) if is_better else (),
        **known,
    )


def _grounds(
    studies: Sequence[CollectedStudy], study: Planned, features: Mapping[str, float]
) -> _Grounds:
    question = Question(features, study.ranks, study.rates)
    found = [
        (_of_this_probe(asked, question), each.alphas_of(question.ranks)[0])
        for each in studies
        if each.base_model.fingerprint == study.base_fingerprint
        and set(each.training.target_modules) == set(study.target_modules)
        and (curve := curve_of(each)) is not None
        and (asked := curve.at(question.ranks)) is not None
        and _are_alike(asked.question.rates, study.rates)
        and _are_alike(each.alphas_of(question.ranks), study.alphas)
    ]
    names = set(features).intersection(*(curve.question.features for curve, _ in found))
    return _Grounds(
        question.with_features(names),
        tuple(curve.with_features(names) for curve, _ in found),
        tuple(alpha for _, alpha in found),
        tuple(name for name in RIDGE_FEATURES if name in features and name not in names),
    )


def _of_this_probe(curve: RankCurve, question: Question) -> RankCurve:
    """A curve without the features of its probe, where that has another rank."""
    features = curve.question.features
    if features.get("probe_rank") == question.features.get("probe_rank"):
        return curve
    return curve.with_features({name for name in features if not is_of_probe(name)})


def _are_alike(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether positive values are in the same proportions."""
    ratios = np.divide(values, others)
    return bool(ratios.max() <= (1.0 + ALIKE) * ratios.min())


def _outside(study: Planned, grounds: _Grounds) -> Iterator[str]:
    """Sentences."""
    question, curves = grounds.question, grounds.curves
    ranks = quantities.listed([str(rank) for rank in question.ranks])
    if not study.is_in_points:
        yield "the study is judged by its loss, and the collection in points"
    if len(question.ranks) < 2:
        yield f"the study has rank {ranks} alone, and a choice needs two ranks"
    elif grounds.num_tasks < MIN_TASKS:
        yield (
            f"the collection has studies of {quantities.counted(grounds.num_tasks, 'task')} in "
            f"points with this base, {quantities.modules(study.target_modules)} adapted, ranks "
            f"{ranks} with rates and alphas in the same proportions, and two seeds, and "
            f"{MIN_TASKS} are needed; add finished studies with `rankwise collect`"
        )
    else:
        rates = [curve.question.rates[0] for curve in curves]
        what = f"the learning rate of rank {question.ranks[0]}"
        yield from _beyond(what, question.rates[0], rates, has_logarithm=True)
        what = f"the alpha of rank {question.ranks[0]}"
        yield from _beyond(what, study.alphas[0], grounds.alphas, has_logarithm=True)
        for name, has_logarithm in RIDGE_FEATURES.items():
            if name in question.features:
                known = [curve.question.features[name] for curve in curves]
                value = question.features[name]
                yield from _beyond(name, value, known, has_logarithm=has_logarithm)


def _beyond(
    name: str, value: float, known: Sequence[float], *, has_logarithm: bool
) -> Iterator[str]:
    """A sentence where a value is too far from those of the collection."""
    ends = np.array([value, min(known), max(known)])
    if has_logarithm and ends.min() <= 0.0:
        return  # the ridge does not read it either
    if not has_logarithm and min(known) == max(known):
        return  # nor one that has never varied
    here, low, high = np.log2(ends) if has_logarithm else ends
    reach = max(MARGIN * (high - low), DOUBLING if has_logarithm else 0.0)
    if not low - reach <= here <= high + reach:
        yield (
            f"{name} is {quantities.number(value)}, and the collection has "
            f"{quantities.number(min(known))} to {quantities.number(max(known))}"
        )


def _not_better(judgement: Judgement, ridge: Judged, grounds: _Grounds) -> str:
    best = judgement.best_constant
    constant = next(each for each in CONSTANTS if each.name == best.name)
    rank = choose(constant.fit(grounds.curves, "gain"), grounds.question).rank
    return (
        "nothing is shown to choose better than a constant: on tasks that were left out the regret "
        f"of the ridge is {_points(ridge)}, and that of {best.name!r}, which is rank {rank} here, "
        f"{_points(best)}"
    )


def _points(judged: Judged) -> str:
    return quantities.with_interval(_regret(judged), "points", signed=False)


def _regret(judged: Judged) -> Regret:
    value, lower, upper = judged.regret
    return Regret(predictor=judged.name, estimate=value, lower=lower, upper=upper)


def _expected(question: Question, choice: Choice) -> Iterator[ExpectedRank]:
    below = choice.values[choice.place] - choice.values
    for rank, points in zip(question.ranks, below, strict=True):
        yield ExpectedRank(rank=rank, below_chosen=float(points))
