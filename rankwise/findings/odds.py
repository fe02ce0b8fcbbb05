"""From a posterior to odds: how probable it is that an option is right, and which is worth most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rankwise.findings.decision import Ends, Margins, judge
from rankwise.findings.stats.blocks import Block, normal_draws
from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.posterior import GAIN_PRIOR, LOSS_PRIOR, Posterior, posterior
from rankwise.findings.stats.prospects import GrownBlock, Growth, grow, pair_ends
from rankwise.findings.stats.simultaneous import StudyEvidence, worst_task
from rankwise.records.config.study import MARGIN_POINTS
from rankwise.records.study import Unit

NUM_DRAWS = 4096
"""At this number a probability is exact to 0.008 (one standard error)."""

NUM_FUTURES = 1024
"""Draws of what a grown study would show; exact to 0.016."""

PRICE = 2.0
"""Points of gain that a point of retention loss beyond what is acceptable is worth."""

TASK_SPREAD = 3.0
"""Points by which losses of single tasks are taken to differ from their mean before anything is
seen (standard deviation). A convention of ours."""

MOST_TASKS = 8
"""Retention tasks of which a growth is simulated: those that are least surely below the ceiling."""

_SEED = 20260102
"""Fixed, so that the same results always give the same odds."""


def point_in(unit: Unit, delta: float) -> float:
    """What a point counts in the unit of the gains: a fifth of delta, as of 5 points."""
    return 1.0 if unit == "points" else delta / MARGIN_POINTS


def worth(
    gain: ArrayLike, loss: ArrayLike, margins: Margins, point: float, worst: ArrayLike = -np.inf
) -> Floats:
    """The gain less the price of retention loss beyond the margins, in the unit of the gains.

    Args:
        gain: of one option, or of many: any shape.
        loss: on average over the tasks, in points, of the same shape.
        margins: what is acceptable.
        point: from ``point_in``.
        worst: of the task that loses most, where that is judged.
    """
    over = np.maximum(
        np.asarray(loss, dtype=np.float64) - margins.epsilon_points,
        np.asarray(worst, dtype=np.float64) - margins.ceiling,
    )
    return np.asarray(gain, dtype=np.float64) - PRICE * point * np.maximum(over, 0.0)


def most_worth(evidence: StudyEvidence, margins: Margins, point: float) -> int | None:
    """The place of the option that is estimated to be worth most; None where that is nothing."""
    values = evidence.in_domain.mean
    if evidence.retention is not None:
        worst = np.max([task.mean for task in evidence.tasks], axis=0)
        values = worth(values, evidence.retention.mean, margins, point, worst)
    best = int(values.argmax())
    return best if values[best] > 0.0 or not margins.has_base else None


class Growths(NamedTuple):
    """Of the in-domain block, of the retention block if there is one, and of each of its tasks."""

    in_domain: Growth
    retention: Growth | None
    tasks: tuple[Growth, ...] = ()


class Truths(NamedTuple):
    """Draws of what K options may be worth: (N, K) gains in-domain, (N, K) losses in points.

    The variances of a run around its option are (N,). ``losses`` are None if not measured, and
    ``worst`` are those of the task that loses most.
    """

    gains: Floats
    gain_run_variances: Floats
    losses: Floats | None
    loss_run_variances: Floats | None
    worst: Floats | None


class Odds(NamedTuple):
    """Of each option (K,) the probability of each condition, and of all three."""

    better: Floats
    keeps: Floats
    near: Floats
    right: Floats


class Believed(NamedTuple):
    """The posterior of a study: of the gains, and of the losses if they were measured."""

    evidence: StudyEvidence
    gain: Posterior
    loss: Posterior | None

    @classmethod
    def of(cls, evidence: StudyEvidence, unit: float) -> Believed:
        """From the scores; ``unit`` is what a point of the priors is in the gains' unit."""
        retention = evidence.retention
        return cls(
            evidence,
            posterior(evidence.in_domain, GAIN_PRIOR, unit),
            None if retention is None else posterior(retention, LOSS_PRIOR, 1.0),
        )

    def truths(self, number: int = NUM_DRAWS) -> Truths:
        """Draws of the truths, always the same."""
        rng = np.random.default_rng(_SEED)
        gains = self.gain.draws(rng, number)
        if self.loss is None:
            return Truths(*gains, None, None, None)
        losses, run_variances = self.loss.draws(rng, number)
        worst: Floats | None = None
        tasks = self.evidence.tasks
        for drawn in _task_truths(tasks, range(len(tasks)), losses, rng):
            worst = drawn if worst is None else np.maximum(worst, drawn)
        return Truths(*gains, losses, run_variances, worst)


