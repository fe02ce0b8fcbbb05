"""What options may truly be worth: draws of the estimates plus their errors.

The truths lie around the estimates with a normal error by items, as in ``stats.blocks``, and with
that of the runs, whose variance is drawn too. No option is taken to be like another beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from rankwise.findings.stats.blocks import Block, StudyEvidence, normal_draws
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

RESOLUTION = 100
"""Truths are rounded to this part of a point, as the page keeps them."""

_MOST_VALUES = 1 << 23
"""Draws times options, at most: 64 MB."""

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


def deciding_level(num_options: int, alpha: float, *, has_base: bool = True) -> float:
    """The level that decides, by which ``alpha`` (0..1) of the recommendations may be wrong."""
    return 1.0 - alpha / (num_options + has_base)


def num_draws(num_options: int, level: float) -> int:
    """How many draws tell whether a probability is above ``level`` (0.5..1)."""
    wanted = max(FEWEST_DRAWS, math.ceil(BEYOND / (1.0 - level)))
    return min(wanted, max(_MOST_VALUES // num_options, FEWEST_DRAWS))


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

    def draws(of: Block) -> Floats:
        truths = of.mean + normal_draws(of.covariance, rng, number)
        if question == "adapters":
            return truths
        # of the mean over the runs that are there, and of the next one around the option
        shares = of_runs * (1.0 / of.rows.counts + (question == "next_run"))
        sd = np.sqrt(shares * of.run_variances.draws(rng, number))
        return truths + sd * rng.standard_normal(truths.shape)

    gains = _rounded(draws(evidence.in_domain), evidence.point)
    if evidence.retention is None:
        return Truths(gains)
    losses = draws(evidence.retention)
    worst = _worst(evidence.tasks, losses, rng)
    return Truths(gains, _rounded(losses, 1.0), _rounded(worst, 1.0))


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


def _worst(tasks: Sequence[Block], losses: Floats, rng: np.random.Generator) -> Floats:
    """(N, K) the largest loss of any task, given draws (N, K) of the mean losses."""
    of = shrinkage(tasks)
    worst = np.full_like(losses, -np.inf)
    for task, apart, scale in zip(tasks, of.apart, of.scale, strict=True):
        noise = normal_draws(task.covariance, rng, len(losses))
        np.maximum(worst, losses + apart + scale * noise, out=worst)
    return worst
