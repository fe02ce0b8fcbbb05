"""The odds of every option, and what more items or seeds would do to a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rankwise.findings.decision import Margins, choose
from rankwise.findings.odds import (
    Believed,
    Growths,
    Truths,
    chance_of_decision,
    most_worth,
    odds,
    unsure_tasks,
)
from rankwise.findings.options import Option
from rankwise.findings.stats.blocks import Block
from rankwise.findings.stats.prospects import Growth
from rankwise.findings.stats.simultaneous import StudyBounds, StudyEvidence
from rankwise.records.judgement import Addition, BestBet, EpsilonOdds, OptionOdds, Prospect

EPSILONS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 25.0)
"""The acceptable losses, in points, for which the odds are given, besides the study's own."""

ITEM_FACTORS = (2.0, 4.0, 10.0)
TASK_FACTOR = 4.0
MOST_TASKS = 8
"""Of one kind, for which it is said what more of their items alone would do: those whose items
bring most of the variance. One task of hundreds hardly moves their mean."""
MORE_SEEDS = (2, 4)


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
    """What is believed of the options of a study.

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
        self.truths: Truths = Believed.of(evidence, point).truths()

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
        epsilon = self.margins.epsilon
        others = () if epsilon is None else sorted({*EPSILONS, epsilon})
        return BestBet(
            options=options,
            choice=self._choice(bounds, self.margins),
            by_epsilon=tuple(self._at(bounds, loss) for loss in others),
        )

    def _at(self, bounds: StudyBounds, epsilon: float) -> EpsilonOdds:
        margins = self.margins._replace(epsilon=epsilon)
        right = tuple(odds(self.truths, margins).right.tolist())
        return EpsilonOdds(
            epsilon_points=epsilon, right=right, choice=self._choice(bounds, margins)
        )

    def _choice(self, bounds: StudyBounds, margins: Margins) -> str | None:
        """What the rule recommends, else what is estimated to be worth most."""
        place = choose(bounds, margins).option
        if place is None:
            place = most_worth(self.evidence, margins, self.point)
        return None if place is None else self.options[place].label

    def prospects(self, sizes: Sizes, level: float) -> Iterator[Prospect]:
        """What each way to grow the study would do, if it is judged at this level then."""
        unsure = unsure_tasks(self.evidence.tasks, self.margins, level)

        def chance(growths: Growths) -> float:
            return chance_of_decision(
                self.evidence, self.truths, growths, self.margins, level, unsure
            )

        kinds: dict[Addition, Mapping[str, int]] = {"in_domain": sizes.in_domain}
        if sizes.retention:
            kinds["retention"] = sizes.retention
            kinds["items"] = {**sizes.in_domain, **sizes.retention}
        for add, tasks in kinds.items():
            known: list[dict[str, int]] = [{}]
            for factor in ITEM_FACTORS:
                items = sizes.grown(tasks, factor)
                if items not in known:
                    known.append(items)
                    yield self._prospect(add, items, sizes.num_seeds, sizes, chance)
            by_task = sizes.grown(tasks, TASK_FACTOR)
            if add != "items" and len(by_task) > 1:
                for task in self._noisiest(add, by_task, sizes):
                    growing = {task: by_task[task]}
                    yield self._prospect(add, growing, sizes.num_seeds, sizes, chance)
        # an imported adapter has no other seed: in a study of more seeds it takes no part
        can_repeat = all(
            option.plan.role != "imported" or option.plan.seed is not None
            for option in self.options
        )
        for more in MORE_SEEDS if can_repeat else ():
            yield self._prospect("seeds", {}, sizes.num_seeds + more, sizes, chance)

    def _noisiest(self, add: Addition, tasks: Mapping[str, int], sizes: Sizes) -> list[str]:
        """At most ``MOST_TASKS`` of some tasks of one kind, in their order."""
        if len(tasks) <= MOST_TASKS:
            return list(tasks)
        of, kind = (
            (self.evidence.in_domain, sizes.in_domain)
            if add == "in_domain"
            else (self.evidence.retention, sizes.retention)
        )
        assert of is not None
        names = list(kind)
        variances = {
            names[place]: float(np.trace(part.items + part.pseudo))
            for part in of.parts
            for place in part.places
        }
        kept = set(sorted(tasks, key=lambda task: -variances[task])[:MOST_TASKS])
        return [task for task in tasks if task in kept]

    def _prospect(
        self,
        add: Addition,
        growing: Mapping[str, int],
        num_seeds: int,
        sizes: Sizes,
        chance: Callable[[Growths], float],
    ) -> Prospect:
        now = {**sizes.in_domain, **sizes.retention}
        factors = {task: number / now[task] for task, number in growing.items()}
        retention = self.evidence.retention

        def growth(of: Block, kind: Mapping[str, int]) -> Growth:
            by_task = [factors.get(task, 1.0) for task in kind]
            # tasks that share clusters grow as the slowest of them
            return Growth(
                tuple(min(by_task[place] for place in part.places) for part in of.parts), num_seeds
            )

        growths = Growths(
            growth(self.evidence.in_domain, sizes.in_domain),
            None if retention is None else growth(retention, sizes.retention),
            tuple(Growth((factors.get(task, 1.0),), num_seeds) for task in sizes.retention),
        )
        available = [sizes.available[task] for task in growing]
        known = [number for number in available if number is not None]
        return Prospect(
            add=add,
            factor=sum(growing.values()) / sum(now[task] for task in growing) if growing else None,
            num_items=dict(growing),
            num_available=sum(known) if len(known) == len(available) else None,
            num_new_items=max((n - now[task] for task, n in growing.items()), default=0),
            num_seeds=num_seeds,
            num_new_seeds=num_seeds - sizes.num_seeds,
            probability=chance(growths),
        )
