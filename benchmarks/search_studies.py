"""Simulated trainings for searches: what a trial shows at any step, item by item, lazily.

A truth has for each rank its gain and loss at the end, and how a training gets there. In-domain
every run errs on items by itself, on retention it forgets and learns. A run keeps its luck on most
items from step to step.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwise.findings.stats.items import POINTS, Floats
from rankwise.study.searches.policy import Progress, TrialResult

Bools = NDArray[np.bool_]

BASE_SHARE, RETAINED_SHARE = 0.50, 0.70
SHARED_BY_RANKS = 0.25  # of the variance of runs

KEPT_LUCK = 0.7
"""Of the items: where a run's luck is the same after any share of its steps."""

RATE_COST, RATE_LOSS = 8.0, 1.5
"""In points: what a decade off the best rate costs (squared), and the loss that one above adds."""

DIVERGES_AT = 0.8
"""Decades above the best rate."""


class Curve(NamedTuple):
    """Truths of K ranks, in points.

    Attributes:
        gain, loss: (K,) at the end, at the best rate.
        speed: (K,) of learning; after a share s of the steps the part
            (1 - exp(-speed s)) / (1 - exp(-speed)) of the gain is there.
        late: (K,) points that the gain was higher at half of the steps than this law says.
        best_rate: (K,) in decades from the middle of the grid.
    """

    gain: tuple[float, ...]
    loss: tuple[float, ...]
    speed: tuple[float, ...]
    late: tuple[float, ...]
    best_rate: tuple[float, ...]

    def gain_at(self, place: int, share: float) -> float:
        """Of a rank at its best rate after a share of its steps."""
        speed = self.speed[place]
        done = -math.expm1(-speed * share) / -math.expm1(-speed)
        return self.gain[place] * done + self.late[place] * 4.0 * share * (1.0 - share)


class Size(NamedTuple):
    """How many items, half of those of retention in each of two tasks, and how runs vary.

    ``discordance`` is that of two runs that are as good as the best. With ``is_p_right`` a value
    lies half way between the item's probability and the answer, which quarters the variance.
    """

    num_items: int
    num_retention: int
    num_test: int
    num_test_retention: int
    num_seeds: int
    discordance: float
    is_p_right: bool
    run_sd: tuple[float, float] = (0.7, 0.5)


class Simulated:
    """One simulated study: ``shown`` answers for any progress, always the same."""

    def __init__(self, curve: Curve, size: Size, rates: tuple[float, ...], seed: int) -> None:
        self.curve, self.size, self.rates, self.seed = curve, size, rates, seed
        rng = np.random.default_rng([seed, 0])
        shape = size.num_seeds, len(curve.gain)
        self.run_gain, self.run_loss = (
            sd
            * (
                rng.normal(0.0, SHARED_BY_RANKS**0.5, (size.num_seeds, 1))
                + rng.normal(0.0, (1.0 - SHARED_BY_RANKS) ** 0.5, shape)
            )
            for sd in size.run_sd
        )
        self.slip = (1.0 - math.sqrt(1.0 - 2.0 * size.discordance)) / 2.0
        top = BASE_SHARE + max(*curve.gain, 0.0) / 100.0
        self.reach = min((top - self.slip) / (1.0 - 2.0 * self.slip), 1.0)

    @cached_property
    def validation(self) -> _Set:
        """The validation items."""
        return self._items(self.size.num_items, self.size.num_retention, 1)

    @cached_property
    def test(self) -> _Set:
        """The test items."""
        return self._items(self.size.num_test, self.size.num_test_retention, 2)

    def shown(self, progress: Progress, *, on_test: bool = False) -> TrialResult | None:
        """What a trial shows; None where it diverged."""
        trial, share = progress
        truth = self.truth(trial.setting, trial.learning_rate, share)
        if truth is None:
            return None
        gain = truth[0] + float(self.run_gain[trial.seed, trial.setting])
        loss = truth[1] + float(self.run_loss[trial.seed, trial.setting])
        items = self.test if on_test else self.validation
        key = [
            self.seed,
            3,
            int(on_test),
            trial.setting,
            trial.seed,
            round(1e7 * trial.learning_rate),
        ]
        return items.answers(gain, loss, key, round(1000 * share))

    def truth(self, place: int, rate: float, share: float = 1.0) -> tuple[float, float] | None:
        """Gain and loss of a rank at a rate after a share of its steps; None where it diverges."""
        off = 0.0
        if len(self.rates) > 1:
            middle = self.rates[len(self.rates) // 2]
            off = math.log10(rate / middle) - self.curve.best_rate[place]
        if off > DIVERGES_AT:
            return None
        gain = self.curve.gain_at(place, share) - RATE_COST * off**2
        return gain, self.curve.loss[place] * share + RATE_LOSS * max(off, 0.0) * share

    def _items(self, in_domain: int, retention: int, number: int) -> _Set:
        rng = np.random.default_rng([self.seed, number])
        within = rng.random(in_domain) < self.reach
        chance = np.where(within, (BASE_SHARE - (1.0 - self.reach) * 0.15) / self.reach, 0.15)
        base = _values(chance, rng.random(in_domain), self.size.is_p_right)
        knew = rng.random(retention) < RETAINED_SHARE
        return _Set(self, within, base, knew)


class _Set(NamedTuple):
    """Items: which are within the models' reach, what the base scores, which ones it knew."""

    study: Simulated
    within: Bools
    base: Floats
    knew: Bools

    def answers(self, gain: float, loss: float, key: list[int], step: int) -> TrialResult:
        study = self.study
        luck = self._luck(key, step, len(self.within) + len(self.knew))
        slip, reach = study.slip, study.reach
        right = (BASE_SHARE + gain / 100.0 - (1.0 - reach) * slip) / reach
        chance = np.where(self.within, min(max(right, 0.0), 1.0), slip)
        runs = _values(chance, luck[: len(self.within)], study.size.is_p_right)
        disagree = max(study.size.discordance, abs(loss) / 100.0)
        forgets = (disagree + loss / 100.0) / 2.0 / RETAINED_SHARE
        learns = (disagree - loss / 100.0) / 2.0 / (1.0 - RETAINED_SHARE)
        change = np.where(self.knew, forgets, learns)
        changed = _values(change, luck[len(self.within) :], study.size.is_p_right)
        lost = np.where(self.knew, POINTS, -POINTS) * changed
        half = len(lost) // 2
        return TrialResult((POINTS * (runs - self.base),), (lost[:half], lost[half:]))

    @staticmethod
    def _luck(key: list[int], step: int, size: int) -> Floats:
        """(size,) in 0..1: of the trial, and on some items of this step alone."""
        rng = np.random.default_rng(key)
        luck, is_kept = rng.random(size), rng.random(size) < KEPT_LUCK
        return np.where(is_kept, luck, np.random.default_rng([*key, step]).random(size))


def _values(chance: Floats, luck: Floats, is_p_right: bool) -> Floats:
    """Right or wrong, or half way between the probability and that."""
    answers = (luck < chance).astype(np.float64)
    return (answers + chance) / 2.0 if is_p_right else answers
