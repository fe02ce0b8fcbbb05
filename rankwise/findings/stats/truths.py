"""What options may truly be worth: draws of the estimates plus their errors.

The truths of the runs that are there lie around the estimates with Student's error by items, as in
``stats.blocks``: nothing is assumed of them. Those of the options, and of their next runs, vary by
runs too, whose variance is drawn. One run says little of its option, so there options are taken to
be alike by as much as their own estimates, and published curves, show: else the best of several
noisy numbers would be far too good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from rankwise.findings.stats.blocks import Block, StudyEvidence, normal_draws, root_of
from rankwise.findings.stats.estimates import skewed_quantiles
from rankwise.findings.stats.items import Floats, Mask

Question = Literal["adapters", "rank", "next_run"]
"""What a truth is of: the runs that are there; the option on average over seeds; its next run."""

FEWEST_DRAWS = 4096
"""At this number a probability is exact to 0.008 (one standard error)."""

BEYOND = 20
"""At least so many draws are expected beyond the level that decides."""

TASK_SPREAD = 3.0
"""Points by which losses of single tasks are taken to differ from their mean before anything is
seen (standard deviation). A convention of ours."""

GAIN_SCALE, LOSS_SCALE = 2.0, 3.0
"""Points by which options typically differ in their gains, and in their losses: the scales of the
half-Cauchy laws. 56 published curves (two encoders, four tasks, ranks 2 to 64) have a median
standard deviation over ranks of 1.8 points; a tenth are below 0.5, a tenth above 4."""

FLAT_SHARE = 0.2
"""The share of studies in which the rank does not matter: about a fifth of those curves."""

LEVEL_SD = 20.0
"""Scales by which the level of all options may lie from their mean: next to nothing is known."""

_LEAST_SPREAD, _MOST_SPREAD = 0.1, 20.0
"""Standard deviations over the options, in scales: where the rank does not matter, and at most."""

_MOST_ENTRIES = 1 << 22
"""Entries of the covariances that are drawn, at most: 32 MB."""

_HIGHEST_LEVEL = 1.0 - 1e-9
"""An early look may spend less than a float tells from nothing. So many draws as would show
anything at this level are never made, so nothing is shown at a higher one either."""

RESOLUTION = 100
"""Truths are rounded to this part of a point, as the page keeps them."""

_MOST_VALUES = 1 << 22
"""Draws times options, at most: 32 MB."""

_MOST_DRAWS = 1 << 18
"""Draws, at most: a look at a quarter of a study may spend next to nothing, and with 14 s of draws
it would not be known better whether it does."""

_SEED = 20260102
"""Fixed, so that the same results always give the same odds."""


class Truths(NamedTuple):
    """Draws of what K options may be worth: (N, K) gains in-domain, (N, K) losses in points.

    ``losses`` are None where retention was not measured, and ``worst`` (N, K) are those of the task
    that loses most.
    """

    gains: Floats
    losses: Floats | None = None
    worst: Floats | None = None


def num_statements(num_options: int, *, has_base: bool = True) -> int:
    """How many statements about options may be wrong: one of each, and one of the base."""
    return num_options + has_base


def deciding_level(num_options: int, alpha: float, *, has_base: bool = True) -> float:
    """The level that decides, by which ``alpha`` (0..1) of the recommendations may be wrong."""
    level = 1.0 - alpha / num_statements(num_options, has_base=has_base)
    return min(level, _HIGHEST_LEVEL)


def num_draws(num_options: int, level: float) -> int:
    """How many draws tell whether a probability is above ``level`` (0.5..1)."""
    wanted = max(FEWEST_DRAWS, math.ceil(BEYOND / (1.0 - level)))
    return min(wanted, _MOST_DRAWS, max(_MOST_VALUES // num_options, FEWEST_DRAWS))


def truths_of(
    evidence: StudyEvidence,
    question: Question,
    number: int = FEWEST_DRAWS,
    is_repeatable: Mask | None = None,
) -> Truths:
    """Draws of the truths of a study, always the same.

    Args:
        evidence: the scores.
        question: what the truths are of.
        number: of draws.
        is_repeatable: (K,) of which options there may be another run; None: of all. The truths of
            the others are of their runs.
    """
    rng = np.random.default_rng(_SEED)
    of_runs = 1.0 if is_repeatable is None else is_repeatable.astype(np.float64)

    def draws(of: Block, scale: float, *, is_share: bool = True) -> Floats:
        if question == "adapters":
            # Student's t: how large the error is is known from so many items, or clusters, only
            half = 2.0 * special.gammaincinv(of.freedom / 2.0, rng.random(((number + 1) // 2, 1)))
            wider = np.sqrt(of.freedom / np.concatenate([half, half])[:number])
            errors = wider * normal_draws(of.covariance, rng, number)
            return of.mean + (errors if is_share else _skewed(errors, of))
        truths, variances = _of_options(of, of_runs, scale, rng, number)
        if question == "rank":
            return truths
        shared, sd = of.prior.shared, np.sqrt(of_runs * variances)
        of_seed, own = rng.standard_normal((number, 1)), rng.standard_normal(truths.shape)
        return truths + sd * (np.sqrt(shared) * of_seed + np.sqrt(1.0 - shared) * own)

    scale = GAIN_SCALE * evidence.point
    gains = draws(evidence.in_domain, scale, is_share=evidence.is_share)
    gains = _rounded(gains, evidence.point)
    if evidence.retention is None:
        return Truths(gains)
    losses = draws(evidence.retention, LOSS_SCALE)
    if question == "adapters":
        worst = _worst_of_runs(evidence.retention, evidence.tasks, losses)
    else:
        worst = _worst(evidence.tasks, losses, rng)
    return Truths(gains, _rounded(losses, 1.0), _rounded(worst, 1.0))


def _skewed(errors: Floats, of: Block) -> Floats:
    """(N, K) errors of means whose items are skewed: a rare large loss may not have been seen.

    Each is as many standard errors off as the bound of an interval would be.
    """
    stderr = np.sqrt(np.diagonal(of.covariance))
    scaled = np.divide(errors, stderr, out=np.zeros_like(errors), where=stderr > 0.0)
    below, above = skewed_quantiles(np.abs(scaled), of.skewness)
    return stderr * np.where(scaled < 0.0, -below, above)


def _of_options(
    of: Block, of_runs: Floats | float, scale: float, rng: np.random.Generator, number: int
) -> tuple[Floats, Floats]:
    """(number, K) draws of the truths of options that are somewhat alike, and of run variances.

    The truths lie around a level of which nothing is known, with a standard deviation that is
    ``FLAT_SHARE`` likely to be next to nothing, and else half-Cauchy. That and the variances of the
    runs are drawn from their priors, weighted by how probable they make the estimates (sampling
    importance resampling, Rubin 1988); given them the truths are normal.

    Args:
        of: the block.
        of_runs: (K,), 0 where an option has no other run; or 1.
        scale: of the half-Cauchy law, in the unit of the estimates.
        rng: draws.
        number: of draws.
    """
    count = len(of.mean)
    drawn = int(np.clip(_MOST_ENTRIES // count**2, 64, FEWEST_DRAWS))
    variances = of.run_variances.draws(rng, drawn)
    tangent = np.tan(np.pi / 2.0 * rng.random(drawn))  # half-Cauchy
    spread = scale * np.where(rng.random(drawn) < FLAT_SHARE, _LEAST_SPREAD, tangent)
    apart = np.minimum(spread, _MOST_SPREAD * scale)[:, None, None] ** 2 * np.eye(count)
    truth = (LEVEL_SD * scale) ** 2 + apart  # (M, K, K)
    total = truth + of.covariance + of.rows.run_covariance(of_runs * variances, of.prior.shared)
    centre = of.mean - of.mean.mean()
    solved = np.linalg.solve(total, np.broadcast_to(centre[:, None], (drawn, count, 1)))[..., 0]
    _, log_determinant = np.linalg.slogdet(total)
    log_weights = -0.5 * (solved @ centre + log_determinant)
    weights = np.exp(log_weights - log_weights.max())
    # evenly spaced, so that shares are rounded only
    points = (np.arange(number) + rng.random()) / number * weights.sum()
    chosen = rng.permutation(np.searchsorted(np.cumsum(weights), points).clip(max=drawn - 1))
    kinds, places = np.unique(chosen, return_inverse=True)
    kept = np.swapaxes(np.linalg.solve(total[kinds], truth[kinds]), -1, -2)  # truth total^-1
    roots = root_of(truth[kinds] - kept @ truth[kinds])
    noise = rng.standard_normal((number, count))
    truths = (
        of.mean.mean() + (kept @ centre)[places] + np.einsum("nij,nj->ni", roots[places], noise)
    )
    return truths, variances[chosen]


def _rounded(values: Floats, point: float) -> Floats:
    return np.round(values / point * RESOLUTION) * (point / RESOLUTION)


class TaskShrinkage(NamedTuple):
    """How far the losses of T tasks are from their mean, for K options.

    The worst of several estimates is too large, so a task's distance is shrunk by how little tasks
    differ: that is pooled over the options, with as much weight on ``TASK_SPREAD`` as on one task.
    A task's loss is the mean's plus ``apart`` (T, K), with a standard error of ``scale`` (T, K)
    times its own.
    """

    apart: Floats
    scale: Floats


def shrinkage(tasks: Sequence[Block]) -> TaskShrinkage:
    """Of the losses of each retention task."""
    means = np.array([task.mean for task in tasks])  # (T, K)
    variances = np.array([np.diagonal(task.covariance) for task in tasks])
    apart, more = means - means.mean(axis=0), len(tasks) - 1
    seen = (apart**2).sum(axis=0).mean() - more * variances.mean()  # as of T - 1 tasks
    spread = max((seen + TASK_SPREAD**2) / len(tasks), 0.0)
    kept = spread / (spread + variances)
    return TaskShrinkage(kept * apart, np.sqrt(kept * more / len(tasks)))


def _worst_of_runs(of: Block, tasks: Sequence[Block], losses: Floats) -> Floats:
    """(N, K) the largest loss of any task, of the runs that are there.

    That all tasks are kept is shown where each is (an intersection-union test). So the errors of
    all tasks are drawn as one: then the probability that the worst is below a limit is that of the
    task that is least surely below it, with no assumption of how tasks differ.
    """
    stderr = np.sqrt(np.diagonal(of.covariance))
    noise = (losses - of.mean) / np.where(stderr > 0.0, stderr, 1.0)
    worst = np.full_like(losses, -np.inf)
    for task in tasks:
        own = task.mean + np.sqrt(np.diagonal(task.covariance)) * noise
        np.maximum(worst, own, out=worst)
    return worst


def _worst(tasks: Sequence[Block], losses: Floats, rng: np.random.Generator) -> Floats:
    """(N, K) the largest loss of any task, given draws (N, K) of the mean losses."""
    of = shrinkage(tasks)
    worst = np.full_like(losses, -np.inf)
    for task, apart, scale in zip(tasks, of.apart, of.scale, strict=True):
        noise = normal_draws(task.covariance, rng, len(losses))
        np.maximum(worst, losses + apart + scale * noise, out=worst)
    return worst
