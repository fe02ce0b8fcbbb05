"""The rule: from bounds to a recommended option, or to why there is none.

An option qualifies when its gain is above zero, its retention loss is below epsilon on average and
below the ceiling on every task, and its in-domain score is above every other option's that was not
rejected on retention, less delta. The first that qualifies is recommended, so options are given
smallest first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.simultaneous import Bounds, StudyBounds, WorstTask
from rankwise.records.judgement import Outcome
from rankwise.records.study import State

Ends = tuple[Floats, Floats]
"""Lower and upper bounds, of one shape."""


class Margins(NamedTuple):
    """Which differences matter.

    Attributes:
        delta: in-domain, in the unit of the gains, above 0.
        epsilon: of the retention loss on average, in points; None where it was not measured.
        ceiling: of that of any single task, in points.
        has_base: without a base, no option need be better than one.
    """

    delta: float
    epsilon: float | None
    ceiling: float = math.inf
    has_base: bool = True

    @property
    def epsilon_points(self) -> float:
        """Epsilon; 0 where it is not used."""
        return self.epsilon or 0.0


class Judged(NamedTuple):
    """The conditions of K options in any number of studies, arrays (..., K).

    1 is shown, -1 is shown not to hold, 0 is undecided; ``keeps`` is all 1 where retention was not
    measured, ``better`` without a base. ``shortfall`` are the bounds of how far an option is below
    the best other one that was not rejected: negative if it is above, zero if there is no other.
    """

    better: NDArray[np.int8]
    keeps: NDArray[np.int8]
    near: NDArray[np.int8]
    shortfall: Ends

    @property
    def qualifies(self) -> NDArray[np.bool_]:
        """Which options meet every condition."""
        return (self.better == 1) & (self.keeps == 1) & (self.near == 1)

    @property
    def is_decided(self) -> NDArray[np.bool_]:
        """(...) whether an option is recommended, or every one is rejected on retention."""
        return self.qualifies.any(axis=-1) | (self.keeps == -1).all(axis=-1)


class Choice(NamedTuple):
    """The rule applied to K options; ``option`` is an index, None unless recommended.

    ``shortfall`` holds (estimate, lower, upper) of each option. ``keeps_enough`` is None where
    retention was not measured, ``better_than_base`` without a base.
    """

    outcome: Outcome
    option: int | None
    better_than_base: tuple[State, ...] | None
    keeps_enough: tuple[State, ...] | None
    near_the_best: tuple[State, ...]
    qualifies: tuple[bool, ...]
    shortfall: tuple[tuple[float, float, float], ...]


class Standing(NamedTuple):
    """What is shown of one option beside the others, by bounds that all hold at once.

    ``worse_than`` are the options that are shown to score more in-domain. ``ruled_out_by`` shows
    that it is not the answer: one of them that is shown to keep enough and to score more by over
    delta, or the option itself, whose retention loss is shown to be above epsilon.
    """

    worse_than: tuple[int, ...]
    ruled_out_by: int | None


def judge(
    gain: Ends, loss: Ends | None, worst: Ends | None, lead: Ends, margins: Margins
) -> Judged:
    """Apply the conditions to bounds of K options, smallest first.

    Args:
        gain: (..., K) over the base.
        loss: (..., K) on retention in points; None where it was not measured.
        worst: (..., K) the same of the task that loses most.
        lead: (..., K, K) the row's in-domain score less the column's.
        margins: epsilon and the ceiling are unused without losses.
    """
    better = _states(gain[0] > 0.0, gain[1] <= 0.0)
    if not margins.has_base:
        better = np.ones_like(better)
    nothing = np.full_like(gain[0], -np.inf), np.full_like(gain[0], -np.inf)
    keeps = retained(loss or nothing, worst or nothing, margins)
    delta, upper, lower = margins.delta, shortfall(lead[0], keeps), shortfall(lead[1], keeps)
    return Judged(better, keeps, _states(upper < delta, lower > delta), (lower, upper))


def retained(loss: Ends, worst: Ends, margins: Margins) -> NDArray[np.int8]:
    """(..., K) whether enough is kept: on average, and on every task."""
    epsilon, ceiling = margins.epsilon_points, margins.ceiling
    return _states(
        (loss[1] < epsilon) & (worst[1] < ceiling), (loss[0] > epsilon) | (worst[0] > ceiling)
    )


def shortfall(lead: Floats, keeps: NDArray[np.int8]) -> Floats:
    """(..., K) how far each row of ``lead`` (..., K, K) is below the best of its rivals."""
    count = lead.shape[-1]
    # (..., K, K): the column is another option that was not rejected
    is_rival = (keeps[..., None, :] != -1) & ~np.eye(count, dtype=bool)
    worst = np.where(is_rival, -lead, -np.inf).max(axis=-1)
    return np.where(is_rival.any(axis=-1), worst, 0.0)


def choose(bounds: StudyBounds, margins: Margins) -> Choice:
    """Apply the rule to the bounds of a study.

    Args:
        bounds: of K options, smallest first, at the level that decides.
        margins: an epsilon is there exactly where retention was measured.

    Raises:
        ValueError: losses without epsilon, or the reverse.
    """
    if (bounds.loss is None) != (margins.epsilon is None):
        raise ValueError("epsilon is given exactly where retention was measured")
    gain, lead = ((each.lower, each.upper) for each in (bounds.gain, bounds.lead))
    loss, worst = map(_ends, (bounds.loss, bounds.worst))
    judged = judge(gain, loss, worst, lead, margins)
    able = judged.qualifies
    outcome: Outcome = "cannot_tell"
    if able.any():
        outcome = "recommended"
    elif not (judged.better == 1).any():
        outcome = "no_evidence"
    elif (judged.keeps == -1).all():
        outcome = "none_keeps_enough"
    ends = (shortfall(bounds.lead.estimate, judged.keeps), *judged.shortfall)
    return Choice(
        outcome=outcome,
        option=int(able.argmax()) if able.any() else None,
        better_than_base=_words(judged.better) if margins.has_base else None,
        keeps_enough=None if loss is None else _words(judged.keeps),
        near_the_best=_words(judged.near),
        qualifies=tuple(able.tolist()),
        shortfall=tuple(zip(*(end.tolist() for end in ends), strict=True)),
    )


def standings(bounds: StudyBounds, margins: Margins) -> tuple[Standing, ...]:
    """What is shown of each option, from bounds that hold at once."""
    count = len(bounds.gain.estimate)
    keeps = np.ones(count, dtype=np.int8)
    if (loss := _ends(bounds.loss)) and (worst := _ends(bounds.worst)):
        keeps = retained(loss, worst, margins)
    standing: list[Standing] = []
    for option in range(count):
        ahead = bounds.lead.lower[:, option]
        by: int | None = option if keeps[option] == -1 else None
        if by is None and (ahead[keeps == 1] > margins.delta).any():
            by = int(np.where(keeps == 1, ahead, -np.inf).argmax())
        standing.append(Standing(tuple(np.flatnonzero(ahead > 0.0).tolist()), by))
    return tuple(standing)


class Sufficient(NamedTuple):
    """The acceptable losses at which an option would qualify, in points, and its place."""

    epsilon: float
    ceiling: float
    option: int


def sufficient_margins(bounds: StudyBounds, margins: Margins) -> Sufficient | None:
    """The smallest larger losses, in tenths of a point, at which an option would qualify.

    None where retention was not measured, or where no larger loss would do.
    """
    if bounds.loss is None or bounds.worst is None or margins.epsilon is None:
        return None
    able: list[tuple[float, Sufficient]] = []
    for option in range(len(bounds.gain.estimate)):
        epsilon = _tenth_above(bounds.loss.upper[option], margins.epsilon)
        ceiling = _tenth_above(bounds.worst.upper[option], margins.ceiling)
        is_rival = (bounds.loss.lower <= epsilon) & (bounds.worst.lower <= ceiling)
        is_rival[option] = False
        near = (bounds.lead.lower[option, is_rival] > -margins.delta).all()
        more = epsilon - margins.epsilon + (ceiling > margins.ceiling and ceiling - margins.ceiling)
        if more > 0.0 and bounds.gain.lower[option] > 0.0 and near:
            able.append((more, Sufficient(epsilon, ceiling, option)))
    return min(able)[1] if able else None


def _tenth_above(upper: float, own: float) -> float:
    """A margin that can be set and that the bound is below: what is printed; at least its own."""
    return max((math.floor(10.0 * float(upper)) + 1) / 10.0, own)


def _ends(bounds: Bounds | WorstTask | None) -> Ends | None:
    return None if bounds is None else (bounds.lower, bounds.upper)


def _states(shown: NDArray[np.bool_], excluded: NDArray[np.bool_]) -> NDArray[np.int8]:
    return np.where(shown, 1, np.where(excluded, -1, 0)).astype(np.int8)


def _words(states: NDArray[np.int8]) -> tuple[State, ...]:
    words: dict[int, State] = {1: "yes", 0: "undecided", -1: "no"}
    return tuple(words[int(state)] for state in states)
