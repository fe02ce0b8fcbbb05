"""From a posterior to odds: how probable it is that an option is right, and which is worth most.

Also what more items or seeds would do to a study.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankwise.findings.decision import Ends, Margins, choose, judge
from rankwise.findings.options import Option
from rankwise.findings.stats.blocks import Block, normal_draws
from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.posterior import GAIN_PRIOR, LOSS_PRIOR, posterior
from rankwise.findings.stats.prospects import GrownBlock, Growth, grow
from rankwise.findings.stats.simultaneous import StudyBounds, StudyEvidence, worst_task
from rankwise.records.config.study import MARGIN_POINTS
from rankwise.records.judgement import Addition, BestBet, EpsilonOdds, OptionOdds, Prospect
from rankwise.records.study import Unit

EPSILONS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 25.0)
"""The acceptable losses, in points, for which the odds are given, besides the study's own."""

ITEM_FACTORS = (2.0, 4.0, 10.0)
TASK_FACTOR = 4.0
MOST_GROWN = 8
"""The most tasks of one kind for which more items of that task alone are projected: those whose
items bring most of the variance. One task of hundreds hardly moves their mean."""
MORE_SEEDS = (2, 4)

NUM_DRAWS = 4096
"""The number of draws: a probability is exact to 0.008 (one standard error)."""

NUM_FUTURES = 1024
"""Draws of what a grown study would show; exact to 0.016."""

PRICE = 2.0
"""Points of gain that a point of retention loss beyond what is acceptable is worth."""

TASK_SPREAD = 3.0
"""Points by which losses of single tasks are taken to differ from their mean before anything is
seen (standard deviation). A convention of ours."""

MOST_UNSURE = 8
"""Retention tasks of which a growth is simulated: those that are least surely below the ceiling."""

_MOST_LEADS = 1 << 21
"""Leads of futures that are judged at a time: 16 MB, of which judging holds some ten times."""

_SEED = 20260102
"""Fixed, so that the same results always give the same odds."""


def point_in(unit: Unit, delta: float) -> float:
    """A point of the priors in the gains' unit: a fifth of delta, which stands for 5 points."""
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
    on_average = np.subtract(loss, margins.epsilon_points)
    over = np.maximum(on_average, np.subtract(worst, margins.ceiling))
    return np.subtract(gain, PRICE * point * np.maximum(over, 0.0))


def most_worth(evidence: StudyEvidence, margins: Margins, point: float) -> int | None:
    """The place of the option that is estimated to be worth most; None where that is nothing."""
    values = evidence.in_domain.mean
    if evidence.retention is not None:
        worst = np.max([task.mean for task in evidence.tasks], axis=0)
        values = worth(values, evidence.retention.mean, margins, point, worst)
    best = int(values.argmax())
    return best if values[best] > 0.0 or not margins.has_base else None


class Growths(NamedTuple):
    """The factors by which the items of each task grow, and the number of seeds."""

    in_domain: Sequence[float]
    retention: Sequence[float]
    num_seeds: int

    def of(self, block: Block, by_task: Sequence[float]) -> Growth:
        """How a block grows; tasks that share clusters grow as the slowest of them."""
        factors = (min(by_task[place] for place in part.places) for part in block.parts)
        return Growth(tuple(factors), self.num_seeds)


class Truths(NamedTuple):
    """Draws of what K options may be worth: (N, K) gains in-domain, (N, K) losses in points.

    Each stand before (N,) variances of a run around its option. ``losses`` are None if not
    measured, and ``worst`` (N, K) are those of the task that loses most.
    """

    gains: tuple[Floats, Floats]
    losses: tuple[Floats, Floats] | None = None
    worst: Floats | None = None


class Odds(NamedTuple):
    """The probability (K,) that an option meets each condition, and all three."""

    better: Floats
    keeps: Floats
    near: Floats
    right: Floats


def truths_of(evidence: StudyEvidence, unit: float) -> Truths:
    """Draws from the posterior of a study, always the same.

    Args:
        evidence: the scores.
        unit: what a point of the priors is in the gains' unit.
    """
    rng = np.random.default_rng(_SEED)
    gains = posterior(evidence.in_domain, GAIN_PRIOR, unit).draws(rng, NUM_DRAWS)
    if evidence.retention is None:
        return Truths(gains)
    losses = posterior(evidence.retention, LOSS_PRIOR, 1.0).draws(rng, NUM_DRAWS)
    of_tasks = _task_truths(evidence.tasks, range(len(evidence.tasks)), losses[0], rng)
    return Truths(gains, losses, functools.reduce(np.maximum, of_tasks))


