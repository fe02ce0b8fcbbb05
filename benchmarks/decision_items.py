"""How often the rule errs on items that are not as independent, or not as tame, as it would like.

All gains are truly zero and there are no retention tasks, so every recommendation is wrong. A
study is judged at its first look.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.decision_studies import CONFIDENCE, Rate, decide, generator
from rankwise.findings.stats.estimates import default_margin
from rankwise.findings.stats.items import POINTS, Floats, Items, item_size
from rankwise.findings.stats.simultaneous import bounds_at, study_evidence


class ClusterCell(NamedTuple):
    """Five models as good as the base, on items in clusters; ``correlation`` is within clusters."""

    name: str
    per_cluster: int
    correlation: float
    num_items: int

    def __str__(self) -> str:
        of = f"{self.per_cluster} a cluster, correlation {self.correlation:.2f}"
        return f"{self.name:31} n={self.num_items:<5} {of}"


class ClusterTally(NamedTuple):
    """Recommendations (all are wrong), any rank called better, and coverage of one gain's interval.

    Of the product, which knows the clusters, and of the same rule without them.
    """

    wrong: Rate
    better: Rate
    covered: Rate
    wrong_without: Rate
    better_without: Rate
    covered_without: Rate

    def __str__(self) -> str:
        return (
            f"wrong {self.wrong} better {self.better} covered {self.covered} | taken as "
            f"independent {self.wrong_without} {self.better_without} {self.covered_without}"
        )


OPEN_SHARE = 0.6
"""Of the items: there every answer is a coin, so that two models disagree on 30 % of all items."""


def cluster_cells() -> list[ClusterCell]:
    """Correlations of differences as measured within passages, and over ten translations."""
    kinds = (("5, mild", 5, 0.06), ("5, strong", 5, 0.16), ("10", 10, 0.23), ("20", 20, 0.14))
    return [
        ClusterCell(f"clusters of {name}", size, correlation, num_items)
        for name, size, correlation in kinds
        for num_items in (100, 300, 1000)
    ]


def simulate_clusters(cell: ClusterCell, studies: int, seed: int) -> ClusterTally:
    """On an open item a model's coin is that of its cluster as often as the correlation wants."""
    rng = generator(cell, seed)
    delta = default_margin(cell.num_items, 5, CONFIDENCE)
    clusters = np.repeat(np.arange(cell.num_items // cell.per_cluster), cell.per_cluster)
    # of the differences of two models: the open share times the square of this one
    shared = np.sqrt(cell.correlation / OPEN_SHARE)
    counts = np.zeros(6, dtype=int)
    for _ in range(studies):
        own = rng.random((6, cell.num_items)) < 0.5
        common = (rng.random((6, clusters[-1] + 1)) < 0.5)[:, clusters]
        coins = np.where(rng.random(own.shape) < shared, common, own)
        right = np.where(rng.random(cell.num_items) < OPEN_SHARE, coins, False)
        gains = POINTS * (right[1:].astype(np.float64) - right[0])[None]
        for place, items in enumerate(
            (Items(gains, POINTS, clusters=clusters), Items(gains, POINTS))
        ):
            choice = decide(study_evidence([items], []), delta, None)
            one = study_evidence([items._replace(values=gains[:, :1])], [])
            bounds = bounds_at(one, (1.0 + CONFIDENCE) / 2.0).gain
            counts[3 * place : 3 * place + 3] += (
                choice.option is not None,
                "yes" in choice.better_than_base,
                bounds.lower[0] <= 0.0 <= bounds.upper[0],
            )
    return ClusterTally(*(Rate(int(count), studies) for count in counts))


class NatsCell(NamedTuple):
    """Losses in nats whose gains are truly zero, by the law of a single item."""

    name: str
    num_options: int
    num_items: int

    def __str__(self) -> str:
        return f"nats, {self.name:25} n={self.num_items:<5} ranks={self.num_options}"


class NatsTally(NamedTuple):
    """Recommendations (all are wrong), and any rank called better."""

    wrong: Rate
    better: Rate

    def __str__(self) -> str:
        return f"wrong {self.wrong} better {self.better}"


NATS_DELTA = 0.02
NATS_SD = 0.1  # of an item where nothing is rare, half of its variance common to all ranks
LAWS = ("normal", "t3", "3 % lose 2, shared", "2 % lose 3, own", "lognormal")


def nats_cells() -> list[NatsCell]:
    """Every law, from a size at which rare items may all be missed."""
    return [
        NatsCell(law, num_options, num_items)
        for law in LAWS
        for num_options in (2, 5)
        for num_items in (50, 100, 200, 1000)
    ]


def simulate_nats(cell: NatsCell, studies: int, seed: int) -> NatsTally:
    """Draw and decide studies without retention tasks."""
    rng = generator(cell, seed)
    wrong = better = 0
    for _ in range(studies):
        gains = _nats(cell, rng)
        size = item_size(gains, in_points=False)
        choice = decide(study_evidence([Items(gains[None], size)], []), NATS_DELTA, None)
        wrong += choice.option is not None
        better += "yes" in choice.better_than_base
    return NatsTally(Rate(wrong, studies), Rate(better, studies))


def _nats(cell: NatsCell, rng: np.random.Generator) -> Floats:
    """(K, n) gains whose mean is zero."""
    shape = cell.num_options, cell.num_items
    if cell.name == "t3":
        common, own = rng.standard_t(3, shape[1]), rng.standard_t(3, shape)
    else:
        common, own = rng.standard_normal(shape[1]), rng.standard_normal(shape)
    together = (common + own) / np.sqrt(2.0)
    if cell.name == "lognormal":
        return NATS_SD * (np.exp(0.5) - np.exp(together))
    bulk = NATS_SD * together
    if cell.name == "3 % lose 2, shared":
        tail = 2.0 * (rng.random(shape[1]) < 0.03)
        return bulk + 0.06 - tail
    if cell.name == "2 % lose 3, own":
        return bulk + 0.06 - 3.0 * (rng.random(shape) < 0.02)
    return bulk
