"""Estimates and tests for models scored on the same items: numbers in, numbers out.

Differences are signed so that positive is better. A difference of two models is taken item by
item, so the difficulty of the items cancels and only the items on which they disagree count.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from rankwise.findings.stats.items import Floats, Items, by_cluster

PSEUDO_ITEMS = 2.0
"""Disagreements added to every variance of shares: one in each direction."""

SMALLEST_P_VALUE = 1e-12


class Spread(NamedTuple):
    """The variance of estimates by its two sources; arrays of one shape.

    ``seed_variance`` is zero where there is one seed.
    """

    item_variance: Floats
    item_freedom: Floats
    seed_variance: Floats
    seed_freedom: Floats

    @property
    def stderr(self) -> Floats:
        """Standard errors of the estimates, in their unit."""
        return np.sqrt(self.item_variance + self.seed_variance)

    def quantile(self, level: float) -> Floats:
        """Standard errors to the bound of one-sided ``level`` (0.5..1).

        The Student quantiles of both sources, weighted by their variances (Cochran and Cox
        1950). Satterthwaite's degrees of freedom are not used: with 3 seeds their 95 % intervals
        cover as little as 92 %, and far out in the tail they miss up to four times as often as
        they say.
        """
        by_items = np.asarray(special.stdtrit(self.item_freedom, level))
        by_seeds = np.asarray(special.stdtrit(self.seed_freedom, level))
        variance = self.item_variance + self.seed_variance
        share = self.seed_variance / np.where(variance > 0, variance, 1.0)
        return by_items + share * (by_seeds - by_items)

    def tails(self, quantile: float) -> float:
        """Twice the one-sided level beyond so many standard errors, of a single estimate.

        It lies between those of both sources, whose quantiles are averaged.
        """
        sources = (self.item_freedom, self.item_variance), (self.seed_freedom, self.seed_variance)
        tails = [
            2.0 * float(special.stdtr(f, -quantile)) for f, variance in sources if variance > 0
        ]
        least, most = max(min(tails), SMALLEST_P_VALUE), max(*tails, SMALLEST_P_VALUE)
        if most <= least * (1.0 + 1e-12):
            return most
        from scipy.optimize import root_scalar  # slow to load

        def excess(log_p: float) -> float:
            return float(self.quantile(1.0 - math.exp(log_p) / 2.0)) - quantile

        ends = math.log(least), math.log(most)
        beyond = [excess(end) for end in ends]
        if beyond[0] * beyond[1] >= 0.0:  # by rounding, the root is at an end or just outside
            return math.exp(ends[abs(beyond[1]) < abs(beyond[0])])
        return math.exp(float(root_scalar(excess, bracket=ends).root))


class Estimate(NamedTuple):
    """A mean difference in the unit of its values, and what its interval needs.

    ``skewness`` is that of the estimate itself (third central moment over stderr cubed).
    """

    value: float
    stderr: float
    skewness: float
    spread: Spread

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided bounds of this one estimate at ``confidence`` (0..1)."""
        quantile = self.spread.quantile((1.0 + confidence) / 2.0)
        below, above = skewed_quantiles(quantile, np.asarray(self.skewness))
        return self.value - self.stderr * float(below), self.value + self.stderr * float(above)


def skewed_quantiles(quantile: Floats, skewness: Floats) -> tuple[Floats, Floats]:
    """How many standard errors to go below and above an estimate whose sampling is skewed.

    The first term of the Edgeworth expansion of a studentised mean (Johnson 1978, Hall 1992)
    moves the quantile by skewness * (2 q^2 + 1) / 6. It is used only where it widens.

    Args:
        quantile: that of the symmetric law, at least 0.
        skewness: of the estimate, same shape.
    """
    shift = skewness * (2.0 * quantile**2 + 1.0) / 6.0
    return quantile + np.maximum(-shift, 0.0), quantile + np.maximum(shift, 0.0)


