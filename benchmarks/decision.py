"""Does the recommendation err as rarely as it says? Simulated studies, decided by the real code.

    python -m benchmarks.decision [--studies 2000] [--workers 1]

Every study is drawn item by item and decided by ``study_bounds`` and ``choose``, the functions
behind ``recommend``. In the stress cells the truths lie next to the margins, where a wrong
answer is easiest: a rank 2 % of delta beyond delta, a loss 2 % of epsilon beyond epsilon, a gain
of exactly zero. In the plain cells (accuracy) they are whole points apart.

An error is a recommended rank that truly is more than delta worse than the best admissible one,
or loses more than epsilon, or is not better than the base. An admissible rank truly loses no
more than epsilon. With one seed the truth is that of the run itself, with several that of the
rank. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from rankwise.findings.decision import choose
from rankwise.findings.stats.estimates import (
    crossed_difference,
    default_margin,
    effective_items,
    mcnemar_exact,
)
from rankwise.findings.stats.items import POINTS, Items
from rankwise.findings.stats.simultaneous import (
    bounds_at,
    deciding_level,
    level_of_all,
    study_evidence,
)

CONFIDENCE = 0.95
DRAWS = 1000
SIZES, DISCORDANCES, SEEDS = (300, 1319, 6000), (0.05, 0.10, 0.20), (1, 3, 5)
BASE_SHARE, BEST_GAIN, RETAINED_SHARE = 0.50, 20.0, 0.70
SEED_SPREAD = {"in_domain": 0.7, "retention": 0.5}  # standard deviation of runs, in points
SHARED_BY_RANKS = 0.25  # of the seeds' variance
STATED_ITEMS, STATED_SEEDS, STATED_MARGIN = 6000, 5, 3.0  # of the accuracy in docs/METHODS.md


Floats = NDArray[np.float64]


class Truth(NamedTuple):
    """Of each rank, smallest first, in points: gain over the base, and loss on retention."""

    gain: tuple[float, ...]
    loss: tuple[float, ...]


class Cell(NamedTuple):
    """One kind of study; retention is two tasks that share ``num_retention`` items."""

    name: str
    truth: Truth
    delta: float
    epsilon: float
    discordance: float
    num_items: int
    num_retention: int
    num_seeds: int


class Tally(NamedTuple):
    """Shares over the studies of a cell.

    ``correct``: a rank that truly qualifies, or, where none does, the outcome that says why.
    ``smallest``: the same, and the rank is the smallest that truly qualifies.
    """

    error: float
    num_errors: int
    correct: float
    smallest: float
    cannot_tell: float
    coverage: dict[str, float]


def stress_truths(delta: float, epsilon: float) -> dict[str, Truth]:
    """Truths next to the margins."""

    def below_best(*deltas: float) -> tuple[float, ...]:
        return tuple(BEST_GAIN - delta * d for d in deltas)

    nothing = (0.0,) * 5
    return {
        "all equal": Truth(below_best(0, 0, 0, 0, 0), nothing),
        "monotone": Truth(below_best(2, 1.5, 1.02, 0.5, 0), nothing),
        "plateau": Truth(below_best(1.02, 1.02, 0, 0, 0), nothing),
        "peak in the middle": Truth(below_best(1.02, 1.02, 0, 1.02, 1.02), nothing),
        "base best": Truth((0.0, 0.0, 0.0, 0.0, -2.0), nothing),
        "retention failing above a rank": Truth(
            below_best(1.02, 0.5, 0, 0, 0), (0.0, 0.0, 0.3 * epsilon, 1.02 * epsilon, 2 * epsilon)
        ),
    }


def plain_truths() -> dict[str, Truth]:
    """Truths that 6,000 items with margins of 3 points should tell apart."""
    nothing = (0.0,) * 5
    return {
        "all equal": Truth((15.0,) * 5, nothing),
        "monotone": Truth((0.0, 5.0, 10.0, 15.0, 20.0), nothing),
        "plateau": Truth((5.0, 12.0, 18.0, 18.0, 18.0), nothing),
        "peak in the middle": Truth((6.0, 12.0, 18.0, 12.0, 6.0), nothing),
        "base best": Truth((-3.0, -4.0, -5.0, -6.0, -7.0), nothing),
        "retention failing above a rank": Truth(
            (8.0, 14.0, 16.0, 18.0, 20.0), (0.0, 0.0, 7.0, 9.0, 12.0)
        ),
    }


def draw_study(cell: Cell, rng: np.random.Generator) -> tuple[Floats, list[Floats], Floats, Floats]:
    """One study: gains (m, K, n), losses per task, and the true gain and loss of its runs.

    In-domain, an item is within the adapted models' reach or not, and every run errs on items by
    itself, so that two equally good runs disagree on ``discordance`` of the items; a worse rank
    errs more often within reach. On retention a run forgets and learns items of the base.
    """
    gain = np.asarray(cell.truth.gain)[:, None] + _seed_effects(cell, "in_domain", rng)
    loss = np.asarray(cell.truth.loss)[:, None] + _seed_effects(cell, "retention", rng)
    slip = (1.0 - np.sqrt(1.0 - 2.0 * cell.discordance)) / 2.0
    top = BASE_SHARE + max(max(cell.truth.gain), 0.0) / 100.0 + 0.03
    reach = (top - slip) / (1.0 - 2.0 * slip)
    right_in_reach = (BASE_SHARE + gain / 100.0 - (1.0 - reach) * slip) / reach
    within = rng.random(cell.num_items) < reach
    base_in_reach = (BASE_SHARE - (1.0 - reach) * 0.15) / reach
    base = rng.random(cell.num_items) < np.where(within, base_in_reach, 0.15)
    chance = np.where(within, right_in_reach, slip).astype(np.float32)
    runs = rng.random(chance.shape, dtype=np.float32) < chance
    gains = 100.0 * np.subtract(runs, base, dtype=np.float64)
    half = cell.num_retention // 2
    losses = [_losses(cell, loss, half, rng) for _ in range(2)]
    return gains, losses, gain[:, :, 0], loss[:, :, 0]


def _seed_effects(cell: Cell, kind: str, rng: np.random.Generator) -> Floats:
    """(m, K, 1) points that a run is off its rank's truth, in part the same at every rank."""
    num_seeds, num_options = cell.num_seeds, len(cell.truth.gain)
    shared = rng.normal(0.0, SHARED_BY_RANKS**0.5, (num_seeds, 1, 1))
    own = rng.normal(0.0, (1.0 - SHARED_BY_RANKS) ** 0.5, (num_seeds, num_options, 1))
    return SEED_SPREAD[kind] * (shared + own)


