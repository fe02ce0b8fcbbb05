"""Which differences a study of a size can tell, before anything is seen; it decides nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy import special

from rankwise.findings.stats.estimates import PSEUDO_ITEMS
from rankwise.findings.stats.items import POINTS
from rankwise.findings.stats.truths import deciding_level

DISCORDANCE = 0.07
"""The share of items on which two ranks are taken to disagree: the median of real pairs."""

POWER = 0.80

P_RIGHT_VARIANCE_SHARE = 0.1
"""The share of accuracy's variance of differences that is planned for p(right).

The median standard deviation of an item's lead between real ranks is 25.8 points in accuracy, and
8.4 in p(right).
"""


class TaskSize(NamedTuple):
    """The items of a task, and whether p(right) decides on it."""

    num_items: int
    is_p_right: bool

    @property
    def variance(self) -> float:
        """Variance of the mean difference of two ranks, in squared points."""
        share = P_RIGHT_VARIANCE_SHARE if self.is_p_right else 1.0
        of_one = share * (DISCORDANCE + PSEUDO_ITEMS / self.num_items)
        return POINTS**2 * of_one / self.num_items


class Detectable(NamedTuple):
    """What a study of a size can tell: differences of ``points``, and what a margin would need.

    ``num_items`` are those of its tasks together with which ``margin`` points could be told, to two
    digits.
    """

    points: float
    margin: float
    num_items: int


def detectable(
    tasks: Sequence[TaskSize], num_options: int, confidence: float, margin: float
) -> Detectable:
    """The margin within which two truly equal ranks are shown to lie, with probability ``POWER``.

    Args:
        tasks: of one kind, each counting the same.
        num_options: the ranks that are compared.
        confidence: 0..1, of the study.
        margin: that is wanted, in points.
    """
    stderr = math.sqrt(sum(task.variance for task in tasks)) / len(tasks)
    level = deciding_level(num_options, 1.0 - confidence)
    points = stderr * float(special.ndtri(level) + special.ndtri(POWER))
    # the variance of a mean falls with its items
    needed = (points / margin) ** 2 * sum(task.num_items for task in tasks)
    return Detectable(points, margin, int(float(f"{needed:.1e}")))
