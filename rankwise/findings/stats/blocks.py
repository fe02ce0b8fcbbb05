"""What the scores of one kind of task say of K options: means, and how far they may be off.

A block is one kind: the in-domain tasks, or the retention tasks. Its seeds and its options are
crossed with its items: every run is scored on every item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from rankwise.findings.stats.estimates import PSEUDO_ITEMS, Spread
from rankwise.findings.stats.items import Floats, Items, by_cluster, lead_size, sharing

RUN_SD_MEDIAN, RUN_SD_LOG_SD = 0.8, 0.8
"""How far runs of one option lie from it: a lognormal standard deviation, in points."""

PRIOR_FREEDOM, PRIOR_RUN_VARIANCE = 1.5, 0.29
"""That prior as a scaled inverse chi-squared law of the variance; its logarithm has the same mean
and variance: psi'(f/2) = (2 * 0.8)^2, and ln v = 2 ln 0.8 - ln(f/2) + psi(f/2)."""


Contrasts = Literal["options", "pairs"]
"""What is asked of K options: of each (K,), or of each less each other, the row's less the column's
(K, K). Below (C) stands for either. As a matrix, the pairs of 300 options would be (90,000, 300).
"""


class TaskPart(NamedTuple):
    """What one task's items bring to the covariance of the K means.

    ``items`` (K, K) is that of the means over items, in which the interaction of seed and item is
    contained; ``interaction`` (K, K) is that part alone, zero with one seed; ``pseudo`` (K, K) the
    pseudo-items'. All are of the mean over seeds and items, times the task's share squared.
    ``centred`` (K, n) are the items' values less their mean, times the share. Items in clusters are
    one value for each cluster; ``places`` are the tasks', several where they share clusters.
    ``freedom`` are the degrees of freedom of ``items``: the answered items less 1.
    """

    items: Floats
    interaction: Floats
    pseudo: Floats
    centred: Floats
    places: tuple[int, ...]
    freedom: int


class SeedVariance(NamedTuple):
    """A variance of a mean over seeds, and its degrees of freedom."""

    value: float
    freedom: float


class SeedVariances(NamedTuple):
    """How the means of K options over m seeds vary, by a two-way analysis: seeds by options.

    ``covariance`` (K, K) is that of the options' own means over seeds; ``of_one`` and ``of_pair``
    are pooled over the options, and with the prior.
    """

    covariance: Floats
    of_one: SeedVariance
    of_pair: SeedVariance


class Block(NamedTuple):
    """K options on one kind of task: ``mean`` (K,) over seeds, items and tasks, and its errors.

    ``by_seed`` is (m, K), the means over items and tasks.
    """

    mean: Floats
    by_seed: Floats
    parts: tuple[TaskPart, ...]
    seeds: SeedVariances

    @property
    def num_seeds(self) -> int:
        """M."""
        return len(self.by_seed)

    @property
    def item_covariance(self) -> Floats:
        """(K, K) of the means, by items: with pseudo-items and the interaction."""
        return np.sum([part.items + part.pseudo for part in self.parts], axis=0)

    @property
    def interaction(self) -> Floats:
        """(K, K): the part of ``item_covariance`` that is interaction of seed and item."""
        return np.sum([part.interaction for part in self.parts], axis=0)

    @property
    def of_these_runs(self) -> Block:
        """What the scores say of these runs alone, averaged over their seeds: only items vary."""
        parts = tuple(part._replace(interaction=0.0 * part.interaction) for part in self.parts)
        by_seed = self.mean[None]
        return Block(self.mean, by_seed, parts, seed_variances(by_seed, self.interaction, 0.0))

    def item_variances(self, contrasts: Contrasts) -> Floats:
        """(T, C) of the contrasts: what is due to each part's items, pseudo-items included.

        The seeds' variance contains the interaction too, so it is taken off here.
        """
        items, interaction, pseudo = (
            quadratic(contrasts, np.stack(matrices))
            for matrices in zip(
                *((p.items, p.interaction, p.pseudo) for p in self.parts), strict=True
            )
        )
        return np.maximum(items - interaction, 0.0) + pseudo

    def spread(self, contrasts: Contrasts) -> Spread:
        """Variances (C) of the contrasts of the means.

        An option whose own seed variance is above the pooled one keeps its own.
        """
        by_part = self.item_variances(contrasts)
        freedom = np.array([part.freedom for part in self.parts], dtype=np.float64)
        items = by_part.sum(axis=0)
        rest = np.tensordot(1.0 / freedom, by_part**2, axes=1)
        pooled = self.seeds.of_pair if contrasts == "pairs" else self.seeds.of_one
        own = np.maximum(quadratic(contrasts, self.seeds.covariance), pooled.value)
        return Spread(
            item_variance=items,
            item_freedom=np.where(rest > 0, items**2 / or_one(rest), freedom.min()),
            seed_variance=np.where(num_runs(contrasts, len(self.mean)) > 0, own, 0.0),
            seed_freedom=np.full(items.shape, float(pooled.freedom)),
        )

    def third_moment(self, contrasts: Contrasts) -> Floats:
        """(C) third central moments of the contrasts of the means."""
        return np.sum([_third_moment(contrasts, part.centred) for part in self.parts], axis=0)


