"""What the options of a study may truly be worth: a posterior by Gaussian mixture, no sampler.

The estimates are normal around the truths: by items as in ``stats.blocks``, and by runs, since an
option's runs differ. The truths are smooth in log rank, by how much is unknown. All scales stand
on grids, so the posterior is a mixture of Gaussians whose weights, means and covariances are
computed; draws from it use a fixed seed. The priors are those of docs/METHODS.md, in points.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwise.findings.stats.blocks import Block
from rankwise.findings.stats.items import Floats

SETTING_CORRELATION = 0.5
"""Of two options for each setting besides the rank (alpha, rate, modules, epochs) that differs."""

_RUN_SD = np.geomspace(0.25, 4.0, 9)
"""Standard deviation between the runs of one option, in points."""

_RUN_SD_MEDIAN, _RUN_SD_LOG_SD = 0.8, 0.8

_AMPLITUDE = np.array([0.0, *np.geomspace(0.25, 20.0, 9)])
"""Standard deviation of the smooth curve over ranks, in points; at 0 the rank does not matter."""

_FLAT_SHARE = 0.2
"""Of studies in which the rank does not matter: of 56 published curves about a fifth are flat."""

_LENGTH = np.array([0.01, 1.5, 4.0])
"""Of the curve, in doublings of the rank; 0.01 is no smoothness at all."""

_ROUGHNESS, _RELATIVE_ROUGHNESS = 0.3, 0.15
"""What an option has of its own: standard deviation in points, and as a share of the amplitude."""


class Prior(NamedTuple):
    """Of one kind of truth, in points: level N(mean, sd^2), amplitude half-Cauchy(scale)."""

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

    def sources(self, number: int) -> NDArray[np.intp]:
        """The components of ``number`` draws: each has its exact share, rounded."""
        ends = np.round(number * np.cumsum(self.weights)).astype(int)
        return np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))

    def draws(self, rng: np.random.Generator, number: int) -> tuple[Floats, Floats]:
        """(number, K) truths in random order, and (number,) the variance of a run in each."""
        sources = rng.permutation(self.sources(number))
        truths = self.means[sources] + draws_of(self.covariances, sources, rng)
        return truths, self.run_variances[sources]


def draws_of(covariances: Floats, sources: NDArray[np.intp], rng: np.random.Generator) -> Floats:
    """(N, K) normal around zero, with the covariance (C, K, K) of each one's source (N,)."""
    values, vectors = np.linalg.eigh(covariances)
    roots = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    normal = rng.standard_normal((len(sources), covariances.shape[-1], 1))
    return (roots[sources] @ normal)[..., 0]


def posterior(of: Block, correlations: Floats, prior: Prior, unit: float) -> Posterior:
    """The truths of a block's K options.

    Args:
        of: the block; gains, or losses.
        correlations: (L, K, K) of the smooth curve for each of L lengths; from
            ``smooth_correlations``.
        prior: of these truths.
        unit: what a point of the priors is in the block's unit, above 0.

    Raises:
        ValueError: the correlations are those of no random variables.
    """
    one = np.eye(len(of.mean))
    # (A, L, K, K): the truths' covariance for every amplitude and length
    squared = _AMPLITUDE[:, None, None, None] ** 2
    own = (_ROUGHNESS**2 + _RELATIVE_ROUGHNESS**2 * squared) * one
    truth = prior.level_sd**2 + squared * correlations + own
    # (R, K, K): the estimates' errors for every standard deviation of the runs
    by_runs = (_RUN_SD**2 / of.num_seeds)[:, None, None] * one
    noise = of.item_covariance / unit**2 + by_runs
    of_amplitude = _amplitude_weights(prior.amplitude_scale)
    by_length = np.full(len(correlations), 1.0 / len(correlations))
    log_prior = _log_weights_of_run_sd(of, unit)[:, None, None] + np.log(
        np.outer(of_amplitude, by_length)
    )
    # (R, A, L, K, K)
    total = noise[:, None, None] + truth
    distance = of.mean / unit - prior.level_mean
    explained = np.linalg.solve(total, np.broadcast_to(truth, total.shape))
    solved = np.linalg.solve(total, np.broadcast_to(distance[:, None], (*total.shape[:-1], 1)))
    sign, log_determinant = np.linalg.slogdet(total)
    if (sign <= 0.0).any():
        raise ValueError("the correlations are not positive semidefinite")
    log_likelihood = -0.5 * (solved[..., 0] @ distance + log_determinant)
    log_weights = (log_prior + log_likelihood).ravel()
    weights = np.exp(log_weights - log_weights.max())
    means = prior.level_mean + np.einsum("...ij,...i->...j", explained, distance)
    covariances = truth - np.swapaxes(explained, -1, -2) @ truth
    count = len(distance)
    run_variances = np.broadcast_to((_RUN_SD**2)[:, None, None], log_prior.shape)
    return Posterior(
        weights=weights / weights.sum(),
        means=unit * means.reshape(-1, count),
        covariances=unit**2 * covariances.reshape(-1, count, count),
        run_variances=unit**2 * run_variances.ravel(),
    )


