"""How much the score of one setting varies from seed to seed, beyond what its items explain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class SeedSpread(NamedTuple):
    """A standard deviation between runs with its two-sided bounds, in the unit of the scores."""

    estimate: float
    lower: float
    upper: float


def seed_spread(tasks: Sequence[ArrayLike], confidence: float) -> SeedSpread:
    """The standard deviation of one run's true score, from several seeds on the same items.

    Runs of equal skill err on different items, so their scores differ by chance. That part, the
    interaction of seed and item over the number of items, is taken off the variance between the
    seeds' scores. The bounds are those of Williams (1962) for a component of variance: the ratio
    of both has an F distribution where the seeds' effects are normal. Items are random, and
    seeds are.

    Args:
        tasks: at least one, each (m, n) with the same m seeds, at least two, and n items, at
            least two; the score is the mean of the tasks' means.
        confidence: 0..1, two-sided.
    """
    arrays = [np.asarray(task, dtype=np.float64) for task in tasks]
    num_seeds = len(arrays[0])
    scores = np.mean([array.mean(axis=1) for array in arrays], axis=0)
    between = float(scores.var(ddof=1))
    by_chance = 0.0
    for array in arrays:
        fitted = array.mean(axis=1, keepdims=True) + array.mean(axis=0) - array.mean()
        freedom = (num_seeds - 1) * (array.shape[1] - 1)
        residual = float(((array - fitted) ** 2).sum()) / freedom
        by_chance += residual / array.shape[1] / len(arrays) ** 2
    freedom = num_seeds - 1, (num_seeds - 1) * sum(array.shape[1] - 1 for array in arrays)
    above, below = (float(stats.f.ppf(p, *freedom)) for p in ((1 + confidence) / 2,
                                                               (1 - confidence) / 2))  # fmt: skip
    variances = (between, between / above, between / below)
    return SeedSpread(*(math.sqrt(max(value - by_chance, 0.0)) for value in variances))
