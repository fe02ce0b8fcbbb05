"""The rule: from bounds to a recommended option, or to why there is none.

An option qualifies when its gain is above zero, its retention loss is below epsilon, and its
in-domain score is above every other option's that was not rejected on retention, less delta.
The first that qualifies is recommended, so options are given smallest first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.simultaneous import StudyBounds
from rankwise.records.judgement import Outcome
from rankwise.records.study import State

Ends = tuple[Floats, Floats]
"""Lower and upper bounds, of one shape."""


class Judged(NamedTuple):
    """The conditions of K options in any number of studies, arrays (..., K).

    1 is shown, -1 is shown not to hold, 0 is undecided; ``keeps`` is all 1 where retention was not
    measured. ``shortfall`` are the bounds of how far an option is below the best other one that
    was not rejected: negative if it is above, zero if there is no other.
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
    retention was not measured.
    """

    outcome: Outcome
    option: int | None
    better_than_base: tuple[State, ...]
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


def judge(gain: Ends, loss: Ends | None, lead: Ends, delta: float, epsilon: float) -> Judged:
    """Apply the conditions to bounds of K options, smallest first.

    Args:
        gain: (..., K) over the base.
        loss: (..., K) on retention in points; None where it was not measured.
        lead: (..., K, K) the row's in-domain score less the column's.
        delta: margin in-domain, in the unit of the gains.
        epsilon: margin on retention; unused without losses.
    """
    better = _states(gain[0] > 0.0, gain[1] <= 0.0)
    lost = (np.full_like(gain[0], -np.inf),) * 2 if loss is None else loss
    keeps = _states(lost[1] < epsilon, lost[0] > epsilon)
    upper = shortfall(lead[0], keeps)
    lower = shortfall(lead[1], keeps)
    return Judged(better, keeps, _states(upper < delta, lower > delta), (lower, upper))


def shortfall(lead: Floats, keeps: NDArray[np.int8]) -> Floats:
    """(..., K) how far each row of ``lead`` (..., K, K) is below the best of its rivals."""
    count = lead.shape[-1]
    # (..., K, K): the column is another option that was not rejected
    is_rival = (keeps[..., None, :] != -1) & ~np.eye(count, dtype=bool)
    worst = np.where(is_rival, -lead, -np.inf).max(axis=-1)
    return np.where(is_rival.any(axis=-1), worst, 0.0)


def choose(bounds: StudyBounds, delta: float, epsilon: float | None) -> Choice:
    """Apply the rule to the bounds of a study.

    Args:
        bounds: of K options, smallest first, at the level that decides.
        delta: margin in-domain, in the unit of the gains, above 0.
        epsilon: margin on retention, in points; None where it was not measured.

    Raises:
        ValueError: losses without epsilon, or the reverse.
    """
    if (bounds.loss is None) != (epsilon is None):
        raise ValueError("epsilon is given exactly where retention was measured")
    gain, loss, lead = (
        None if part is None else (part.lower, part.upper)
        for part in (bounds.gain, bounds.loss, bounds.lead)
    )
    assert gain is not None
    assert lead is not None
    judged = judge(gain, loss, lead, delta, epsilon or 0.0)
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
        better_than_base=_words(judged.better),
        keeps_enough=None if loss is None else _words(judged.keeps),
        near_the_best=_words(judged.near),
        qualifies=tuple(able.tolist()),
        shortfall=tuple(zip(*(end.tolist() for end in ends), strict=True)),
    )


def standings(bounds: StudyBounds, delta: float, epsilon: float | None) -> tuple[Standing, ...]:
    """What is shown of each option, from bounds that hold at once."""
    count = len(bounds.gain.estimate)
    rejected, kept = np.zeros(count, dtype=bool), np.ones(count, dtype=bool)
    if bounds.loss is not None and epsilon is not None:
        rejected, kept = bounds.loss.lower > epsilon, bounds.loss.upper < epsilon
    standing: list[Standing] = []
    for option in range(count):
        ahead = bounds.lead.lower[:, option]
        by: int | None = option if rejected[option] else None
        if by is None and (ahead[kept] > delta).any():
            by = int(np.where(kept, ahead, -np.inf).argmax())
        standing.append(Standing(tuple(np.flatnonzero(ahead > 0.0).tolist()), by))
    return tuple(standing)


def sufficient_epsilon(
    bounds: StudyBounds, delta: float, epsilon: float | None
) -> tuple[float, int] | None:
    """The smallest larger epsilon, in tenths of a point, at which an option would qualify.

    Returns:
        The loss in points and the option's index; None where retention was not measured, or
        where no larger loss would do.
    """
    if bounds.loss is None or epsilon is None:
        return None
    able: list[tuple[float, int]] = []
    for option, upper in enumerate(bounds.loss.upper):
        # what is printed can be set: the rule needs a bound below it
        wanted = (math.floor(10.0 * float(upper)) + 1) / 10.0
        is_rival = bounds.loss.lower <= wanted
        is_rival[option] = False
        near = (bounds.lead.lower[option, is_rival] > -delta).all()
        if wanted > epsilon and bounds.gain.lower[option] > 0.0 and near:
            able.append((wanted, option))
    return min(able, default=None)


def _states(shown: NDArray[np.bool_], excluded: NDArray[np.bool_]) -> NDArray[np.int8]:
    return np.where(shown, 1, np.where(excluded, -1, 0)).astype(np.int8)


def _words(states: NDArray[np.int8]) -> tuple[State, ...]:
    words: dict[int, State] = {1: "yes", 0: "undecided", -1: "no"}
    return tuple(words[int(state)] for state in states)
