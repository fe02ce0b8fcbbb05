"""What more items or seeds would bring: the estimates and the bounds of a study that has grown.

A study grows: its items are kept and new ones are added. With V the covariance of the K estimates'
errors now and V' that after the growth, the errors r now and r' then are normal and
cov(r', r) = V', for what is kept is averaged with what is new. So, given the truths, the new
estimates are normal with mean truth + V' V^-1 r and covariance V' - V' V^-1 V'.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import special

from rankwise.findings.stats.blocks import (
    Block,
    Contrasts,
    contrasted,
    normal_draws,
    num_runs,
    quadratic,
)
from rankwise.findings.stats.estimates import Estimate, Spread
from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.posterior import lead_prior


class Growth(NamedTuple):
    """A block after it has grown: items of each task (T,) by these factors, and seeds in all.

    Of items that were answered in part, the same share of the new ones is: their variance A/N + B/n
    falls by the factor too.
    """

    factors: tuple[float, ...]
    num_seeds: int

    def covariances(self, of: Block, run_variances: Floats) -> Floats:
        """(V, K, K) of the errors then, for V variances of one run around its option."""
        kept = of.num_seeds / self.num_seeds
        items = np.sum(
            [
                (part.items + part.pseudo - (1.0 - kept) * part.interaction) / factor
                for part, factor in zip(of.parts, self.factors, strict=True)
            ],
            axis=0,
        )
        return items + run_variances[:, None, None] / self.num_seeds * np.eye(len(of.mean))


class GrownBlock(NamedTuple):
    """What the block ``of`` may show after a growth: N times ``estimate`` (N, K).

    ``run_variances`` (N,) are those of one run around its option in each.
    """

    of: Block
    run_variances: Floats
    growth: Growth
    estimate: Floats

    def ends(self, contrasts: Contrasts, level: float) -> tuple[Floats, Floats]:
        """(N, C) lower and upper bounds of the contrasts at a one-sided level."""
        spread = self._spread(contrasts)
        reach = spread.quantile(level) * spread.stderr
        estimate = contrasted(contrasts, self.estimate)
        return estimate - reach, estimate + reach

    def part(self, draws: slice) -> GrownBlock:
        """The same of some of the draws."""
        return self._replace(run_variances=self.run_variances[draws], estimate=self.estimate[draws])

    def _spread(self, contrasts: Contrasts) -> Spread:
        """The variances that it would state for the contrasts, each part (N, C) or (C)."""
        of, growth = self.of, self.growth
        now, kept = of.spread(contrasts), of.num_seeds / growth.num_seeds
        shares = 1.0 / np.array(growth.factors)
        by_part = np.tensordot(shares, of.item_variances(contrasts), axes=1)
        more = now.item_variance / np.where(by_part > 0, by_part, 1.0)
        if growth.num_seeds == 1:
            return Spread(by_part, now.item_freedom * more, now.seed_variance, now.seed_freedom)
        if of.num_seeds == 1:
            freedom = np.float64((growth.num_seeds - 1) * max(len(of.mean) - 1, 1))
        else:
            freedom = now.seed_freedom * (growth.num_seeds - 1) / (of.num_seeds - 1)
        # what the posterior says of the runs, and what seed and item do together
        by_runs = np.multiply.outer(
            self.run_variances / growth.num_seeds, num_runs(contrasts, len(of.mean))
        )
        by_chance = quadratic(contrasts, np.stack([part.interaction for part in of.parts]))
        by_seed = by_runs + kept * np.tensordot(shares, by_chance, axes=1)
        freedoms = np.broadcast_to(np.asarray(freedom, dtype=np.float64), np.shape(by_part))
        return Spread(by_part, now.item_freedom * more, by_seed, freedoms)


def grow(
    of: Block, truths: Floats, run_variances: Floats, growth: Growth, rng: np.random.Generator
) -> GrownBlock:
    """Draw what a block would show after a growth.

    Args:
        of: the block now.
        truths: (N, K) draws.
        run_variances: (N,) of one run around its option in each.
        growth: what is added.
        rng: for the new errors.
    """
    now = Growth((1.0,) * len(of.parts), of.num_seeds)
    estimate = np.empty_like(truths)
    variances = np.unique(run_variances)
    both = now.covariances(of, variances), growth.covariances(of, variances)
    for variance, before, after in zip(variances, *both, strict=True):
        rows = run_variances == variance
        kept = np.linalg.solve(before, after).T  # V' V^-1, both symmetric
        new = normal_draws(after - kept @ after, rng, int(rows.sum()))
        estimate[rows] = truths[rows] + (of.mean - truths[rows]) @ kept.T + new
    return GrownBlock(of, run_variances, growth, estimate)


def chance_of_sign(estimate: Estimate, factor: float, alpha: float, unit: float) -> float:
    """The probability that ``factor`` times the items show that a lead is not zero.

    The lead has the prior of the odds, the new items' mean is normal around it, and what is there
    already is kept. With one seed.

    Args:
        estimate: of the lead now.
        factor: above 1.
        alpha: two-sided, of the interval then.
        unit: what a point of the prior is in the estimate's unit, above 0.
    """
    variance = estimate.stderr**2
    if variance == 0.0:
        return 0.0
    sd, weights = lead_prior(unit)
    total = sd**2 + variance
    weights = weights * np.exp(-0.5 * estimate.value**2 / total) / np.sqrt(total)
    # of each component: the lead as it is believed now, and what all items will show
    mean, believed = estimate.value * sd**2 / total, variance * sd**2 / total
    centre = estimate.value / factor + (1.0 - 1.0 / factor) * mean
    spread = (1.0 - 1.0 / factor) * np.sqrt(believed + variance / (factor - 1.0))
    reach = special.ndtri(1.0 - alpha / 2.0) * estimate.stderr / math.sqrt(factor)
    shown = special.ndtr((centre - reach) / spread) + special.ndtr((-centre - reach) / spread)
    return float(weights @ shown / weights.sum())
