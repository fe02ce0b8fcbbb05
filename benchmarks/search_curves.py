"""The searches on real per-run results: 1,680 runs of two encoders on four GLUE tasks.

``lora-rank-scaling-glue.csv`` has the test accuracy of each run, by rank and seed. It has no
items, no steps, and nothing on retention, so validation items are drawn around each run's
accuracy, there are no rungs, and epsilon is not used. Alpha is fixed there, with one rate, so rank
and step size are confounded.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.search_policies import ALPHA
from rankwise.findings.stats.items import POINTS, Floats
from rankwise.study.searches.policies import Ladder, Narrow
from rankwise.study.searches.policy import Known, Policy, Progress, Setting, Terms, TrialResult

DELTA, NUM_ITEMS, NUM_SEEDS, DISCORDANCE = 2.0, 500, 3, 0.2


class RealCurve(NamedTuple):
    """A model, a task and a number of training rows: accuracy (seeds, ranks) in points."""

    name: str
    ranks: tuple[int, ...]
    accuracy: Floats


class Regrets(NamedTuple):
    """Of each curve and draw, in points (N,), by choice; and cost over that of the grid (N,)."""

    by_choice: dict[str, Floats]
    cost_share: dict[str, Floats]

    def mean(self, choice: str) -> float:
        """Mean regret in points."""
        return float(self.by_choice[choice].mean())

    def share(self, choice: str) -> float:
        """Mean cost over that of the grid."""
        return float(self.cost_share[choice].mean())


def read_curves(path: Path) -> list[RealCurve]:
    """Every curve of the file."""
    found: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name = f"{row['model']} {row['task']} {row['n']}"
            found[name][int(row["rank"])][row["seed"]] = POINTS * float(row["accuracy"])
    curves: list[RealCurve] = []
    for name, by_rank in sorted(found.items()):
        ranks, seeds = tuple(sorted(by_rank)), sorted(next(iter(by_rank.values())))
        table = [[by_rank[rank][seed] for rank in ranks] for seed in seeds]
        curves.append(RealCurve(name, ranks, np.array(table)))
    return curves


def regrets(curves: list[RealCurve], draws: int, seed: int) -> Regrets:
    """Each curve is searched ``draws`` times, with three of its seeds by lot.

    The rank that a search chose is judged by the runs that it has not seen. Regret is the accuracy
    of these runs below that of the same seeds at the rank whose mean over all seeds is the best.
    """
    by_choice: dict[str, list[float]] = defaultdict(list)
    cost: dict[str, list[float]] = defaultdict(list)
    for number, curve in enumerate(curves):
        rng = np.random.default_rng([seed, number])
        best = int(curve.accuracy.mean(axis=0).argmax())
        for _ in range(draws):
            order = rng.permutation(len(curve.accuracy))
            seen, unseen = order[:NUM_SEEDS], curve.accuracy[order[NUM_SEEDS:]].mean(axis=0)
            runs = _Runs(curve.accuracy[seen], rng)
            for name, (place, share) in _choices(curve, runs).items():
                by_choice[name].append(float(unseen[best] - unseen[place]))
                cost[name].append(share)
    return Regrets(
        {name: np.array(values) for name, values in by_choice.items()},
        {name: np.array(values) for name, values in cost.items()},
    )


class _Runs:
    """Validation items of every run; two runs that are as good disagree on ``DISCORDANCE``."""

    def __init__(self, accuracy: Floats, rng: np.random.Generator) -> None:
        slip = (1.0 - math.sqrt(1.0 - 2.0 * DISCORDANCE)) / 2.0
        top = accuracy.max() / POINTS
        reach = min(max((top - slip) / (1.0 - 2.0 * slip), 1e-3), 1.0)
        right = (accuracy[..., None] / POINTS - (1.0 - reach) * slip) / reach
        within = rng.random(NUM_ITEMS) < reach
        chance = np.where(within, np.clip(right, 0.0, 1.0), slip)
        self.values = POINTS * (rng.random(chance.shape) < chance)

    def shown(self, progress: Progress) -> TrialResult:
        """Accuracy itself: that of the base is not in the file."""
        return TrialResult((self.values[progress.trial.seed, progress.trial.setting],))


def _choices(curve: RealCurve, runs: _Runs) -> dict[str, tuple[int, float]]:
    """Every choice: the rank's place, and trainings over those of the grid."""
    options = [Setting(f"rank {rank}", rank, (1e-4,)) for rank in curve.ranks]
    terms, seeds = Terms(DELTA, None, ALPHA), range(NUM_SEEDS)
    of_32, means = curve.ranks.index(32), runs.values.mean(axis=(0, 2))
    return {
        "narrow": _searched(Narrow(options, seeds, terms), runs, len(options)),
        "ladder": _searched(Ladder(options, seeds, terms), runs, len(options)),
        "always 32": (of_32, 1.0 / len(options)),
        "always 16": (curve.ranks.index(16), 1.0 / len(options)),
        "largest of the grid": (int(means.argmax()), 1.0),
    }


def _searched(policy: Policy, runs: _Runs, num_options: int) -> tuple[int, float]:
    """The finalist with the best mean."""
    known: dict[Progress, TrialResult] = {}
    decision = policy(known)
    while decision.wanted:
        known |= {progress: runs.shown(progress) for progress in decision.wanted}
        decision = policy(known)
    places = sorted({trial.setting for trial, _ in decision.finalists})
    best = max(places, key=lambda place: float(runs.values[:, place].mean()))
    return best, _num_trained(known) / (num_options * NUM_SEEDS)


def _num_trained(known: Known) -> int:
    return sum(progress.share == 1.0 for progress in known)
