"""Options with different numbers of seeds, and what a second seed does to a settled verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.decision_rule import (
    NUM_RANKS,
    PLAIN,
    EdgeCell,
    edge_cells,
    evidence_of,
    is_wrong,
    margins_of,
    verdict,
)
from benchmarks.decision_studies import (
    Family,
    Rate,
    Study,
    Truth,
    draw_study,
    generator,
    rank_curve,
    right_answers,
)
from rankwise.findings.stats.blocks import RunRows, StudyEvidence
from rankwise.findings.stats.items import Items

UNEQUAL = ((3, 1, 2, 1, 3), (1, 3, 1, 1, 2), (1, 1, 1, 1, 5))
"""Numbers of seeds of each rank, smallest first."""

SIZES = (300, 3000)

SPREAD = Family("runs apart", run_sd=(2.5, 1.0))
"""Runs as far apart as those of the default study's largest rank."""


class UnequalCell(NamedTuple):
    """An edge of plain studies whose ranks have these numbers of seeds.

    Those of a recount are fresh ones.
    """

    edge: str
    truth: Truth
    counts: tuple[int, ...]
    num_items: int
    is_recount: bool = False

    def __str__(self) -> str:
        return f"unequal seeds {self.counts}, {self.edge:17} n={self.num_items}"


class SeedTally(NamedTuple):
    """How often what is bad happened."""

    rate: Rate

    def __str__(self) -> str:
        return f"{self.rate} (at most {self.rate.upper:.3f})"


def unequal_cells() -> list[UnequalCell]:
    """Every edge, and the sizes."""
    edges: Sequence[EdgeCell] = [cell for cell in edge_cells() if cell.family == PLAIN]
    return [
        UnequalCell(cell.edge, cell.truth, counts, size)
        for cell in edges
        for counts in UNEQUAL
        for size in SIZES
    ]


def unequal(study: Study, counts: Sequence[int]) -> StudyEvidence:
    """The first runs of each rank, so many as it has."""
    option = np.repeat(np.arange(len(counts)), counts)
    seed = np.concatenate([np.arange(count) for count in counts])

    def rows(tasks: Sequence[Items]) -> list[Items]:
        return [task._replace(values=task.values[seed, option]) for task in tasks]

    return StudyEvidence(rows(study.gains), rows(study.losses), RunRows(option, seed), study.point)


def simulate_unequal(cell: UnequalCell, studies: int, seed: int) -> SeedTally:
    """Wrong verdicts about adapters; all runs are as their rank, so the edge is theirs."""
    rng, margins = generator(cell, seed), margins_of(PLAIN)
    family, able = PLAIN._replace(run_sd=(0.0, 0.0)), right_answers(cell.truth, margins)
    wrong = 0
    for _ in range(studies):
        study = draw_study(family, cell.truth, cell.num_items, max(cell.counts), rng)
        wrong += is_wrong(verdict(unequal(study, cell.counts), margins, "adapters"), able)
    return SeedTally(Rate(wrong, studies))


class SecondCell(NamedTuple):
    """Plausible curves whose runs are apart, at one number of items."""

    num_items: int

    def __str__(self) -> str:
        return f"a second seed, n={self.num_items}"


def second_cells() -> list[SecondCell]:
    """Sizes at which some are settled."""
    return [SecondCell(1000), SecondCell(3000)]


def simulate_second(cell: SecondCell, studies: int, seed: int) -> SeedTally:
    """Of studies that are settled with one seed, those that are not with two."""
    rng, margins = generator(cell, seed), margins_of(SPREAD)
    settled = lost = 0
    for number in range(studies):
        curve = SPREAD.curves[number % len(SPREAD.curves)]
        study = draw_study(SPREAD, rank_curve(curve, NUM_RANKS, rng), cell.num_items, 2, rng)
        one, two = (
            verdict(evidence_of(study.first(cell.num_items, seeds)), margins, "adapters")
            for seeds in (1, 2)
        )
        settled += one.option is not None
        lost += one.option is not None and two.option is None
    return SeedTally(Rate(lost, settled))
