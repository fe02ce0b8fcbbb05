"""What a verdict from few runs is worth: runs differ from their rank, and some fail."""

from __future__ import annotations

from typing import NamedTuple
from unittest import mock

import numpy as np

from benchmarks.decision_rule import BEST_GAIN, stress_truths
from benchmarks.decision_studies import (
    Cell,
    Rate,
    Truth,
    decide,
    draw_items,
    draw_study,
    generator,
    is_wrong,
    right_answers,
)
from rankwise.findings.best_bet import TOLERANCE_POINTS
from rankwise.findings.odds import Believed, odds
from rankwise.findings.stats import blocks
from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.posterior import smooth_correlations


class OneSeedTally(NamedTuple):
    """Studies of one seed: the verdict about the run, held against the run and against the rank.

    ``stated`` is the mean P(right) of the recommended ranks, ``realised`` how many truly were
    right (within one point of the best); ``stated_where_wrong`` is of the wrong ranks alone.
    """

    wrong_run: Rate
    wrong_rank: Rate
    stated: float
    realised: float
    stated_where_wrong: float

    def __str__(self) -> str:
        return (
            f"run wrong {self.wrong_run} rank wrong {self.wrong_rank} | P(right) of what is "
            f"recommended {self.stated:.2f} -> {self.realised:.2f}, of wrong ranks "
            f"{self.stated_where_wrong:.2f}"
        )


def one_seed_cells() -> list[Cell]:
    """Gains, or losses, 2 % beyond the margin; runs that differ by 1 and 2 points."""
    return [
        Cell(f"one seed, {edge}, run sd {sd:g}", truth, delta, delta, 0.20, size, size, 1, (sd, sd))
        for size, delta in ((1319, 5.0), (6000, 3.0))
        for edge, truth in (
            ("gains", stress_truths(delta, delta)["plateau"]),
            ("losses", Truth((BEST_GAIN,) * 5, (1.02 * delta,) * 5)),
        )
        for sd in (1.0, 2.0)
    ]


def simulate_one_seed(cell: Cell, studies: int, seed: int) -> OneSeedTally:
    """How often the rank would be wrong, of which the verdict with one seed does not speak."""
    rng = generator(cell, seed)
    gain, loss = (np.asarray(values) for values in cell.truth)
    able = right_answers(gain, loss, cell.delta, cell.epsilon)
    is_right = right_answers(gain, loss, TOLERANCE_POINTS, cell.epsilon)
    correlations = smooth_correlations((4, 8, 16, 32, 64))
    wrong_run = 0
    wrong: list[bool] = []
    stated: list[float] = []
    realised: list[bool] = []
    for _ in range(studies):
        study = draw_study(cell, rng)
        evidence = study.evidence()
        choice = decide(evidence, cell.delta, cell.epsilon)
        if choice.option is None:
            continue
        of_run = right_answers(study.gain[0], study.loss[0], cell.delta, cell.epsilon)
        wrong_run += is_wrong(choice, of_run)
        truths = Believed.of(evidence, correlations, 1.0).truths()
        now = odds(truths, tolerance=TOLERANCE_POINTS, epsilon=cell.epsilon, unit=1.0)
        wrong.append(is_wrong(choice, able))
        stated.append(float(now.right[choice.option]))
        realised.append(bool(is_right[choice.option]))
    of_wrong = np.asarray(stated)[np.asarray(wrong, dtype=bool)]
    return OneSeedTally(
        Rate(wrong_run, studies),
        Rate(sum(wrong), studies),
        float(np.mean(stated)) if stated else np.nan,
        float(np.mean(realised)) if realised else np.nan,
        float(of_wrong.mean()) if len(of_wrong) else np.nan,
    )


class CollapseCell(NamedTuple):
    """Ranks of which a run collapses now and then, so that on average no rank may be recommended.

    Where ``harm`` is "loss", every rank loses 1.02 epsilon on average, all of it by collapses;
    where it is "gain", collapses take all that the other runs gain.
    """

    harm: str
    probability: float
    num_seeds: int
    num_options: int

    def __str__(self) -> str:
        return (
            f"runs collapse ({self.harm}) with p={self.probability:.1f} "
            f"seeds={self.num_seeds} ranks={self.num_options}"
        )


class CollapseTally(NamedTuple):
    """Wrong recommendations; ``wrong_with_double_count`` with the interaction left in the items."""

    wrong: Rate
    wrong_with_double_count: Rate

    def __str__(self) -> str:
        return f"wrong {self.wrong} interaction left in the items {self.wrong_with_double_count}"


COLLAPSE_MARGIN, COLLAPSE_ITEMS = 3.0, 3000


def collapse_cells() -> list[CollapseCell]:
    """Few seeds, so that a collapse may not be seen."""
    return [
        CollapseCell(harm, probability, seeds, count)
        for harm in ("loss", "gain")
        for probability in (0.1, 0.2)
        for seeds in (2, 3, 5)
        for count in (1, 2, 3, 5)
    ]


def simulate_collapse(cell: CollapseCell, studies: int, seed: int) -> CollapseTally:
    """The same studies with and without taking the interaction off the items' variance."""
    rng = generator(cell, seed)
    p, size = cell.probability, COLLAPSE_ITEMS
    sound, drop, rise = 10.0, 0.0, 1.02 * COLLAPSE_MARGIN / p
    if cell.harm == "gain":
        sound, drop, rise = 3.0, 3.0 / p, 0.0
    shape = cell.num_seeds, cell.num_options
    kind = Cell(
        "collapse",
        Truth((sound,) * cell.num_options, (0.0,) * cell.num_options),
        COLLAPSE_MARGIN,
        COLLAPSE_MARGIN,
        0.20,
        size,
        size,
        cell.num_seeds,
    )
    counts = [0, 0]
    for _ in range(studies):
        has_collapsed = rng.random(shape) < p
        gain = sound - drop * has_collapsed + kind.run_sd[0] * rng.standard_normal(shape)
        loss = rise * has_collapsed + kind.run_sd[1] * rng.standard_normal(shape)
        study = draw_items(kind, gain, loss, rng)
        counts[0] += decide(study.evidence(), kind.delta, kind.epsilon).option is not None
        with mock.patch.object(blocks, "_interaction", _no_interaction):
            evidence = study.evidence()
        counts[1] += decide(evidence, kind.delta, kind.epsilon).option is not None
    return CollapseTally(*(Rate(count, studies) for count in counts))


def _no_interaction(values: Floats) -> Floats:
    return np.zeros((values.shape[1], values.shape[1]))
