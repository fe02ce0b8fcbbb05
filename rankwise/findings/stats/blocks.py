"""What the scores of one kind of task say of K options: means, and how far they may be off.

A block is one kind: the in-domain tasks, or the retention tasks. An option has one run or several,
any number each; every run is scored on every item.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from rankwise.findings.stats.estimates import PSEUDO_ITEMS
from rankwise.findings.stats.items import Floats, Items, by_cluster, lead_size, sharing


class RunPrior(NamedTuple):
    """How far runs of one option lie from it, before any is seen.

    The variance of a run has a scaled inverse chi-squared law: ``freedom`` times ``variance`` over
    a chi-squared number with so many degrees of freedom.
    """

    freedom: float
    variance: float
    shared: float
    """Share of the variance that runs of one seed have in common, whatever their option."""

    def in_unit(self, point: float) -> RunPrior:
        """The same where a point of the prior is ``point`` in the unit of the values."""
        return self._replace(variance=self.variance * point**2)


GAIN_RUNS, LOSS_RUNS = RunPrior(1.6, 1.3, 0.3), RunPrior(2.5, 0.6, 0.4)
"""The priors of gains and of mean retention losses, in points; fitted to real runs, as
docs/methods/rule.md says. The median standard deviations are 1.4 and 0.9 points."""


SPREADS_ALIKE = 0.5
"""How alike the spreads of runs are over the options of a study: the correlation of their levels. A
convention of ours between none and one spread for all."""


class RunVariances(NamedTuple):
    """What is known of the variance of one run around its option: a law for each of K options.

    As in ``RunPrior``, by which a few runs are moderated; arrays (K,).
    """

    freedom: Floats
    variance: Floats

    def draws(self, rng: np.random.Generator, number: int) -> Floats:
        """(number, K) variances; where that of one option is large, others often are too."""
        of_all, own = (
            rng.standard_normal((number, 1)),
            rng.standard_normal((number, self.num_options)),
        )
        level = special.ndtr(np.sqrt(SPREADS_ALIKE) * of_all + np.sqrt(1.0 - SPREADS_ALIKE) * own)
        return self.freedom * self.variance / (2.0 * special.gammaincinv(self.freedom / 2.0, level))

    @property
    def num_options(self) -> int:
        """K."""
        return len(self.freedom)


class RunRows(NamedTuple):
    """Which option each row of (R, n) values is a run of: ``option`` (R,), from 0 to K - 1.

    ``seed`` (R,) are the runs' seeds; runs of no known seed have each its own.
    """

    option: NDArray[np.intp]
    seed: NDArray[np.intp]

    @property
    def counts(self) -> NDArray[np.intp]:
        """(K,) how many runs each option has."""
        return np.bincount(self.option)

    @property
    def averaging(self) -> Floats:
        """(K, R): times values of runs, the means over the runs of each option."""
        member = np.arange(len(self.counts))[:, None] == self.option
        return member / self.counts[:, None]

    def run_covariance(self, variance: Floats, shared: float) -> Floats:
        """(..., K, K) of the options' means over their runs, by the runs.

        Args:
            variance: (..., K) of one run of each option.
            shared: the share of it that runs of one seed have in common.
        """
        averaging, sd = self.averaging, np.sqrt(variance)
        same_seed = self.seed[:, None] == self.seed
        runs = shared * same_seed + (1.0 - shared) * np.eye(len(self.seed))
        return sd[..., :, None] * sd[..., None, :] * (averaging @ runs @ averaging.T)


def crossed(num_seeds: int, num_options: int) -> RunRows:
    """The rows of (m, K, n) values reshaped to (m K, n): every option has the same m seeds."""
    options, seeds = np.arange(num_options), np.arange(num_seeds)
    return RunRows(np.tile(options, num_seeds), np.repeat(seeds, num_options))


class TaskPart(NamedTuple):
    """What one task's items bring to the covariance of the K means.

    ``items`` (K, K) is that of the means over items, in which the interaction of run and item is
    contained; ``interaction`` (K,) is that part alone, zero with one run; ``pseudo`` (K, K) the
    pseudo-items'. All are of the mean over runs and items, times the task's share squared. Items in
    clusters are one value for each cluster; ``places`` are the tasks', several where they share
    clusters. ``freedom`` are the degrees of freedom of ``items``: the answered items less 1.
    ``cubes`` (K,) are the third central moments of the means over items.
    """

    items: Floats
    interaction: Floats
    pseudo: Floats
    places: tuple[int, ...]
    freedom: int
    cubes: Floats


class Block(NamedTuple):
    """K options on one kind of task: ``mean`` (K,) over runs, items and tasks, and its errors.

    ``by_run`` (R,) are the means of each run over items and tasks; ``prior`` is that of the runs,
    in the unit of the means.
    """

    mean: Floats
    by_run: Floats
    rows: RunRows
    parts: tuple[TaskPart, ...]
    prior: RunPrior

    @property
    def covariance(self) -> Floats:
        """(K, K) of the means of these runs, by items: with pseudo-items."""
        return np.sum([part.items + part.pseudo for part in self.parts], axis=0)

    @property
    def freedom(self) -> float:
        """The degrees of freedom of the covariance, over all options (Satterthwaite 1946)."""
        by_part = [float(np.trace(part.items + part.pseudo)) for part in self.parts]
        rest = sum(own**2 / part.freedom for own, part in zip(by_part, self.parts, strict=True))
        least = float(min(part.freedom for part in self.parts))
        return sum(by_part) ** 2 / rest if rest > 0.0 else least

    @property
    def skewness(self) -> Floats:
        """(K,) of the means, by items: third central moments over cubed standard errors."""
        cubes = np.sum([part.cubes for part in self.parts], axis=0)
        cubed = np.diagonal(self.covariance) ** 1.5
        return np.divide(cubes, cubed, out=np.zeros_like(cubes), where=cubed > 0.0)

    @property
    def interaction(self) -> Floats:
        """(K,): the part of the variances that is interaction of run and item."""
        return np.sum([part.interaction for part in self.parts], axis=0)

    @property
    def run_variances(self) -> RunVariances:
        """The variance of one run of each option: the prior, and the deviations of its own runs."""
        counts = self.rows.counts
        squares = np.bincount(self.rows.option, (self.by_run - self.mean[self.rows.option]) ** 2)
        # equal runs differ too, by which items each has right
        by_chance = (counts - 1) * counts * self.interaction
        freedom = (self.prior.freedom + counts - 1).astype(np.float64)
        seen = np.maximum(squares - by_chance, 0.0)
        return RunVariances(freedom, (self.prior.freedom * self.prior.variance + seen) / freedom)


class StudyEvidence:
    """The scores of K options: ``in_domain`` gains, and ``retention`` losses if measured.

    Args:
        gains: for each in-domain task (R, n): adapted - base, positive better, for each run and
            item.
        losses: for each retention task (R, n) in points: base - adapted, positive worse.
        rows: the option of each run.
        point: what a point of the prior of runs is in the unit of the gains.
        priors: of the runs' gains, and of their losses, in points.
        is_share: whether gains are of shares, in points; a loss has no bound.

    Raises:
        ValueError: no in-domain task, shapes that do not agree, or a task with one item.
    """

    def __init__(
        self,
        gains: Sequence[Items],
        losses: Sequence[Items],
        rows: RunRows,
        point: float = 1.0,
        priors: tuple[RunPrior, RunPrior] = (GAIN_RUNS, LOSS_RUNS),
        *,
        is_share: bool = True,
    ) -> None:
        if not gains or {len(task.values) for task in (*gains, *losses)} != {len(rows.option)}:
            raise ValueError("every task needs the same runs, and one must be in-domain")
        self.rows, self.point, self.is_share = rows, point, is_share
        self.in_domain = block(gains, rows, priors[0].in_unit(point))
        self.retention = block(losses, rows, priors[1]) if losses else None
        self._losses, self._of_losses = losses, priors[1]

    @property
    def num_options(self) -> int:
        """K."""
        return len(self.in_domain.mean)

    @cached_property
    def tasks(self) -> tuple[Block, ...]:
        """The losses of each retention task by itself."""
        return tuple(block([task], self.rows, self._of_losses) for task in self._losses)


def block(tasks: Sequence[Items], rows: RunRows, prior: RunPrior) -> Block:
    """The block of tasks (R, n) with the same R runs.

    Args:
        tasks: at least one.
        rows: the option of each run.
        prior: of the runs, in the unit of the values.

    Raises:
        ValueError: fewer than two items in a task.
    """
    averaging = rows.averaging
    num_options = len(averaging)
    total = sum(task.weight for task in tasks)
    tasks = [task._replace(lead_size=lead_size(task, averaging)) for task in tasks]
    by_run = np.zeros(len(rows.option))
    parts: list[TaskPart] = []
    for task, places in zip(by_cluster(tasks), sharing(tasks), strict=True):
        num_items, share = task.num_items, task.weight / total
        if num_items < 2:
            raise ValueError(f"{num_items} items give no standard error; at least 2 are needed")
        values = share * task.values
        by_run += values.mean(axis=1)
        by_item = averaging @ values
        centred = by_item - by_item.mean(axis=1, keepdims=True)
        # gains and leads each have pseudo-items of their own size
        gain, lead = task.item_size, task.item_size if task.lead_size is None else task.lead_size
        shared = max(2.0 * gain**2 - lead**2, 0.0)
        pseudo = PSEUDO_ITEMS / 2.0 * (lead**2 * np.eye(num_options) + shared)
        parts.append(
            TaskPart(
                items=centred @ centred.T / (num_items - 1) / num_items,
                interaction=_interaction(values, by_item, rows),
                pseudo=(share / num_items) ** 2 * pseudo,
                places=tuple(places),
                freedom=task.num_scored - 1,
                cubes=(centred**3).mean(axis=1) / num_items**2,
            )
        )
    return Block(averaging @ by_run, by_run, rows, tuple(parts), prior)


def _interaction(values: Floats, by_item: Floats, rows: RunRows) -> Floats:
    """(K,) variances of the options' means of (R, n) values that are due to run and item together.

    ``by_item`` (K, n) are the means over the runs of each option.
    """
    counts, num_items = rows.counts, values.shape[1]
    residual = values - by_item[rows.option]
    residual -= residual.mean(axis=1, keepdims=True)
    squares = np.bincount(rows.option, (residual**2).sum(axis=1))
    freedom = np.maximum(counts - 1, 1) * (num_items - 1)  # of one run the squares are 0
    return squares / freedom / (counts * num_items)


def normal_draws(covariance: Floats, rng: np.random.Generator, num_draws: int) -> Floats:
    """(num_draws, K) normal with this covariance, which may be singular.

    The second half are the first with the other sign, so that their mean is exactly zero.
    """
    half = rng.standard_normal(((num_draws + 1) // 2, len(covariance)))
    return np.concatenate([half, -half])[:num_draws] @ root_of(covariance).T


def root_of(covariance: Floats) -> Floats:
    """The symmetric R with R R = the covariance (..., K, K), which may be singular.

    It is unique, so that processors, which turn equal eigenvectors differently, draw the same.
    """
    values, vectors = np.linalg.eigh(covariance)
    scaled = vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]
    return scaled @ np.swapaxes(vectors, -1, -2)


def lead_variances(covariance: Floats) -> Floats:
    """(K, K): the variance of the row's number less the column's, of K numbers.

    Exactly zero where only rounding is left.
    """
    own = np.diagonal(covariance)
    pairs = (own[:, None] - covariance.T) - (covariance - own)
    return np.where(pairs > 1e-12 * own.sum(), pairs, 0.0)
