"""A rank before training, with what choosing so has cost on tasks that were not seen; or why not.

The answer rests on the record of the ridge, which is fitted on a collection: where it is not shown
to be better than every constant, there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.prediction.collected import CollectedStudy, is_of_probe
from benchmarks.prediction.curves import Question, RankCurve, curve_of
from benchmarks.prediction.judge import (
    MIN_TASKS,
    Judged,
    Judgement,
    judge,
)
from benchmarks.prediction.learned import RIDGE, RIDGE_FEATURES
from benchmarks.prediction.predictors import CONSTANTS, choose
from rankwise.records import quantities
from rankwise.records.study import Interval

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
    """

    base_fingerprint: str
    target_modules: tuple[str, ...]
    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    alphas: tuple[float, ...]


class Advice(NamedTuple):
    """``rank`` is None where it cannot be said, and ``reasons`` say why, one sentence each."""

    rank: int | None
    reasons: tuple[str, ...] = ()


class _Grounds(NamedTuple):
    """The curves of a collection that are of the question's kind, over its ranks alone.

    The question and the curves have the same features.
    """

    question: Question
    curves: tuple[RankCurve, ...]
    alphas: tuple[float, ...]
    """Of the smallest rank, of each curve."""

    @property
    def num_tasks(self) -> int:
        return len({curve.task for curve in self.curves})


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
    outside = tuple(_outside(study, grounds))
    if outside:
        return Advice(None, outside)
    judgement = judge(grounds.curves, "gain", (*CONSTANTS, RIDGE))
    ridge = judgement.of(RIDGE.name)
    assert ridge is not None  # it needs no feature
    if not ridge.beats_the_constants:
        return Advice(None, (_not_better(judgement, ridge, grounds),))
    return Advice(choose(RIDGE.fit(grounds.curves, "gain"), grounds.question).rank)


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
    if len(question.ranks) < 2:
        yield f"the study has rank {ranks} alone, and a choice needs two ranks"
    elif grounds.num_tasks < MIN_TASKS:
        yield (
            f"the collection has studies of {quantities.counted(grounds.num_tasks, 'task')} in "
            f"points with this base, {quantities.modules(study.target_modules)} adapted, ranks "
            f"{ranks} with rates and alphas in the same proportions, and two seeds, and "
            f"{MIN_TASKS} are needed; collect more finished studies"
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
    value, lower, upper = judged.regret
    interval = Interval(estimate=value, lower=lower, upper=upper)
    return quantities.with_interval(interval, "points", signed=False)
