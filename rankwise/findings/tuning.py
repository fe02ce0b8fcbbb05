"""How much of the effect of rank is step size: each rank at its own rate, all ranks at one rate.

Made from what a search saw of its candidates at its first comparison, where every learning rate of
every rank is still there: validation items, a part of the training, one seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.results import StudyResults
from rankwise.records.search import Shown, TrainTaskSearch
from rankwise.records.study import Interval, Unit

NOISE_REACHES = 1.5
"""The largest of a few equal ranks is about three standard errors above the smallest.

A bound of a gain is two from its estimate.
"""


SAME_RATE = 0.02
"""Rates are written with three digits, so two ways to one rate may differ by so much."""


class RatePoint(Record):
    """A rank's gain on validation items at one learning rate."""

    rank: int
    learning_rate: float
    gain: Interval


class TrainTaskRates(Record):
    """The learning rates that were tried on one trained task.

    ``own`` has every rank at its best rate and ``common`` every rank at the one rate that is best
    on average, both after ``share`` of the training; ``common`` is empty where no rate was tried at
    every rank. The spreads are standard deviations over ranks, in ``unit``.
    """

    train_task: str
    unit: Unit
    share: float
    num_items: int
    own: tuple[RatePoint, ...]
    common: tuple[RatePoint, ...]
    own_spread: float
    common_spread: float | None
    at_the_edge: tuple[str, ...]
    """Settings whose best rate is the smallest or the largest that was tried."""
    statement: str


def tuned_rates(results: StudyResults) -> tuple[TrainTaskRates, ...]:
    """What the searches of a study saw of learning rates; empty where none was tuned."""
    if results.search is None or not results.study.config.train.learning_rate.tune:
        return ()
    found = (_rates(search) for search in results.search.by_train_task)
    return tuple(rates for rates in found if rates is not None)


def _rates(search: TrainTaskSearch) -> TrainTaskRates | None:
    shown = [each for each in search.shown if each.gain is not None and each.rank is not None]
    if not shown:
        return None
    share = min(each.share for each in shown)
    by_rank: dict[int, dict[float, Interval]] = {}
    for each in shown:
        if each.share == share and each.rank is not None and each.gain is not None:
            by_rank.setdefault(each.rank, {})[each.learning_rate] = each.gain
    if len(by_rank) < 2:
        return None
    own = [
        RatePoint(rank=rank, learning_rate=best, gain=rates[best])
        for rank, rates in sorted(by_rank.items())
        for best in [max(rates, key=lambda rate, rates=rates: rates[rate].estimate)]
    ]
    common = _common(by_rank)
    return TrainTaskRates(
        train_task=search.train_task,
        unit=search.unit,
        share=share,
        num_items=max(search.num_items.values()),
        own=tuple(own),
        common=tuple(common),
        own_spread=statistics.stdev(point.gain.estimate for point in own),
        common_spread=statistics.stdev(p.gain.estimate for p in common) if common else None,
        at_the_edge=_at_the_edge(shown),
        statement=_statement(own, common, share, search.unit),
    )


def _common(by_rank: Mapping[int, Mapping[float, Interval]]) -> list[RatePoint]:
    """Every rank at the rate whose mean over the ranks is the largest."""
    candidates: list[tuple[float, list[RatePoint]]] = []
    for rate in sorted(next(iter(by_rank.values()))):
        points: list[RatePoint] = []
        for rank, rates in sorted(by_rank.items()):
            # rates that differ by rounding are one
            near = [own for own in rates if abs(own / rate - 1.0) < SAME_RATE]
            if near:
                points.append(RatePoint(rank=rank, learning_rate=rate, gain=rates[near[0]]))
        if len(points) == len(by_rank):
            candidates.append((statistics.fmean(p.gain.estimate for p in points), points))
    return max(candidates, key=lambda candidate: candidate[0])[1] if candidates else []


def _at_the_edge(shown: Sequence[Shown]) -> tuple[str, ...]:
    """Whether the best rate is at the edge; a rate that was stopped was worse."""
    last: dict[str, dict[float, Shown]] = {}
    for each in shown:
        last.setdefault(each.setting, {})[each.learning_rate] = each
    edges: list[str] = []
    for setting, by_rate in last.items():
        furthest = max(each.share for each in by_rate.values())
        left = [each for each in by_rate.values() if each.share == furthest]
        best = max(left, key=lambda each: each.gain.estimate if each.gain else float("-inf"))
        if len(by_rate) > 1 and best.learning_rate in (min(by_rate), max(by_rate)):
            edges.append(setting)
    return tuple(edges)


def _statement(
    own: Sequence[RatePoint], common: Sequence[RatePoint], share: float, unit: Unit
) -> str:
    after = f"After {quantities.percent(share)} of the steps, on validation items,"
    own_range = quantities.amount(_range(own), unit)
    if not common:
        return (
            f"{after} ranks differ by up to {own_range}, each at its own rate; no rate was tried "
            "at every rank."
        )
    rate = quantities.learning_rate(common[0].learning_rate)
    both = (
        f"{after} ranks differ by up to {quantities.amount(_range(common), unit)} where all are "
        f"trained at {rate}, and by up to {own_range} where each has its own rate."
    )
    reaches = (point.gain.upper - point.gain.estimate for point in common)
    noise = NOISE_REACHES * statistics.median(reaches)
    if max(_range(common), _range(own)) <= noise:
        return f"{both} Both are too small to detect with so few items."
    if _range(common) <= _range(own):
        return f"{both} So the effect of rank here is not an effect of step size."
    part = 1.0 - _range(own) / _range(common)
    return (
        f"{both} So about {quantities.percent(round(part, 2))} of the effect of rank is step size."
    )


def _range(points: Sequence[RatePoint]) -> float:
    """Largest less smallest."""
    gains = [point.gain.estimate for point in points]
    return max(gains) - min(gains)