def block(tasks: Sequence[Items], point: float = 1.0) -> Block:
    """The block of tasks (m, K, n) with the same m seeds and K options.

    Args:
        tasks: at least one.
        point: what a point of the prior of runs is in the unit of the values.

    Raises:
        ValueError: fewer than two items in a task.
    """
    num_seeds, num_options, _ = tasks[0].values.shape
    total = sum(task.weight for task in tasks)
    tasks = [task._replace(lead_size=lead_size(task)) for task in tasks]
    by_seed = np.zeros((num_seeds, num_options))
    parts: list[TaskPart] = []
    for task, places in zip(by_cluster(tasks), sharing(tasks), strict=True):
        num_items, share = task.num_items, task.weight / total
        if num_items < 2:
            raise ValueError(f"{num_items} items give no standard error; at least 2 are needed")
        values = share * task.values
        by_seed += values.mean(axis=2)
        by_item = values.mean(axis=0)
        centred = by_item - by_item.mean(axis=1, keepdims=True)
        # gains and leads each have pseudo-items of their own size
        gain, lead = task.item_size, task.item_size if task.lead_size is None else task.lead_size
        shared = max(2.0 * gain**2 - lead**2, 0.0)
        pseudo = PSEUDO_ITEMS / 2.0 * (lead**2 * np.eye(num_options) + shared)
        parts.append(
            TaskPart(
                items=centred @ centred.T / (num_items - 1) / num_items,
                interaction=_interaction(values),
                pseudo=(share / num_items) ** 2 * pseudo,
                centred=centred,
                places=tuple(places),
                freedom=task.num_scored - 1,
            )
        )
    by_chance = np.sum([part.interaction for part in parts], axis=0)
    seeds = seed_variances(by_seed, by_chance, PRIOR_RUN_VARIANCE * point**2)
    return Block(by_seed.mean(axis=0), by_seed, tuple(parts), seeds)


def _interaction(values: Floats) -> Floats:
    """(K, K) covariance of the means of (m, K, n) that is due to seed and item together."""
    num_seeds, num_options, num_items = values.shape
    if num_seeds == 1:
        return np.zeros((num_options, num_options))
    by_seed = values.mean(axis=2, keepdims=True)
    residual = values - values.mean(axis=0) - (by_seed - by_seed.mean(axis=0))
    freedom = (num_seeds - 1) * (num_items - 1)
    covariance = np.einsum("ikj,ilj->kl", residual, residual) / freedom
    return covariance / (num_seeds * num_items)


