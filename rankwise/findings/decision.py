"""The rule: from simultaneous bounds to a recommended option, or to why there is none.

An option qualifies when its gain is above zero, its retention loss is below epsilon, and its
in-domain score is above every other option's that was not rejected on retention, less delta.
The first that qualifies is recommended, so options are given smallest first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import special

from rankwise.findings.stats.estimates import Spread, items_factor, seeds_needed
from rankwise.findings.stats.simultaneous import Bounds, StudyBounds
from rankwise.records.study import Outcome, State


class Choice(NamedTuple):
    """The rule applied to K options; ``option`` is an index, None unless recommended.

    ``shortfall`` holds (estimate, lower, upper) of how far each option is below the best other
    one that was not rejected; negative if it is above, and zero if there is no other.
    ``keeps_enough`` is None where retention was not measured.
    """

    outcome: Outcome
    option: int | None
    better_than_base: tuple[State, ...]
    keeps_enough: tuple[State, ...] | None
    near_the_best: tuple[State, ...]
    qualifies: tuple[bool, ...]
    shortfall: tuple[tuple[float, float, float], ...]


class Needed(NamedTuple):
    """What would decide if the estimates are right, with the power of ``stats``.

    The factors say by how much the items of each kind must grow (1: enough already), None
    where more of them alone would not do. ``seeds`` is a number in all.
    """

    in_domain_factor: float | None
    retention_factor: float | None
    seeds: int | None


def choose(bounds: StudyBounds, delta: float, epsilon: float | None) -> Choice:
    """Apply the rule.

    Args:
        bounds: of K options, smallest first.
        delta: margin in-domain, in the unit of the gains, above 0.
        epsilon: margin on retention, in points; None where it was not measured.

    Raises:
        ValueError: losses without epsilon, or the reverse.
    """
    if (bounds.loss is None) != (epsilon is None):
        raise ValueError("epsilon is given exactly where retention was measured")
    better = _states(bounds.gain.lower > 0.0, bounds.gain.upper <= 0.0)
    keeps: tuple[State, ...] | None = None
    if bounds.loss is not None and epsilon is not None:
        keeps = _states(bounds.loss.upper < epsilon, bounds.loss.lower > epsilon)
    shortfall = tuple(
        _shortfall(bounds.lead, r, rivals(keeps, r, len(better))) for r in range(len(better))
    )
    _, lower, upper = np.transpose(shortfall)
    near = _states(upper < delta, lower > delta)
    qualifies = tuple(
        b == "yes" and n == "yes" and (keeps is None or keeps[r] == "yes")
        for r, (b, n) in enumerate(zip(better, near, strict=True))
    )
    outcome: Outcome = "cannot_tell"
    if any(qualifies):
        outcome = "recommended"
    elif "yes" not in better:
        outcome = "no_evidence"
    elif keeps is not None and all(state == "no" for state in keeps):
        outcome = "none_keeps_enough"
    option = qualifies.index(True) if any(qualifies) else None
    return Choice(outcome, option, better, keeps, near, qualifies, shortfall)


def sufficient_epsilon(bounds: StudyBounds, delta: float) -> tuple[float, int] | None:
    """The smallest retention loss that, if it were acceptable, would make an option qualify.

    Returns:
        The loss in points and the option's index; None where retention was not measured, or
        where no loss would do.
    """
    if bounds.loss is None:
        return None
    able: list[tuple[float, int]] = []
    for option, upper in enumerate(bounds.loss.upper):
        others = rivals(None, option, len(bounds.loss.upper))
        kept = [s for s in others if bounds.loss.lower[s] <= upper]
        near = all(bounds.lead.lower[option, s] > -delta for s in kept)
        if bounds.gain.lower[option] > 0.0 and near:
            able.append((float(upper), option))
    return min(able, default=None)


def rivals(keeps: tuple[State, ...] | None, option: int, num_options: int) -> tuple[int, ...]:
    """The other options that were not rejected on retention."""
    return tuple(
        other
        for other in range(num_options)
        if other != option and (keeps is None or keeps[other] != "no")
    )


def needed(bounds: StudyBounds, choice: Choice, delta: float, epsilon: float | None) -> Needed:
    """How many more items or seeds would let an option qualify, were the estimates true.

    The option that is nearest to qualifying counts. Where none can, because every estimated
    retention loss is above epsilon, it is what would show that. For ``no_evidence`` it is what
    would show the most promising option to be better than the base.
    """
    if choice.outcome not in ("cannot_tell", "no_evidence"):
        return Needed(None, None, None)
    plans = [_plan(bounds, choice, r, delta, epsilon) for r in range(len(choice.qualifies))]
    hopeless = all(math.isinf(max(plan.items)) and plan.seeds is None for plan in plans)
    if choice.outcome == "cannot_tell" and hopeless:
        plans = [_plan_to_reject_all(bounds, choice, epsilon)]
    nearest = min(plans, key=lambda plan: max(plan.items))
    seeds = [plan.seeds for plan in plans if plan.seeds is not None]
    finite = not math.isinf(max(nearest.items))
    return Needed(
        nearest.items[0] if finite else None,
        nearest.items[1] if finite and bounds.loss is not None else None,
        min(seeds) if seeds else None,
    )


class _Plan(NamedTuple):
    items: tuple[float, float]
    seeds: int | None


class _Condition(NamedTuple):
    """One inequality that does not hold yet: which items it is about, and how far it is."""

    on_retention: bool
    slack: float
    spread: Spread


def _plan(
    bounds: StudyBounds, choice: Choice, option: int, delta: float, epsilon: float | None
) -> _Plan:
    conditions: list[_Condition] = []
    if choice.better_than_base[option] != "yes":
        conditions.append(_condition(bounds.gain, (option,), bounds.gain.estimate[option], False))
    if choice.outcome != "no_evidence":
        for rival in rivals(choice.keeps_enough, option, len(choice.qualifies)):
            if bounds.lead.lower[option, rival] <= -delta:
                slack = bounds.lead.estimate[option, rival] + delta
                conditions.append(_condition(bounds.lead, (option, rival), slack, False))
        loss = bounds.loss
        if loss is not None and epsilon is not None and loss.upper[option] >= epsilon:
            slack = epsilon - loss.estimate[option]
            conditions.append(_condition(loss, (option,), slack, True))
    return _combined(conditions, bounds)


def _plan_to_reject_all(bounds: StudyBounds, choice: Choice, epsilon: float | None) -> _Plan:
    if bounds.loss is None or epsilon is None or choice.keeps_enough is None:
        return _Plan((math.inf, math.inf), None)
    conditions = [
        _condition(bounds.loss, (option,), bounds.loss.estimate[option] - epsilon, True)
        for option, state in enumerate(choice.keeps_enough)
        if state != "no"
    ]
    return _combined(conditions, bounds)


def _condition(
    bounds: Bounds, place: tuple[int, ...], slack: float, on_retention: bool
) -> _Condition:
    return _Condition(on_retention, float(slack), Spread(*(part[place] for part in bounds.spread)))


def _combined(conditions: list[_Condition], bounds: StudyBounds) -> _Plan:
    level = float(special.ndtr(bounds.critical))
    factors = [1.0, 1.0]
    seeds: int | None = bounds.num_seeds
    for each in conditions:
        factor = items_factor(each.slack, each.spread, level)
        factors[each.on_retention] = max(factors[each.on_retention], factor)
        total = seeds_needed(each.slack, each.spread, level, bounds.num_seeds)
        seeds = None if seeds is None or total is None else max(seeds, total)
    return _Plan((factors[0], factors[1]), seeds if conditions else None)


def _shortfall(lead: Bounds, option: int, others: tuple[int, ...]) -> tuple[float, float, float]:
    if not others:
        return 0.0, 0.0, 0.0
    ends = (lead.estimate, lead.upper, lead.lower)
    estimate, lower, upper = (float(-end[option, np.array(others)].min()) for end in ends)
    return estimate, lower, upper


def _states(shown: Iterable[bool], excluded: Iterable[bool]) -> tuple[State, ...]:
    pairs = zip(shown, excluded, strict=True)
    return tuple("yes" if yes else "no" if no else "undecided" for yes, no in pairs)
