"""What buys most: the gain of twice the rows, twice the rank, twice the rate.

There only where LoRA's runs were trained on several numbers of rows. Exploratory: the verdict is
about the runs on all rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from rankwise.findings.options import Option, OptionGains, Runs, TaskMean, over_seeds
from rankwise.findings.rows import Row, flat
from rankwise.findings.stats.estimates import holm, zero_p_value
from rankwise.findings.stats.items import Floats
from rankwise.records import quantities
from rankwise.records.axes import beside_rank
from rankwise.records.base import Record
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import Unit

Bought = Literal["rows", "rank", "learning rate"]


class Doubling(Record):
    """What one doubling of a setting gains, all else equal, paired by seed and item.

    It is the gain from ``before`` to ``after``, over the number of doublings between them.
    """

    of: Bought
    before: str
    after: str
    num_doublings: float
    gain: TaskMean


class BoughtMore(Record):
    """A doubling of one setting less that of another; Holm's method goes over all such pairs."""

    of: Bought
    than: Bought
    difference: TaskMean
    holm_p_value: float
    is_shown: bool


class CurvePoint(Record):
    """A setting on so many rows: changes from the base; ``option`` is that on all rows."""

    option: str
    rank: int | None
    num_rows: int
    epochs: int | None
    num_steps: int
    gain: TaskMean
    retention: TaskMean | None


class RankByRows(Record):
    """What a large rank gains over a small one, on few rows and on many.

    ``leads`` is at each number of rows, ``interaction`` the lead on the most less that on the
    fewest. ``from_rows`` is the number from which on every lead is shown, by Holm's method over
    the numbers; None where that on all rows is not.
    """

    small: int
    large: int
    num_rows: tuple[int, ...]
    leads: tuple[TaskMean, ...]
    holm_p_values: tuple[float, ...]
    interaction: TaskMean
    p_value: float
    is_shown: bool
    from_rows: int | None


class TrainTaskDoubling(Record):
    """What buys most for one trained task; ``left_out`` names what is not complete."""

    train_task: str
    unit: Unit
    confidence: float
    rows_at: Literal["epochs", "steps"]
    middle: str
    """The setting and the rows that doublings begin at."""
    doublings: tuple[Doubling, ...]
    compared: tuple[BoughtMore, ...]
    points: tuple[CurvePoint, ...]
    rank_by_rows: RankByRows | None
    statements: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def rows_over_rank(self) -> BoughtMore | None:
        """That a doubling of the rows is shown to gain more than one of the rank."""
        both = (each for each in self.compared if (each.of, each.than) == ("rows", "rank"))
        return next((each for each in both if each.is_shown), None)


T = TypeVar("T")

_Cells = Mapping[str, Mapping[int, Runs]]
"""Label of an option -> number of rows, ascending -> its models, in the order of their seeds."""


def doubling(source: OptionGains, recommendation: Recommendation) -> TrainTaskDoubling | None:
    """What buys most of one trained task; None where all runs have the same rows.

    Args:
        source: its options.
        recommendation: of the same task, for the unit in-domain.
    """
    if not source.results.planned_of("fewer_rows"):
        return None
    cells, left_out = _cells(source)
    options = [option for option in source.options if option.label in cells]
    tasks = source.deciding_tasks(recommendation.unit)
    if not options or not tasks.in_domain:
        return None
    # the middle rank, and of its settings the one with the middle rate
    rank = _middle(sorted({option.rank or 0 for option in options}))
    of_rank = [option for option in options if option.rank == rank]
    middle = _middle(sorted(of_rank, key=lambda option: option.plan.learning_rate or 0.0))
    begin = _middle([*cells[middle.label]])
    doublings: list[Doubling] = []
    values: dict[Bought, list[Floats]] = {}  # (seeds, items) of each task: what one doubling gains
    for of, names, (before, after), number in _steps(middle, options, cells, begin):
        values[of] = [lead / number for lead in source.leads(after, before, tasks.in_domain)]
        doublings.append(
            Doubling(
                of=of,
                before=names[0],
                after=names[1],
                num_doublings=number,
                gain=source.mean(values[of], tasks.in_domain),
            )
        )
    found = TrainTaskDoubling(
        train_task=source.results.train_task,
        unit=recommendation.unit,
        confidence=source.confidence,
        rows_at=source.results.study.config.train.rows_at,
        middle=f"{middle.label}, {quantities.counted(begin, 'row')}",
        doublings=tuple(doublings),
        compared=_compared(source, values, tasks.in_domain),
        points=tuple(
            _point(source, option, number, runs, recommendation.unit)
            for option in options
            for number, runs in cells[option.label].items()
        ),
        rank_by_rows=_rank_by_rows(source, middle, options, cells, tasks.in_domain),
        statements=(),
        left_out=left_out,
    )
    return found.model_copy(update={"statements": tuple(_statements(found))})


