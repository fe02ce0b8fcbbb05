"""How the norm of an update grows with rank: logarithmically, or by a power law."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from rankwise.findings.stats.items import Floats

MIN_RANKS = 3
"""Different ranks that a line with an interval needs."""


class LineFit(NamedTuple):
    """A least-squares line with the two-sided interval of its slope, by t.

    ``slope`` is what a doubling of the rank adds to the norm (logarithmic), or the exponent of the
    rank (power law); ``intercept`` is at rank 1 the norm, or its natural logarithm. ``r_squared``
    is that of the norms themselves under either law; at most 1, negative where the law is worse
    than their mean.
    """

    slope: float
    lower: float
    upper: float
    intercept: float
    r_squared: float


class NormGrowth(NamedTuple):
    """Both laws on the same points."""

    logarithmic: LineFit
    power_law: LineFit


def norm_growth(
    ranks: Sequence[int], norms: Sequence[float], confidence: float = 0.95
) -> NormGrowth | None:
    """LineFit ‖delta‖ = a + b log2(rank), and its rival ln ‖delta‖ = a + b ln(rank).

    Args:
        ranks: of the runs.
        norms: Frobenius norms of their updates, in the same order.
        confidence: of the slopes' intervals.

    Returns:
        None with fewer than 3 different ranks, or where a norm is zero.

    Source of the claim that it is logarithmic: arXiv:2512.15634.
    """
    if len(set(ranks)) < MIN_RANKS or min(norms) <= 0.0:
        return None
    x, y = np.log2(ranks), np.array(norms)
    logarithmic = _fit(x, y, y, lambda fitted: fitted, confidence)
    power_law = _fit(x * math.log(2), np.log(y), y, np.exp, confidence)
    return NormGrowth(logarithmic, power_law)


def _fit(
    x: Floats, y: Floats, norms: Floats, inverse: Callable[[Floats], Floats], confidence: float
) -> LineFit:
    """A line through (x, y), judged by its squared error on the norms."""
    # By hand: scipy.stats.linregress gives the same, and takes half a second to load.
    across = x - x.mean()
    slope = float(across @ y / (across @ across))
    intercept = float(y.mean() - slope * x.mean())
    residuals = y - intercept - slope * x
    stderr = math.sqrt(float(residuals @ residuals / (across @ across)) / (len(x) - 2))
    width = float(special.stdtrit(len(x) - 2, (1 + confidence) / 2)) * stderr
    error = float(((norms - inverse(intercept + slope * x)) ** 2).sum())
    spread = float(((norms - norms.mean()) ** 2).sum())
    r_squared = 1.0 - error / spread if spread else 0.0
    return LineFit(slope, slope - width, slope + width, intercept, r_squared)
