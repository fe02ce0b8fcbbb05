"""What the options of a study may truly be worth: a posterior by Gaussian mixture, no sampler.

The estimates are normal around the truths: by items as in ``stats.blocks``, and by runs, since an
option's runs differ. By how much the truths differ is unknown; which options are alike is not
asked. All scales stand on grids, so the posterior is a mixture of Gaussians whose weights, means
and covariances are computed; draws from it use a fixed seed. The priors are those of
docs/methods/rule.md, in points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rankwise.findings.stats.blocks import RUN_SD_LOG_SD, RUN_SD_MEDIAN, Block, root_of
from rankwise.findings.stats.items import Floats

_RUN_SD = np.geomspace(0.25, 4.0, 9)
"""Standard deviation between the runs of one option, in points."""

_AMPLITUDE = np.array([0.0, *np.geomspace(0.25, 20.0, 9)])
"""Standard deviation over the options, in points; at 0 the rank does not matter."""

_FLAT_SHARE = 0.2
"""Share of studies in which the rank does not matter: about a fifth of 56 published curves."""

_LEAST_SD = 0.3
"""Standard deviation over the options, in points, where the rank does not matter."""


class Prior(NamedTuple):
    """The prior of one kind of truth, in points: level N(mean, sd^2), amplitude half-Cauchy."""

    level_mean: float
    level_sd: float
    amplitude_scale: float


GAIN_PRIOR = Prior(0.0, 40.0, 2.0)
LOSS_PRIOR = Prior(0.5, 4.0, 3.0)


class Posterior(NamedTuple):
    """The truths of K options, in the unit of the block: a mixture of C Gaussians.

    ``weights`` (C,) sum to 1; ``means`` are (C, K), ``covariances`` (C, K, K); ``run_variances``
    (C,) are those of one run around its option.
    """

    weights: Floats
    means: Floats
    covariances: Floats
    run_variances: Floats

    def draws(self, rng: np.random.Generator, number: int) -> tuple[Floats, Floats]:
        """(number, K) truths in random order, and (number,) the variance of a run in each."""
        ends = np.round(number * np.cumsum(self.weights)).astype(int)
        exact = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))  # shares, rounded
        sources = rng.permutation(exact)
        normal = rng.standard_normal((len(sources), self.means.shape[1]))
        truths = self.means[sources]
        for source in np.unique(sources):
            rows = sources == source
            truths[rows] += normal[rows] @ root_of(self.covariances[source]).T
        return truths, self.run_variances[sources]


def posterior(of: Block, prior: Prior, unit: float) -> Posterior:
    """The truths of a block's K options.

    Args:
        of: the block; gains, or losses.
        prior: of these truths.
        unit: what a point of the priors is in the block's unit, above 0.
    """
    one = np.eye(len(of.mean))
    # (A, K, K): the truths' covariance for every amplitude
    truth = prior.level_sd**2 + (_AMPLITUDE**2 + _LEAST_SD**2)[:, None, None] * one
    # (R, K, K): the estimates' errors for every standard deviation of the runs
    by_runs = (_RUN_SD**2 / of.num_seeds)[:, None, None] * one
    noise = of.item_covariance / unit**2 + by_runs
    of_amplitude = _amplitude_weights(prior.amplitude_scale)
    log_prior = _log_weights_of_run_sd(of, unit)[:, None] + np.log(of_amplitude)
    # (R, A, K, K)
    total = noise[:, None] + truth
    distance = of.mean / unit - prior.level_mean
    explained = np.linalg.solve(total, np.broadcast_to(truth, total.shape))
    solved = np.linalg.solve(total, np.broadcast_to(distance[:, None], (*total.shape[:-1], 1)))
    _, log_determinant = np.linalg.slogdet(total)
    log_likelihood = -0.5 * (solved[..., 0] @ distance + log_determinant)
    log_weights = (log_prior + log_likelihood).ravel()
    weights = np.exp(log_weights - log_weights.max())
    means = prior.level_mean + np.einsum("...ij,...i->...j", explained, distance)
    covariances = truth - np.swapaxes(explained, -1, -2) @ truth
    count = len(distance)
    run_variances = np.broadcast_to((_RUN_SD**2)[:, None], log_prior.shape)
    return Posterior(
        weights=weights / weights.sum(),
        means=unit * means.reshape(-1, count),
        covariances=unit**2 * covariances.reshape(-1, count, count),
        run_variances=unit**2 * run_variances.ravel(),
    )


def lead_prior(unit: float) -> tuple[Floats, Floats]:
    """(A,) standard deviations of one option's lead over another, and their weights.

    A lead is a mixture of normal distributions around zero: that of two options' gains.

    Args:
        unit: what a point of the priors is in the lead's unit, above 0.
    """
    sd = unit * np.sqrt(2.0 * (_AMPLITUDE**2 + _LEAST_SD**2))
    return sd, _amplitude_weights(GAIN_PRIOR.amplitude_scale)


def _amplitude_weights(scale: float) -> Floats:
    """(A,) of the amplitudes before anything is seen."""
    # a half-Cauchy up to a factor; the grid is even in the logarithm, so it counts times x
    density = _AMPLITUDE / (1.0 + (_AMPLITUDE / scale) ** 2)
    weights = (1.0 - _FLAT_SHARE) * density / density.sum()
    weights[0] = _FLAT_SHARE
    return weights


def _log_weights_of_run_sd(of: Block, unit: float) -> Floats:
    """Log prior times the likelihood of what the seeds of each option show, on the grid."""
    log_weights = -(np.log(_RUN_SD / RUN_SD_MEDIAN) ** 2) / (2.0 * RUN_SD_LOG_SD**2)
    if of.num_seeds > 1:
        squares = ((of.by_seed - of.mean) ** 2).sum(axis=0) / unit**2
        # the means of runs of equal skill differ too, by their interaction with the items
        by_chance = of.num_seeds * np.diag(of.interaction) / unit**2
        # (R, K); the sum of squares of m normal values around their mean
        variance = (_RUN_SD**2)[:, None] + by_chance
        log_density = squares / variance + (of.num_seeds - 1) * np.log(variance)
        log_weights = log_weights - 0.5 * log_density.sum(axis=1)
    return log_weights
