"""How good predictors are on studies of tasks that they have not seen, and whether one is better.

The comparison is the one of docs/studies/prediction.md, which was written down before it was run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.prediction.curves import RankCurve, Target, left_out_in_turn
from benchmarks.prediction.laws import LAWS
from benchmarks.prediction.learned import LEARNED
from benchmarks.prediction.predictors import (
    CONSTANTS,
    SIMPLE_RULES,
    Kind,
    Predictor,
    choose,
    first_best,
)
from rankwise.findings.stats.estimates import student_interval
from rankwise.findings.stats.items import Floats

PREDICTORS = (*CONSTANTS, *SIMPLE_RULES, *LAWS, *LEARNED)
CONFIDENCE = 0.95
SPLITS = 10
MIN_TASKS = 4
"""With fewer tasks an interval over them is too wide to say anything."""


class Mean(NamedTuple):
    """A mean over tasks with its bounds by Student's t over tasks."""

    value: float
    lower: float
    upper: float

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.upper < 0.0


class Judged(NamedTuple):
    """A predictor's record on one target.

    ``by_task`` has the regret of each task that was left out, its studies averaged;
    ``choices`` the rank that it chose for each study. ``less_constants`` is its regret less that
    of each constant, negative where it is better.
    """

    name: str
    kind: Kind
    regret: Mean
    by_task: Mapping[str, float]
    choices: Mapping[str, int]
    less_constants: Mapping[str, Mean]

    @property
    def beats_the_constants(self) -> bool:
        """Whether its regret is shown to be below that of each of ``CONSTANTS``."""
        less = self.less_constants
        return self.kind != "constant" and all(
            each.name in less and less[each.name].is_below_zero for each in CONSTANTS
        )


class Judgement(NamedTuple):
    """All predictors on one target; ``not_judged`` lack features or do not speak of it."""

    target: Target
    num_tasks: int
    judged: tuple[Judged, ...]
    not_judged: tuple[str, ...]

    def of(self, name: str) -> Judged | None:
        """The record of a predictor; None where it was not judged."""
        return next((each for each in self.judged if each.name == name), None)

    @property
    def best_constant(self) -> Judged:
        """The one with the smallest regret."""
        constants = [each for each in self.judged if each.kind == "constant"]
        return min(constants, key=lambda each: each.regret.value)


def judge(
    curves: Sequence[RankCurve],
    target: Target,
    predictors: Sequence[Predictor] = PREDICTORS,
    *,
    measured_on: Target | None = None,
    seed: int = 0,
) -> Judgement:
    """Every predictor on every study, fitted on the studies of other tasks.

    Features that some study lacks are left out for all, so that every fit has the same ones.

    Args:
        curves: of studies; those without what the targets need are left out.
        target: what predictors choose by.
        predictors: that are compared, the constants among them.
        measured_on: what their choices are judged by; None: the same.
        seed: of the splits.

    Raises:
        ValueError: fewer than ``MIN_TASKS`` tasks are left.
    """
    measured_on = measured_on or target
    curves = [curve for curve in curves if curve.has(target) and curve.has(measured_on)]
    tasks = tuple(dict.fromkeys(curve.task for curve in curves))
    if len(tasks) < MIN_TASKS:
        raise ValueError(f"{len(tasks)} tasks: a comparison over tasks needs {MIN_TASKS}")
    names = set.intersection(*(set(curve.question.features) for curve in curves))
    curves = [curve.with_features(names) for curve in curves]
    able = [each for each in predictors if each.speaks_of(curves, target)]
    regrets = {curve.name: regrets_of(curve, measured_on, seed) for curve in curves}
    places = {each.name: _choices(each, curves, target) for each in able}
    by_task = {
        name: {
            task: float(np.mean([regrets[c.name][of[c.name]] for c in curves if c.task == task]))
            for task in tasks
        }
        for name, of in places.items()
    }
    table = {name: np.array(list(of.values())) for name, of in by_task.items()}
    constants = [each.name for each in able if each.kind == "constant"]
    judged = tuple(
        Judged(
            name=each.name,
            kind=each.kind,
            regret=mean_over_tasks(table[each.name]),
            by_task=by_task[each.name],
            choices={c.name: c.ranks[places[each.name][c.name]] for c in curves},
            less_constants={n: mean_over_tasks(table[each.name] - table[n]) for n in constants},
        )
        for each in able
    )
    left = tuple(each.name for each in predictors if each not in able)
    return Judgement(target, len(tasks), judged, left)


def regrets_of(curve: RankCurve, target: Target, seed: int = 0) -> Floats:
    """(ranks,): how far each rank is below the best, which other seeds and items choose.

    The other seeds' nine tenths of the items choose the best rank, this seed's last tenth measures
    it and all ranks, each in turn; the mean over ``SPLITS`` ways of dealing out.
    """
    rng = np.random.default_rng([seed, *curve.name.encode()])
    found = list[Floats]()
    for _ in range(SPLITS):
        others, these = curve.split(target, rng)
        best = first_best(others)
        regrets = np.take_along_axis(these, best[..., None], axis=-1) - these
        found.append(regrets.mean(axis=(0, 1)))
    return np.mean(found, axis=0)


def mean_over_tasks(values: Sequence[float] | Floats) -> Mean:
    """Of one number for each task, at least two, with the bounds of Student's t."""
    mean = float(np.mean(values))
    return Mean(mean, *student_interval(mean, values, CONFIDENCE))


def _choices(predictor: Predictor, curves: Sequence[RankCurve], target: Target) -> dict[str, int]:
    """Name of a curve -> the place of the rank that is chosen without its task."""
    found = dict[str, int]()
    for held_out, others in left_out_in_turn(curves):
        forecast = predictor.fit(others, target)
        found |= {curve.name: choose(forecast, curve.question).place for curve in held_out}
    return found
