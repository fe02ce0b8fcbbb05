"""Bounds that hold at once for all the options of a study: a max-statistic bootstrap.

An option is a rank with its alpha and learning rate. The statements that a recommendation rests
on are made together: every option's gain from below, every option's retention loss from above
(and from below for the best one, lest it be rejected by mistake), and every option's in-domain
score against the best one's. Which option is best is not known, so the critical value is the
largest over all that may be (Hsu 1984, multiple comparisons with the best).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from rankwise.findings.stats.estimates import PSEUDO_ITEMS, Spread, skewed_quantiles
from rankwise.findings.stats.items import Floats, Items, by_cluster

NUM_DRAWS = 10_000


class Bounds(NamedTuple):
    """Estimates with bounds, and what would tighten them; arrays of one shape."""

    estimate: Floats
    lower: Floats
    upper: Floats
    spread: Spread


class StudyBounds(NamedTuple):
    """Simultaneous bounds of a study with K options.

    ``gain`` (K,) over the base; ``loss`` (K,) on retention, None without such tasks;
    ``lead`` (K, K): the row's in-domain score less the column's, zero on the diagonal.
    ``critical`` is the common critical value for infinite degrees of freedom.
    """

    gain: Bounds
    loss: Bounds | None
    lead: Bounds
    critical: float
    num_seeds: int


def study_bounds(
    gains: Sequence[Items],
    losses: Sequence[Items],
    *,
    confidence: float,
    rng: np.random.Generator | int,
    num_draws: int = NUM_DRAWS,
) -> StudyBounds:
    """Simultaneous bounds of all gains, losses and differences between options.

    Each bound is estimate ± quantile * stderr, with the item variance and the correction for
    skewness of ``stats.crossed_difference``. The common level comes from the Gaussian multiplier
    bootstrap of the studentised maximum (Chernozhukov, Chetverikov and Kato 2013): given the
    data its draws are normal with the estimated covariance, so they are drawn from that and
    their cost does not depend on the number of items. Item sets are independent of one another.

    A few seeds say little about the variance of one option, so it is taken from a two-way
    analysis of variance, seeds by options (one variance common to the options, and one of what
    the seeds share), or from the option itself where that is larger. It enters each bound
    through Student's t at the common level, as in ``stats.Spread.quantile``.

    Args:
        gains: for each in-domain task (m, K, n): adapted - base, positive better, for each
            seed, option and item.
        losses: for each retention task (m, K, n) in points: base - adapted, positive worse.
        confidence: that all statements used for a recommendation hold, 0..1.
        rng: generator or seed.
        num_draws: of the bootstrap.

    Raises:
        ValueError: no in-domain task, or shapes that do not agree.
    """
    if not gains or len({task.values.shape[:2] for task in (*gains, *losses)}) != 1:
        raise ValueError("every task needs the same seeds and options, and one must be in-domain")
    gains, losses = by_cluster(gains), by_cluster(losses)
    num_seeds, num_options, _ = gains[0].values.shape
    in_domain = _block(gains)
    retention = _block(losses) if losses else None
    one = np.eye(num_options)
    # (K * K, K): row r * K + s is option r less option s
    pairs = (one[:, None, :] - one[None, :, :]).reshape(-1, num_options)
    generator = np.random.default_rng(rng)
    critical = _critical_value(in_domain, retention, pairs, confidence, generator, num_draws)
    level = float(special.ndtr(critical))
    lead = _bounds(in_domain, pairs, in_domain.seeds.of_pair, level)
    shape = (num_options, num_options)
    return StudyBounds(
        gain=_bounds(in_domain, one, in_domain.seeds.of_one, level),
        loss=None if retention is None else _bounds(retention, one, retention.seeds.of_one, level),
        lead=Bounds(
            lead.estimate.reshape(shape),
            lead.lower.reshape(shape),
            lead.upper.reshape(shape),
            Spread(*(part.reshape(shape) for part in lead.spread)),
        ),
        critical=critical,
        num_seeds=num_seeds,
    )


class _Variance(NamedTuple):
    """A variance of a mean over seeds, and its degrees of freedom."""

    value: float
    freedom: float


class _Seeds(NamedTuple):
    """How the means of K options over seeds vary, pooled over the options.

    ``covariance`` (K, K) is that of the options' own means; ``shared`` the part of ``of_one``
    that a seed brings to every option alike.
    """

    covariance: Floats
    of_one: _Variance
    of_pair: _Variance
    shared: float


class _Block(NamedTuple):
    """All that is known of K options on one kind of task.

    ``parts`` are the covariances (K, K) of the mean that come from each task's items, with
    their degrees of freedom; ``samples`` are the centred items of each task (K, n), weighted by
    its share.
    """

    mean: Floats
    parts: tuple[tuple[Floats, int], ...]
    samples: tuple[Floats, ...]
    seeds: _Seeds

    @property
    def covariance(self) -> Floats:
        """The pooled covariance of the means, items and seeds together."""
        items = np.sum([part for part, _ in self.parts], axis=0)
        own = self.seeds.of_one.value - self.seeds.shared
        return items + self.seeds.shared + own * np.eye(len(self.mean))


def _block(tasks: Sequence[Items]) -> _Block:
    num_seeds, num_options, _ = tasks[0].values.shape
    total = sum(task.weight for task in tasks)
    by_seed = np.zeros((num_seeds, num_options))
    parts: list[tuple[Floats, int]] = []
    samples: list[Floats] = []
    # the base is in every gain, so that a lead has the pseudo-items of both options
    in_common = PSEUDO_ITEMS / 2.0 * (np.eye(num_options) + 1.0)
    for task in tasks:
        num_items, weight = task.num_items, task.weight / total
        if num_items < 2:
            raise ValueError(f"{num_items} items give no standard error; at least 2 are needed")
        by_seed += weight * task.values.mean(axis=2)
        by_item = task.values.mean(axis=0)
        centred = weight * (by_item - by_item.mean(axis=1, keepdims=True))
        pseudo = (weight * task.item_size) ** 2 * in_common / num_items
        part = (centred @ centred.T / (num_items - 1) + pseudo) / num_items
        parts.append((part, num_items - 1))
        samples.append(centred)
    return _Block(by_seed.mean(axis=0), tuple(parts), tuple(samples), _seeds(by_seed))


def _seeds(by_seed: Floats) -> _Seeds:
    """Two-way analysis of variance of (m, K) means, as variances of the mean over m seeds."""
    num_seeds, num_options = by_seed.shape
    if num_seeds == 1:
        none = _Variance(0.0, 1.0)
        return _Seeds(np.zeros((num_options, num_options)), none, none, 0.0)
    deviations = by_seed - by_seed.mean(axis=0)
    covariance = deviations.T @ deviations / (num_seeds - 1) / num_seeds
    freedom = num_seeds - 1
    total = float(np.trace(covariance)) / num_options
    if num_options == 1:
        return _Seeds(covariance, _Variance(total, freedom), _Variance(0.0, 1.0), 0.0)
    between = float(covariance.sum()) / num_options**2
    residual = max(total - between, 0.0) * num_options / (num_options - 1)
    shared = max(between - residual / num_options, 0.0)
    of_residual = residual * (num_options - 1) / num_options
    spread = between**2 + of_residual**2 / (num_options - 1)
    of_one = freedom * (between + of_residual) ** 2 / spread if spread > 0 else freedom
    return _Seeds(
        covariance,
        _Variance(residual + shared, of_one),
        _Variance(2.0 * residual, freedom * (num_options - 1)),
        shared,
    )


def _bounds(block: _Block, contrasts: Floats, seeds: _Variance, level: float) -> Bounds:
    by_part = np.stack([_quadratic(contrasts, part) for part, _ in block.parts])
    freedom = np.array([df for _, df in block.parts], dtype=np.float64)
    items = by_part.sum(axis=0)
    parts_spread = (by_part**2 / freedom[:, None]).sum(axis=0)
    seed_variance = np.maximum(_quadratic(contrasts, block.seeds.covariance), seeds.value)
    spread = Spread(
        item_variance=items,
        item_freedom=np.where(parts_spread > 0, items**2 / _or_one(parts_spread), freedom.min()),
        seed_variance=np.where(contrasts.any(axis=1), seed_variance, 0.0),
        seed_freedom=np.full(len(contrasts), float(seeds.freedom)),
    )
    third = np.zeros(len(contrasts))
    for sample in block.samples:
        values = contrasts @ sample
        third += (values * values * values).mean(axis=1) / sample.shape[1] ** 2
    stderr = spread.stderr
    below, above = skewed_quantiles(spread.quantile(level), third / _or_one(stderr) ** 3)
    estimate = contrasts @ block.mean
    return Bounds(estimate, estimate - below * stderr, estimate + above * stderr, spread)


def _critical_value(
    in_domain: _Block,
    retention: _Block | None,
    pairs: Floats,
    confidence: float,
    rng: np.random.Generator,
    num_draws: int,
) -> float:
    """The largest, over every option that may be the best, of the maximum's quantile."""
    covariance = in_domain.covariance
    num_options = len(covariance)
    gains = _normal_draws(covariance, rng, num_draws)
    always = (gains / np.sqrt(_or_one(np.diag(covariance)))).max(axis=1)
    losses: Floats | None = None
    if retention is not None:
        of_losses = retention.covariance
        losses = _normal_draws(of_losses, rng, num_draws) / np.sqrt(_or_one(np.diag(of_losses)))
        always = np.maximum(always, (-losses).max(axis=1))
    spreads = np.sqrt(_or_one(_quadratic(pairs, covariance))).reshape(num_options, num_options)
    critical = 0.0
    for best in range(num_options):
        largest = always
        others = np.arange(num_options) != best
        if others.any():
            lead = (gains[:, others] - gains[:, best, None]) / spreads[others, best]
            largest = np.maximum(largest, lead.max(axis=1))
        if losses is not None:
            largest = np.maximum(largest, losses[:, best])
        critical = max(critical, float(np.quantile(largest, confidence)))
    return critical


def _normal_draws(covariance: Floats, rng: np.random.Generator, num_draws: int) -> Floats:
    """(num_draws, K) normal with this covariance, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    root: Floats = vectors * np.sqrt(np.maximum(values, 0.0))
    return rng.standard_normal((num_draws, len(covariance))) @ root.T


def _quadratic(contrasts: Floats, matrix: Floats) -> Floats:
    """The variance of each contrast; exactly zero where only rounding is left."""
    values = np.einsum("ij,jk,ik->i", contrasts, matrix, contrasts)
    return np.where(values > 1e-12 * np.trace(matrix), values, 0.0)


def _or_one(values: Floats) -> Floats:
    """A divisor: 1 in place of a variance of zero, whose numerator is zero as well."""
    return np.where(values > 0, values, 1.0)
