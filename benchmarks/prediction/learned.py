"""Our predictors: the shape of a rank curve from a few features, strongly regularised.

A collection has a dozen studies, so a curve is three numbers, and the features are five.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from benchmarks.prediction.curves import Question, RankCurve, Target, left_out_in_turn
from benchmarks.prediction.predictors import Forecast, Predictor, task_weights
from rankwise.findings.stats.items import Floats

RIDGE_FEATURES: dict[str, bool] = {
    "train_rows": True,
    "base_accuracy": False,
    "near_tie_share": False,
    "gradient_energy_rank_90": True,
    "probe_loss_drop": False,
}
"""Feature -> whether its logarithm counts."""
PENALTIES = (1.0, 10.0, 100.0, 1000.0)
MIDDLE_RANK, REACH = 16.0, 2.0
"""Rank 16 is 0 on the axis of a curve, and rank 64 is 1."""


class Scale(NamedTuple):
    """The features that all studies have, and what makes them of one size."""

    names: tuple[str, ...]
    mean: Floats
    spread: Floats

    @classmethod
    def of(cls, curves: Sequence[RankCurve]) -> Scale:
        """From the studies that a predictor is fitted on; a feature that never varies is left out.

        Every task counts the same.
        """
        names = [n for n in RIDGE_FEATURES if all(_is_usable(c.question, n) for c in curves)]
        table = np.array([[_read(c.question, n) for n in names] for c in curves])
        weights = task_weights(curves)
        mean = np.average(table, axis=0, weights=weights)
        spread = np.sqrt(np.average((table - mean) ** 2, axis=0, weights=weights))
        kept = spread > 1e-9
        return cls(
            tuple(n for n, keep in zip(names, kept, strict=True) if keep), mean[kept], spread[kept]
        )

    def row(self, question: Question) -> Floats:
        """(features,): in spreads from the mean; one that the question lacks is at the mean."""
        read = [
            _read(question, name) if _is_usable(question, name) else mean
            for name, mean in zip(self.names, self.mean, strict=True)
        ]
        return (np.array(read) - self.mean) / self.spread


def _is_usable(question: Question, name: str) -> bool:
    value = question.features.get(name)
    return value is not None and (value > 0.0 or not RIDGE_FEATURES[name])


def _read(question: Question, name: str) -> float:
    value = question.features[name]
    return float(np.log2(value)) if RIDGE_FEATURES[name] else value


def axis(ranks: Sequence[int]) -> Floats:
    """(ranks,): where ranks are on the axis of a curve."""
    return (np.log2(ranks) - np.log2(MIDDLE_RANK)) / REACH


def basis(ranks: Sequence[int]) -> Floats:
    """(ranks, 3): level, slope and bend of a curve at each rank."""
    x = axis(ranks)
    return np.stack([np.ones_like(x), x, x**2], axis=1)


def shape_of(curve: RankCurve, target: Target) -> Floats:
    """(3,): level, slope and bend by least squares; two ranks have no bend.

    The slope and the bend are those of the curve less its mean: a level is no shape.
    """
    values, terms = curve.mean(target), basis(curve.ranks)[:, : len(curve.ranks)]
    means = terms[:, 1:].mean(axis=0)
    shape = np.linalg.lstsq(terms[:, 1:] - means, values - values.mean())[0]
    return np.array([values.mean() - means @ shape, *shape, 0.0])[:3]


def ridge(curves: Sequence[RankCurve], target: Target) -> Forecast:
    """Level, slope and bend by ridge regression; the penalty is chosen task by task within.

    The forecast is in points.
    """
    errors = [
        _errors(held_out, _ridges(others, target), target)
        for held_out, others in left_out_in_turn(curves)
    ]
    of_penalty = np.mean(errors, axis=0) if errors else np.zeros(len(PENALTIES))
    best = int(np.flatnonzero(of_penalty == of_penalty.min())[-1])  # of equal ones the strongest
    return _ridges(curves, target)[best]


def _ridges(curves: Sequence[RankCurve], target: Target) -> list[Forecast]:
    """One for each penalty; every task counts the same, and means are not shrunk."""
    scale, weights = Scale.of(curves), task_weights(curves)
    shapes = np.array([shape_of(curve, target) for curve in curves])
    rows = np.array([scale.row(curve.question) for curve in curves])  # of weighted mean 0
    mean = np.average(shapes, axis=0, weights=weights)
    gram, moment = (rows.T * weights) @ rows, (rows.T * weights) @ (shapes - mean)

    def forecast(penalty: float) -> Forecast:
        slopes = np.linalg.solve(gram + penalty * np.eye(len(gram)), moment)
        return lambda question: basis(question.ranks) @ (mean + scale.row(question) @ slopes)

    return [forecast(penalty) for penalty in PENALTIES]


def _errors(
    held_out: Sequence[RankCurve], forecasts: Sequence[Forecast], target: Target
) -> list[float]:
    """Mean squared error of each forecast about the means of curves."""
    truths = [_centred(curve.mean(target)) for curve in held_out]
    return [
        float(
            np.mean(
                [
                    np.mean((truth - _centred(forecast(curve.question))) ** 2)
                    for curve, truth in zip(held_out, truths, strict=True)
                ]
            )
        )
        for forecast in forecasts
    ]


def _centred(values: Floats) -> Floats:
    return values - values.mean()


def gaussian_process(curves: Sequence[RankCurve], target: Target) -> Forecast:
    """Centred curves over rank and features; the forecast is in points about the curve's mean."""
    scale = Scale.of(curves)
    rows = np.concatenate([_inputs(scale, curve.question) for curve in curves])
    values = np.concatenate([_centred(curve.mean(target)) for curve in curves])
    size = float(values.std()) or 1.0
    lengths: Any = np.array([1.0, *([4.0] * len(scale.names))])  # its type is given as float
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * RBF(lengths, (0.3, 1e3))
    process = GaussianProcessRegressor(kernel + WhiteKernel(0.5, (1e-3, 1e2)))
    with warnings.catch_warnings():  # an optimum at the edge of a range is one
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(rows, values / size)

    def expected(question: Question) -> Floats:
        return size * np.asarray(process.predict(_inputs(scale, question)), dtype=float)

    return expected


def _inputs(scale: Scale, question: Question) -> Floats:
    """(ranks, 1 + features)."""
    row = np.tile(scale.row(question), (len(question.ranks), 1))
    return np.concatenate([axis(question.ranks)[:, None], row], axis=1)


RIDGE = Predictor("ridge", "ours", ridge)
LEARNED = (RIDGE, Predictor("Gaussian process", "ours", gaussian_process))
