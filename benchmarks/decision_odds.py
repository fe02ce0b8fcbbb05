"""Odds, prospects and regret: is what is stated what comes true, over plausible rank curves?

A probability is judged by its Brier score over that of a constant, which is the share that came
true in the same cell: below 1 it says more than knowing how often such studies end so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.decision_rule import evidence_of, is_decided, level_of_look, verdict
from benchmarks.decision_studies import (
    CURVES,
    NUM_TASKS,
    Family,
    Truth,
    draw_study,
    generator,
    rank_curve,
    right_answers,
)
from rankwise.findings.decision import Margins, odds
from rankwise.findings.odds import ITEM_FACTORS, Growths, chance_of_decision, worth
from rankwise.findings.stats.blocks import StudyEvidence
from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.truths import truths_of

RANKS = {3: (4, 16, 64), 5: (4, 8, 16, 32, 64), 8: (1, 2, 4, 8, 16, 32, 64, 128)}
FAMILY = Family("rank curves", agreement=0.6)  # two models disagree on 30 % of the items
MARGINS = Margins(5.0, 3.0, 9.0)
SECOND = (1.0, 1.0)  # shares of the plan that a look and the second, beyond it, saw
LARGE = 1000
"""Items of the larger studies, about which the summary speaks."""

NUM_BINS, SMALLEST_BIN = 10, 50
SURE = 0.95
STRANGE = ("rough", "wild")
CHOICES = ("best bet", "argmax", "always 16")


class Stated(NamedTuple):
    """Probabilities (N,) that were stated, and whether they came true; a cell's."""

    probability: Floats
    outcome: Floats

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, bool]]) -> Stated:
        """Of pairs of what was stated and whether it came true."""
        values = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
        return cls(values[:, 0], values[:, 1])

    @property
    def brier(self) -> float:
        """Their mean squared error."""
        return float(((self.probability - self.outcome) ** 2).mean())

    @property
    def bins(self) -> list[tuple[float, float, int]]:
        """Of each tenth that occurs: mean stated, share that came true, how many."""
        place = np.minimum((self.probability * NUM_BINS).astype(int), NUM_BINS - 1)
        return [
            (float(self.probability[of].mean()), float(self.outcome[of].mean()), int(of.sum()))
            for of in (place == number for number in range(NUM_BINS))
            if of.any()
        ]

    @property
    def largest_gap(self) -> float:
        """Between stated and realised, over bins of ``SMALLEST_BIN`` and more; 0 without one."""
        return max((abs(p - y) for p, y, count in self.bins if count >= SMALLEST_BIN), default=0.0)

    def __str__(self) -> str:
        if not len(self.outcome):
            return "none"
        bins = " ".join(f"{p:.2f}->{y:.2f}({count})" for p, y, count in self.bins)
        return f"Brier {self.brier:.3f}/{self.outcome.var():.3f} {bins}"


def brier_over_constant(cells: Iterable[Stated]) -> float:
    """Of several cells together, each against its own constant."""
    of = [cell for cell in cells if len(cell.outcome)]
    errors = sum(cell.brier * len(cell.outcome) for cell in of)
    return errors / sum(float(cell.outcome.var()) * len(cell.outcome) for cell in of)


def pooled(cells: Iterable[Stated]) -> Stated:
    """All probabilities of several cells."""
    of = list(cells)
    return Stated(*(np.concatenate([cell[part] for cell in of]) for part in range(2)))


class OddsCell(NamedTuple):
    """Studies of some kinds of curve in turn."""

    num_items: int
    num_seeds: int
    num_ranks: int
    curves: tuple[str, ...] = CURVES

    def __str__(self) -> str:
        curves = "" if self.curves == CURVES else f" {self.curves[0]} curves"
        return f"odds, n={self.num_items:<5} seeds={self.num_seeds} ranks={self.num_ranks}{curves}"


