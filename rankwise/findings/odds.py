"""From a posterior to odds: how probable it is that an option is right, and what it may cost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from rankwise.findings.decision import judge
from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.posterior import (
    GAIN_PRIOR,
    LOSS_PRIOR,
    Posterior,
    posterior,
)
from rankwise.findings.stats.prospects import Growth, after_growth, grow, pair_ends
from rankwise.findings.stats.simultaneous import StudyEvidence
from rankwise.records.study import Unit

NUM_DRAWS = 4096
"""At this number a probability is exact to 0.008 (one standard error)."""

NUM_FUTURES = 1024
"""Draws of what a grown study would show; exact to 0.016."""

PRICE = 2.0
"""Points of gain that a point of retention loss beyond epsilon is worth."""


def point_in(unit: Unit, delta: float) -> float:
    """What a point counts in the unit of the gains.

    Half of delta in nats stands for a point, since one is the smallest margin in points.
    """
    return 1.0 if unit == "points" else delta / 2.0


def worth(gain: ArrayLike, loss: ArrayLike, epsilon: float, point: float) -> Floats:
    """The gain less the price of retention loss beyond epsilon, in the unit of the gains.

    Args:
        gain: of one option, or of many: any shape.
        loss: in points, of the same shape.
        epsilon: in points.
        point: from ``point_in``.
    """
    excess = np.maximum(np.asarray(loss, dtype=np.float64) - epsilon, 0.0)
    return np.asarray(gain, dtype=np.float64) - PRICE * point * excess


_SEED = 20260102
"""Fixed, so that the same results always give the same odds."""


Growths = tuple[Growth, Growth | None]
"""Of the in-domain block, and of the retention block if there is one."""


class Truths(NamedTuple):
    """Draws of what K options may be worth: (N, K) gains in-domain, (N, K) losses in points.

    The variances of a run around its option are (N,). ``losses`` are None if not measured.
    """

    gains: Floats
    gain_run_variances: Floats
    losses: Floats | None
    loss_run_variances: Floats | None


class Odds(NamedTuple):
    """Of each option (K,) the probability of each condition, of all three, and expected regret.

    Regret is how much less an option is worth than the best choice, not fine-tuning included, in
    the unit of the gains; ``regret_of_base`` is that of not fine-tuning.
    """

    better: Floats
    keeps: Floats
    near: Floats
    right: Floats
    regret: Floats
    regret_of_base: float


class Believed(NamedTuple):
    """The posterior of a study: of the gains, and of the losses if they were measured."""

    evidence: StudyEvidence
    gain: Posterior
    loss: Posterior | None
    unit: float

    @classmethod
    def of(cls, evidence: StudyEvidence, correlations: Floats, unit: float) -> Believed:
        """From the scores; ``unit`` is what a point of the priors is in the gains' unit."""
        retention = evidence.retention
        return cls(
            evidence,
            posterior(evidence.in_domain, correlations, GAIN_PRIOR, unit),
            None if retention is None else posterior(retention, correlations, LOSS_PRIOR, 1.0),
            unit,
        )

    def truths(self, number: int = NUM_DRAWS) -> Truths:
        """Draws of the truths, always the same."""
        rng = np.random.default_rng(_SEED)
        gains = self.gain.draws(rng, number)
        losses = (None, None) if self.loss is None else self.loss.draws(rng, number)
        return Truths(*gains, *losses)

    def value(self, growths: Growths, epsilon: float) -> float:
        """By about how much a growth lowers the expected regret of the best choice.

        In the unit of the gains. That it would tell more of the scales too is left out.
        """
        in_domain, retention = self.evidence
        nothing = Growth.none(in_domain), None if retention is None else Growth.none(retention)
        return max(self._best(growths, epsilon) - self._best(nothing, epsilon), 0.0)

    def _best(self, growths: Growths, epsilon: float) -> float:
        """What the best choice is worth on average, chosen after a growth."""
        rng = np.random.default_rng(_SEED)
        of_gain, of_loss = growths
        worths, _ = after_growth(self.evidence.in_domain, self.gain, of_gain, rng, NUM_FUTURES)
        retention = self.evidence.retention
        if self.loss is not None and retention is not None and of_loss is not None:
            mean, sd = after_growth(retention, self.loss, of_loss, rng, NUM_FUTURES)
            worths = worths - PRICE * self.unit * expected_excess(mean - epsilon, sd)
        return float(np.maximum(worths.max(axis=1), 0.0).mean())


def odds(truths: Truths, *, tolerance: float, epsilon: float, unit: float) -> Odds:
    """How probable it is that each option is right.

    Right is: better than the base, with a retention loss of at most epsilon, and at most
    ``tolerance`` below the best option that loses no more than epsilon.

    Args:
        truths: draws of what the options are worth.
        tolerance: in the unit of the gains.
        epsilon: in points; unused where losses were not measured.
        unit: what a point of loss counts in the unit of the gains.
    """
    gains, losses = truths.gains, truths.losses
    is_kept = np.ones(gains.shape, dtype=bool) if losses is None else losses <= epsilon
    best = np.where(is_kept, gains, -np.inf).max(axis=1, keepdims=True)
    better, near = gains > 0.0, gains >= best - tolerance
    worths = gains if losses is None else worth(gains, losses, epsilon, unit)
    most = np.maximum(worths.max(axis=1), 0.0)
    return Odds(
        better=better.mean(axis=0),
        keeps=is_kept.mean(axis=0),
        near=near.mean(axis=0),
        right=(better & is_kept & near).mean(axis=0),
        regret=(most[:, None] - worths).mean(axis=0),
        regret_of_base=float(most.mean()),
    )


def chance_of_decision(
    evidence: StudyEvidence,
    truths: Truths,
    growths: Growths,
    *,
    level: float,
    delta: float,
    epsilon: float,
) -> float:
    """The probability that the rule decides after a growth.

    Args:
        evidence: of the study now.
        truths: draws from its posterior; the first ``NUM_FUTURES`` are used.
        growths: of the in-domain items, and of the retention items.
        level: one-sided, at which the grown study will be judged.
        delta: margin in-domain, in the unit of the gains.
        epsilon: margin on retention in points; unused without it.
    """
    rng, count = np.random.default_rng(_SEED), evidence.num_options
    first = slice(NUM_FUTURES)
    gained = grow(
        evidence.in_domain,
        truths.gains[first],
        truths.gain_run_variances[first],
        growths[0],
        rng,
    )
    loss = None
    if (
        evidence.retention is not None
        and growths[1] is not None
        and truths.losses is not None
        and truths.loss_run_variances is not None
    ):
        lost = grow(
            evidence.retention,
            truths.losses[first],
            truths.loss_run_variances[first],
            growths[1],
            rng,
        )
        loss = lost.ends(np.eye(count), level)
    gain, lead = gained.ends(np.eye(count), level), pair_ends(gained, count, level)
    return float(judge(gain, loss, lead, delta, epsilon).is_decided.mean())


def expected_excess(mean: Floats, sd: Floats) -> Floats:
    """E max(X, 0) of X normal with these means and standard deviations, of one shape."""
    scaled = mean / np.where(sd > 0, sd, 1.0)
    density = np.exp(-(scaled**2) / 2.0) / np.sqrt(2.0 * np.pi)
    return np.where(sd > 0, sd * density + mean * special.ndtr(scaled), np.maximum(mean, 0.0))
