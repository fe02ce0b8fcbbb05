"""Numbers as cells of tables and as CSV files, and what sections say of options."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

from rankwise.findings.audits import NullPair
from rankwise.findings.options import OptionName, TaskMean
from rankwise.findings.shares import Share
from rankwise.records import quantities
from rankwise.records.axes import Kind
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import Interval, Unit
from rankwise.report.rows import Row, column_names

T = TypeVar("T")

MOST_OPTIONS = 8
"""More options than this are too many for one chart; then one is drawn for each rank."""


class Cell(NamedTuple):
    """A number as text, its interval ("75.1 to 84.1") and a remark; the last two may be empty.

    ``is_marked`` at the beginning of a row sets the row off.
    """

    value: str
    interval: str = ""
    note: str = ""
    is_marked: bool = False

    def __str__(self) -> str:
        """The numbers on one line: 81.0 (76.2 to 85.0)."""
        text = f"{self.value} ({self.interval})" if self.interval else self.value
        return f"{text} {self.note}" if self.note else text


EMPTY = Cell(quantities.NOT_MEASURED)

Content: TypeAlias = Cell | str | int | Interval | Share | None
"""What is written by its type; None where nothing was measured."""


def as_cell(value: Content) -> Cell:
    """What is written by its type; a mean over tasks with its sign."""
    match value:
        case None:
            return EMPTY
        case Cell():
            return value
        case bool():
            return Cell("yes" if value else "no")
        case int():
            return Cell(quantities.count(value))
        case str():
            return Cell(value)
        case TaskMean():
            return mean(value)
        case Interval():
            return formatted(value, ".3g")
        case Share():
            return share(value)


def interval(value: Interval | None, unit: Unit, *, signed: bool = True, note: str = "") -> Cell:
    """A difference with its sign, or a score; EMPTY for None."""
    if value is None:
        return EMPTY
    return Cell(*quantities.estimate_and_bounds(value, unit, signed=signed), note)


def mean(value: TaskMean | None, *, signed: bool = True, note: str = "") -> Cell:
    """The same for a mean over tasks."""
    return EMPTY if value is None else interval(value, value.unit, signed=signed, note=note)


def sized(value: TaskMean | None, *, signed: bool = True) -> Cell:
    """The same with its n in small print."""
    return mean(value, signed=signed, note="" if value is None else quantities.sample_size(value))


def written(value: Interval | None, write: Callable[[float], str]) -> Cell:
    """An estimate with its bounds, each written so; EMPTY for None."""
    if value is None:
        return EMPTY
    return Cell(write(value.estimate), f"{write(value.lower)} to {write(value.upper)}")


def formatted(value: Interval | float, spec: str) -> Cell:
    """A number or an estimate by Python's format."""
    if isinstance(value, Interval):
        return written(value, lambda number: quantities.formatted(number, spec))
    return Cell(quantities.formatted(value, spec))


def in_unit(unit: Unit) -> Callable[[Interval], Cell]:
    """Writes differences of a unit."""
    return partial(interval, unit=unit)


def share(value: Share | None) -> Cell:
    """A share of another model's gain, or why there is none; EMPTY for None."""
    if value is None:
        return EMPTY
    words = value.in_words
    if words is None:
        return Cell(quantities.NOT_MEASURED, "", value.reason or "")
    estimate, _, bounds = words.rpartition(" (")
    return Cell(estimate, bounds.removesuffix(")"))


def correlation(rho: Interval | None, reason: str | None = None) -> Cell:
    """Spearman's ρ with its interval, or why there is none."""
    if rho is None:
        return Cell(quantities.NOT_MEASURED, "", reason or "")
    return formatted(rho, ".2f")


def beside(form: str, value: float, others: Iterable[float | None]) -> Cell:
    """A number, and in small print those of random updates, where there are any."""
    return Cell(
        form.format(value), ", ".join(form.format(other) for other in others if other is not None)
    )


def beside_nulls(form: str, pair: NullPair) -> Cell:
    """A measure of matrices, and in small print what random updates have."""
    return beside(form, pair.observed, (pair.gaussian, pair.haar))


def items(value: int, limit: int | None) -> Cell:
    """A number of items, and the limit of their number where there is one."""
    most = "" if limit is None else f"at most {quantities.count(limit)}"
    return Cell(quantities.count(value), "", most)


def unit_name(unit: Unit) -> str:
    """The unit in a heading or at an axis."""
    return "nats per token" if unit == "nats" else unit


def measures(recommendation: Recommendation) -> tuple[str, str]:
    """The units of gains and of retention, and what points are of: points of p(right)."""

    def measure(unit: Unit, metric: str | None) -> str:
        of = "" if unit == "nats" or metric is None else f" of {quantities.metric(metric)}"
        return f"{unit_name(unit)}{of}"

    gained_in = measure(recommendation.unit, recommendation.in_domain_metric)
    return gained_in, measure("points", recommendation.retention_metric)


def metric_name(metric: str, filter_name: str) -> str:
    """exact_match, strict-match; the filter only where there is one."""
    return metric if filter_name == "none" else f"{metric}, {filter_name}"


def in_words(value: TaskMean) -> str:
    """+3.1 points (+1.0 to +5.2)."""
    return quantities.with_interval(value, value.unit)


def intervals(confidence: float) -> str:
    """The words for a caption: 95 % intervals."""
    return f"{quantities.percent(confidence)} intervals"


def changes_caption(train_task: str, confidence: float) -> str:
    """The caption under a table of changes from the base."""
    return (
        f"Trained on {train_task}: changes from the base, seeds averaged, paired over the same "
        f"items, {intervals(confidence)}."
    )


# What a text begins with that a spreadsheet would compute; OWASP, "CSV Injection".
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(rows: Iterable[Row]) -> str:
    """Rows under one line of all their names; what a row does not have is empty.

    A text that a spreadsheet would take for a formula gets an apostrophe in front; numbers stay
    what they are.
    """
    rows = list(rows)
    names = column_names(rows)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_as_text, names))
    writer.writerows([_as_text(row.get(name)) for name in names] for row in rows)
    return file.getvalue()


def _as_text(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = f"'{cell}" if cell.startswith(_FORMULA) else cell
    return text.replace("\r", "\n")  # csv does not quote it, and readers would end the row there


def drawn_options(
    options: Sequence[OptionName], most: int = MOST_OPTIONS
) -> tuple[OptionName, ...]:
    """All of them, or, where they are too many, the first of every rank and of the others."""
    if len(options) <= most:
        return tuple(options)
    first: dict[Kind, OptionName] = {}
    for option in options:
        first.setdefault(option.kind, option)
    return tuple(first.values())[-most:]


def of_one_seed(num_seeds: int) -> tuple[str, ...]:
    """What is said of everything that rests on one seed."""
    said = ("With one seed, all of this is conditional on that seed.",)
    return said if num_seeds == 1 else ()


def more(number: int, which: str) -> str:
    """A sentence of a caption, where not all are drawn: 3 more values are in the table."""
    return f" {number} more {which}." if number > 0 else ""


def left_out(labels: Sequence[str]) -> tuple[str, ...]:
    """Names options that take no part."""
    if not labels:
        return ()
    names = quantities.listed(labels)
    if len(labels) == 1:
        return (f"{names} takes no part here: a seed of it diverged or is missing.",)
    return (f"{names} take no part here: seeds of them diverged or are missing.",)
