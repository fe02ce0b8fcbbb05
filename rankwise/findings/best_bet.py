"""The odds of every option, and what more items or seeds would do to a study."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np

from rankwise.findings.odds import PRICE, Believed, Odds, Truths, chance_of_decision, odds
from rankwise.findings.options import Option
from rankwise.findings.stats.blocks import Block
from rankwise.findings.stats.posterior import setting_correlations, smooth_correlations
from rankwise.findings.stats.prospects import Growth
from rankwise.findings.stats.simultaneous import StudyEvidence
from rankwise.records.judgement import Addition, BestBet, EpsilonOdds, OptionOdds, Prospect

TOLERANCE_POINTS = 1.0
"""An option this near to the best is as good."""

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


class Rule(NamedTuple):
    """How the study will be judged when it has grown."""

    delta: float
    epsilon: float
    level: float


class Betting:
    """What is believed of the options of a study.

    Args:
        evidence: their scores.
        options: in the same order.
        unit: what a point of the priors is in the unit of the gains.
    """

    def __init__(self, evidence: StudyEvidence, options: Sequence[Option], unit: float) -> None:
        ranks = [option.plan.rank or 1 for option in options]
        correlations = smooth_correlations(ranks, setting_correlations(_settings(options)))
        self.options, self.unit = options, unit
        self.believed = Believed.of(evidence, correlations, unit)
        self.truths: Truths = self.believed.truths()

    def best_bet(self, delta: float, epsilon: float | None) -> BestBet:
        """The odds of every option at this acceptable loss and at others."""
        now, within_delta = self._odds(epsilon or 0.0), self._odds(epsilon or 0.0, delta)
        options = tuple(
            OptionOdds(
                label=option.label,
                rank=option.plan.rank or 0,
                better_than_base=float(now.better[place]),
                keeps_enough=float(now.keeps[place]),
                near_the_best=float(now.near[place]),
                right=float(now.right[place]),
                qualifies=float(within_delta.right[place]),
                expected_regret=float(now.regret[place]),
            )
            for place, option in enumerate(self.options)
        )
        return BestBet(
            tolerance=TOLERANCE_POINTS * self.unit,
            price=PRICE,
            options=options,
            choice=self._choice(now),
            expected_regret=self._regret(epsilon or 0.0),
            regret_of_base=now.regret_of_base,
            by_epsilon=()
            if epsilon is None
            else tuple(self._at(loss) for loss in sorted({*EPSILONS, epsilon})),
        )

    def prospects(self, sizes: Sizes, rule: Rule) -> Iterator[Prospect]:
        """What each way to grow the study would do."""
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
                    yield self._prospect(add, items, sizes.num_seeds, sizes, rule)
            by_task = sizes.grown(tasks, TASK_FACTOR)
            if add != "items" and len(by_task) > 1:
                for task in self._noisiest(add, by_task, sizes):
                    growing = {task: by_task[task]}
                    yield self._prospect(add, growing, sizes.num_seeds, sizes, rule)
        # an imported adapter has no other seed: in a study of more seeds it takes no part
        can_repeat = all(option.plan.imported_as is None for option in self.options)
        for more in MORE_SEEDS if can_repeat else ():
            yield self._prospect("seeds", {}, sizes.num_seeds + more, sizes, rule)

    def _noisiest(self, add: Addition, tasks: Mapping[str, int], sizes: Sizes) -> list[str]:
        """At most ``MOST_TASKS`` of some tasks of one kind, in their order."""
        if len(tasks) <= MOST_TASKS:
            return list(tasks)
        in_domain, retention = self.believed.evidence
        of, kind = (
            (in_domain, sizes.in_domain) if add == "in_domain" else (retention, sizes.retention)
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
        rule: Rule,
    ) -> Prospect:
        now = {**sizes.in_domain, **sizes.retention}
        factors = {task: number / now[task] for task, number in growing.items()}
        in_domain, retention = self.believed.evidence

        def growth(of: Block, kind: Mapping[str, int]) -> Growth:
            by_task = [factors.get(task, 1.0) for task in kind]
            # tasks that share clusters grow as the slowest of them
            return Growth(
                tuple(min(by_task[place] for place in part.places) for part in of.parts), num_seeds
            )

        growths = (
            growth(in_domain, sizes.in_domain),
            None if retention is None else growth(retention, sizes.retention),
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
            probability=chance_of_decision(
                self.believed.evidence,
                self.truths,
                growths,
                level=rule.level,
                delta=rule.delta,
                epsilon=rule.epsilon,
            ),
            value=min(self.believed.value(growths, rule.epsilon), self._regret(rule.epsilon)),
        )

    def _at(self, epsilon: float) -> EpsilonOdds:
        then = self._odds(epsilon)
        right = tuple(float(share) for share in then.right)
        return EpsilonOdds(epsilon_points=epsilon, right=right, choice=self._choice(then))

    def _odds(self, epsilon: float, tolerance: float | None = None) -> Odds:
        tolerance = TOLERANCE_POINTS * self.unit if tolerance is None else tolerance
        return odds(self.truths, tolerance=tolerance, epsilon=epsilon, unit=self.unit)

    def _regret(self, epsilon: float) -> float:
        """The expected regret of the best choice."""
        of = self._odds(epsilon)
        return min(float(of.regret.min()), of.regret_of_base)

    def _choice(self, of: Odds) -> str | None:
        best = int(of.regret.argmin())
        return self.options[best].label if of.regret[best] < of.regret_of_base else None


def _settings(options: Sequence[Option]) -> list[tuple[Set[Hashable], ...]]:
    """The labels of each option's settings besides the rank."""
    return [
        (
            set(option.plan.alpha_labels or (str(option.plan.alpha),)),
            set(option.plan.rate_labels or (str(option.plan.learning_rate),)),
            {frozenset(option.plan.target_modules)},
            {option.plan.epochs},
        )
        for option in options
    ]
