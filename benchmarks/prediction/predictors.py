"""What chooses a rank before training: constants, rules of others, and ours, behind one interface.

A predictor is fitted on curves and gives a forecast: from a question to a value of each rank, of
which the largest is chosen. Sources and definitions are in docs/studies/prediction.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.prediction.curves import Question, RankCurve, Target
from rankwise.findings.stats.items import Floats

Forecast = Callable[[Question], Floats]
"""(ranks,): what is expected of each rank; the unit is the predictor's own unless it says so."""
Kind = Literal["constant", "rule", "ours"]

DATA_SIZES = (100, 500, 2000)
"""Training rows at which the bins of the table end."""
BITS_PER_PARAMETER, BITS_PER_TOKEN = 2.0, 1.0
"""What a parameter holds, and what a token brings, in *LoRA Without Regret* (Schulman 2025)."""
TIE = 1e-9


class Predictor(NamedTuple):
    """A way of choosing; ``needs`` are the features without which it says nothing.

    ``targets`` are those that it speaks of, and ``needs_rates`` says that it reads rates.
    """

    name: str
    kind: Kind
    fit: Callable[[Sequence[RankCurve], Target], Forecast]
    needs: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ("gain", "retention", "worth")
    needs_rates: bool = False

    def speaks_of(self, curves: Iterable[RankCurve], target: Target) -> bool:
        """Whether it can be fitted and asked on all these curves."""
        return target in self.targets and all(
            all(name in curve.question.features for name in self.needs)
            and (bool(curve.question.rates) or not self.needs_rates)
            for curve in curves
        )


class Choice(NamedTuple):
    """The rank that a forecast chooses, its place among the ranks, and the forecast of each."""

    rank: int
    place: int
    values: Floats


def first_best(values: Floats) -> Any:
    """Where in values (..., n) the largest of each n is first, but for rounding; shape (...)."""
    return np.argmax(values >= values.max(axis=-1, keepdims=True) - TIE, axis=-1)


def choose(forecast: Forecast, question: Question) -> Choice:
    """The rank with the largest value, the smallest such rank in a tie."""
    values = forecast(question)
    place = int(first_best(values))
    return Choice(question.ranks[place], place, values)


def task_weights(curves: Sequence[RankCurve]) -> Floats:
    """(curves,): studies of one task share its weight, so that every task counts the same."""
    number = Counter(curve.task for curve in curves)
    return np.array([1.0 / number[curve.task] for curve in curves])


def nearest(rank: float) -> Forecast:
    """The rank that is nearest by ratio."""
    return lambda question: -np.abs(np.log2(question.ranks) - np.log2(rank))


def at_least(rank: float) -> Forecast:
    """The smallest rank that is not below, else the largest."""

    def values(question: Question) -> Floats:
        ranks = np.array(question.ranks, dtype=float)
        return np.where(ranks >= rank, -np.log2(ranks), np.log2(ranks) - np.log2(ranks).max() - 99)

    return values


def always(rank: int) -> Predictor:
    """The same rank for everything."""
    return Predictor(f"always {rank}", "constant", lambda _, __: nearest(rank))


def best_of(curves: Sequence[RankCurve], target: Target) -> Forecast:
    """The one rank that is best for some studies, each of which takes the nearest that it has.

    Studies count by their difference from their own mean: they need not have the same ranks.
    """
    ranks = sorted({rank for curve in curves for rank in curve.ranks})
    weights = task_weights(curves)
    means = [curve.mean(target) for curve in curves]
    values = [
        sum(
            weight * (mean[choose(nearest(rank), curve.question).place] - mean.mean())
            for curve, mean, weight in zip(curves, means, weights, strict=True)
        )
        for rank in ranks
    ]
    return nearest(ranks[int(first_best(np.array(values)))])


def by_data_size(curves: Sequence[RankCurve], target: Target) -> Forecast:
    """The best rank of the studies with as many rows; of all, where there are none of that size."""
    bins: dict[int, list[RankCurve]] = {}
    for curve in curves:
        bins.setdefault(_bin(curve.question), []).append(curve)
    table = {size: best_of(its, target) for size, its in bins.items()}
    overall = best_of(curves, target)
    return lambda question: table.get(_bin(question), overall)(question)


def by_feature(name: str) -> Predictor:
    """The smallest rank that is at least a feature."""

    def fit(_: Sequence[RankCurve], __: Target) -> Forecast:
        return lambda question: at_least(question.features[name])(question)

    return Predictor(f"90 % energy, {name.partition('_')[0]}", "rule", fit, needs=(name,))


def by_capacity(_: Sequence[RankCurve], __: Target) -> Forecast:
    """The smallest rank whose parameters hold what the learned tokens bring, each counted once."""

    def values(question: Question) -> Floats:
        features = question.features
        bits = BITS_PER_TOKEN * features["train_loss_tokens"]
        per_rank = BITS_PER_PARAMETER * features["rank_parameters"]
        return at_least(bits / per_rank)(question)

    return values


def _bin(question: Question) -> int:
    return int(np.searchsorted(DATA_SIZES, question.features["train_rows"], side="right"))


CONSTANTS = (
    always(16),
    always(32),
    Predictor("best of the others", "constant", best_of),
    Predictor("table by data size", "constant", by_data_size, needs=("train_rows",)),
)
SIMPLE_RULES = (
    by_feature("probe_energy_rank_90"),
    by_feature("gradient_energy_rank_90"),
    Predictor("capacity", "rule", by_capacity, needs=("train_loss_tokens", "rank_parameters")),
)
