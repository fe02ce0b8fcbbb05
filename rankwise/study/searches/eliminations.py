"""Which settings a look at validation items rules out, by bounds that share the search's alpha.

Every statement here is one of the rule's (``findings.decision``), so that what a look may get
wrong is what the rule may: K statements for K settings, at the level of ``deciding_level``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwise.findings.stats.simultaneous import (
    Bounds,
    StudyBounds,
    StudyEvidence,
    bounds_at,
    deciding_level,
)
from rankwise.study.searches.policy import Terms

KEEPS_LEVEL = 0.9
"""One-sided, of the bound by which a setting may rule out others: that it keeps enough."""

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


class Elimination(NamedTuple):
    """A setting that is ruled out, by its place among those that are looked at, and by which other.

    ``forgets``: its retention loss is shown to be above epsilon. ``behind``: it is shown to be
    below the other by more than the margin. ``hopeless``: it is shown to be below the other, and
    would not be shown within delta of it with all seeds. ``answered``: the other is shown within
    delta of every setting that is left.
    """

    place: int
    ground: Ground
    by: int


def eliminations(evidence: StudyEvidence, look: Look, terms: Terms) -> list[Elimination]:
    """What is ruled out of the settings that are left, smallest first; never all of them."""
    bounds = bounds_at(evidence, deciding_level(look.num_settings, look.alpha))
    out = _forgetting(bounds, terms)
    keeps = _keeps(evidence, terms)
    found = [Elimination(place, "forgets", place) for place in np.flatnonzero(out).tolist()]
    margin = terms.delta / look.share
    for place in np.flatnonzero(~out).tolist():
        by = int(np.where(keeps & ~out, bounds.lead.estimate[:, place], -np.inf).argmax())
        if not keeps[by] or out[by] or by == place:
            continue
        if bounds.lead.upper[place, by] < -margin:
            found.append(Elimination(place, "behind", by))
        elif look.share == 1.0 and _is_hopeless(bounds.lead, place, by, look, terms):
            found.append(Elimination(place, "hopeless", by))
    gone = {each.place for each in found}
    if look.share == 1.0:
        answer = _answer(bounds, keeps, gone, terms)
        if answer is not None:
            rest = set(range(len(out))) - gone - {answer}
            found += [Elimination(place, "answered", answer) for place in sorted(rest)]
    return sorted(found)


def _forgetting(bounds: StudyBounds, terms: Terms) -> NDArray[np.bool_]:
    """(K,) whose loss is shown to be above epsilon; the least one stays where all are."""
    if bounds.loss is None or terms.epsilon is None:
        return np.zeros(len(bounds.gain.estimate), dtype=bool)
    out = bounds.loss.lower > terms.epsilon
    if out.all():
        out[int(bounds.loss.estimate.argmin())] = False
    return out


def _keeps(evidence: StudyEvidence, terms: Terms) -> NDArray[np.bool_]:
    """(K,) which settings may rule out others."""
    if evidence.retention is None or terms.epsilon is None:
        return np.ones(evidence.num_options, dtype=bool)
    loss = bounds_at(evidence, KEEPS_LEVEL).loss
    assert loss is not None
    return loss.upper < terms.epsilon


def _is_hopeless(lead: Bounds, place: int, by: int, look: Look, terms: Terms) -> bool:
    """Whether a setting is shown to be worse, and its lower bound is beyond delta for good.

    The reach of the bound is taken to shrink with the square root of the seeds.
    """
    reach = float(lead.estimate[place, by] - lead.lower[place, by])
    least = reach * (look.num_seeds / look.all_seeds) ** 0.5
    is_worse = bool(lead.upper[place, by] < 0.0)
    return is_worse and float(lead.estimate[place, by]) - least < -terms.delta


def _answer(
    bounds: StudyBounds, keeps: NDArray[np.bool_], gone: set[int], terms: Terms
) -> int | None:
    """The smallest that is left, keeps enough and is shown within delta of all that are left."""
    left = [place for place in range(len(keeps)) if place not in gone]
    for place in left:
        rivals = [other for other in left if other != place]
        if keeps[place] and (bounds.lead.lower[place, rivals] > -terms.delta).all():
            return place
    return None
