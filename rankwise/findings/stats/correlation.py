"""Spearman's rank correlation with an interval that also few pairs can carry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from rankwise.findings.stats.estimates import Bounded
from rankwise.findings.stats.items import Floats

MIN_PAIRS = 4
"""The fewest pairs with an interval: its variance is divided by n - 3."""


def rank_correlation(
    x: Sequence[float], y: Sequence[float], confidence: float = 0.95
) -> Bounded | None:
    """ρ with the interval of Bonett and Wright (Psychometrika 65, 2000) on Fisher's scale.

    A perfect order would have an interval of no width; its variance and bounds are those of the
    order with one pair of neighbours swapped, the nearest that is not perfect.

    Args:
        x: one value of each pair; ties share their mean rank.
        y: the other, in the same order.
        confidence: of the interval.

    Returns:
        ρ is in [-1, 1]; None with fewer than 4 pairs, or where all values of a side are the same.

    Raises:
        ValueError: different numbers of values.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} values make no pairs.")
    n = len(x)
    if n < MIN_PAIRS or min(len(set(x)), len(set(y))) < 2:
        return None
    rho = float(np.corrcoef(_mean_ranks(x), _mean_ranks(y))[0, 1])
    nearest = 1.0 - 12.0 / (n * (n * n - 1))
    inside = max(-nearest, min(rho, nearest))
    width = float(special.ndtri((1 + confidence) / 2)) * math.sqrt((1 + inside**2 / 2) / (n - 3))
    centre = math.atanh(inside)
    lower, upper = math.tanh(centre - width), math.tanh(centre + width)
    return Bounded(rho, min(lower, rho), max(upper, rho))


def _mean_ranks(values: Sequence[float]) -> Floats:
    """(n,) ranks from 1; ties share their mean. As scipy.stats, which is slow to load."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]
