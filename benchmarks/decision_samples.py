"""Does a verdict agree with the interval that is printed beside it?"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from benchmarks.decision_rule import level_of_look
from benchmarks.decision_studies import generator
from rankwise.findings.decision import Margins, ends, odds, shortfall, states
from rankwise.findings.stats.blocks import StudyEvidence, crossed
from rankwise.findings.stats.estimates import mcnemar_exact
from rankwise.findings.stats.items import POINTS, Floats, Items, item_size
from rankwise.findings.stats.truths import num_draws, truths_of


class AgreementCell(NamedTuple):
    """Models whose items differ from the base's by a few points, or are right or wrong."""

    values: str
    num_models: int
    num_items: int

    def __str__(self) -> str:
        return f"agreement, {self.values:20} n={self.num_items:<5} models={self.num_models}"


class AgreementTally(NamedTuple):
    """Verdicts that the interval printed beside them contradicts."""

    contradictions: int

    def __str__(self) -> str:
        return f"contradictions: {self.contradictions}"


DIFFERENCE_SD = 5.0  # points
FLIPPED = 0.1  # of the items that are right or wrong


def agreement_cells() -> list[AgreementCell]:
    """Close to the limit, where a verdict and an interval may part."""
    return [
        AgreementCell(values, num_models, num_items)
        for values in ("sd of 5 points", "0 or 1")
        for num_models in (1, 3)
        for num_items in (50, 100, 300)
    ]


def simulate_agreement(cell: AgreementCell, studies: int, seed: int) -> AgreementTally:
    """True differences of up to three standard errors."""
    rng = generator(cell, seed)
    found = 0
    for _ in range(studies):
        base, adapted = _shares(cell, rng)
        found += _contradictions(POINTS * (adapted - base))
    return AgreementTally(found)


def _shares(cell: AgreementCell, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """(n,) of the base and (models, n) of the others, each in 0..1."""
    shape = cell.num_models, cell.num_items
    stderrs = rng.uniform(0.0, 3.0, (cell.num_models, 1)) / np.sqrt(cell.num_items)
    if cell.values == "0 or 1":
        base = (rng.random(cell.num_items) < 0.5).astype(np.float64)
        more = np.sqrt(FLIPPED) * stderrs
        flips = rng.random(shape) < FLIPPED + np.where(base > 0.0, -more, more)
        return base, np.where(flips, 1.0 - base, base)
    base = rng.uniform(0.3, 0.7, cell.num_items)
    difference = DIFFERENCE_SD / POINTS * (stderrs + rng.standard_normal(shape))
    return base, np.clip(base + difference, 0.0, 1.0)


def _contradictions(gains: Floats) -> int:
    """States of a study of these gains (K, n), in-domain and negated on retention."""
    size = item_size(gains, in_points=True)
    count, margin = len(gains), DIFFERENCE_SD / 5.0
    evidence = StudyEvidence([Items(gains, size)], [Items(-gains, size)], crossed(1, count))
    level, margins = level_of_look(count), Margins(margin, margin)
    truths = truths_of(evidence, "adapters", num_draws(count, level))
    assert truths.losses is not None
    now = odds(truths, margins)
    return sum(
        _state(bound, limit, below) != state
        for found, draws, limit, below in (
            (now.better, truths.gains, 0.0, False),
            (now.keeps, truths.losses, margin, True),
            (now.near, shortfall(truths, margins), margin, True),
        )
        for state, bound in zip(
            states(found, level), np.transpose(ends(draws, level)).tolist(), strict=True
        )
    )


def _state(ends: tuple[float, float], margin: float, below: bool) -> str:
    """What a reader of an interval says of a value that is to be below a margin, or above."""
    lower, upper = ends
    if below:
        return "yes" if upper <= margin + 1e-9 else "no" if lower > margin + 1e-9 else "undecided"
    return "yes" if lower > margin else "no" if upper <= margin else "undecided"


def mcnemar_error() -> float:
    """Largest difference from scipy's and statsmodels' exact tests over planted tables."""
    worst = 0.0
    for learned, forgotten in itertools.product((0, 1, 2, 3, 5, 8, 13, 21, 55, 144, 377), repeat=2):
        ours = mcnemar_exact(learned, forgotten)
        total = learned + forgotten
        tail = float(stats.binom.cdf(min(learned, forgotten), total, 0.5))
        test: Any = mcnemar([[50, forgotten], [learned, 50]], exact=True)
        theirs = float(test.pvalue)
        worst = max(worst, abs(ours - min(1.0, 2.0 * tail)), abs(ours - min(1.0, theirs)))
    return worst
