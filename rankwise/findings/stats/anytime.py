"""An interval that holds however often one looks while items come in."""

from __future__ import annotations

import math

import numpy as np

from rankwise.findings.stats.items import Floats


def anytime_interval(values: Floats, bound: float, confidence: float) -> tuple[float, float]:
    """Bounds of the mean of values in -bound..bound that hold at every number of items at once.

    The predictable plug-in empirical-Bernstein confidence sequence of Waudby-Smith and Ramdas
    (2024, "Estimating means of bounded random variables by betting", theorem 2): a bet on each
    value is sized by the values before it. It is about 1.5 to 2 times as wide as an interval for
    one look, and stays right after any number of looks and any rule for stopping.

    Args:
        values: (n,) in the order in which they came; a new item goes to the end.
        bound: the largest size of a value, above 0.
        confidence: 0..1, two-sided.

    Raises:
        ValueError: a value beyond the bound.
    """
    if np.abs(values).max() > bound:
        raise ValueError(f"a value is beyond {bound:g}")
    shares = (values + bound) / (2.0 * bound)  # in 0..1
    count = np.arange(1, len(shares) + 1)
    log = math.log(2.0 / (1.0 - confidence))
    # half a value of 0.5, and a variance of 1/4, stand for what is seen before the first item
    means = (0.5 + np.cumsum(shares)) / (count + 1)
    variances = (0.25 + np.cumsum((shares - means) ** 2)) / (count + 1)
    mean_before = np.concatenate([[0.5], means[:-1]])
    variance_before = np.concatenate([[0.25], variances[:-1]])
    bets = np.sqrt(2.0 * log / (variance_before * count * np.log(1.0 + count)))
    bets = np.minimum(bets, 0.5)  # below 1, where the penalty has its pole
    penalty = (-np.log1p(-bets) - bets) / 4.0
    centre = float(bets @ shares / bets.sum())
    squares = 4.0 * (shares - mean_before) ** 2
    reach = (log + float(squares @ penalty)) / float(bets.sum())
    lower, upper = (2.0 * bound * min(max(end, 0.0), 1.0) - bound for end in
                    (centre - reach, centre + reach))  # fmt: skip
    return lower, upper
