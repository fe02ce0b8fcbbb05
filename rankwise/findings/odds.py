"""Which option to bet on, and what more items or seeds would do to a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rankwise.findings.decision import Margins, Odds, choose, odds
from rankwise.findings.options import Option
from rankwise.findings.stats.blocks import Block, StudyEvidence
from rankwise.findings.stats.items import Floats, Mask
from rankwise.findings.stats.prospects import GrownBlock, Growth, grow, probability_below
from rankwise.findings.stats.truths import Truths, num_draws, truths_of
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

NUM_FUTURES = 1024
"""Draws of what a grown study would show; exact to 0.016."""

PRICE = 2.0
"""Points of gain that a point of retention loss beyond what is acceptable is worth."""

_MOST_LEADS = 1 << 21
"""Leads of futures that are judged at a time: 16 MB, of which judging holds some ten times."""

_SEED = 20260103
"""Fixed, so that the same results always give the same projections."""


def point_in(unit: Unit, delta: float) -> float:
    """A point of the prior of runs in the gains' unit: a fifth of delta, which stands for 5."""
    return 1.0 if unit == "points" else delta / MARGIN_POINTS


def worth(
    gain: ArrayLike, loss: ArrayLike, margins: Margins, point: float, worst: ArrayLike = -np.inf
) -> Floats:
    """The gain less the price of retention loss beyond the margins, in the unit of the gains.

    Searches and checkpoints compare settings by it before anything is shown.

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


class Growths(NamedTuple):
    """The factors by which the items of each task grow, and the runs that every option gets."""

    in_domain: Sequence[float]
    retention: Sequence[float]
    num_new_runs: int

    def of(self, block: Block, by_task: Sequence[float]) -> Growth:
        """How a block grows; tasks that share clusters grow as the slowest of them."""
        factors = (min(by_task[place] for place in part.places) for part in block.parts)
        return Growth(tuple(factors), self.num_new_runs)


def chance_of_decision(
    evidence: StudyEvidence,
    truths: Truths,
    growths: Growths,
    margins: Margins,
    level: float,
    is_finished: Mask | None = None,
) -> float:
    """The probability that the rule decides about the adapters after a growth.

    Args:
        evidence: of the study now.
        truths: draws of the options on average over seeds; the first ``NUM_FUTURES`` are used.
        growths: of the in-domain items, and of the retention items.
        margins: as the study is judged.
        level: at which the grown study will be judged.
        is_finished: (K,) of which options no run diverged; None: of all. The others are never
            recommended.
    """
    rng = np.random.default_rng(_SEED)
    growth = growths.of(evidence.in_domain, growths.in_domain)
    gained = grow(evidence.in_domain, truths.gains[:NUM_FUTURES], growth, rng)
    better = 1.0 - probability_below(0.0, gained.mean, gained.stderr)
    if not margins.has_base:
        better = np.ones_like(better)
    keeps = np.ones_like(better)
    if evidence.retention is not None and truths.losses is not None:
        growth = growths.of(evidence.retention, growths.retention)
        lost = grow(evidence.retention, truths.losses[:NUM_FUTURES], growth, rng)
        keeps = _keeping(evidence.tasks, lost, growths, margins)
    at_once = max(1, _MOST_LEADS // evidence.num_options**2)
    is_decided = [
        _is_decided(
            gained._replace(mean=gained.mean[part]),
            better[part],
            keeps[part],
            margins,
            level,
            True if is_finished is None else is_finished,
        )
        for part in (slice(at, at + at_once) for at in range(0, len(better), at_once))
    ]
    return float(np.concatenate(is_decided).mean())


def _keeping(
    tasks: Sequence[Block], lost: GrownBlock, growths: Growths, margins: Margins
) -> Floats:
    """(N, K) of the condition that is least sure; tasks are as far from their mean as now."""
    misses = 1.0 - probability_below(margins.epsilon_points, lost.mean, lost.stderr)
    now = np.mean([task.mean for task in tasks], axis=0)
    for place, task in enumerate(tasks):
        own = growths.of(task, growths.retention[place : place + 1]).of_items(task)
        stderr = np.sqrt(np.diagonal(own))
        below = probability_below(margins.ceiling, lost.mean + task.mean - now, stderr)
        misses = np.maximum(misses, 1.0 - below)
    return 1.0 - misses


def _is_decided(
    gained: GrownBlock,
    better: Floats,
    keeps: Floats,
    margins: Margins,
    level: float,
    is_finished: Mask | bool,
) -> Mask:
    """(N,) whether an option is recommended, or all are rejected."""
    lead = gained.mean[:, :, None] - gained.mean[:, None, :]
    behind = probability_below(-margins.delta, lead, gained.lead_stderr)
    # the column is another option that was not rejected
    is_rival = (keeps > 1.0 - level)[:, None, :] & ~np.eye(lead.shape[1], dtype=bool)
    near = 1.0 - (behind * is_rival).sum(axis=2)
    is_shown = (np.minimum(np.minimum(better, keeps), near) >= level) & is_finished
    is_rejected = np.minimum(better, keeps) <= 1.0 - level
    return np.logical_or(is_shown.any(axis=1), is_rejected.all(axis=1))


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

    Attributes:
        adapters: draws of the truths of the runs that are there, by which the rule decides.
        now: the odds of each option by them.
        is_finished: (K,) of which options no run diverged.
        is_able: which options qualify.
        choice: what the rule says.

    Args:
        evidence: their scores.
        options: in the same order.
        margins: as the study is judged.
        level: that decides.
    """

    def __init__(
        self,
        evidence: StudyEvidence,
        options: Sequence[Option],
        margins: Margins,
        level: float,
    ) -> None:
        self.evidence, self.options = evidence, options
        self.margins, self.level = margins, level
        number = num_draws(len(options), level)
        self.adapters = truths_of(evidence, "adapters", number)
        # an imported adapter, or a model without a rank, is used as it is
        self._is_repeatable = np.array([option.is_repeatable for option in options])
        self.is_finished = np.array([not option.diverged_seeds for option in options])
        self.now = odds(self.adapters, margins)
        self.is_able = ((self.now.shown >= level) & self.is_finished).tolist()
        self.choice = choose(self.now, level, self.is_finished)

    def best_bet(self) -> BestBet:
        """The odds of every option, at this acceptable loss and at others."""
        average, later = (
            odds(
                truths_of(self.evidence, question, is_repeatable=self._is_repeatable), self.margins
            )
            for question in ("rank", "next_run")
        )
        options = tuple(
            OptionOdds(
                label=option.label,
                rank=option.plan.rank or 0,
                better_than_base=float(self.now.better[place]),
                keeps_enough=float(self.now.keeps[place]),
                near_the_best=float(self.now.near[place]),
                right=float(self.now.right[place]),
                right_on_average=float(average.right[place]),
                right_next_run=float(later.right[place]) * option.share_finished,
            )
            for place, option in enumerate(self.options)
        )
        by_epsilon: list[EpsilonOdds] = []
        epsilon = self.margins.epsilon
        for loss in () if epsilon is None else sorted({*EPSILONS, epsilon}):
            then = odds(self.adapters, self.margins._replace(epsilon=loss))
            right = tuple(then.right.tolist())
            own = self._choice(then)
            by_epsilon.append(EpsilonOdds(epsilon_points=loss, right=right, choice=own))
        return BestBet(
            options=options,
            none=self.now.none,
            choice=self._choice(self.now),
            by_epsilon=tuple(by_epsilon),
        )

    def _choice(self, now: Odds) -> str | None:
        """The option that the rule recommends, or else the one to bet on."""
        place = choose(now, self.level, self.is_finished).option
        if place is None:
            place = now.bet
        return None if place is None else self.options[place].label

    def prospects(self, sizes: Sizes, level: float) -> Iterator[Prospect]:
        """The effect of each way to grow the study, judged at this level afterwards."""
        now = {**sizes.in_domain, **sizes.retention}
        truths = truths_of(self.evidence, "rank", NUM_FUTURES, self._is_repeatable)
        for add, growing, num_new_seeds in self._ways(sizes):
            factors = {task: number / now[task] for task, number in growing.items()}
            growths = Growths(
                [factors.get(task, 1.0) for task in sizes.in_domain],
                [factors.get(task, 1.0) for task in sizes.retention],
                num_new_seeds,
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
                num_seeds=sizes.num_seeds + num_new_seeds,
                num_new_seeds=num_new_seeds,
                probability=chance_of_decision(
                    self.evidence, truths, growths, self.margins, level, self.is_finished
                ),
            )

    def _ways(self, sizes: Sizes) -> Iterator[tuple[Addition, dict[str, int], int]]:
        """Each way to grow: what is added, the sizes of tasks that grow, and the new seeds."""
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
                    yield add, items, 0
            by_task = sizes.grown(tasks, TASK_FACTOR)
            if of is not None and len(by_task) > 1:
                for task in _noisiest(of, tuple(tasks), by_task):
                    yield add, {task: by_task[task]}, 0
        # an imported adapter has no other seed: in a study of more seeds it takes no part
        for more in MORE_SEEDS if self._is_repeatable.all() else ():
            yield "seeds", {}, more


def _noisiest(of: Block, tasks: Sequence[str], some: Mapping[str, int]) -> list[str]:
    """At most ``MOST_GROWN`` of some tasks of a block, in their order."""
    variances = {
        tasks[place]: float(np.trace(part.items + part.pseudo))
        for part in of.parts
        for place in part.places
    }
    kept = sorted(some, key=lambda task: -variances[task])[:MOST_GROWN]
    return [task for task in some if task in kept]
