"""How many wrong recommendations each look at a growing study may add."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.records.judgement import Look

FIRST_SHARE = 0.8
"""Share of alpha for the first look: most studies are judged once."""


def alpha_of_look(number: int, alpha: float) -> float:
    """The part of ``alpha`` that look ``number`` (1 is the first) may spend.

    The first gets four fifths, look k the share 1 / (k (k - 1)) of the last fifth. These add up to
    alpha over any number of looks, so it need not be known beforehand how many there will be.
    """
    if number == 1:
        return FIRST_SHARE * alpha
    return (1.0 - FIRST_SHARE) * alpha / (number * (number - 1))


def with_look(earlier: Sequence[Look], data: Look, alpha: float) -> tuple[Look, ...]:
    """The looks so far and this one; a look at the same data again is the same look.

    Args:
        earlier: the looks before, first to last.
        data: this look; its number and its alpha are set here.
        alpha: of all looks together, 0..1.
    """
    kept = earlier[:-1] if earlier and data.is_of(earlier[-1]) else earlier
    number = len(kept) + 1
    update = {"number": number, "alpha": alpha_of_look(number, alpha)}
    return (*kept, data.model_copy(update=update))