def seed_variances(by_seed: Floats, by_chance: Floats, of_runs: float) -> SeedVariances:
    """Two-way analysis of variance of (m, K) means, as variances of the mean over m seeds.

    A few seeds say little, so the pooled variances are moderated (Smyth 2004): the prior counts as
    ``PRIOR_FREEDOM`` more degrees of freedom with what it expects.

    Args:
        by_seed: the means.
        by_chance: (K, K) what of their covariance the items alone bring.
        of_runs: the prior variance of a run around its option, in the unit of the means squared.
    """
    num_seeds, num_options = by_seed.shape
    if num_seeds == 1:
        none = SeedVariance(0.0, 1.0)
        return SeedVariances(np.zeros((num_options, num_options)), none, none)
    deviations = by_seed - by_seed.mean(axis=0)
    covariance = deviations.T @ deviations / (num_seeds - 1) / num_seeds
    freedom = num_seeds - 1
    total = float(np.trace(covariance)) / num_options
    of_mean = of_runs / num_seeds + float(np.trace(by_chance)) / num_options
    if num_options == 1:
        one = _moderated(total, freedom, of_mean)
        return SeedVariances(covariance, one, SeedVariance(0.0, 1.0))
    between = float(covariance.sum()) / num_options**2
    residual = max(total - between, 0.0) * num_options / (num_options - 1)
    shared = max(between - residual / num_options, 0.0)
    of_residual = residual * (num_options - 1) / num_options
    spread = between**2 + of_residual**2 / (num_options - 1)
    of_one = freedom * (between + of_residual) ** 2 / spread if spread > 0 else freedom
    one = _moderated(residual + shared, of_one, of_mean)
    pair = _moderated(2.0 * residual, freedom * (num_options - 1), 2.0 * of_mean)
    return SeedVariances(covariance, one, pair)


def _moderated(observed: float, freedom: float, expected: float) -> SeedVariance:
    total = freedom + PRIOR_FREEDOM
    return SeedVariance((freedom * observed + PRIOR_FREEDOM * expected) / total, total)


def contrasted(contrasts: Contrasts, values: Floats) -> Floats:
    """(..., C) of (..., K): the options' values, or by how much the row's is above the column's."""
    return values if contrasts == "options" else values[..., :, None] - values[..., None, :]


def num_runs(contrasts: Contrasts, num_options: int) -> Floats:
    """(C) how many options' runs are in a contrast: 1, or 2, and 0 of an option less itself."""
    if contrasts == "options":
        return np.ones(num_options)
    return 2.0 * (1.0 - np.eye(num_options))


def _third_moment(contrasts: Contrasts, centred: Floats) -> Floats:
    """(C) of the mean of (K, n) values, each row less its mean."""

    def of(values: Floats) -> Floats:
        return (values * values * values).mean(axis=1) / values.shape[1] ** 2

    if contrasts == "options":
        return of(centred)
    return np.stack([of(own - centred) for own in centred])  # (K, n) at a time


def normal_draws(covariance: Floats, rng: np.random.Generator, num_draws: int) -> Floats:
    """(num_draws, K) normal with this covariance, which may be singular."""
    return rng.standard_normal((num_draws, len(covariance))) @ root_of(covariance).T


def root_of(covariance: Floats) -> Floats:
    """A matrix R with R R^T = the covariance (K, K), which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def quadratic(contrasts: Contrasts, matrix: Floats) -> Floats:
    """(..., C): the variances of the contrasts of K numbers.

    Their covariance is ``matrix`` (..., K, K). A variance is exactly zero where only rounding is
    left.
    """
    own = np.diagonal(matrix, axis1=-2, axis2=-1)
    least = 1e-12 * own.sum(axis=-1)
    if contrasts == "options":
        return np.where(own > least[..., None], own, 0.0)
    pairs = (own[..., :, None] - np.swapaxes(matrix, -1, -2)) - (matrix - own[..., None, :])
    return np.where(pairs > least[..., None, None], pairs, 0.0)


def or_one(values: Floats) -> Floats:
    """A divisor: 1 in place of a variance of zero, whose numerator is zero as well."""
    return np.where(values > 0, values, 1.0)
