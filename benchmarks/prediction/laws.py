"""Published laws of rank, with their constants fitted to curves, and a law of the rate alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.prediction.curves import Part, Question, RankCurve, Target
from benchmarks.prediction.predictors import Forecast, Predictor, task_weights
from rankwise.findings.stats.items import Floats

EXPONENTS = np.linspace(-1.5, 1.5, 61)
"""Of both variables; constants and factors follow by least squares at each pair."""

Variables = Callable[[Question], tuple[Floats, Floats]]
"""A question -> two positive variables, (ranks,) each."""


class PowerLaw(NamedTuple):
    """factor · x^first · y^second + constant."""

    factor: float
    first: float
    second: float
    constant: float

    def at(self, x: Floats, y: Floats) -> Floats:
        """(n,): the law at positive x and y, (n,) each."""
        return self.factor * x**self.first * y**self.second + self.constant


def fit_power_law(x: Floats, y: Floats, values: Floats, weights: Floats) -> PowerLaw:
    """The law with the smallest weighted squared error, over a grid of exponents.

    Args:
        x: positive, (n,).
        y: the same.
        values: what the law is to give, (n,).
        weights: (n,).
    """
    x_unit, y_unit = _geometric_mean(x), _geometric_mean(y)
    shapes = (
        np.exp(np.log(x / x_unit) * EXPONENTS[:, None])[:, None]
        * np.exp(np.log(y / y_unit) * EXPONENTS[:, None])[None]
    )
    share = weights / weights.sum()
    means = (shapes * share).sum(axis=-1, keepdims=True)
    centred, wanted = shapes - means, values - (values * share).sum()
    variance = (share * centred**2).sum(axis=-1)
    covariance = (share * centred * wanted).sum(axis=-1)
    flat = variance < 1e-12
    explained = np.where(flat, 0.0, covariance**2 / np.where(flat, 1.0, variance))
    i, j = np.unravel_index(int(explained.argmax()), explained.shape)
    factor = 0.0 if flat[i, j] else float(covariance[i, j] / variance[i, j])
    first, second = float(EXPONENTS[i]), float(EXPONENTS[j])
    constant = float((values * share).sum() - factor * means[i, j, 0])
    return PowerLaw(factor * x_unit**-first * y_unit**-second, first, second, constant)


def _geometric_mean(values: Floats) -> float:
    return float(np.exp(np.log(values).mean()))


def rank_and_tokens(question: Question) -> tuple[Floats, Floats]:
    """What the parametric memory law (arXiv:2605.30260) is of."""
    ranks = np.array(question.ranks, dtype=float)
    return ranks, np.full_like(ranks, question.features["train_tokens"])


def parameters_and_steps(question: Question) -> tuple[Floats, Floats]:
    """What the law of forgetting (arXiv:2401.05605) is of."""
    ranks = np.array(question.ranks, dtype=float)
    steps = np.full_like(ranks, question.features["train_steps"])
    return ranks * question.features["rank_parameters"], steps


def _fitted(curves: Sequence[RankCurve], part: Part, variables: Variables) -> Forecast:
    both = [variables(curve.question) for curve in curves]
    x, y = (np.concatenate([pair[place] for pair in both]) for place in (0, 1))
    values = np.concatenate([curve.mean(part) for curve in curves])
    sizes = [len(curve.ranks) for curve in curves]
    law = fit_power_law(x, y, values, np.repeat(task_weights(curves) / sizes, sizes))
    return lambda question: law.at(*variables(question))


def memory_law(curves: Sequence[RankCurve], target: Target) -> Forecast:
    """C r^a l^-b + d, fitted to what is asked for."""
    del target  # it is a law of gain
    return _fitted(curves, "gain", rank_and_tokens)


def forgetting_law(curves: Sequence[RankCurve], target: Target) -> Forecast:
    """Retention as s - c P^a N^b; with the memory law for the gain, where worth is asked for."""
    retention = _fitted(curves, "retention", parameters_and_steps)
    if target == "retention":
        return retention
    gain = memory_law(curves, target)
    return lambda question: gain(question) + retention(question)


def rate_alone(curves: Sequence[RankCurve], target: Target) -> Forecast:
    """A quadratic in log2 of the rate, each study less its mean; the rank counts for nothing."""
    x, values, weights = list[float](), list[float](), list[float]()
    for curve, weight in zip(curves, task_weights(curves), strict=True):
        found = [trial.value(target) for trial in curve.trials]
        x += [float(np.log2(trial.rate)) for trial in curve.trials]
        values += (np.array(found) - np.mean(found)).tolist()
        weights += [float(weight) / len(found)] * len(found)
    middle = float(np.mean(x))
    degree = min(2, len(set(x)) - 1)
    fitted = np.polynomial.Polynomial.fit(np.array(x) - middle, values, degree, w=np.sqrt(weights))
    return lambda question: np.asarray(fitted(np.log2(question.rates) - middle))


LAWS = (
    Predictor(
        "parametric memory law", "rule", memory_law, needs=("train_tokens",), targets=("gain",)
    ),
    Predictor(
        "forgetting law",
        "rule",
        forgetting_law,
        needs=("train_tokens", "train_steps", "rank_parameters"),
        targets=("retention", "worth"),
    ),
    Predictor("rate alone", "rule", rate_alone, needs_rates=True),
)
