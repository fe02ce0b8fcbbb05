"""Which settings a look at validation items rules out.

``forgets`` and ``behind`` go by bounds at the level of the rule (``simultaneous.deciding_level``),
for K settings and the look's part of alpha. ``answered`` goes by the posterior of the best bet
(``findings.odds``), so it holds on average over its prior. At a rung nothing is known of the end:
margins are wider by 1 / share there.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwise.findings.odds import Believed
from rankwise.findings.stats.simultaneous import (
    Bounds,
    StudyBounds,
    StudyEvidence,
    bounds_at,
    deciding_level,
)
from rankwise.study.searches.policy import Terms

LIKELY_LEVEL = 0.9
"""One-sided, of bounds on which no error hangs: that a setting which rules out another keeps
enough, and that a hopeless one is worse."""

RISK_SHARE = 0.04
"""Of alpha: the largest posterior probability of a shortfall beyond delta that ends a race.

The same at every look: a posterior is what it is however often it is looked at.
"""

NEARLY = 0.02
"""A smaller setting that is right with a probability this near the highest is taken."""

Ground = Literal["forgets", "behind", "hopeless", "answered"]


class Look(NamedTuple):
    """When a search looks.

    Attributes:
        share: of the steps that every trial has taken.
        num_seeds: that are scored, of ``all_seeds``.
        alpha: that this look may spend.
        num_settings: K at the start of the search.
    """

    share: float
    num_seeds: int
    all_seeds: int
    alpha: float
    num_settings: int

    @property
    def saves_seeds(self) -> bool:
        """Whether first seeds are at their end and others are still to be trained.

        Grounds that are not shown act only then. Once everything is trained they would save the
        scoring of test items, and take from the verdict what other ranks tell of the spread of
        runs.
        """
        return self.share == 1.0 and self.num_seeds < self.all_seeds


class Elimination(NamedTuple):
    """A setting that is ruled out, by its place among those that are looked at, and by which other.

    ``forgets``: its retention loss is shown to be above epsilon. ``behind``: it is shown to be
    below the other by more than the margin. ``hopeless``: it is likely below the other, and would
    not be shown within delta of it with all seeds, by how the bound's reach shrinks. ``answered``:
    the other is within delta of the best that is left, but for a small probability.
    """

    place: int
    ground: Ground
    by: int


def eliminations(evidence: StudyEvidence, look: Look, terms: Terms) -> list[Elimination]:
    """What is ruled out of the settings that are left, smallest first; never all of them."""
    bounds = bounds_at(evidence, deciding_level(look.num_settings, look.alpha))
    likely = bounds_at(evidence, LIKELY_LEVEL)
    out, keeps = _forgetting(bounds, terms), _keeps(likely, look.share, terms)
    found = [Elimination(place, "forgets", place) for place in np.flatnonzero(out).tolist()]
    margin = terms.delta / look.share
    for place in np.flatnonzero(~out).tolist():
        by = int(np.where(keeps & ~out, bounds.lead.estimate[:, place], -np.inf).argmax())
        if not keeps[by] or out[by] or by == place:
            continue
        if bounds.lead.upper[place, by] < -margin:
            found.append(Elimination(place, "behind", by))
        elif look.saves_seeds and _is_hopeless(bounds.lead, likely.lead, place, by, look, terms):
            found.append(Elimination(place, "hopeless", by))
    gone = {each.place for each in found}
    if look.saves_seeds:
        left = [place for place in range(len(out)) if place not in gone]
        answer = _answer(evidence, left, look, terms)
        if answer is not None:
            found += [Elimination(place, "answered", answer) for place in left if place != answer]
    return sorted(found)


def _forgetting(bounds: StudyBounds, terms: Terms) -> NDArray[np.bool_]:
    """(K,) whose loss is shown to be above epsilon; the least one stays where all are."""
    if bounds.loss is None or terms.epsilon is None:
        return np.zeros(len(bounds.gain.estimate), dtype=bool)
    out = bounds.loss.lower > terms.epsilon
    if out.all():
        out[int(bounds.loss.estimate.argmin())] = False
    return out


def _keeps(likely: StudyBounds, share: float, terms: Terms) -> NDArray[np.bool_]:
    """(K,) which settings may rule out others: their losses may still grow with the steps."""
    if likely.loss is None or terms.epsilon is None:
        return np.ones(len(likely.gain.estimate), dtype=bool)
    return likely.loss.upper < share * terms.epsilon


def _is_hopeless(
    lead: Bounds, likely: Bounds, place: int, by: int, look: Look, terms: Terms
) -> bool:
    """Whether a setting is shown to be worse, and its lower bound is beyond delta for good.

    The reach of the bound is taken to shrink with the square root of the seeds.
    """
    reach = float(lead.estimate[place, by] - lead.lower[place, by])
    least = reach * (look.num_seeds / look.all_seeds) ** 0.5
    is_worse = bool(likely.upper[place, by] < 0.0)
    return is_worse and float(lead.estimate[place, by]) - least < -terms.delta


def _answer(evidence: StudyEvidence, left: list[int], look: Look, terms: Terms) -> int | None:
    """The setting that is left and probably as good as any, within delta; None where none is.

    Its estimated loss is at most epsilon. Of several, the one that is right most probably, or a
    smaller one that is nearly; right is the rule's: better than the base, keeps enough, near.
    """
    truths = Believed.of(evidence, terms.point).truths()
    gains = truths.gains[:, left]
    keeps = np.ones(gains.shape, dtype=bool)
    if truths.losses is not None and terms.epsilon is not None:
        keeps = truths.losses[:, left] <= terms.epsilon
    best = np.where(keeps, gains, -np.inf).max(axis=1, keepdims=True)
    near = best - gains <= terms.delta
    is_sure = (~near).mean(axis=0) <= RISK_SHARE * terms.alpha
    right = (near & keeps & (gains > 0.0)).mean(axis=0)
    able = is_sure & _seem_to_keep(evidence, left, terms)
    if not able.any():
        return None
    return left[int((able & (right >= right[able].max() - NEARLY)).argmax())]


def _seem_to_keep(evidence: StudyEvidence, left: list[int], terms: Terms) -> NDArray[np.bool_]:
    """Of the settings that are left, whose estimated loss is acceptable; all where none is."""
    seem = np.ones(len(left), dtype=bool)
    if evidence.retention is not None and terms.epsilon is not None:
        seem = evidence.retention.mean[left] <= terms.epsilon
    return seem if seem.any() else ~seem