def _cells(source: OptionGains) -> tuple[_Cells, tuple[str, ...]]:
    """The complete options that were trained on several numbers of rows, and what is left out."""
    complete = {option.label: option for option in source.options}
    groups = over_seeds(
        source.results,
        "fewer_rows",
        lambda plan: (source.labels[plan.of.name if plan.of else plan.name], plan.num_examples),
    )
    cells: dict[str, dict[int, Runs]] = {}
    left_out: list[str] = []
    for (label, number), group in sorted(groups.items()):
        if label in complete and group.is_complete:
            cells.setdefault(label, {})[number] = group.runs
        elif label in complete:
            left_out.append(f"{label}, {quantities.counted(number, 'row')}")
    for label, its in cells.items():
        its[complete[label].plan.num_examples] = complete[label].runs
    return cells, tuple(left_out)


def _middle(values: Sequence[T]) -> T:
    """The middle value; the smaller of two, so that there is one above it to go to."""
    return values[(len(values) - 1) // 2]


def _steps(
    middle: Option, options: Sequence[Option], cells: _Cells, begin: int
) -> Iterator[tuple[Bought, tuple[str, str], tuple[Runs, Runs], float]]:
    """From the middle to the next number of rows, the next rank and the next rate.

    The values and the models at both ends, and how many doublings are between them.
    """
    of_middle = cells[middle.label]
    larger = [number for number in of_middle if number > begin]
    if larger:
        names, runs = (f"{begin:,}", f"{larger[0]:,}"), (of_middle[begin], of_middle[larger[0]])
        yield "rows", names, runs, math.log2(larger[0] / begin)
    for axis, ladder in _ladders(middle, options).items():
        low = next(value for value, option in ladder if option is middle)
        above = [(value, each) for value, each in ladder if value > low]
        if above and begin in cells[above[0][1].label]:
            high, option = above[0]
            write = quantities.learning_rate if axis == "learning rate" else "{:g}".format
            runs = of_middle[begin], cells[option.label][begin]
            yield axis, (write(low), write(high)), runs, math.log2(high / low)


def _ladders(middle: Option, options: Sequence[Option]) -> dict[Bought, list[tuple[float, Option]]]:
    """The options that differ from the middle by rank alone, and by rate alone, ascending."""
    settings = {*beside_rank(middle.plan)}
    by_rank = [
        (float(option.rank), option)
        for option in options
        if option.rank is not None and settings & {*beside_rank(option.plan)}
    ]
    but_rate = {(alpha, modules, epochs) for alpha, _, modules, epochs in settings}
    by_rate = [
        (option.plan.learning_rate, option)
        for option in options
        if option.rank == middle.rank
        and option.plan.learning_rate is not None
        and but_rate & {(a, m, e) for a, _, m, e in beside_rank(option.plan)}
    ]
    ladders: dict[Bought, list[tuple[float, Option]]] = {"rank": by_rank, "learning rate": by_rate}
    return {axis: sorted(its, key=lambda one: one[0]) for axis, its in ladders.items()}


def _compared(
    source: OptionGains, values: Mapping[Bought, list[Floats]], tasks: Sequence[str]
) -> tuple[BoughtMore, ...]:
    """Every two doublings, that which gains more first."""
    found: list[tuple[Bought, Bought, TaskMean, float]] = []
    for pair in itertools.combinations(values, 2):
        first, second = sorted(pair, key=lambda of: -sum(part.mean() for part in values[of]))
        leads = [a - b for a, b in zip(values[first], values[second], strict=True)]
        p_value = zero_p_value(source.estimate(leads, tasks))
        found.append((first, second, source.mean(leads, tasks), p_value))
    corrected = holm([p_value for *_, p_value in found])
    return tuple(
        BoughtMore(
            of=first,
            than=second,
            difference=mean,
            holm_p_value=p_value,
            is_shown=p_value < 1.0 - source.confidence,
        )
        for (first, second, mean, _), p_value in zip(found, corrected, strict=True)
    )


def _point(source: OptionGains, option: Option, number: int, runs: Runs, unit: Unit) -> CurvePoint:
    tasks, plan = source.deciding_tasks(unit), runs[0].run
    assert plan is not None
    return CurvePoint(
        option=option.label,
        rank=option.rank,
        num_rows=number,
        epochs=plan.planned.epochs,
        num_steps=plan.planned.num_steps,
        gain=source.change(runs, tasks.in_domain),
        retention=source.change(runs, tasks.retention) if tasks.retention else None,
    )


def _rank_by_rows(
    source: OptionGains,
    middle: Option,
    options: Sequence[Option],
    cells: _Cells,
    tasks: Sequence[str],
) -> RankByRows | None:
    """The largest rank against the smallest at the middle's other settings."""
    ladder = _ladders(middle, options)["rank"]
    small, large = ladder[0][1], ladder[-1][1]
    sizes = [number for number in cells[small.label] if number in cells[large.label]]
    if small is large or len(sizes) < 2:
        return None
    leads = [
        source.leads(cells[large.label][number], cells[small.label][number], tasks)
        for number in sizes
    ]
    alpha = 1.0 - source.confidence
    corrected = holm([zero_p_value(source.estimate(lead, tasks)) for lead in leads])
    means = [source.mean(lead, tasks) for lead in leads]
    shown = [mean.estimate > 0 and p < alpha for mean, p in zip(means, corrected, strict=True)]
    num_after_last_gap = len(shown) - (shown[::-1].index(False) if False in shown else len(shown))
    growth = [b - a for a, b in zip(leads[0], leads[-1], strict=True)]
    p_value = zero_p_value(source.estimate(growth, tasks))
    return RankByRows(
        small=small.rank or 0,
        large=large.rank or 0,
        num_rows=tuple(sizes),
        leads=tuple(means),
        holm_p_values=corrected,
        interaction=source.mean(growth, tasks),
        p_value=p_value,
        is_shown=p_value < alpha,
        from_rows=sizes[num_after_last_gap] if shown[-1] else None,
    )


def _statements(found: TrainTaskDoubling) -> Iterator[str]:
    if found.doublings:
        parts = [
            f"one doubling of the {each.of} ({each.before} to {each.after}) gains "
            f"{quantities.with_interval(each.gain, found.unit)}"
            for each in found.doublings
        ]
        yield f"From {found.middle}: {'; '.join(parts)}."
    shown = [each for each in found.compared if each.is_shown]
    for each in shown:
        yield (
            f"Doubling the {each.of} gains more than doubling the {each.than}: by "
            f"{quantities.with_interval(each.difference, found.unit)}."
        )
    if found.compared and not shown:
        yield "Which of these doublings gains more is not shown."
    if found.rank_by_rows is not None:
        yield _of_ranks(found.rank_by_rows, found.unit)


def _of_ranks(found: RankByRows, unit: Unit) -> str:
    large, small = f"rank {found.large}", f"rank {found.small}"
    few, many = found.num_rows[0], quantities.counted(found.num_rows[-1], "row")
    change = f"{quantities.with_interval(found.interaction, unit)} from {few:,} to {many}"
    if found.from_rows is None:
        lead = f"{quantities.capital(large)} is not shown to gain more than {small} on {many}"
    elif found.from_rows == few:
        lead = f"{quantities.capital(large)} gains more than {small} from {few:,} rows on"
    else:
        lead = (
            f"{quantities.capital(large)} is shown to gain more than {small} from "
            f"{found.from_rows:,} rows on only"
        )
    shown = "" if found.is_shown else "; that it changes with rows is not shown"
    return f"{lead}. Its lead changes by {change}{shown}."


def doubling_rows(found: Sequence[TrainTaskDoubling], _: object) -> Iterator[Row]:
    """Every doubling, and every point of a curve."""
    for part in found:
        task = part.train_task
        for each in part.doublings:
            yield flat(each, train_task=task, what="doubling")
        for point in part.points:
            yield flat(point, train_task=task, what="point")
