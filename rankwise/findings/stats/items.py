"""The values of a task, item by item, with what one whole item counts in a variance.

Items that come in clusters (questions about one passage) become one number per cluster here; the
formula and its source are in docs/methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Clusters = NDArray[np.int64]
"""(n,): a number for each item, the same for items of one cluster."""

Mask = NDArray[np.bool_]

POINTS = 100.0
"""What one whole item counts where shares are given in points."""

TAIL_QUANTILE = 0.995
"""Quantile of the differences' sizes, where they are not whole items: about the largest of 200."""


class Items(NamedTuple):
    """Values (..., n) of the n items of one task; the last axis is the items'.

    ``item_size`` is the size of a difference that may not have been seen (``item_size``);
    0 adds nothing to a variance. ``weight`` is the task's in a mean over tasks, in any unit.
    ``clusters`` is None where the items are independent. Tasks with a cluster in common share it.
    ``lead_size`` is the size of such a difference between two options of (..., K, n); None: the
    same. ``scored`` (n,) are the items that every model answered, where the other values are
    estimates (``stats.reference``); None: all. Their variance is that of any values, but it is
    known from the answered items only.
    """

    values: Floats
    item_size: float
    weight: float = 1.0
    clusters: Clusters | None = None
    lead_size: float | None = None
    scored: Mask | None = None

    @property
    def num_items(self) -> int:
        """n, the length of the last axis."""
        return self.values.shape[-1]

    @property
    def num_scored(self) -> int:
        """Number of answered items."""
        return self.num_items if self.scored is None else int(self.scored.sum())


def whole_item(num_items: int, num_scored: int) -> float:
    """What an item that is right or wrong counts, in points: an answered one stands for others."""
    return POINTS * num_items / num_scored


def item_size(differences: ArrayLike, *, in_points: bool) -> float:
    """How large a difference between two models on one item may be, by those that were seen.

    Of items that are right or wrong it is the whole item: 100 points. Of other values it is the
    99.5 % quantile of the differences' sizes, so that a metric of small differences is not blurred
    and a rare large loss counts. Where all differences are zero, points get a whole item and nats
    nothing, for nothing is known of their size.

    Args:
        differences: of all models and items of a task together, any shape.
        in_points: whether the values are shares times 100.
    """
    sizes = np.abs(np.asarray(differences, dtype=np.float64)).ravel()
    if in_points and np.isin(sizes, (0.0, POINTS)).all():
        return POINTS
    return float(np.quantile(sizes, TAIL_QUANTILE, method="higher"))


def lead_size(task: Items, averaging: Floats) -> float:
    """How large the difference of two options on one item may be, by those that were seen.

    Leads are smaller than gains where options move together. It is the same quantile of the runs'
    distances from the mean of the options, scaled so that those of two options are their lead.

    Runs may be right or wrong where the base is neither, as of pairs of answers, which it takes for
    equal: between two of them an item is a whole one. Where all runs agree on all such items,
    nothing is known but that two gains are no further apart than twice the size of one. Shares and
    losses that agree in every digit are of one model.

    Args:
        task: (R, n) of R runs. Of right and wrong items, and of one option, the size is that of
            their differences from the base.
        averaging: (K, R) gives the means over the runs of K options.
    """
    count, whole = len(averaging), whole_item(task.num_items, task.num_scored)
    if task.item_size == 0.0 or task.item_size >= whole or count == 1:
        return task.item_size
    values = task.values if task.scored is None else task.values[:, task.scored]
    apart = np.abs(values - values[0])
    if apart.any():
        if np.isin(apart, (0.0, POINTS)).all():
            return whole
    elif np.isin(values - values.min(), (0.0, POINTS)).all():
        return min(2.0 * task.item_size, whole)
    from_mean = values - averaging.mean(axis=0) @ values
    scale = math.sqrt(2.0 * count / (count - 1))
    return scale * float(np.quantile(np.abs(from_mean), TAIL_QUANTILE, method="higher"))