def _task_truths(
    tasks: Sequence[Block], places: Sequence[int], losses: Floats, rng: np.random.Generator
) -> Iterator[Floats]:
    """Of some retention tasks their (N, K) losses, from draws of the options' mean losses, (N, K).

    A task is as far from its option's mean as the study says, shrunk by how little tasks differ:
    the worst of several estimates is too large. How far they differ is pooled over the options,
    with as much weight on ``TASK_SPREAD`` as on one task.

    Args:
        tasks: all that the mean is of.
        places: of those that are drawn.
        losses: draws of the means.
        rng: draws.
    """
    means = np.array([task.mean for task in tasks])  # (T, K)
    variances = np.array([np.diagonal(task.item_covariance) for task in tasks])
    apart, more = means - means.mean(axis=0), len(tasks) - 1
    seen = (apart**2).sum(axis=0).mean() - more * variances.mean()  # as of T - 1 tasks
    spread = max((seen + TASK_SPREAD**2) / len(tasks), 0.0)
    kept = spread / (spread + variances)  # (T, K)
    # of a distance from the mean of all
    scale = np.sqrt(kept * more / len(tasks))
    for place in places:
        noise = normal_draws(tasks[place].item_covariance, rng, len(losses))
        yield losses + kept[place] * apart[place] + scale[place] * noise


def odds(truths: Truths, margins: Margins) -> Odds:
    """How probable it is that each option is right.

    Right is what the rule asks: better than the base; a retention loss below epsilon on average,
    and below the ceiling on every task; at most delta below the best option that keeps as much.

    Args:
        truths: draws of what the options are worth.
        margins: epsilon and the ceiling are unused where losses were not measured.
    """
    gains = truths.gains
    is_kept = np.ones(gains.shape, dtype=bool)
    if truths.losses is not None:
        is_kept = truths.losses <= margins.epsilon_points
    if truths.worst is not None:
        is_kept &= truths.worst <= margins.ceiling
    best = np.where(is_kept, gains, -np.inf).max(axis=1, keepdims=True)
    better, near = (gains > 0.0) | (not margins.has_base), gains >= best - margins.delta
    return Odds(
        better=better.mean(axis=0),
        keeps=is_kept.mean(axis=0),
        near=near.mean(axis=0),
        right=(better & is_kept & near).mean(axis=0),
    )


def chance_of_decision(
    evidence: StudyEvidence,
    truths: Truths,
    growths: Growths,
    margins: Margins,
    level: float,
    unsure: Sequence[int],
) -> float:
    """The probability that the rule decides after a growth.

    Args:
        evidence: of the study now.
        truths: draws from its posterior; the first ``NUM_FUTURES`` are used.
        growths: of the in-domain items, and of the retention items.
        margins: as the study is judged.
        level: one-sided, at which the grown study will be judged.
        unsure: from ``unsure_tasks``, the same for all growths.
    """
    rng, count = np.random.default_rng(_SEED), evidence.num_options
    first = slice(NUM_FUTURES)
    gained = grow(
        evidence.in_domain,
        truths.gains[first],
        truths.gain_run_variances[first],
        growths.in_domain,
        rng,
    )
    loss: Ends | None = None
    worst: Ends | None = None
    if evidence.retention is not None and growths.retention is not None:
        assert truths.losses is not None
        assert truths.loss_run_variances is not None
        run_variances = truths.loss_run_variances[first]
        lost = grow(evidence.retention, truths.losses[first], run_variances, growths.retention, rng)
        loss = lost.ends(np.eye(count), level)
        drawn = _task_truths(evidence.tasks, unsure, truths.losses[first], rng)
        of_tasks = [
            grow(evidence.tasks[place], losses, run_variances, growths.tasks[place], rng)
            for place, losses in zip(unsure, drawn, strict=True)
        ]
        worst = _worst_ends(of_tasks, count, level, len(evidence.tasks))
    gain, lead = gained.ends(np.eye(count), level), pair_ends(gained, count, level)
    return float(judge(gain, loss, worst, lead, margins).is_decided.mean())


def unsure_tasks(tasks: Sequence[Block], margins: Margins, level: float) -> list[int]:
    """The places of tasks that are not shown to be below the ceiling with every option: a few."""
    uppers = [float(worst_task([task], level).upper.max()) for task in tasks]
    order = sorted(range(len(tasks)), key=lambda place: -uppers[place])[:MOST_TASKS]
    return [place for place in order if uppers[place] >= margins.ceiling]


def _worst_ends(
    grown: Sequence[GrownBlock], count: int, level: float, num_tasks: int
) -> Ends | None:
    """As ``simultaneous.worst_task``, without the skewness; None where every task is settled."""
    if not grown:
        return None
    one, shared = np.eye(count), 1.0 - (1.0 - level) / num_tasks
    lower = np.max([task.ends(one, shared)[0] for task in grown], axis=0)
    return lower, np.max([task.ends(one, level)[1] for task in grown], axis=0)
