"""Means over all N items of a task, from models that answered only n of them.

The base answered every item. The n items are drawn with unequal probabilities where a difference
is expected to be large, the same items for every model, and what the base says of the others
enters by a regression. Formulas, sources and what it saves are in docs/METHODS.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from rankwise.findings.stats.estimates import PSEUDO_ITEMS
from rankwise.findings.stats.items import Floats

FLOOR = 0.1
"""Of the mean expected size, that every item counts at least: no weight is above about 10 N/n."""

FOLDS = 5
"""Of the cross-fitting: each regression sees four fifths of the items drawn."""

ROUNDING = 1e-9
"""Of a probability: within it of 1 an item is drawn for certain."""

Places = NDArray[np.intp]
"""(n,): which of the N items were drawn, in ascending order."""


class SampledMean(NamedTuple):
    """Mean differences over all N items; arrays of one shape (...).

    Attributes:
        value: in the unit of the values.
        sampling_variance: of ``value`` around the mean over these N items; 0 where n = N.
        item_variance: what the N items themselves add, as a sample of all such items: S^2/N.
        plain_variance: what ``sampling_variance`` would be of n items drawn plainly, their mean
            as the estimate: (1 - n/N) S^2/n.
        freedom: degrees of freedom of the variances.
    """

    value: Floats
    sampling_variance: Floats
    item_variance: Floats
    plain_variance: Floats
    freedom: int

    @property
    def effective_sample_size(self) -> Floats:
        """Over n: plain sampling's variance over this one's; nan where n = N.

        Of the mean over these N items. It is itself estimated from one sample.
        """
        known = self.sampling_variance > 0
        ratio = self.plain_variance / np.where(known, self.sampling_variance, 1.0)
        return np.where(known, ratio, np.nan)

    def interval(self, confidence: float, *, of_all_such_items: bool) -> tuple[Floats, Floats]:
        """Two-sided Student bounds at ``confidence`` (0..1), each (...).

        Args:
            confidence: of each by itself.
            of_all_such_items: whether they are of the mean that the N items are a sample of, as
                a study's intervals are; else of the mean over the N items.
        """
        variance = self.sampling_variance + of_all_such_items * self.item_variance
        reach = special.stdtrit(self.freedom, (1.0 + confidence) / 2.0) * np.sqrt(variance)
        return self.value - reach, self.value + reach


def inclusion_probabilities(sizes: Floats, num: int, floor: float = FLOOR) -> Floats:
    """(N,): the chance of each item to be drawn, in (0, 1], with the sum ``num``.

    Proportional to max(size, floor * mean size): where the sizes are root mean squares of what
    the regression leaves, no other probabilities have a smaller expected variance (Saerndal,
    Swensson and Wretman 1992, 12.2). Items whose share would be above 1 are drawn for certain.
    Equal where all sizes are 0.

    Args:
        sizes: (N,) expected sizes of the differences, at least 0, in any unit.
        num: n, how many items to draw, 2 to N.
        floor: of the mean size, above 0.

    Raises:
        ValueError: a size is negative or not finite, or ``num`` or ``floor`` out of its range.
    """
    if not (np.isfinite(sizes).all() and (sizes >= 0).all()):
        raise ValueError("an expected size is negative or not a finite number")
    if not 2 <= num <= len(sizes):
        raise ValueError(f"{num} of {len(sizes)} items cannot be drawn; at least 2 are needed")
    if floor <= 0:
        raise ValueError("the floor has to be above 0: an item that is never drawn biases")
    mean = sizes.mean()
    wanted = np.maximum(sizes, floor * mean) if mean > 0 else np.ones(len(sizes))
    certain = np.zeros(len(sizes), dtype=bool)
    while True:
        left = num - certain.sum()
        probabilities = np.where(certain, 1.0, left * wanted / max(wanted[~certain].sum(), 1e-300))
        if not (above := ~certain & (probabilities >= 1.0 - ROUNDING)).any():
            return probabilities
        certain |= above


def draw(probabilities: Floats, rng: np.random.Generator) -> Places:
    """Draw n items, each with exactly its probability: systematic sampling in random order.

    The items are put in random order, and their probabilities laid end to end on a line of length
    n; the items at u, u + 1, u + 2 ... are drawn, u uniform in [0, 1) (Goodman and Kish 1950,
    Hartley and Rao 1962). With equal probabilities this is plain sampling without replacement.

    Args:
        probabilities: (N,), from ``inclusion_probabilities``.
        rng: the same state draws the same items.
    """
    order = rng.permutation(len(probabilities))
    ends = np.cumsum(probabilities[order])
    num = round(float(ends[-1]))
    ends *= num / ends[-1]  # the sum, rounded, must not lose the last item
    points = rng.random() + np.arange(num)
    return np.sort(order[np.searchsorted(ends, points, side="right")])


def mean_of_all(
    values: Floats,
    places: Places,
    probabilities: Floats,
    predictors: Floats,
    *,
    item_size: float = 0.0,
) -> SampledMean:
    """The mean difference over all N items, by augmented inverse probability weighting.

    With R_i whether item i was drawn, pi_i its probability and m_i the prediction of D_i,

        mean of m_i over all N, plus 1/N times the sum of R_i / pi_i (D_i - m_i)

    (Robins, Rotnitzky and Zhao 1994; with known pi the difference estimator of Saerndal,
    Swensson and Wretman 1992, 6.3). So a wrong regression costs precision, not truth. m is a
    least-squares fit on the base's ``predictors``, weighted by 1/pi, and the m_i of one fold of
    the items is fitted on those drawn from the other folds (Chernozhukov et al. 2018). The
    estimate is linear in the values: that of a difference of two models is the difference of
    their estimates.

    Its variance is Hajek's (1964), which knows the single probabilities only, of the n residuals
    e_i = D_i - m_i over their pi_i, plus that of pseudo-items, as in ``crossed_difference``.

    Args:
        values: (..., n) differences of the items drawn, in the order of ``places``.
        places: (n,), from ``draw``.
        probabilities: (N,), that they were drawn with.
        predictors: (N, F) what the base says of each item. Where F is 0, m is 0: the estimate of
            Horvitz and Thompson (1952), with equal probabilities the mean of the items drawn.
        item_size: as in ``Items``; 0 adds no pseudo-items.

    Raises:
        ValueError: the shapes do not fit, or a number is not finite.
    """
    total, num = len(probabilities), len(places)
    if values.shape[-1] != num or len(predictors) != total:
        raise ValueError(
            f"{num} of {total} items, {values.shape[-1]} values of them, and "
            f"predictors of {len(predictors)} items do not fit together"
        )
    if not (np.isfinite(values).all() and np.isfinite(predictors).all()):
        raise ValueError("a difference or a predictor is not a finite number")
    drawn = probabilities[places]
    predicted = _cross_fitted(values, places, probabilities, predictors)
    weighted = (values - predicted[..., places]) / drawn
    value = predicted.mean(axis=-1) + weighted.sum(axis=-1) / total

    chance = 1.0 - drawn
    not_certain = int((chance > 0).sum())
    centre = (chance * weighted).sum(axis=-1, keepdims=True) / max(chance.sum(), 1e-300)
    squares = (chance * (weighted - centre) ** 2).sum(axis=-1)
    sampling = not_certain / max(not_certain - 1, 1) * squares / total**2
    spread = ((values - value[..., None]) ** 2 / drawn).sum(axis=-1) / (1.0 / drawn).sum()
    spread *= num / (num - 1)
    pseudo = PSEUDO_ITEMS * item_size**2 / num
    not_drawn = 1.0 - num / total
    return SampledMean(
        value=value,
        sampling_variance=sampling + not_drawn * pseudo / num,
        item_variance=(spread + pseudo) / total,
        plain_variance=not_drawn * (spread + pseudo) / num,
        freedom=num - 1,
    )


def _cross_fitted(
    values: Floats, places: Places, probabilities: Floats, predictors: Floats
) -> Floats:
    """(..., N): the prediction of every item from those drawn in other folds than its own.

    Folds alternate in the order of the probabilities, so that each has items of all sizes.
    """
    total = len(probabilities)
    if predictors.shape[1] == 0:
        return np.zeros((*values.shape[:-1], total))
    folds = np.empty(total, dtype=np.intp)
    folds[np.argsort(probabilities, kind="stable")] = np.arange(total) % FOLDS
    design = np.column_stack([np.ones(total), predictors])
    root_weights = np.sqrt(1.0 / probabilities[places])
    rows = design[places] * root_weights[:, None]
    by_item = (values * root_weights).reshape(-1, len(places)).T
    predicted = np.empty((total, by_item.shape[1]))
    for fold in range(FOLDS):
        own, others = folds == fold, folds[places] != fold
        fit = np.linalg.lstsq(rows[others], by_item[others], rcond=None)[0]
        predicted[own] = design[own] @ fit
    return predicted.T.reshape(*values.shape[:-1], total)