def _task_truths(
    tasks: Sequence[Block], places: Sequence[int], losses: Floats, rng: np.random.Generator
) -> Iterator[Floats]:
    """Draws (N, K) of the losses on some retention tasks, given draws (N, K) of the mean losses.

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
    gains, _ = truths.gains
    is_kept = np.ones(gains.shape, dtype=bool)
    if truths.losses is not None and truths.worst is not None:
        is_kept = (truths.losses[0] <= margins.epsilon_points) & (truths.worst <= margins.ceiling)
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
    retention = evidence.retention
    gains, variances = (drawn[:NUM_FUTURES] for drawn in truths.gains)
    growth = growths.of(evidence.in_domain, growths.in_domain)
    gained = grow(evidence.in_domain, gains, variances, growth, rng)
    loss: Ends | None = None
    worst: Ends | None = None
    if retention is not None and truths.losses is not None:
        losses, variances = (drawn[:NUM_FUTURES] for drawn in truths.losses)
        growth = growths.of(retention, growths.retention)
        loss = grow(retention, losses, variances, growth, rng).ends("options", level)
        of_tasks: list[GrownBlock] = []
        drawn_losses = _task_truths(evidence.tasks, unsure, losses, rng)
        for place, drawn in zip(unsure, drawn_losses, strict=True):
            task = evidence.tasks[place]
            growth = growths.of(task, growths.retention[place : place + 1])
            of_tasks.append(grow(task, drawn, variances, growth, rng))
        if of_tasks:  # as in ``simultaneous.worst_task``, without the skewness
            shared = 1.0 - (1.0 - level) / len(evidence.tasks)
            worst = (
                np.max([task.ends("options", shared)[0] for task in of_tasks], axis=0),
                np.max([task.ends("options", level)[1] for task in of_tasks], axis=0),
            )
    decided: list[NDArray[np.bool_]] = []
    at_once = max(1, _MOST_LEADS // count**2)
    for start in range(0, len(gains), at_once):
        part = slice(start, start + at_once)
        some = gained.part(part)
        gain, lead = some.ends("options", level), some.ends("pairs", level)
        kept, least = (
            None if ends is None else (ends[0][part], ends[1][part]) for ends in (loss, worst)
        )
        decided.append(judge(gain, kept, least, lead, margins).is_decided)
    return float(np.concatenate(decided).mean())


def unsure_tasks(tasks: Sequence[Block], margins: Margins, level: float) -> list[int]:
    """The places of tasks that are not shown to be below the ceiling with every option: a few."""
    uppers = [float(worst_task([task], level).upper.max()) for task in tasks]
    order = sorted(range(len(tasks)), key=lambda place: -uppers[place])[:MOST_UNSURE]
    return [place for place in order if uppers[place] >= margins.ceiling]


class Sizes(NamedTuple):
    """The items of the tasks that decide, and how many there are in all.

    ``available`` is None for a task of which nobody recorded the number.
    """

    in_domain: Mapping[str, int]
    retention: Mapping[str, int]
    available: Mapping[str, int | None]
    num_seeds: int

    def grown(self, tasks: Mapping[str, int], factor: float) -> dict[str, int]:
        """The tasks that have more items, and how many of this factor times theirs there are."""
        items = {
            task: min(round(factor * size), self.available[task] or round(factor * size))
            for task, size in tasks.items()
        }
        return {task: number for task, number in items.items() if number > tasks[task]}


class Betting:
    """The odds of a study's options, and what growing the study would bring.

    Args:
        evidence: their scores.
        options: in the same order.
        margins: as the study is judged.
        point: what a point of the priors is in the unit of the gains.
    """

    def __init__(
        self, evidence: StudyEvidence, options: Sequence[Option], margins: Margins, point: float
    ) -> None:
        self.evidence, self.options, self.margins, self.point = evidence, options, margins, point
        self.truths = truths_of(evidence, point)

    def best_bet(self, bounds: StudyBounds) -> BestBet:
        """The odds of every option at this acceptable loss and at others.

        Args:
            bounds: that decide. What they show is the choice, else what is worth most.
        """
        now = odds(self.truths, self.margins)
        options = tuple(
            OptionOdds(
                label=option.label,
                rank=option.plan.rank or 0,
                better_than_base=float(now.better[place]),
                keeps_enough=float(now.keeps[place]),
                near_the_best=float(now.near[place]),
                right=float(now.right[place]),
            )
            for place, option in enumerate(self.options)
        )
        by_epsilon: list[EpsilonOdds] = []
        epsilon = self.margins.epsilon
        for loss in () if epsilon is None else sorted({*EPSILONS, epsilon}):
            margins = self.margins._replace(epsilon=loss)
            right = tuple(odds(self.truths, margins).right.tolist())
            own = self._choice(bounds, margins)
            by_epsilon.append(EpsilonOdds(epsilon_points=loss, right=right, choice=own))
        choice = self._choice(bounds, self.margins)
        return BestBet(options=options, choice=choice, by_epsilon=tuple(by_epsilon))

    def _choice(self, bounds: StudyBounds, margins: Margins) -> str | None:
        """The option that the rule recommends, or else the one estimated to be worth most."""
        place = choose(bounds, margins).option
        if place is None:
            place = most_worth(self.evidence, margins, self.point)
        return None if place is None else self.options[place].label

    def prospects(self, sizes: Sizes, level: float) -> Iterator[Prospect]:
        """The effect of each way to grow the study, judged at this level afterwards."""
        unsure = unsure_tasks(self.evidence.tasks, self.margins, level)
        now = {**sizes.in_domain, **sizes.retention}
        for add, growing, num_seeds in self._ways(sizes):
            factors = {task: number / now[task] for task, number in growing.items()}
            growths = Growths(
                [factors.get(task, 1.0) for task in sizes.in_domain],
                [factors.get(task, 1.0) for task in sizes.retention],
                num_seeds,
            )
            available = [sizes.available[task] for task in growing]
            known = [number for number in available if number is not None]
            total = sum(now[task] for task in growing)
            yield Prospect(
                add=add,
                factor=sum(growing.values()) / total if growing else None,
                num_items=dict(growing),
                num_available=sum(known) if len(known) == len(available) else None,
                num_new_items=max((n - now[task] for task, n in growing.items()), default=0),
                num_seeds=num_seeds,
                num_new_seeds=num_seeds - sizes.num_seeds,
                probability=chance_of_decision(
                    self.evidence, self.truths, growths, self.margins, level, unsure
                ),
            )

    def _ways(self, sizes: Sizes) -> Iterator[tuple[Addition, dict[str, int], int]]:
        """Each way to grow: what is added, the sizes of tasks that grow, and the seeds in all."""
        kinds: list[tuple[Addition, Mapping[str, int], Block | None]] = [
            ("in_domain", sizes.in_domain, self.evidence.in_domain)
        ]
        if sizes.retention:
            kinds.append(("retention", sizes.retention, self.evidence.retention))
            kinds.append(("items", {**sizes.in_domain, **sizes.retention}, None))
        for add, tasks, of in kinds:
            known: list[dict[str, int]] = [{}]
            for factor in ITEM_FACTORS:
                items = sizes.grown(tasks, factor)
                if items not in known:
                    known.append(items)
                    yield add, items, sizes.num_seeds
            by_task = sizes.grown(tasks, TASK_FACTOR)
            if of is not None and len(by_task) > 1:
                for task in _noisiest(of, tuple(tasks), by_task):
                    yield add, {task: by_task[task]}, sizes.num_seeds
        # an imported adapter has no other seed: in a study of more seeds it takes no part
        can_repeat = all(
            option.plan.role != "imported" or option.plan.seed is not None
            for option in self.options
        )
        for more in MORE_SEEDS if can_repeat else ():
            yield "seeds", {}, sizes.num_seeds + more


def _noisiest(of: Block, tasks: Sequence[str], some: Mapping[str, int]) -> list[str]:
    """At most ``MOST_GROWN`` of some tasks of a block, in their order."""
    variances = {
        tasks[place]: float(np.trace(part.items + part.pseudo))
        for part in of.parts
        for place in part.places
    }
    kept = sorted(some, key=lambda task: -variances[task])[:MOST_GROWN]
    return [task for task in some if task in kept]
