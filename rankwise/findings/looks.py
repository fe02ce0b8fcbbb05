"""How many wrong recommendations each look at a study may add."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from scipy import special

from rankwise.records.judgement import Look

PLANNED = 0.8
"""Share of alpha for the looks at the planned items: most studies are judged on these alone."""


class EarlierLook(Protocol):
    """A look: the share of the planned items that it saw, and its part of alpha."""

    @property
    def share(self) -> float: ...
    @property
    def alpha(self) -> float: ...


def alpha_of_look(
    earlier: Sequence[EarlierLook], share: float, alpha: float, num_statements: int
) -> float:
    """The part of ``alpha`` that a look may spend.

    Looks at the plan spend ``PLANNED`` of alpha by the share of the planned items that they saw:
    a look gets what may be spent by its share, less what was spent before. Each of the statements
    that may be wrong spends its own part of alpha so, which leaves more to the last look than if
    all were spent as one. A look that saw no larger share than those before it is beyond the plan:
    the k-th of them gets 1 / (k (k + 1)) of the rest. So the levels add up to at most alpha over
    any number of looks, which need not be known beforehand, and an error at any look has at most
    the probability alpha (a union bound).

    Args:
        earlier: the looks before, first to last.
        share: of the planned items that this look saw, above 0, at most 1.
        alpha: of all looks together, 0..1.
        num_statements: that share alpha at each look, see ``stats.truths.num_statements``.
    """
    seen, spent, later = 0.0, 0.0, 1
    for look in earlier:
        if look.share > seen:
            seen, spent = look.share, spent + look.alpha
        else:
            later += 1
    if share <= seen:
        return (1.0 - PLANNED) * alpha / (later * (later + 1))
    by_now = num_statements * _spent(share, PLANNED * alpha / num_statements)
    return max(by_now - spent, 0.0)  # there may have been other statements before


def _spent(share: float, alpha: float) -> float:
    """What of alpha is spent once a share of the planned items is seen.

    The spending function of Lan and DeMets (1983) that is like O'Brien and Fleming's boundaries:
    2 (1 - Phi(Phi^-1(1 - alpha / 2) / sqrt(share))). Early looks spend next to nothing.
    """
    return 2.0 * float(special.ndtr(special.ndtri(alpha / 2.0) / math.sqrt(share)))


def with_look(
    earlier: Sequence[Look], data: Look, alpha: float, num_statements: int
) -> tuple[Look, ...]:
    """The looks so far and this one; a look at the same data again is the same look.

    Args:
        earlier: the looks before, first to last.
        data: this look; its number and its alpha are set here.
        alpha: of all looks together, 0..1.
        num_statements: see ``alpha_of_look``.
    """
    kept, share = tuple(earlier), data.share
    if earlier and data.is_of(earlier[-1]):
        # what was spent on it stays spent, however much is planned now
        kept, share = kept[:-1], max(share, earlier[-1].share)
    own = alpha_of_look(kept, share, alpha, num_statements)
    return (
        *kept,
        data.model_copy(update={"number": len(kept) + 1, "share": share, "alpha": own}),
    )
