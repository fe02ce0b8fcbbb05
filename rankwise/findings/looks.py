"""How many wrong recommendations each look at a study may add."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from scipy import special

from rankwise.records.judgement import Look

PLANNED = 0.8
"""Share of alpha for the looks at the planned items: most studies are judged on these alone."""


def alpha_of_look(shares: Sequence[float], alpha: float) -> float:
    """The part of ``alpha`` that the last of some looks may spend.

    Looks at the plan spend ``PLANNED`` of alpha by the share of the planned items that they saw:
    a look gets what may be spent by its share, less what was spent before. A look that saw no
    larger share than those before it is beyond the plan: the k-th of them gets 1 / (k (k + 1)) of
    the rest. So the levels add up to at most alpha over any number of looks, which need not be
    known beforehand, and an error at any look has at most the probability alpha (a union bound).

    Args:
        shares: of the planned items that each look saw, above 0, at most 1; first look first.
        alpha: of all looks together, 0..1.
    """
    seen = list(itertools.accumulate(shares, max, initial=0.0))
    if seen[-1] > seen[-2]:
        return _spent(seen[-1], PLANNED * alpha) - _spent(seen[-2], PLANNED * alpha)
    later = sum(before == after for before, after in itertools.pairwise(seen))
    return (1.0 - PLANNED) * alpha / (later * (later + 1))


def _spent(share: float, alpha: float) -> float:
    """What of alpha is spent once a share of the planned items is seen.

    The spending function of Lan and DeMets (1983) that is like O'Brien and Fleming's boundaries:
    2 (1 - Phi(Phi^-1(1 - alpha / 2) / sqrt(share))). Early looks spend next to nothing.
    """
    if share == 0.0:
        return 0.0
    return 2.0 * float(special.ndtr(special.ndtri(alpha / 2.0) / math.sqrt(share)))


def with_look(earlier: Sequence[Look], data: Look, alpha: float) -> tuple[Look, ...]:
    """The looks so far and this one; a look at the same data again is the same look.

    Args:
        earlier: the looks before, first to last.
        data: this look; its number and its alpha are set here.
        alpha: of all looks together, 0..1.
    """
    kept, share = earlier, data.share
    if earlier and data.is_of(earlier[-1]):
        # what was spent on it stays spent, however much is planned now
        kept, share = earlier[:-1], max(share, earlier[-1].share)
    shares = [*(look.share for look in kept), share]
    update = {"number": len(shares), "share": share, "alpha": alpha_of_look(shares, alpha)}
    return (*kept, data.model_copy(update=update))
