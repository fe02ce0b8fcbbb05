"""Bounds for all the options of a study: those that decide, and those that hold all at once.

An option is a rank with its alpha and learning rate. Which option is best is not known.

The rule recommends an option if several statements about it are shown at once (an
intersection-union test, Berger 1982), so a wrong recommendation of an option needs one wrong
statement only: the one that is false of it. With K options that is one statement each; the best
may be rejected by mistake in two ways, on average and by one task. Bonferroni's correction for
these K + 1 gives the level of the bounds that decide, whatever the dependence.

To read all bounds together is another matter: gains from below, losses from above (and the best
one's from below) and every score against the best one's. Their level is Bonferroni's for so many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwise.findings.stats.blocks import Block, Contrasts, block, contrasted, or_one
from rankwise.findings.stats.estimates import skewed_quantiles
from rankwise.findings.stats.items import Floats, Items


class StudyEvidence(NamedTuple):
    """The scores of K options: ``in_domain`` gains, and ``retention`` losses if measured.

    ``tasks`` are the losses of each retention task by itself.
    """

    in_domain: Block
    retention: Block | None
    tasks: tuple[Block, ...] = ()

    @property
    def num_options(self) -> int:
        """K."""
        return len(self.in_domain.mean)

    @property
    def of_these_runs(self) -> StudyEvidence:
        """The evidence about the trained runs themselves, whatever other seeds would do."""
        kept = None if self.retention is None else self.retention.of_these_runs
        tasks = tuple(task.of_these_runs for task in self.tasks)
        return StudyEvidence(self.in_domain.of_these_runs, kept, tasks)


class Bounds(NamedTuple):
    """Estimates with bounds; arrays of one shape."""

    estimate: Floats
    lower: Floats
    upper: Floats


class WorstTask(NamedTuple):
    """The largest loss of an option (K,) on any task, and the task where it is estimated."""

    estimate: Floats
    lower: Floats
    upper: Floats
    place: NDArray[np.intp]


class StudyBounds(NamedTuple):
    """Bounds of a study with K options, all at one level.

    ``gain`` (K,) over the base; ``loss`` (K,) on retention and ``worst`` of its tasks, None without
    such tasks; ``lead`` (K, K): the row's in-domain score less the column's, zero on the diagonal.
    """

    gain: Bounds
    loss: Bounds | None
    lead: Bounds
    worst: WorstTask | None


def study_evidence(
    gains: Sequence[Items], losses: Sequence[Items], point: float = 1.0
) -> StudyEvidence:
    """What the scores say of the options, before anything is decided.

    Args:
        gains: for each in-domain task (m, K, n): adapted - base, positive better, for each
            seed, option and item.
        losses: for each retention task (m, K, n) in points: base - adapted, positive worse.
        point: what a point of the prior of runs is in the unit of the gains.

    Raises:
        ValueError: no in-domain task, shapes that do not agree, or a task with one item.
    """
    if not gains or len({task.values.shape[:2] for task in (*gains, *losses)}) != 1:
        raise ValueError("every task needs the same seeds and options, and one must be in-domain")
    tasks = tuple(block([task]) for task in losses)
    return StudyEvidence(block(gains, point), block(losses) if losses else None, tasks)


def deciding_level(num_options: int, alpha: float) -> float:
    """The one-sided level of the bounds that decide, by which ``alpha`` (0..1) may be wrong."""
    return 1.0 - alpha / (num_options + 1)


def level_of_all(num_options: int, alpha: float, *, has_retention: bool) -> float:
    """The one-sided level at which all bounds of a study hold at once, but for ``alpha`` (0..1).

    Those of K gains and K - 1 leads over the best option; with retention K losses too, each on
    average or by one task, and the best one's from below in both ways. No sharper law is worth its
    code: a bootstrap of the studentised maximum had quantiles 0.03 smaller.
    """
    count = 2 * num_options - 1
    return 1.0 - alpha / (count + num_options + 2 if has_retention else count)


def bounds_at(evidence: StudyEvidence, level: float) -> StudyBounds:
    """Bounds at a one-sided ``level`` (0.5..1): estimate ± quantile * stderr.

    Item variance and correction for skewness are those of ``stats.crossed_difference``. A few
    seeds say little about the variance of one option, so it is taken from a two-way analysis of
    variance, seeds by options, with a prior, or from the option itself where that is larger. It
    enters through Student's t, as in ``stats.Spread.quantile``.
    """
    retention = evidence.retention
    return StudyBounds(
        gain=_bounds(evidence.in_domain, "options", level),
        loss=None if retention is None else _bounds(retention, "options", level),
        lead=_bounds(evidence.in_domain, "pairs", level),
        worst=worst_task(evidence.tasks, level) if evidence.tasks else None,
    )


def worst_task(tasks: Sequence[Block], level: float) -> WorstTask:
    """Bounds of the largest loss of any task, at a one-sided ``level`` (0.5..1).

    From above, the largest of the tasks' own bounds: if the worst task's holds, so does it. From
    below it is wrong if any task's is, so these share what may be wrong.
    """
    levels = level, 1.0 - (1.0 - level) / len(tasks)
    above, below = zip(*(_bounds_at_each(task, "options", *levels) for task in tasks), strict=True)
    estimates = np.array([bounds.estimate for bounds in above])
    return WorstTask(
        estimates.max(axis=0),
        np.max([bounds.lower for bounds in below], axis=0),
        np.max([bounds.upper for bounds in above], axis=0),
        estimates.argmax(axis=0),
    )


def _bounds(of: Block, contrasts: Contrasts, level: float) -> Bounds:
    (bounds,) = _bounds_at_each(of, contrasts, level)
    return bounds


def _bounds_at_each(of: Block, contrasts: Contrasts, *levels: float) -> Iterator[Bounds]:
    """The bounds at several levels: the spread and the skewness are those of all."""
    spread = of.spread(contrasts)
    stderr = spread.stderr
    skewness = of.third_moment(contrasts) / or_one(stderr) ** 3
    estimate = contrasted(contrasts, of.mean)
    for level in levels:
        below, above = skewed_quantiles(spread.quantile(level), skewness)
        yield Bounds(estimate, estimate - below * stderr, estimate + above * stderr)