def by_cluster(tasks: Sequence[Items]) -> list[Items]:
    """The same means over independent numbers: one per cluster, one per item without clusters.

    With G clusters, n items and the mean D, cluster c becomes D + G/n * sum of (D_j - D) over its
    items j. The mean of these G numbers is D, and the variance of their mean is the cluster-robust
    one of D with the factor G / (G - 1) (Liang and Zeger 1986). Tasks that share clusters become
    one: the weighted residuals of a cluster are summed over the tasks first, so what the tasks have
    in common is counted. Pseudo-items stay what they are of single items. Answered
    clusters have an answered item, in the task that has the fewest such clusters.

    Clusters of one item each change nothing, not even by rounding.
    """
    return [
        group[0]._replace(clusters=None) if _is_independent(group) else _linearised(group)
        for group in _sharing(tasks)
    ]


def gives_an_error(part: Items) -> bool:
    """Whether there are two independent numbers: items, or clusters of them."""
    return min(part.num_scored, num_clusters([part]) or part.num_scored) > 1


def num_clusters(tasks: Sequence[Items]) -> int | None:
    """Number of independent values among all items of these tasks; None if every item is one."""
    groups = _sharing(tasks)
    if all(map(_is_independent, groups)):
        return None
    return sum(
        group[0].num_items if _is_independent(group) else len(np.unique(_labels(group)))
        for group in groups
    )


def design_effects(values: Floats, clusters: Clusters) -> Floats:
    """The cluster-robust variance of means (..., n) over that of independent items, shape (...).

    1 where all values are equal. Pseudo-items are left out.
    """
    (part,) = by_cluster([Items(values, 0.0, clusters=clusters)])
    plain = values.var(axis=-1, ddof=1) / values.shape[-1]
    robust = part.values.var(axis=-1, ddof=1) / part.num_items
    return np.where(plain > 0, robust / np.where(plain > 0, plain, 1.0), 1.0)


def sharing(tasks: Sequence[Items]) -> list[list[int]]:
    """The places of the tasks, those together that have a cluster in common.

    ``by_cluster`` makes one of each; they are in the order of their first task.
    """
    if len(tasks) == 1:
        return [[0]]
    groups: list[tuple[set[int], list[int]]] = []
    for place, task in enumerate(tasks):
        if task.clusters is None:
            groups.append((set(), [place]))
            continue
        labels = set(task.clusters.tolist())
        shared = [group for group in groups if not labels.isdisjoint(group[0])]
        groups = [group for group in groups if group not in shared]
        places = [first for _, members in shared for first in members]
        groups.append((labels.union(*(known for known, _ in shared)), sorted([*places, place])))
    return sorted(places for _, places in groups)


def _sharing(tasks: Sequence[Items]) -> list[list[Items]]:
    return [[tasks[place] for place in places] for places in sharing(tasks)]


def _labels(group: Sequence[Items]) -> Clusters:
    """(all items,): the clusters of tasks that have some."""
    return np.concatenate([task.clusters for task in group if task.clusters is not None])


def _is_independent(group: Sequence[Items]) -> bool:
    """Whether it is one task whose items are all in clusters of their own."""
    clusters = group[0].clusters
    return len(group) == 1 and (clusters is None or len(np.unique(clusters)) == len(clusters))


def _linearised(group: Sequence[Items]) -> Items:
    """Tasks that share clusters as one with a value for each cluster."""
    labels, places = np.unique(_labels(group), return_inverse=True)
    size, total = len(labels), sum(task.weight for task in group)
    values = np.zeros((*group[0].values.shape[:-1], size))
    pseudo, start, scored = np.zeros(2), 0, np.ones(size, dtype=bool)
    for task in group:
        its, start = places[start : start + task.num_items], start + task.num_items
        mean = task.values.mean(axis=-1, keepdims=True)
        share = task.weight / total
        residuals = share * size / task.num_items * (task.values - mean)
        np.add.at(values.T, its, residuals.T)  # the transpose is a view: its first axis is items'
        values += share * mean
        if task.scored is not None:
            its_own = np.isin(np.arange(size), its[task.scored])
            scored = min(scored, its_own, key=np.sum)
        of_lead = task.item_size if task.lead_size is None else task.lead_size
        pseudo += (share * np.array([task.item_size, of_lead]) / task.num_items) ** 2
    of_one, of_lead = (size * np.sqrt(pseudo)).tolist()
    of_all = None if scored.all() else scored
    return Items(values, of_one, total, lead_size=of_lead, scored=of_all)
