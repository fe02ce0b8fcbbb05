"""Odds, prospects and regret: is what is stated what comes true, over plausible rank curves?

A probability is judged by its Brier score over that of a constant, which is the share that came
true in the same cell: below 1 it says more than knowing how often such studies end so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.decision_studies import (
    CONFIDENCE,
    FAMILIES,
    Cell,
    Rate,
    Truth,
    decide,
    draw_study,
    generator,
    is_decided,
    is_wrong,
    level_of_look,
    rank_curve,
    right_answers,
)
from rankwise.findings.best_bet import ITEM_FACTORS, MORE_SEEDS, TOLERANCE_POINTS
from rankwise.findings.odds import PRICE, Believed, Growths, Odds, chance_of_decision, odds
from rankwise.findings.statements import WORTH_A_TRY
from rankwise.findings.stats.estimates import default_margin, effective_items
from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.posterior import smooth_correlations
from rankwise.findings.stats.prospects import Growth
from rankwise.findings.stats.simultaneous import StudyEvidence

RANKS = {3: (4, 16, 64), 5: (4, 8, 16, 32, 64), 8: (1, 2, 4, 8, 16, 32, 64, 128)}
DISCORDANCE, DELTA, EPSILON = 0.30, 5.0, 3.0
LARGE = 1000
"""Items of the larger studies, about which the summary speaks."""

NUM_BINS, SMALLEST_BIN = 10, 50
SURE = 0.95
CHOICES = ("best bet", "argmax", "always 16")


class Stated(NamedTuple):
    """Probabilities (N,) that were stated, and whether they came true; a cell's."""

    probability: Floats
    outcome: Floats

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
    """Studies of every truth family in turn; retention is two tasks."""

    num_items: int
    num_retention: int
    num_seeds: int
    num_ranks: int

    def study(self, truth: Truth) -> Cell:
        """A study of this size with one truth."""
        return Cell(
            "rank curve", truth, DELTA, EPSILON, DISCORDANCE,
            self.num_items, self.num_retention, self.num_seeds,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"n={self.num_items:<5} seeds={self.num_seeds} ranks={self.num_ranks}"


class OddsTally(NamedTuple):
    """What was stated of a cell's studies, and what came true.

    ``right`` are the ranks of all studies in turn, ``family`` (N,) each one's family.
    ``regret`` (studies, 3) is in points, in the order of ``CHOICES``. ``prospects`` are by how
    many times the items; only of studies that were not decided at once.
    """

    right: Stated
    family: Floats
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

    @property
    def sure(self) -> Rate:
        """How often a rank with P(right) of ``SURE`` and more was not right."""
        wrong = self.right.outcome[self.right.probability >= SURE] == 0.0
        return Rate(int(wrong.sum()), len(wrong))

    def __str__(self) -> str:
        regret = " ".join(f"{name} {points:.2f}" for name, points in self.mean_regret.items())
        more, error = self.over_argmax
        regrets = " ".join(
            f"{name} {bet:.2f}/{largest:.2f}"
            for place, name in enumerate(FAMILIES)
            for bet, largest, _ in (self.regret[place :: len(FAMILIES)].mean(axis=0),)
        )
        families = " ".join(
            f"{name} {self.right.probability[of].mean():.2f}->{self.right.outcome[of].mean():.2f}"
            for place, name in enumerate(FAMILIES)
            for of in (self.family == place,)
            if of.any()
        )
        lines = [
            f"P(right) {self.right}",
            f"by family {families}; P >= {SURE:g} wrong {self.sure.number} of {self.sure.studies}",
            f"regret {regret}; best bet - argmax {more:+.2f} ± {error:.2f}",
            f"regret of best bet/argmax by family {regrets}",
            *(f"x{factor:g} items {stated}" for factor, stated in self.prospects.items()),
        ]
        return "\n    ".join(lines)


def odds_cells() -> list[OddsCell]:
    """Small and larger studies, of one seed and three."""
    return [
        OddsCell(num_items, num_retention, seeds, num_ranks)
        for num_items, num_retention in ((300, 400), (LARGE, 1000))
        for seeds in (1, 3)
        for num_ranks in RANKS
    ]


def simulate_odds(cell: OddsCell, studies: int, seed: int) -> OddsTally:
    """Each study is drawn as large as it may grow, judged on its first items, and then grown."""
    rng, num_ranks = generator(cell, seed), cell.num_ranks
    correlations = smooth_correlations(RANKS[num_ranks])
    most = round(max(ITEM_FACTORS))
    right: list[Floats] = []
    is_right: list[Floats] = []
    regret: list[tuple[float, float, float]] = []
    prospects: dict[float, list[tuple[float, bool]]] = {factor: [] for factor in ITEM_FACTORS}
    for number in range(studies):
        truth = rank_curve(FAMILIES[number % len(FAMILIES)], num_ranks, rng)
        kind = cell.study(truth)
        grown = draw_study(
            kind._replace(num_items=most * kind.num_items, num_retention=most * kind.num_retention),
            rng,
        )
        evidence = grown.first(kind.num_items, kind.num_retention, kind.num_seeds).evidence()
        believed = Believed.of(evidence, correlations, 1.0)
        truths = believed.truths()
        now = odds(truths, tolerance=TOLERANCE_POINTS, epsilon=EPSILON, unit=1.0)
        gain, loss = (np.asarray(values) for values in truth)
        right.append(now.right)
        is_right.append(right_answers(gain, loss, TOLERANCE_POINTS, EPSILON).astype(np.float64))
        regret.append(_regrets(truth, evidence, now, RANKS[num_ranks].index(16)))
        if is_decided(decide(evidence, DELTA, EPSILON)):
            continue
        for factor in ITEM_FACTORS:
            growth = Growth((factor,), cell.num_seeds), Growth((factor,) * 2, cell.num_seeds)
            stated = chance_of_decision(
                evidence,
                truths,
                growth,
                level=level_of_look(num_ranks, 2),
                delta=DELTA,
                epsilon=EPSILON,
            )
            then = grown.first(
                round(factor * kind.num_items),
                round(factor * kind.num_retention),
                kind.num_seeds,
            )
            decided = is_decided(decide(then.evidence(), DELTA, EPSILON, look=2))
            prospects[factor].append((stated, decided))
    return OddsTally(
        Stated(np.concatenate(right), np.concatenate(is_right)),
        np.repeat(np.arange(studies) % len(FAMILIES), num_ranks).astype(np.float64),
        np.asarray(regret),
        {factor: _stated(pairs) for factor, pairs in prospects.items()},
    )


def _stated(pairs: Sequence[tuple[float, bool]]) -> Stated:
    values = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return Stated(values[:, 0], values[:, 1])


def _worth(gain: Floats, loss: Floats) -> Floats:
    return gain - PRICE * np.maximum(loss - EPSILON, 0.0)


def _regrets(
    truth: Truth, evidence: StudyEvidence, now: Odds, place_of_16: int
) -> tuple[float, float, float]:
    """In points, of each of ``CHOICES``; the first two may choose not to fine-tune, worth 0."""
    assert evidence.retention is not None
    worth = _worth(np.asarray(truth.gain), np.asarray(truth.loss))
    estimated = _worth(evidence.in_domain.mean, evidence.retention.mean)
    bet, largest = int(now.regret.argmin()), int(estimated.argmax())
    most = max(float(worth.max()), 0.0)
    return (
        most - (float(worth[bet]) if now.regret[bet] < now.regret_of_base else 0.0),
        most - (float(worth[largest]) if estimated[largest] > 0.0 else 0.0),
        most - float(worth[place_of_16]),
    )


class GrowthCell(NamedTuple):
    """Studies with derived margins, which are kept while they grow."""

    num_items: int
    num_seeds: int

    def __str__(self) -> str:
        return f"grown as advised               n={self.num_items:<5} seeds={self.num_seeds}"


class GrowthTally(NamedTuple):
    """``stated`` are undecided studies with a growth that is worth a try, grown by the cheapest."""

    undecided: Rate
    stated: Stated

    def __str__(self) -> str:
        mean, share = self.stated.probability.mean(), self.stated.outcome.mean()
        return (
            f"undecided {self.undecided.share:.3f}, grown {len(self.stated.outcome)}: "
            f"decided {mean:.2f}->{share:.2f}"
        )


def growth_cells() -> list[GrowthCell]:
    """The studies of the audit that found derived margins to shrink with the study."""
    return [GrowthCell(100, 1), GrowthCell(300, 1), GrowthCell(LARGE, 1), GrowthCell(300, 3)]


def simulate_growth(cell: GrowthCell, studies: int, seed: int) -> GrowthTally:
    """Five ranks on a smooth curve; the cheapest growth with a probability of a half is made."""
    rng, ranks = generator(cell, seed), RANKS[5]
    correlations = smooth_correlations(ranks)
    margin = default_margin(cell.num_items, 5, CONFIDENCE)
    epsilon = default_margin(effective_items([cell.num_items // 2] * 2), 5, CONFIDENCE)
    most, most_seeds = round(max(ITEM_FACTORS)), cell.num_seeds + max(MORE_SEEDS)
    undecided = 0
    stated: list[tuple[float, bool]] = []
    for _ in range(studies):
        size = most * cell.num_items
        kind = Cell(
            "grown", rank_curve("smooth", 5, rng), margin, epsilon, DISCORDANCE, size, size,
            most_seeds,
        )  # fmt: skip
        grown = draw_study(kind, rng)
        evidence = grown.first(cell.num_items, cell.num_items, cell.num_seeds).evidence()
        if is_decided(decide(evidence, margin, epsilon)):
            continue
        undecided += 1
        truths = Believed.of(evidence, correlations, 1.0).truths()
        for in_domain, retention, seeds in _growths(cell.num_seeds):
            growths: Growths = Growth((in_domain,), seeds), Growth((retention,) * 2, seeds)
            level = level_of_look(5, 2)
            probability = chance_of_decision(
                evidence, truths, growths, level=level, delta=margin, epsilon=epsilon
            )
            if probability >= WORTH_A_TRY:
                then = grown.first(
                    round(in_domain * cell.num_items), round(retention * cell.num_items), seeds
                )
                decided = is_decided(decide(then.evidence(), margin, epsilon, look=2))
                stated.append((probability, decided))
                break
    return GrowthTally(Rate(undecided, studies), _stated(stated))


def _growths(num_seeds: int) -> list[tuple[float, float, int]]:
    """(in-domain factor, retention factor, seeds in all), the cheapest first.

    Of equal ones in the product's order. That it also names one retention task alone is left out.
    """
    of_items = [(factor, factor, 1.0) for factor in ITEM_FACTORS]
    of_items += [(factor, 1.0, factor) for factor in ITEM_FACTORS]
    of_items += [(factor, factor, factor) for factor in ITEM_FACTORS]
    growths = [(cost, in_domain, retention, num_seeds) for cost, in_domain, retention in of_items]
    growths += [(1.0 + more / num_seeds, 1.0, 1.0, num_seeds + more) for more in MORE_SEEDS]
    return [growth[1:] for growth in sorted(growths, key=lambda growth: growth[0])]


class DecidedTally(NamedTuple):
    """Studies that say what to do, and those that say so wrongly."""

    decided: Rate
    wrong: Rate

    def __str__(self) -> str:
        return f"decided {self.decided.share:.3f} wrong {self.wrong}"


class DecidedCell(NamedTuple):
    """Three seeds, 1,000 in-domain items and as many on retention, margins of 5 points."""

    family: str

    def __str__(self) -> str:
        return f"three seeds, {self.family:18} n={LARGE} margin=5"


def decided_cells() -> list[DecidedCell]:
    """Ranks on smooth curves, and equal ranks that forget nothing."""
    return [DecidedCell("smooth"), DecidedCell("equal")]


def simulate_decided(cell: DecidedCell, studies: int, seed: int) -> DecidedTally:
    """How many of the studies are decided at their first look."""
    rng = generator(cell, seed)
    decided = wrong = 0
    for _ in range(studies):
        truth = Truth((20.0,) * 5, (0.0,) * 5)
        if cell.family != "equal":
            truth = rank_curve(cell.family, 5, rng)
        kind = Cell("decided", truth, 5.0, 5.0, DISCORDANCE, LARGE, LARGE, 3)
        choice = decide(draw_study(kind, rng).evidence(), 5.0, 5.0)
        decided += is_decided(choice)
        gain, loss = (np.asarray(values) for values in truth)
        wrong += is_wrong(choice, right_answers(gain, loss, 5.0, 5.0))
    return DecidedTally(Rate(decided, studies), Rate(wrong, studies))