def crossed_difference(differences: ArrayLike, *, item_size: float) -> Estimate:
    """Mean difference of two models over items, and over seeds where there are several.

    Seeds and items are crossed: every seed's run is scored on the same items. The variance is
    that of the seeds' means over m, plus that of the items' means over n. It counts the
    interaction of seed and item twice, so it errs on the side of too wide. With one seed only
    the items vary, and the estimate is conditional on that seed.

    Where two models disagree on few items or on none, the observed variance is too small. So
    ``PSEUDO_ITEMS`` disagreements, half in each direction, enter the variance and not the mean
    (in the manner of Agresti and Min 2005).

    Args:
        differences: (n,) for one seed or (m, n); at least two items.
        item_size: as in ``Items``.

    Raises:
        ValueError: fewer than two items, or a number that is not finite.
    """
    return mean_over_tasks([Items(np.asarray(differences, dtype=np.float64), item_size)])


def mean_over_tasks(tasks: Sequence[Items]) -> Estimate:
    """Mean difference of two models over tasks, as ``crossed_difference`` within each.

    Each task has its own items, so the variances of their means add; their runs are the same,
    so the variance of the seeds is that of the seeds' means over all tasks. Of items in clusters,
    the clusters take the place of the items (``items.by_cluster``). Of a task that was answered in
    part, the degrees of freedom are those of the answered items.

    Args:
        tasks: at least one, each (n,) or (m, n); n may differ, the m seeds are the same in the
            same order. Their weights are above 0.

    Raises:
        ValueError: no task, other numbers of seeds, fewer than two items or clusters in a task, or
            a number that is not finite.
    """
    if len({np.atleast_2d(task.values).shape[0] for task in tasks}) != 1:
        raise ValueError("every task needs the same seeds, and one task is needed at least")
    tasks = by_cluster(tasks)
    arrays = [np.atleast_2d(task.values) for task in tasks]
    sizes = np.array([task.num_items for task in tasks], dtype=np.float64)
    if sizes.min() < 2:
        raise ValueError(f"{sizes.min():g} items give no standard error; at least 2 are needed")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("a difference is not a finite number")
    shares = np.array([task.weight for task in tasks], dtype=np.float64)
    shares = shares / shares.sum()
    by_item = [array.mean(axis=0) for array in arrays]
    centred = [values - values.mean() for values in by_item]
    pseudo = PSEUDO_ITEMS * np.array([task.item_size for task in tasks]) ** 2
    squares = np.array([float(values @ values) for values in centred])
    parts = shares**2 * (squares / (sizes - 1) + pseudo / sizes) / sizes
    cubes = np.array([float((values**3).mean()) for values in centred])
    freedoms = np.array([task.num_scored - 1 for task in tasks], dtype=np.float64)
    third_moment = float((shares**3 * cubes / sizes**2).sum())
    seeds = np.sum([share * a.mean(axis=1) for share, a in zip(shares, arrays, strict=True)], 0)
    num_seeds, item_variance = len(seeds), float(parts.sum())
    seed_variance = float(seeds.var(ddof=1)) / num_seeds if num_seeds > 1 else 0.0
    rest = float((parts**2 / freedoms).sum())
    stderr = math.sqrt(item_variance + seed_variance)
    spread = (
        item_variance,
        item_variance**2 / rest if rest > 0 else float(freedoms.min()),
        seed_variance,
        max(num_seeds - 1, 1),
    )
    return Estimate(
        value=float(shares @ [values.mean() for values in by_item]),
        stderr=stderr,
        skewness=third_moment / stderr**3 if stderr > 0 else 0.0,
        spread=Spread(*(np.asarray(part, dtype=np.float64) for part in spread)),
    )


class Bounded(NamedTuple):
    """A number with its two-sided bounds, in the unit of the number."""

    estimate: float
    lower: float
    upper: float