def smooth_correlations(ranks: Sequence[int], alike: Floats | float = 1.0) -> Floats:
    """(L, K, K) Matérn-3/2 correlations over log2 of the rank, for each length of the grid.

    Args:
        ranks: of the K options.
        alike: (K, K) correlations by what differs besides the rank; from ``setting_correlations``.
    """
    doublings = np.log2(np.asarray(ranks, dtype=np.float64))
    distance = np.abs(doublings[:, None] - doublings[None, :])
    scaled = np.sqrt(3.0) * distance / _LENGTH[:, None, None]
    return alike * (1.0 + scaled) * np.exp(-scaled)


def setting_correlations(labels: Sequence[Sequence[Set[Hashable]]]) -> Floats:
    """(K, K) correlations of K options by their other settings: the product over the settings.

    An option may have several labels of one setting: at rank 8 alpha ``2r`` and alpha ``16`` are
    one run. It counts as the mean of what each label alone would be. So the matrix is always
    positive semidefinite, which it is not where one label in common makes two options alike.

    Args:
        labels: for each option, for each setting, its labels; none is empty.
    """
    product = np.ones((len(labels), len(labels)))
    for setting in zip(*labels, strict=True):
        names = sorted({name for names in setting for name in names}, key=str)
        # (K, names): the share of each label in an option
        shares = np.array([[(name in of) / len(of) for name in names] for of in setting])
        one_label = np.where(np.eye(len(names)) > 0, 1.0, SETTING_CORRELATION)
        covariance = shares @ one_label @ shares.T
        sd = np.sqrt(np.diag(covariance))
        product *= covariance / np.outer(sd, sd)
    return product


def lead_prior(unit: float) -> tuple[Floats, Floats]:
    """(A,) standard deviations of one option's lead over another, and their weights.

    A lead is a mixture of normal distributions around zero: that of two options' gains, on a curve
    without smoothness, for nothing is known of what the two differ by.

    Args:
        unit: what a point of the priors is in the lead's unit, above 0.
    """
    own = _ROUGHNESS**2 + (_RELATIVE_ROUGHNESS * _AMPLITUDE) ** 2
    sd = unit * np.sqrt(2.0 * (_AMPLITUDE**2 + own))
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
    log_weights = -(np.log(_RUN_SD / _RUN_SD_MEDIAN) ** 2) / (2.0 * _RUN_SD_LOG_SD**2)
    if of.num_seeds > 1:
        squares = ((of.by_seed - of.mean) ** 2).sum(axis=0) / unit**2
        # the means of runs of equal skill differ too, by their interaction with the items
        by_chance = of.num_seeds * np.diag(of.interaction) / unit**2
        # (R, K); the sum of squares of m normal values around their mean
        variance = (_RUN_SD**2)[:, None] + by_chance
        log_density = squares / variance + (of.num_seeds - 1) * np.log(variance)
        log_weights = log_weights - 0.5 * log_density.sum(axis=1)
    return log_weights
