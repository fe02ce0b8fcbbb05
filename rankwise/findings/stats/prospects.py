"""What more items or seeds would bring: what a study that has grown would show.

A study grows: its items are kept and new ones are added. With V the covariance of the K estimates'
errors now and V' that after the growth, the errors r now and r' then are normal and
cov(r', r) = V', for what is kept is averaged with what is new. So, given the truths, the new
estimates are normal with mean truth + V' V^-1 r and covariance V' - V' V^-1 V'.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

from rankwise.findings.stats.blocks import Block, lead_variances, normal_draws
from rankwise.findings.stats.items import Floats


class Growth(NamedTuple):
    """How a block grows: items of each part (T,) by these factors, and more runs of each option.

    Of items that were answered in part, the same share of the new ones is: their variance A/N + B/n
    falls by the factor too.
    """

    factors: tuple[float, ...]
    num_new_runs: int

    def of_items(self, of: Block) -> Floats:
        """(K, K) covariance then of the means of the runs that are there then, by items."""
        counts = of.rows.counts
        gone = np.diag(self.num_new_runs / (counts + self.num_new_runs))
        return np.sum(
            [
                # no more is gone than was seen: both are estimates
                (
                    part.items
                    + part.pseudo
                    - gone * np.minimum(part.interaction, np.diagonal(part.items))
                )
                / factor
                for part, factor in zip(of.parts, self.factors, strict=True)
            ],
            axis=0,
        )

    def of_options(self, of: Block) -> Floats:
        """(K, K) of the same around the options: by items, and by runs."""
        counts, variance = of.rows.counts, of.run_variances.variance
        # new runs of all options have the same new seeds
        kept = counts / (counts + self.num_new_runs)
        now = np.outer(kept, kept) * of.rows.run_covariance(variance, of.prior.shared)
        more = counts + self.num_new_runs
        new = self.num_new_runs * np.sqrt(np.outer(variance, variance)) / np.outer(more, more)
        apart = of.prior.shared + (1.0 - of.prior.shared) * np.eye(len(counts))
        return self.of_items(of) + now + new * apart


class GrownBlock(NamedTuple):
    """What a block may show after a growth: N times ``mean`` (N, K), each with this covariance."""

    mean: Floats
    covariance: Floats

    @property
    def stderr(self) -> Floats:
        """(K,) standard errors of the means."""
        return np.sqrt(np.diagonal(self.covariance))

    @property
    def lead_stderr(self) -> Floats:
        """(K, K) of the row's mean less the column's."""
        return np.sqrt(lead_variances(self.covariance))


def grow(of: Block, truths: Floats, growth: Growth, rng: np.random.Generator) -> GrownBlock:
    """Draw what a block would show after a growth.

    Args:
        of: the block now.
        truths: (N, K) draws of the options.
        growth: what is added.
        rng: for the new errors.
    """
    now = Growth((1.0,) * len(of.parts), 0)
    before, after = now.of_options(of), growth.of_options(of)
    kept = np.linalg.solve(before, after).T  # V' V^-1, both symmetric
    new = normal_draws(after - kept @ after, rng, len(truths))
    mean = truths + (of.mean - truths) @ kept.T + new
    return GrownBlock(mean, growth.of_items(of))


def probability_below(limit: float, mean: Floats, stderr: Floats) -> Floats:
    """That a truth is at most ``limit``, of normal estimates; arrays of shapes that agree."""
    distance = limit - mean
    certain = np.where(distance >= 0.0, np.inf, -np.inf)
    scaled = np.divide(
        distance, stderr, out=certain, where=np.broadcast_to(stderr, distance.shape) > 0
    )
    return np.asarray(special.ndtr(scaled))
