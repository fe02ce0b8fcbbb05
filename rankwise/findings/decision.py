"""The rule: from draws of what options are worth to a recommended one, or to why there is none.

An option qualifies where it is shown to gain something, to keep enough (a retention loss of at most
epsilon on average, and of the ceiling on every task), and to gain at most delta less than every
other option that keeps enough. Each is shown where its probability reaches the level. The first
option that qualifies is recommended, so options are given smallest first.

A wrong recommendation needs one false statement that is shown. With K options that is one each; the
best may be rejected by mistake as well. So the level is 1 - alpha / (K + 1), by Bonferroni.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from rankwise.findings.stats.blocks import Block, lead_variances
from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.truths import Truths
from rankwise.records.judgement import Outcome
from rankwise.records.study import State

_HAIR = 1e-9
"""Truths are rounded: a number that is the margin itself is at most the margin."""

_TIE = 0.02
"""Two standard errors of a probability of a half that is counted in 4096 draws."""


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


class Odds(NamedTuple):
    """The probability (K,) that an option meets each condition, and all three.

    ``none`` is the probability that no option gains something and keeps enough, ``none_better``
    that none gains something.
    """

    better: Floats
    keeps: Floats
    near: Floats
    right: Floats
    none: float
    none_better: float

    @property
    def bet(self) -> int | None:
        """The option that is right with the largest probability; None where none is likelier.

        Of options that the draws do not tell apart it is the first, which is the smallest.
        """
        most = float(self.right.max())
        return int((self.right >= most - _TIE).argmax()) if most >= self.none else None

    @property
    def shown(self) -> Floats:
        """(K,) the probability of the condition that is least sure."""
        return np.minimum(np.minimum(self.better, self.keeps), self.near)


class Choice(NamedTuple):
    """The rule applied to K options; ``option`` is an index, None unless recommended."""

    outcome: Outcome
    option: int | None


class Ends(NamedTuple):
    """One-sided bounds, lower and upper, arrays of one shape."""

    lower: Floats
    upper: Floats


def odds(truths: Truths, margins: Margins) -> Odds:
    """How probable it is that each option is right.

    Right is what the rule asks: better than the base; a retention loss of at most epsilon on
    average, and of the ceiling on every task; at most delta below the best one that keeps enough.

    Args:
        truths: draws of what the options are worth.
        margins: epsilon and the ceiling are unused where losses were not measured.
    """
    is_kept, is_better = _kept(truths, margins), truths.gains > 0.0
    if not margins.has_base:
        is_better = np.ones_like(is_better)
    best = np.where(is_kept, truths.gains, -np.inf).max(axis=1, keepdims=True)
    is_near = truths.gains >= best - margins.delta - _HAIR

    def share(held: NDArray[np.bool_]) -> Floats:
        # as if one draw more had missed: what no draw contradicts is not certain
        return held.sum(axis=0) / (len(held) + 1.0)

    def share_of_none(held: NDArray[np.bool_]) -> float:
        return float(share(np.asarray(~held.any(axis=1), dtype=bool)[:, None])[0])

    return Odds(
        better=share(is_better),
        keeps=share(is_kept),
        near=share(is_near),
        right=share(is_better & is_kept & is_near),
        none=share_of_none(is_better & is_kept),
        none_better=share_of_none(is_better),
    )


def _kept(truths: Truths, margins: Margins) -> NDArray[np.bool_]:
    """(N, K) whether enough is kept: on average, and on every task."""
    if truths.losses is None or truths.worst is None:
        return np.ones(truths.gains.shape, dtype=bool)
    limits = margins.epsilon_points + _HAIR, margins.ceiling + _HAIR
    return (truths.losses <= limits[0]) & (truths.worst <= limits[1])


def choose(now: Odds, level: float, is_finished: NDArray[np.bool_] | None = None) -> Choice:
    """Apply the rule to the odds of K options, smallest first.

    Args:
        now: the odds.
        level: that decides.
        is_finished: (K,) of which options no run diverged; None: of all. The others are never
            recommended.
    """
    able = now.shown >= level
    if is_finished is not None:
        able &= is_finished
    if able.any():
        return Choice("recommended", int(able.argmax()))
    if now.none >= level:
        return Choice(
            "none_helps" if now.none_better >= now.none / 2.0 else "none_keeps_enough", None
        )
    return Choice("cannot_tell" if (now.better >= level).any() else "no_evidence", None)


def states(probabilities: Floats, level: float) -> tuple[State, ...]:
    """What is shown at the level, of each probability."""
    return tuple(
        "yes" if share >= level else "no" if share <= 1.0 - level else "undecided"
        for share in probabilities.tolist()
    )


def shortfall(truths: Truths, margins: Margins) -> Floats:
    """(N, K) how far each option is below the best other one that keeps enough.

    Negative where it is above, and 0 where there is no other.
    """
    gains, count = truths.gains, truths.gains.shape[1]
    if count == 1:
        return np.zeros_like(gains)
    rivals = np.where(_kept(truths, margins), gains, -np.inf)
    is_first = np.arange(count) == rivals.argmax(axis=1)[:, None]
    best = rivals.max(axis=1, keepdims=True)
    second = np.where(is_first, -np.inf, rivals).max(axis=1, keepdims=True)
    of_others = np.where(is_first, second, best)
    return np.where(np.isfinite(of_others), of_others - gains, 0.0)


def ends(draws: Floats, level: float) -> Ends:
    """One-sided bounds at a level (0.5..1) of (N, ...) draws; the bound is one of the draws."""
    beyond = max(math.floor((1.0 - level) * (len(draws) + 1)), 1)
    ordered = np.partition(draws, (beyond - 1, len(draws) - beyond), axis=0)
    return Ends(ordered[beyond - 1], ordered[len(draws) - beyond])


class Standing(NamedTuple):
    """What is shown of one option beside the others.

    ``worse_than`` are the options that are shown to score more in-domain. ``ruled_out_by`` is what
    shows that it is not the answer: an option that scores more, or the option itself where its
    retention loss is too large; None where it may be the answer.
    """

    worse_than: tuple[int, ...]
    ruled_out_by: int | None


def standings(
    of: Block, truths: Truths, now: Odds, margins: Margins, level: float
) -> tuple[Standing, ...]:
    """What is shown of each option at the level that decides.

    Args:
        of: the gains, of which the truths are draws.
        truths: of the runs that are there.
        now: the odds by them.
        margins: as the options are judged.
        level: that decides.
    """
    standing: list[Standing] = []
    is_kept, gains = _kept(truths, margins), truths.gains
    # (K, K) by how much the row's mean is above the column's, in standard errors: draws would
    # compare each option with each other one thousands of times
    quantile = float(special.stdtrit(of.freedom, level))
    reach = quantile * np.sqrt(lead_variances(of.covariance))
    is_ahead = of.mean[:, None] - of.mean > reach
    for option in range(gains.shape[1]):
        by: int | None = None
        if now.keeps[option] <= 1.0 - level:
            by = option
        elif now.near[option] <= 1.0 - level:
            far = is_kept & (gains > gains[:, [option]] + margins.delta)
            by = int(far.sum(axis=0).argmax())
        standing.append(Standing(tuple(np.flatnonzero(is_ahead[:, option]).tolist()), by))
    return tuple(standing)


class Sufficient(NamedTuple):
    """The acceptable losses at which an option would qualify, in points, and its place."""

    epsilon: float
    ceiling: float
    option: int


def sufficient_margins(
    truths: Truths, margins: Margins, level: float, is_finished: NDArray[np.bool_]
) -> Sufficient | None:
    """The smallest larger losses, in tenths of a point, at which an option would qualify.

    None where retention was not measured, or where no larger loss would do. ``is_finished`` (K,)
    is as in ``choose``.
    """
    if truths.losses is None or truths.worst is None or margins.epsilon is None:
        return None
    upper, worst = ends(truths.losses, level).upper, ends(truths.worst, level).upper
    able: list[tuple[float, Sufficient]] = []
    for option in np.flatnonzero(is_finished).tolist():
        # both have to hold, and with a larger loss others may be rivals too
        for more in (0.0, 0.1, 0.2, 0.4, 0.8):
            epsilon = _tenth_above(upper[option] + more, margins.epsilon)
            ceiling = _tenth_above(worst[option] + more, margins.ceiling)
            accepted = margins._replace(epsilon=epsilon, ceiling=ceiling)
            if odds(truths, accepted).shown[option] >= level:
                over = ceiling - margins.ceiling if ceiling > margins.ceiling else 0.0
                found = Sufficient(epsilon, ceiling, option)
                able.append((epsilon - margins.epsilon + over, found))
                break
    return min(able)[1] if able else None


def _tenth_above(upper: float, own: float) -> float:
    """A margin that can be set and that the bound is below: what is printed; at least its own."""
    return max((math.floor(10.0 * float(upper)) + 1) / 10.0, own)