class OddsTally(NamedTuple):
    """What was stated of a cell's studies, and what came true.

    ``right`` are the ranks of all studies in turn, of ``curves`` in turn. ``regret``
    (studies, 3) is in points, in the order of ``CHOICES``. ``prospects`` are by how many times
    the items; only of studies that were not decided at once.
    """

    right: Stated
    curves: tuple[str, ...]
    regret: Floats
    prospects: dict[float, Stated]

    @property
    def mean_regret(self) -> dict[str, float]:
        """In points, by choice."""
        return dict(zip(CHOICES, self.regret.mean(axis=0).tolist(), strict=True))

    @property
    def over_argmax(self) -> tuple[float, float]:
        """Mean regret of the best bet less that of the argmax, and its standard error."""
        more = self.regret[:, 0] - self.regret[:, 1]
        return float(more.mean()), float(more.std(ddof=1) / np.sqrt(len(more)))

    def __str__(self) -> str:
        regret = " ".join(f"{name} {points:.2f}" for name, points in self.mean_regret.items())
        more, error = self.over_argmax
        wrong = self.right.outcome[self.right.probability >= SURE] == 0.0
        by_curve = " ".join(
            f"{curve} {bet:.2f}/{largest:.2f}"
            for place, curve in enumerate(self.curves)
            for bet, largest, _ in (self.regret[place :: len(self.curves)].mean(axis=0),)
        )
        lines = [
            f"P(right) {self.right}; P >= {SURE:g} wrong {wrong.sum()} of {len(wrong)}",
            f"regret {regret}; best bet - argmax {more:+.2f} ± {error:.2f}; {by_curve}",
            *(f"x{factor:g} items {stated}" for factor, stated in self.prospects.items()),
        ]
        return "\n    ".join(lines)


def odds_cells() -> list[OddsCell]:
    """Small and larger studies, of one seed and three; curves that the prior does not expect."""
    cells = [
        OddsCell(num_items, seeds, num_ranks)
        for num_items in (100, 300, LARGE)
        for seeds in (1, 3)
        for num_ranks in RANKS
    ]
    strange = [OddsCell(size, 1, 5, (curve,)) for size in (300, LARGE) for curve in STRANGE]
    return [*cells, *strange]


def simulate_odds(cell: OddsCell, studies: int, seed: int) -> OddsTally:
    """Each study is drawn as large as it may grow, judged on its first items, and then grown."""
    rng, ranks, seeds = generator(cell, seed), RANKS[cell.num_ranks], cell.num_seeds
    right: list[Floats] = []
    is_right: list[Floats] = []
    regret: list[tuple[float, float, float]] = []
    prospects: dict[float, list[tuple[float, bool]]] = {factor: [] for factor in ITEM_FACTORS}
    for number in range(studies):
        truth = rank_curve(cell.curves[number % len(cell.curves)], cell.num_ranks, rng)
        most = round(max(ITEM_FACTORS) * cell.num_items)
        grown = draw_study(FAMILY, truth, most, seeds, rng)
        evidence = evidence_of(grown.first(cell.num_items, seeds))
        truths = truths_of(evidence, "rank")
        now = odds(truths, MARGINS)
        right.append(now.right)
        is_right.append(right_answers(truth, MARGINS).astype(np.float64))
        choice = verdict(evidence, MARGINS, "adapters")
        bet = now.bet if choice.option is None else choice.option
        regret.append(_regrets(truth, evidence, bet, ranks.index(16)))
        if is_decided(choice):
            continue
        level = level_of_look(cell.num_ranks, SECOND)
        for factor in ITEM_FACTORS:
            growths = Growths((factor,), (factor,) * NUM_TASKS, 0)
            stated = chance_of_decision(evidence, truths, growths, MARGINS, level)
            then = evidence_of(grown.first(round(factor * cell.num_items), seeds))
            prospects[factor].append(
                (stated, is_decided(verdict(then, MARGINS, "adapters", SECOND)))
            )
    return OddsTally(
        Stated(np.concatenate(right), np.concatenate(is_right)),
        cell.curves,
        np.asarray(regret),
        {factor: Stated.of(pairs) for factor, pairs in prospects.items()},
    )


def _regrets(
    truth: Truth, evidence: StudyEvidence, bet: int | None, place_of_16: int
) -> tuple[float, float, float]:
    """In points, of each of ``CHOICES``; the first two may choose not to fine-tune, worth 0."""
    true = worth(
        truth.gain, truth.losses.mean(axis=0), MARGINS, 1.0, worst=truth.losses.max(axis=0)
    )
    assert evidence.retention is not None
    worst = np.max([task.mean for task in evidence.tasks], axis=0)
    values = worth(evidence.in_domain.mean, evidence.retention.mean, MARGINS, 1.0, worst)
    largest = int(values.argmax()) if values.max() > 0.0 else None
    most = max(float(true.max()), 0.0)

    def of(place: int | None) -> float:
        return most - (0.0 if place is None else float(true[place]))

    return of(bet), of(largest), of(place_of_16)