def seed_spread(tasks: Sequence[Items], confidence: float) -> Bounded:
    """The standard deviation of one run's true score, from several seeds on the same items.

    Runs of equal skill err on different items, so their scores differ by chance. That part, the
    interaction of seed and item over the number of items, is taken off the variance between the
    seeds' scores. The bounds are those of Williams (1962) for a component of variance: the ratio
    of both has an F distribution where the seeds' effects are normal. Items are random, and
    seeds are.

    Args:
        tasks: at least one, each (m, n) with the same m seeds, at least two, and n items, at
            least two; the score is the weighted mean of the tasks' means.
        confidence: 0..1, two-sided.
    """
    tasks = by_cluster(tasks)
    arrays = [task.values for task in tasks]
    total = sum(task.weight for task in tasks)
    shares = [task.weight / total for task in tasks]
    num_seeds = len(arrays[0])
    scores = np.sum([share * a.mean(axis=1) for share, a in zip(shares, arrays, strict=True)], 0)
    between = float(scores.var(ddof=1))
    by_chance = 0.0
    for share, array in zip(shares, arrays, strict=True):
        fitted = array.mean(axis=1, keepdims=True) + array.mean(axis=0) - array.mean()
        freedom = (num_seeds - 1) * (array.shape[1] - 1)
        residual = float(((array - fitted) ** 2).sum()) / freedom
        by_chance += share**2 * residual / array.shape[1]
    freedom = num_seeds - 1, (num_seeds - 1) * sum(task.num_scored - 1 for task in tasks)
    above, below = (
        float(special.fdtri(*freedom, p)) for p in ((1 + confidence) / 2, (1 - confidence) / 2)
    )
    variances = (between, between / above, between / below)
    return Bounded(*(math.sqrt(max(value - by_chance, 0.0)) for value in variances))


def zero_p_value(estimate: Estimate) -> float:
    """Two-sided p-value that the true difference is zero.

    It is 1 less the confidence at which the estimate's interval ends at zero; so p is below
    1 - confidence exactly where ``interval(confidence)`` leaves zero out. Never below
    ``SMALLEST_P_VALUE``.
    """
    if estimate.stderr == 0.0:
        return 1.0 if estimate.value == 0.0 else SMALLEST_P_VALUE
    # skewed_quantiles solved for the quantile: distance = q + a (2 q^2 + 1)
    distance = abs(estimate.value) / estimate.stderr
    a = max(-math.copysign(estimate.skewness, estimate.value * estimate.skewness), 0.0) / 6.0
    if distance <= a:
        return 1.0
    quantile = 2.0 * (distance - a) / (1.0 + math.sqrt(1.0 + 8.0 * a * (distance - a)))
    return max(min(estimate.spread.tails(quantile), 1.0), SMALLEST_P_VALUE)


def mcnemar_exact(num_learned: int, num_forgotten: int) -> float:
    """Two-sided exact McNemar test that two runs are right equally often on the same items.

    Under the null hypothesis each item on which they disagree is a fair coin (McNemar 1947).
    It knows nothing of seeds: it is about these two sets of weights.

    Args:
        num_learned: items that only the second is right on.
        num_forgotten: items that only the first is right on.

    Raises:
        ValueError: a negative count.
    """
    if min(num_learned, num_forgotten) < 0:
        raise ValueError(f"negative count: {num_learned} learned, {num_forgotten} forgotten")
    total = num_learned + num_forgotten
    # a fair coin is symmetric: both tails are equal, and meet where the counts are equal
    return min(1.0, 2.0 * float(special.bdtr(min(num_learned, num_forgotten), total, 0.5)))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's (1979) adjusted p-values, in the order given: right under any dependence.

    statsmodels' ``multipletests`` gives the same numbers, but runs Python's garbage collector at
    every call, which takes far longer than the correction.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = values.argsort()
    # the smallest of n is multiplied by n, the next by n - 1; none falls below the one before
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    found = np.empty_like(values)
    found[order] = np.minimum(adjusted, 1.0)
    return tuple(found.tolist())


def holm_levels(p_values: Sequence[float], alpha: float) -> tuple[float, ...]:
    """The alpha at which each interval leaves zero out exactly where Holm's procedure rejects.

    The smallest of n p-values is held against alpha / n, the next against alpha / (n - 1), and
    so on to the first that is not rejected; the rest are held against the same as that one.
    """
    levels = np.empty(len(p_values))
    level, has_stopped = alpha, False
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        if not has_stopped:
            level = alpha / (len(p_values) - place)
            has_stopped = p_values[index] > level
        levels[index] = level
    return tuple(levels.tolist())


