"""Which learning rates of a setting are tried, and which are trained on: coarse to fine.

The given rates are a factor of about the square root of ten apart. A best rate at the edge widens
the grid, at most twice on each side. Then the two half steps around the best one are tried. From
rung to rung the worse half stops, and at the end of the first seed one rate is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

FACTOR = math.sqrt(10.0)
"""Between the rates of the coarse grid; half steps are its square root."""

MOST_BEYOND = 2
"""Rates that are added beyond each edge."""

SAME_WITHIN = 0.05
"""Rates that differ by less than this share are one."""

Worth = float | None
"""Of a rate at a rung; None where its training diverged."""


class Grid(NamedTuple):
    """The rates of a setting that were tried at the first rung.

    Attributes:
        rates: from small to large, those that were added among them.
        edge: the best rate, where it is the smallest or the largest one and no more are added.
    """

    rates: tuple[float, ...]
    edge: float | None


def grid(
    given: Sequence[float], worth_of: Callable[[float], Worth]
) -> Generator[tuple[float, ...], None, Grid]:
    """Yields rates to try at the first rung, and goes on when they are tried.

    Args:
        given: at least one rate; a single one is not tuned.
        worth_of: of a rate that was tried.
    """
    rates = sorted(given)
    yield tuple(rates)
    if len(rates) == 1:
        return Grid(tuple(rates), None)
    beyond = {0: 0, -1: 0}
    while True:
        best = best_rate({rate: worth_of(rate) for rate in rates})
        edge = next((side for side in beyond if rates[side] == best), None)
        if best is None or edge is None or beyond[edge] == MOST_BEYOND:
            break
        beyond[edge] += 1
        new = rounded(best * (FACTOR if edge else 1.0 / FACTOR))
        yield (new,)
        rates = sorted([*rates, new])
    if best is None:
        return Grid(tuple(rates), None)
    steps = (rounded(best / math.sqrt(FACTOR)), rounded(best * math.sqrt(FACTOR)))
    steps = tuple(s for s in steps if all(abs(s / rate - 1.0) > SAME_WITHIN for rate in rates))
    if steps:
        yield steps
    rates = sorted([*rates, *steps])
    best = best_rate({rate: worth_of(rate) for rate in rates})
    return Grid(tuple(rates), best if best in (rates[0], rates[-1]) else None)


def best_rate(worths: dict[float, Worth]) -> float | None:
    """The rate that is worth most, the smaller one of equals; None where all diverged."""
    kept = {rate: value for rate, value in worths.items() if value is not None}
    return max(kept, key=lambda rate: (kept[rate], -rate), default=None)


def better_half(worths: dict[float, Worth]) -> tuple[float, ...]:
    """The better half of the rates, rounded up, without those that diverged; small to large."""
    kept = {rate: value for rate, value in worths.items() if value is not None}
    ordered = sorted(kept, key=lambda rate: (-kept[rate], rate))
    return tuple(sorted(ordered[: math.ceil(len(worths) / 2)]))


def rounded(rate: float) -> float:
    """With three significant digits, so that it can be read and named."""
    return float(f"{rate:.3g}")