def _losses(cell: Cell, loss: Floats, size: int, rng: np.random.Generator) -> Floats:
    disagree = np.maximum(cell.discordance, np.abs(loss) / 100.0)
    forgets = (disagree + loss / 100.0) / 2.0 / RETAINED_SHARE
    learns = (disagree - loss / 100.0) / 2.0 / (1.0 - RETAINED_SHARE)
    knew = rng.random(size) < RETAINED_SHARE
    change = np.where(knew, forgets, learns).astype(np.float32)
    changed = rng.random(change.shape, dtype=np.float32) < change
    return np.where(knew, 100.0, -100.0) * changed


def right_answers(gain: Floats, loss: Floats, delta: float, epsilon: float) -> NDArray[np.bool_]:
    """Which options may be recommended, given the truth (K,)."""
    admissible = loss <= epsilon
    best = gain[admissible].max() if admissible.any() else -np.inf
    return admissible & (gain > 0) & (gain >= best - delta)


def simulate(cell: Cell, studies: int, seed: int) -> Tally:
    """Draw and decide ``studies`` studies of one kind."""
    rng = np.random.default_rng([seed, *cell.name.encode()])
    errors = correct = smallest = undecided = 0
    covered = dict.fromkeys(("gain", "difference", "loss", "all at once"), 0)
    for _ in range(studies):
        gains, losses, gain, loss = draw_study(cell, rng)
        if cell.num_seeds > 1:
            gain, loss = (np.asarray([values]) for values in cell.truth)
        gain, loss = gain.mean(axis=0), loss.mean(axis=0)
        evidence = study_evidence([Items(gains, POINTS)], [Items(task, POINTS) for task in losses])
        level = deciding_level(len(gain), 1.0 - CONFIDENCE)
        choice = choose(bounds_at(evidence, level), cell.delta, cell.epsilon)
        bounds = bounds_at(evidence, level_of_all(evidence, 1.0 - CONFIDENCE, rng, DRAWS))
        able = right_answers(gain, loss, cell.delta, cell.epsilon)
        if choice.option is not None:
            errors += not able[choice.option]
            correct += bool(able[choice.option])
            smallest += bool(able[choice.option]) and choice.option == int(np.argmax(able))
        elif not able.any():
            right = choice.outcome == ("no_evidence" if (gain <= 0).all() else "none_keeps_enough")
            correct += right
            smallest += right
        undecided += choice.outcome == "cannot_tell"
        for name, differences, truth in (
            ("gain", gains[:, 0], gain[0]),
            ("difference", gains[:, 2] - gains[:, 1], gain[2] - gain[1]),
            ("loss", losses[0][:, 1], loss[1]),
        ):
            lower, upper = crossed_difference(differences, item_size=100.0).interval(CONFIDENCE)
            covered[name] += bool(lower <= truth <= upper)
        assert bounds.loss is not None
        best = int(np.argmax(np.where(loss <= cell.epsilon, gain, -np.inf)))
        covered["all at once"] += bool(
            (bounds.gain.lower <= gain).all()
            and (bounds.loss.upper >= loss).all()
            and bounds.loss.lower[best] <= loss[best]
            and (bounds.lead.lower[:, best] <= gain - gain[best] + 1e-9).all()
        )
    return Tally(
        errors / studies,
        errors,
        correct / studies,
        smallest / studies,
        undecided / studies,
        {name: count / studies for name, count in covered.items()},
    )


