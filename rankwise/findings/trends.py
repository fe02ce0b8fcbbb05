"""How a measure changes with rank: from the smallest to the largest, in order, and on average."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from rankwise.findings.options import OptionName, R, TaskMean
from rankwise.findings.stats.correlation import MIN_PAIRS, rank_correlation
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.findings.stats.items import Items
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.grouping import grouped
from rankwise.records.study import Interval, Unit

TrendOf = Literal["train-test gap", "same outcome", "same option", "same next token", "KL"]
Answer = Literal["shown", "contradicted", "undecided"]


class RankTrend(Record):
    """A measure at the largest rank less the same at the smallest, on the same items.

    ``answer`` is whether it is shown to go the way that the mechanism says: a larger gap, more
    agreement, less KL.
    """

    of: TrendOf
    smallest_rank: int
    largest_rank: int
    change: TaskMean
    answer: Answer


class Measured(NamedTuple):
    """A measure of one option: (seeds, items) of each independent set of items."""

    option: OptionName
    parts: Sequence[Items]


def rank_trend(
    of: TrendOf, measured: Sequence[Measured], *, unit: Unit, confidence: float
) -> RankTrend | None:
    """The change from the smallest to the largest rank; None with fewer than two ranks.

    Where a rank was trained with several other settings, their mean is taken; rank patterns are
    left out. The options are measured on the same sets of items with the same seeds.
    """
    by_rank = grouped(
        (option.rank, parts)
        for option, parts in measured
        if option.rank is not None and option.mean_rank is None
    )
    if len(by_rank) < 2:
        return None
    smallest, largest = min(by_rank), max(by_rank)
    low, high = _mean_parts(by_rank[smallest]), _mean_parts(by_rank[largest])
    differences = [
        b._replace(values=b.values - a.values, item_size=max(a.item_size, b.item_size))
        for a, b in zip(low, high, strict=True)
    ]
    found = mean_over_tasks(differences)
    change = TaskMean.over(differences, unit, found.value, *found.interval(confidence))
    return RankTrend(
        of=of,
        smallest_rank=smallest,
        largest_rank=largest,
        change=change,
        answer=answer_of(change, rises=of != "KL"),
    )


def correlation(x: Sequence[float], y: Sequence[float], confidence: float) -> Interval | None:
    """Spearman's ρ with its interval; None with too few pairs, or where a side is constant."""
    rho = rank_correlation(x, y, confidence)
    return None if rho is None else Interval(**rho._asdict())


def correlated(
    x: Sequence[float], y: Sequence[float], confidence: float, noun: str, at_least: int = MIN_PAIRS
) -> tuple[Interval | None, str | None]:
    """The correlation over ``at_least`` options or heads (``noun``), or why there is none."""
    if len(x) < at_least:
        return None, f"{quantities.counted(len(x), noun)}, {at_least} are needed"
    found = correlation(x, y, confidence)
    return found, f"one of them is the same in all {noun}s" if found is None else None


def in_words(evidence: Mapping[int, str], found: Interval, number: int, noun: str) -> str:
    """A correlation over so many options or heads; ``evidence`` says by its sign what it shows."""
    rho = quantities.correlation(found)
    over = quantities.counted(number, noun)
    return f"{evidence[found.sign()]} (Spearman's ρ {rho} over {over})."


def mean_of_options(runs: Sequence[R], value: Callable[[R], float]) -> tuple[list[R], list[float]]:
    """The first run of each option, and the mean of a value over the option's runs.

    Seeds of one option are no independent options: as separate points they make a correlation
    look sure.
    """
    of_option = grouped((run.option.label, run) for run in runs)
    first = [same[0] for same in of_option.values()]
    return first, [statistics.fmean(map(value, same)) for same in of_option.values()]


def means_by_rank(points: Iterable[tuple[int, float]]) -> dict[int, float]:
    """The mean of what each rank has, over seeds and other settings, ranks from small to large."""
    by_rank = grouped(points)
    return {rank: statistics.fmean(by_rank[rank]) for rank in sorted(by_rank)}


def answer_of(change: Interval, *, rises: bool = True) -> Answer:
    """Whether a difference is shown to be above zero, or below it with ``rises`` false."""
    sign = change.sign()
    return "undecided" if sign == 0 else "shown" if (sign > 0) == rises else "contradicted"


def _mean_parts(options: Sequence[Sequence[Items]]) -> list[Items]:
    return [
        parts[0]._replace(values=np.mean([part.values for part in parts], axis=0))
        for parts in zip(*options, strict=True)
    ]