@functools.cache
def wilson_interval(successes: float, total: int, confidence: float) -> tuple[float, float]:
    """Wilson's (1927) two-sided interval of one proportion, as shares in 0..1.

    Args:
        successes: 0..total, a whole number or not: clustered items count as fewer than they are.
        total: at least 1.
        confidence: 0..1.
    """
    share, square = successes / total, float(special.ndtri((1.0 + confidence) / 2.0)) ** 2
    centre = share + square / (2 * total)
    reach = math.sqrt(square * (share * (1.0 - share) + square / (4 * total)) / total)
    ends = ((centre + side * reach) / (1.0 + square / total) for side in (-1.0, 1.0))
    lower, upper = (min(max(end, 0.0), 1.0) for end in ends)  # rounding may step outside
    return lower, upper


def newcombe_interval(
    after: float, before: float, total: int, confidence: float
) -> tuple[float, float]:
    """Two-sided interval of ``after - before``, two shares of ``total`` (Newcombe 1998, method 10).

    It takes the shares for independent, so for the same items it is wider than it need be.
    """
    (low, high), (base_low, base_high) = (
        wilson_interval(share * total, total, confidence) for share in (after, before)
    )
    difference = after - before
    return (
        difference - math.hypot(after - low, base_high - before),
        difference + math.hypot(high - after, before - base_low),
    )


def student_interval(mean: float, values: ArrayLike, confidence: float) -> tuple[float, float]:
    """Student's two-sided interval of the mean of (n,) values; of one value, the mean twice."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return mean, mean
    quantile = float(special.stdtrit(len(array) - 1, (1.0 + confidence) / 2.0))
    reach = quantile * float(array.std(ddof=1)) / math.sqrt(len(array))
    return mean - reach, mean + reach


def welch_interval(
    before: ArrayLike, after: ArrayLike, confidence: float
) -> tuple[float, float, float]:
    """The difference of two means, ``after - before``, and its two-sided interval.

    Variances may differ: the degrees of freedom are those of Satterthwaite (1946) and Welch (1947),
    as in Snedecor and Cochran, Statistical Methods (1989), on the comparison of two samples.

    Args:
        before: (n,) independent values, at least two.
        after: (m,) the same.
        confidence: of the interval.

    Returns:
        The difference, its lower and its upper bound; all are equal where nothing varies.
    """
    first, last = (np.asarray(values, dtype=np.float64) for values in (before, after))
    parts = [values.var(ddof=1) / len(values) for values in (first, last)]
    difference, variance = float(last.mean() - first.mean()), float(sum(parts))
    if variance == 0.0:
        return difference, difference, difference
    sizes = len(first), len(last)
    freedom = variance**2 / sum(v**2 / (n - 1) for v, n in zip(parts, sizes, strict=True))
    reach = float(special.stdtrit(freedom, (1.0 + confidence) / 2.0)) * math.sqrt(variance)
    return difference, difference - reach, difference + reach


def fieller(
    numerator: float, denominator: float, variances: tuple[float, float, float], quantile: float
) -> Bounded | None:
    """A ratio of two estimates, and the interval of Fieller (1954).

    It is every θ for which numerator - θ denominator may be zero.

    Args:
        numerator: an estimate.
        denominator: another one.
        variances: of the numerator, of the denominator, and their covariance.
        quantile: of Student's t, two-sided.

    Returns:
        None where these θ are no interval.
    """
    var_n, var_d, covariance = variances
    squared = quantile**2
    leading = denominator**2 - squared * var_d
    if leading <= 0:
        return None
    middle = denominator * numerator - squared * covariance
    last = numerator**2 - squared * var_n
    root = math.sqrt(max(middle**2 - leading * last, 0.0))
    return Bounded(numerator / denominator, (middle - root) / leading, (middle + root) / leading)
