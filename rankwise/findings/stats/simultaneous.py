"""Bounds for all the options of a study: those that decide, and those that hold all at once.

An option is a rank with its alpha and learning rate. Which option is best is not known.

The rule recommends an option if several statements about it are shown at once (an
intersection-union test, Berger 1982), so a wrong recommendation of an option needs one wrong
statement only: the one that is false of it. With K options that is one statement each, and one
more lest the best be rejected by mistake. Bonferroni's correction for these K + 1 gives the level
of the bounds that decide, whatever the dependence.

To read all bounds together is another matter: gains from below, losses from above (and the best
one's from below) and every score against the best one's. Their common critical value is the
largest over all options that may be best (Hsu 1984, multiple comparisons with the best), by a
max-statistic bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from rankwise.findings.stats.blocks import (
    Block,
    all_pairs,
    block,
    normal_draws,
    or_one,
    quadratic,
)
from rankwise.findings.stats.estimates import Spread, skewed_quantiles
from rankwise.findings.stats.items import Floats, Items

NUM_DRAWS = 10_000


class StudyEvidence(NamedTuple):
    """The scores of K options: ``in_domain`` gains, and ``retention`` losses if measured."""

    in_domain: Block
    retention: Block | None

    @property
    def num_options(self) -> int:
        """K."""
        return len(self.in_domain.mean)


class Bounds(NamedTuple):
    """Estimates with bounds, and what would tighten them; arrays of one shape."""

    estimate: Floats
    lower: Floats
    upper: Floats
    spread: Spread


class StudyBounds(NamedTuple):
    """Bounds of a study with K options, all at one level.

    ``gain`` (K,) over the base; ``loss`` (K,) on retention, None without such tasks;
    ``lead`` (K, K): the row's in-domain score less the column's, zero on the diagonal.
    """

    gain: Bounds
    loss: Bounds | None
    lead: Bounds


def study_evidence(gains: Sequence[Items], losses: Sequence[Items]) -> StudyEvidence:
    """What the scores say of the options, before anything is decided.

    Args:
        gains: for each in-domain task (m, K, n): adapted - base, positive better, for each
            seed, option and item.
        losses: for each retention task (m, K, n) in points: base - adapted, positive worse.

    Raises:
        ValueError: no in-domain task, shapes that do not agree, or a task with one item.
    """
    if not gains or len({task.values.shape[:2] for task in (*gains, *losses)}) != 1:
        raise ValueError("every task needs the same seeds and options, and one must be in-domain")
    return StudyEvidence(block(gains), block(losses) if losses else None)


def deciding_level(num_options: int, alpha: float) -> float:
    """The one-sided level of the bounds that decide, by which ``alpha`` (0..1) may be wrong."""
    return 1.0 - alpha / (num_options + 1)


def bounds_at(evidence: StudyEvidence, level: float) -> StudyBounds:
    """Bounds at a one-sided ``level`` (0.5..1): estimate ± quantile * stderr.

    Item variance and correction for skewness are those of ``stats.crossed_difference``. A few
    seeds say little about the variance of one option, so it is taken from a two-way analysis of
    variance, seeds by options, or from the option itself where that is larger. It enters through
    Student's t, as in ``stats.Spread.quantile``.
    """
    count = evidence.num_options
    one, retention = np.eye(count), evidence.retention
    lead = _bounds(evidence.in_domain, all_pairs(count), level)
    square = (count, count)
    return StudyBounds(
        gain=_bounds(evidence.in_domain, one, level),
        loss=None if retention is None else _bounds(retention, one, level),
        lead=Bounds(
            lead.estimate.reshape(square),
            lead.lower.reshape(square),
            lead.upper.reshape(square),
            Spread(*(part.reshape(square) for part in lead.spread)),
        ),
    )


def level_of_all(
    evidence: StudyEvidence,
    alpha: float,
    rng: np.random.Generator | int,
    num_draws: int = NUM_DRAWS,
) -> float:
    """The one-sided level at which all bounds of a study hold at once, but for ``alpha`` (0..1).

    It comes from the Gaussian multiplier bootstrap of the studentised maximum (Chernozhukov,
    Chetverikov and Kato 2013): given the data its draws are normal with the estimated covariance,
    so they are drawn from that and their cost does not depend on the number of items. Item sets
    are independent of one another. The quantile is the largest over every option that may be the
    best.
    """
    generator = np.random.default_rng(rng)
    covariance, count = evidence.in_domain.covariance, evidence.num_options
    gains = normal_draws(covariance, generator, num_draws)
    always = (gains / np.sqrt(or_one(np.diag(covariance)))).max(axis=1)
    losses: Floats | None = None
    if evidence.retention is not None:
        of_losses = evidence.retention.covariance
        losses = normal_draws(of_losses, generator, num_draws) / np.sqrt(or_one(np.diag(of_losses)))
        always = np.maximum(always, (-losses).max(axis=1))
    spreads = np.sqrt(or_one(quadratic(all_pairs(count), covariance))).reshape(count, count)
    critical = 0.0
    for best in range(count):
        largest = always
        others = np.arange(count) != best
        if others.any():
            lead = (gains[:, others] - gains[:, best, None]) / spreads[others, best]
            largest = np.maximum(largest, lead.max(axis=1))
        if losses is not None:
            largest = np.maximum(largest, losses[:, best])
        critical = max(critical, float(np.quantile(largest, 1.0 - alpha)))
    return float(special.ndtr(critical))


def _bounds(of: Block, contrasts: Floats, level: float) -> Bounds:
    spread = of.spread(contrasts)
    stderr = spread.stderr
    skewness = of.third_moment(contrasts) / or_one(stderr) ** 3
    below, above = skewed_quantiles(spread.quantile(level), skewness)
    estimate = contrasts @ of.mean
    return Bounds(estimate, estimate - below * stderr, estimate + above * stderr, spread)
