"""Which items will be forgotten: an untrained rank's outcomes from those of other ranks.

Items by runs, changes are nearly of low rank (arXiv:2406.14026): the changes of the other ranks'
runs are factorised, and their factors interpolated to the rank that was left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.prediction.collected import CollectedItems, CollectedStudy
from benchmarks.prediction.curves import line_of
from rankwise.findings.stats.items import Floats

NUM_FACTORS = 3
MIN_FORGOTTEN = 5
"""With fewer forgotten or kept items an AUC says nothing."""

Orderer = Literal["base margin", "other runs", "rank-3 factors"]
ORDERERS: tuple[Orderer, ...] = get_args(Orderer)


class RankItems(NamedTuple):
    """Retention items that the base has right.

    ``base`` (items,) is its p(right) in points; ``change`` (items, runs) that of each run less the
    base's, and ``forgotten`` (items, runs) whether the run is wrong; ``ranks`` (runs,).
    """

    base: Floats
    change: Floats
    forgotten: Floats
    ranks: Floats


def retention_items(study: CollectedStudy) -> RankItems | None:
    """Of each rank at its median rate (``line_of``); None without items that are right or wrong."""
    places = [place for runs in line_of(study).ranks.values() for place in runs]
    tasks = [items for items in study.items_of("retention") if items.right[0]]
    if not tasks or not places:
        return None
    parts = [_of_task(items, places) for items in tasks]
    base, change, forgotten = (np.concatenate(column) for column in zip(*parts, strict=True))
    ranks = np.array([study.runs[place].rank for place in places], dtype=float)
    return RankItems(base, change, forgotten, ranks)


def _of_task(items: CollectedItems, places: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    is_right = items.right_of(0) == 1.0
    change = np.stack([items.gain_of(place + 1) for place in places], axis=1)
    right = np.stack([items.right_of(place + 1) for place in places], axis=1)
    return items.value_of(0)[is_right], change[is_right], 1.0 - right[is_right]


def scores_of(items: RankItems, rank: float) -> dict[Orderer, Floats]:
    """(items,): how sure each way is that a run of ``rank`` forgets an item; other ranks are known.

    Larger is surer; the scales differ.
    """
    known = items.ranks != rank
    change = items.change[:, known]
    expected = factor_forecast(change, np.log2(items.ranks[known]), float(np.log2(rank)))
    return {
        "base margin": -items.base,
        "other runs": items.forgotten[:, known].mean(axis=1),
        "rank-3 factors": -(items.base + expected),
    }


def factor_forecast(change: Floats, places: Floats, place: float) -> Floats:
    """(items,): the column at ``place`` of a matrix of low rank whose columns are at ``places``.

    Args:
        change: (items, runs).
        places: (runs,), where the runs are, such as log2 of the rank.
        place: where the run to predict is.
    """
    left, sizes, right = np.linalg.svd(change, full_matrices=False)
    kept = min(NUM_FACTORS, len(sizes))
    design = np.stack([np.ones_like(places), places], axis=1)
    line = np.linalg.lstsq(design, right[:kept].T * sizes[:kept])[0]
    return np.asarray(left[:, :kept] @ (np.array([1.0, place]) @ line), dtype=float)


def auc(scores: Floats, is_event: Floats) -> float:
    """The share of pairs of an event and a non-event in which the event has the larger score.

    Ties count half.

    Args:
        scores: (items,).
        is_event: (items,), 1 for an event and 0 for a non-event; both occur.
    """
    return float(roc_auc_score(is_event, scores))


def study_aucs(study: CollectedStudy) -> Mapping[Orderer, float] | None:
    """The mean AUC over ranks, its runs averaged; None where no run forgets and keeps enough."""
    items = retention_items(study)
    found = [] if items is None else list(_aucs(items))
    if not found:
        return None
    return {name: float(np.mean([each[name] for each in found])) for name in ORDERERS}


def _aucs(items: RankItems) -> Iterator[dict[Orderer, float]]:
    """Of every rank that is left out, the mean over its runs, where others are left."""
    ranks = np.unique(items.ranks)
    for rank in ranks if len(ranks) > NUM_FACTORS else ():
        scores = scores_of(items, rank)
        runs = items.forgotten[:, items.ranks == rank].T
        usable = [run for run in runs if min(run.sum(), (1 - run).sum()) >= MIN_FORGOTTEN]
        if usable:
            yield {
                name: float(np.mean([auc(of, run) for run in usable]))
                for name, of in scores.items()
            }