def stress_cells() -> list[Cell]:
    """Every scenario, discordance, size and number of seeds, with the derived margins."""
    cells: list[Cell] = []
    for num_items, discordance, seeds in itertools.product(SIZES, DISCORDANCES, SEEDS):
        margin = default_margin(num_items, 5, CONFIDENCE)
        for name, truth in stress_truths(margin, margin).items():
            cells.append(
                Cell(name, truth, margin, margin, discordance, num_items, num_items, seeds)
            )
    return cells


def plain_cells(num_seeds: int) -> list[Cell]:
    """Every plain scenario and discordance at the stated size and margins."""
    size, margin = STATED_ITEMS, STATED_MARGIN
    return [
        Cell(name, truth, margin, margin, discordance, size, size, num_seeds)
        for name, truth in plain_truths().items()
        for discordance in DISCORDANCES
    ]


def quickstart_cells() -> list[Cell]:
    """Three truly equal ranks, 300 in-domain items and two retention tasks of 200, one seed."""
    delta = default_margin(300, 3, CONFIDENCE)
    epsilon = default_margin(effective_items([200, 200]), 3, CONFIDENCE)
    truth = Truth((20.0,) * 3, (0.0,) * 3)
    return [
        Cell("quickstart", truth, delta, epsilon, discordance, 300, 400, 1)
        for discordance in DISCORDANCES
    ]


def mcnemar_error() -> float:
    """Largest difference from scipy's and statsmodels' exact tests over planted tables."""
    worst = 0.0
    for learned, forgotten in itertools.product((0, 1, 2, 3, 5, 8, 13, 21, 55, 144, 377), repeat=2):
        ours = mcnemar_exact(learned, forgotten)
        total = learned + forgotten
        tail = float(stats.binom.cdf(min(learned, forgotten), total, 0.5))
        theirs = float(mcnemar([[50, forgotten], [learned, 50]], exact=True).pvalue)
        worst = max(worst, abs(ours - min(1.0, 2.0 * tail)), abs(ours - min(1.0, theirs)))
    return worst


def line(cell: Cell, tally: Tally) -> str:
    """What is printed of a cell."""
    coverage = " ".join(f"{name} {share:.3f}" for name, share in tally.coverage.items())
    return (
        f"{cell.name:31} n={cell.num_items:<5} d={cell.discordance:.2f} seeds={cell.num_seeds} "
        f"margin={cell.delta:.1f}: error {tally.error:.4f} correct {tally.correct:.3f} "
        f"smallest {tally.smallest:.3f} cannot tell {tally.cannot_tell:.3f} | {coverage}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate every cell, print one line for each to stderr, and the summary to stdout."""
    parser = argparse.ArgumentParser(description="Error rates of the recommendation, simulated.")
    parser.add_argument("--studies", type=int, default=2000, help="of each cell")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    groups = {
        "stress": stress_cells(),
        "stated": plain_cells(STATED_SEEDS),
        "one seed": plain_cells(1),
        "quickstart": quickstart_cells(),
    }
    cells = [cell for group in groups.values() for cell in group]
    run = partial(simulate, studies=options.studies, seed=options.seed)
    tallies: dict[Cell, Tally] = {}
    with ProcessPoolExecutor(options.workers) as pool:
        for cell, tally in zip(cells, pool.map(run, cells), strict=True):
            tallies[cell] = tally
            print(line(cell, tally), file=sys.stderr, flush=True)
    of = {name: [tallies[cell] for cell in group] for name, group in groups.items()}
    worst = max(tally.num_errors for tally in tallies.values())
    upper = float(stats.beta.ppf(0.95, worst + 1, options.studies - worst))
    coverage = [share for tally in of["stress"] for share in tally.coverage.values()]
    summary = {
        "worst_error_rate_upper95": round(upper, 4),
        "accuracy_at_stated_n": round(min(tally.smallest for tally in of["stated"]), 4),
        "cannot_tell_rate_quickstart": round(max(t.cannot_tell for t in of["quickstart"]), 4),
        "mcnemar_max_abs_error": mcnemar_error(),
        "interval_coverage_min": round(min(coverage), 4),
        "stated_n": STATED_ITEMS,
        "stated_seeds": STATED_SEEDS,
        "stated_margin_points": STATED_MARGIN,
        "qualifying_rank_found_with_one_seed": round(min(t.correct for t in of["one seed"]), 4),
        "studies_per_cell": options.studies,
        "num_cells": len(cells),
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
