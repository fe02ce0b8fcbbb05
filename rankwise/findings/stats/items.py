"""The values of a task, item by item, with what one whole item counts in a variance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

POINTS = 100.0
"""What one whole item counts where shares are given in points."""

TAIL_QUANTILE = 0.995
"""Of the differences' sizes, where they are not whole items: about the largest of 200."""


class Items(NamedTuple):
    """Values (..., n) of the n items of one task; the last axis is the items'.

    ``item_size`` is the size of a difference that may not have been seen (``item_size``);
    0 adds nothing to a variance. ``weight`` is the task's in a mean over tasks, in any unit.
    """

    values: Floats
    item_size: float
    weight: float = 1.0

    @property
    def num_items(self) -> int:
        """n, the length of the last axis."""
        return self.values.shape[-1]


def item_size(differences: ArrayLike, *, in_points: bool) -> float:
    """How large a difference between two models on one item may be, by those that were seen.

    Of items that are right or wrong it is the whole item: 100 points. Of other values it is the
    99.5 % quantile of the differences' sizes, so that a metric of small differences is not blurred
    and a rare large loss counts. Where all differences are zero, points get a whole item and nats
    nothing, for nothing is known of their size.

    Args:
        differences: of all models and items of a task together, any shape.
        in_points: whether the values are shares times 100.
    """
    sizes = np.abs(np.asarray(differences, dtype=np.float64)).ravel()
    if in_points and np.isin(sizes, (0.0, POINTS)).all():
        return POINTS
    return float(np.quantile(sizes, TAIL_QUANTILE, method="higher"))
