"""Do two sides decide alike, and where they do not, was it closer than their rounding?

A decision is which option of an item wins. Its margin is how far apart the two options that the
sides chose are in the exact (float32) log-likelihoods. The noise is how much rounding moves such a
difference: for each side the standard deviation of its log-likelihoods around the exact ones, after
taking off what moved all options of an item alike; the difference of two options, each side's own,
then has the variance 2 (ours² + peer²), and the noise is two standard deviations of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Values = Sequence[Sequence[float]]
"""Of every item, a number for each option: nats, or nats per character."""


class Mismatch(NamedTuple):
    """An item that the sides decide differently.

    Attributes:
        workload: which one.
        model: whose answer; None is the base.
        item: its number.
        rule: by what an option wins: "nats" or "nats per character"; or "text".
        ours: our option, or text.
        peer: the peer's.
        margin: between the two in the exact numbers, in the rule's unit.
        noise: in the same unit; a margin below it is a matter of rounding.
    """

    workload: str
    model: str | None
    item: int
    rule: str
    ours: int | str
    peer: int | str
    margin: float
    noise: float

    @property
    def is_rounding(self) -> bool:
        return self.margin <= self.noise


def winner(values: Sequence[float]) -> int:
    """The option with the largest value, the first of equals: as lm-eval decides."""
    return max(range(len(values)), key=lambda option: (values[option], -option))


def per_character(nats: Values, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-likelihoods over the lengths of the options, as ``acc_norm`` compares them."""
    return [
        [value / length for value, length in zip(item, own, strict=True)]
        for item, own in zip(nats, lengths, strict=True)
    ]


def spread(values: Values, exact: Values) -> float:
    """The standard deviation of rounding, each item's mean shift apart.

    Args:
        values: of one side.
        exact: of the same options.
    """
    squares, freedom = 0.0, 0
    for item, true in zip(values, exact, strict=True):
        moved = [value - right for value, right in zip(item, true, strict=True)]
        mean = sum(moved) / len(moved)
        squares += sum((each - mean) ** 2 for each in moved)
        freedom += len(moved) - 1
    return math.sqrt(squares / freedom) if freedom else 0.0


def noise_of(ours: float, peer: float) -> float:
    """Two standard deviations of how far rounding moves two sides' difference of two options."""
    return 2 * math.sqrt(2 * (ours**2 + peer**2))


def mismatches(
    ours: Values,
    peer: Values,
    exact: Values,
    *,
    workload: str,
    model: str | None,
    rule: str = "nats",
    noise: float | None = None,
) -> Iterator[Mismatch]:
    """Every item whose winner differs.

    Args:
        ours: our values.
        peer: the peer's.
        exact: float32's.
        workload: for the record.
        model: likewise.
        rule: likewise.
        noise: of the values; None finds it from them.
    """
    if noise is None:
        noise = noise_of(spread(ours, exact), spread(peer, exact))
    for item, (mine, theirs, true) in enumerate(zip(ours, peer, exact, strict=True)):
        own, other = winner(mine), winner(theirs)
        if own != other:
            margin = abs(true[own] - true[other])
            yield Mismatch(workload, model, item, rule, own, other, margin, noise)


def first_difference(ours: Sequence[int], peer: Sequence[int]) -> int | None:
    """The first place where two texts' tokens differ; None if they are equal."""
    for place, (one, other) in enumerate(zip(ours, peer, strict=False)):
        if one != other:
            return place
    return None if len(ours) == len(peer) else min(len(ours), len(peer))
