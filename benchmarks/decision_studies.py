"""Studies with a known truth, drawn item by item, and the rule that decides them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rankwise.findings.decision import Choice, choose
from rankwise.findings.looks import alpha_of_look
from rankwise.findings.stats.items import POINTS, Floats, Items
from rankwise.findings.stats.simultaneous import (
    StudyEvidence,
    bounds_at,
    deciding_level,
    study_evidence,
)

CONFIDENCE = 0.95
NUM_LOOKS = 6  # at a study, or at sample files, that double from look to look
BASE_SHARE, RETAINED_SHARE = 0.50, 0.70
RUN_SD = (0.7, 0.5)  # of runs around their rank, in points: in-domain, on retention
SHARED_BY_RANKS = 0.25  # of the variance of runs

FAMILIES = ("smooth", "kinked", "saturating", "flat", "trade-off")
_MEDIAN_SD, _MEDIAN_FORGETTING, _LOG_SD = 1.8, 1.0, 0.8
"""Standard deviations across ranks, in points: of gains (as in published curves) and of losses."""


class Truth(NamedTuple):
    """Of each rank, smallest first, in points: gain over the base, and loss on retention."""

    gain: tuple[float, ...]
    loss: tuple[float, ...]


class Cell(NamedTuple):
    """One kind of study; retention is two tasks that share ``num_retention`` items.

    ``run_sd`` is the standard deviation of runs around their rank: in-domain, on retention.
    """

    name: str
    truth: Truth
    delta: float
    epsilon: float
    discordance: float
    num_items: int
    num_retention: int
    num_seeds: int
    run_sd: tuple[float, float] = RUN_SD

    def __str__(self) -> str:
        return (
            f"{self.name:31} n={self.num_items:<5} d={self.discordance:.2f} "
            f"seeds={self.num_seeds} margin={self.delta:.1f}"
        )


class Study(NamedTuple):
    """Scores in points: gains (m, K, n), losses (m, K, n) of each retention task.

    ``gain`` and ``loss`` (m, K) are the truths of the runs.
    """

    gains: Floats
    losses: tuple[Floats, ...]
    gain: Floats
    loss: Floats

    def first(self, num_items: int, num_retention: int, num_seeds: int) -> Study:
        """The study as it was when it had so many items, and seeds."""
        of_task = num_retention // len(self.losses)
        return Study(
            self.gains[:num_seeds, :, :num_items],
            tuple(task[:num_seeds, :, :of_task] for task in self.losses),
            self.gain[:num_seeds],
            self.loss[:num_seeds],
        )

    def truth(self, cell: Cell) -> tuple[Floats, Floats]:
        """Gains and losses (K,) that a verdict is about: of the only run, or of the rank."""
        if cell.num_seeds > 1:
            return np.asarray(cell.truth.gain), np.asarray(cell.truth.loss)
        return self.gain[0], self.loss[0]

    def evidence(self) -> StudyEvidence:
        """As the product reads the scores."""
        losses = [Items(task, POINTS) for task in self.losses]
        return study_evidence([Items(self.gains, POINTS)], losses)


class Rate(NamedTuple):
    """How often something happened in independent studies."""

    number: int
    studies: int

    @property
    def share(self) -> float:
        """Of the studies; 0 of none."""
        return self.number / max(self.studies, 1)

    @property
    def upper(self) -> float:
        """The exact binomial upper 95 % bound (Clopper and Pearson 1934), one-sided."""
        if self.number == self.studies:
            return 1.0
        return float(stats.beta.ppf(0.95, self.number + 1, self.studies - self.number))

    def __str__(self) -> str:
        return f"{self.share:.4f}"


def generator(cell: object, seed: int) -> np.random.Generator:
    """Random numbers of a cell's own, the same whatever else is simulated."""
    return np.random.default_rng([seed, *repr(cell).encode()])


def draw_study(cell: Cell, rng: np.random.Generator) -> Study:
    """A study whose runs lie around their ranks."""
    gain = np.asarray(cell.truth.gain) + _run_effects(cell, cell.run_sd[0], rng)
    loss = np.asarray(cell.truth.loss) + _run_effects(cell, cell.run_sd[1], rng)
    return draw_items(cell, gain, loss, rng)


def draw_items(cell: Cell, gain: Floats, loss: Floats, rng: np.random.Generator) -> Study:
    """A study of runs with these true gains and losses (m, K).

    In-domain, an item is within the adapted models' reach or not, and every run errs on items by
    itself, so that two runs as good as the best disagree on ``discordance`` of the items, or on
    fewer where they are right too often for that; a worse one errs more often within reach.
    On retention a run forgets and learns items of the base.
    """
    slip = (1.0 - np.sqrt(1.0 - 2.0 * cell.discordance)) / 2.0
    top = BASE_SHARE + max(float(gain.max()), 0.0) / 100.0
    reach = min((top - slip) / (1.0 - 2.0 * slip), 1.0)
    right_in_reach = (BASE_SHARE + gain[:, :, None] / 100.0 - (1.0 - reach) * slip) / reach
    within = rng.random(cell.num_items) < reach
    base_in_reach = (BASE_SHARE - (1.0 - reach) * 0.15) / reach
    base = rng.random(cell.num_items) < np.where(within, base_in_reach, 0.15)
    chance = np.where(within, right_in_reach, slip).astype(np.float32)
    runs = rng.random(chance.shape, dtype=np.float32) < chance
    gains = 100.0 * np.subtract(runs, base, dtype=np.float64)
    half = cell.num_retention // 2
    losses = tuple(_losses(cell, loss[:, :, None], half, rng) for _ in range(2))
    return Study(gains, losses, gain, loss)


def _run_effects(cell: Cell, run_sd: float, rng: np.random.Generator) -> Floats:
    """(m, K) points that a run is off its rank's truth, in part the same at every rank."""
    num_seeds, num_options = cell.num_seeds, len(cell.truth.gain)
    shared = rng.normal(0.0, SHARED_BY_RANKS**0.5, (num_seeds, 1))
    own = rng.normal(0.0, (1.0 - SHARED_BY_RANKS) ** 0.5, (num_seeds, num_options))
    return run_sd * (shared + own)


def _losses(cell: Cell, loss: Floats, size: int, rng: np.random.Generator) -> Floats:
    disagree = np.maximum(cell.discordance, np.abs(loss) / 100.0)
    forgets = (disagree + loss / 100.0) / 2.0 / RETAINED_SHARE
    learns = (disagree - loss / 100.0) / 2.0 / (1.0 - RETAINED_SHARE)
    knew = rng.random(size) < RETAINED_SHARE
    change = np.where(knew, forgets, learns).astype(np.float32)
    changed = rng.random(change.shape, dtype=np.float32) < change
    return np.where(knew, 100.0, -100.0) * changed


def rank_curve(family: str, num_ranks: int, rng: np.random.Generator) -> Truth:
    """A truth over ranks that are even in their logarithm, of one of ``FAMILIES``.

    How far the ranks are apart varies from study to study: lognormal, with the median of
    published rank curves.
    """
    place = np.linspace(0.0, 1.0, num_ranks)
    level, least_loss = rng.uniform(0.0, 25.0), rng.normal(1.0, 2.0)
    spread = _MEDIAN_SD * np.exp(rng.normal(0.0, _LOG_SD))
    forgetting = _MEDIAN_FORGETTING * np.exp(rng.normal(0.0, _LOG_SD))
    if family == "smooth":
        distance = (place[:, None] - place) / 0.4
        covariance = np.exp(-0.5 * distance**2) + 1e-9 * np.eye(num_ranks)
        gain, loss = rng.multivariate_normal(np.zeros(num_ranks), covariance, 2)
        gain, loss = gain * spread / gain.std(), loss * forgetting / loss.std()
        gain, loss = level + gain - gain.mean(), least_loss + loss - loss.mean()
    elif family == "kinked":
        kink = rng.uniform(0.1, 0.9)
        gain = level - 4.0 * spread * np.maximum(kink - place, 0.0)
        loss = least_loss + 6.0 * forgetting * np.maximum(place - kink, 0.0)
    else:
        shape = place
        if family == "saturating":
            shape = 1.0 - np.exp(-rng.uniform(2.0, 8.0) * place)
        elif family == "trade-off":
            forgetting = spread * rng.uniform(0.3, 1.2)
        if family == "flat":
            spread = forgetting = 0.0
        gain = level + (shape - shape[-1]) * spread / shape.std()
        loss = least_loss + place * forgetting / place.std()
    # where accuracy stays between 0 and 1
    return Truth(
        tuple(np.clip(gain, -15.0, 40.0).tolist()), tuple(np.clip(loss, -5.0, 28.0).tolist())
    )


def right_answers(
    gain: Floats, loss: Floats, delta: float, epsilon: float | None
) -> NDArray[np.bool_]:
    """Which options may be recommended, given the truth (K,); epsilon None accepts any loss."""
    admissible = loss <= (np.inf if epsilon is None else epsilon)
    best = gain[admissible].max() if admissible.any() else -np.inf
    return admissible & (gain > 0) & (gain >= best - delta)


def level_of_look(num_options: int, look: int) -> float:
    """One-sided, of the bounds that decide at a look; the first is number 1."""
    return deciding_level(num_options, alpha_of_look(look, 1.0 - CONFIDENCE))


def decide(evidence: StudyEvidence, delta: float, epsilon: float | None, look: int = 1) -> Choice:
    """The verdict at a look, as the product gives it."""
    return choose(bounds_at(evidence, level_of_look(evidence.num_options, look)), delta, epsilon)


def is_decided(choice: Choice) -> bool:
    """Whether the study says what to do, or that no rank will do."""
    return choice.outcome in ("recommended", "none_keeps_enough")


def is_wrong(choice: Choice, able: NDArray[np.bool_]) -> bool:
    """Whether an option is recommended that may not be."""
    return choice.option is not None and not able[choice.option]
