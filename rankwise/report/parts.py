"""What the page is made of: cells, columns, tables, figures, sections."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, NamedTuple, Protocol, TypeVar

import altair as alt

from rankwise.records.quantities import NOT_MEASURED

Row = TypeVar("Row")
Chart = alt.LayerChart | alt.FacetChart | alt.VConcatChart


class Cell(NamedTuple):
    """A number as text, its interval ("75.1 to 84.1") and a remark; the last two may be empty."""

    value: str
    interval: str = ""
    note: str = ""

    def __str__(self) -> str:
        """On one line: 81.0 (76.2 to 85.0)."""
        text = f"{self.value} ({self.interval})" if self.interval else self.value
        return f"{text} {self.note}" if self.note else text


EMPTY = Cell(NOT_MEASURED)


class Heading(NamedTuple):
    """A column's title, and its unit, metric and n."""

    title: str
    detail: str = ""


class RowGroup(NamedTuple):
    """Rows under a common heading, which may be empty."""

    title: str
    detail: str
    rows: tuple[tuple[Cell, ...], ...]


class Table(NamedTuple):
    """A table as text. The first cell of each row names it. ``texts`` are the columns of words."""

    caption: str
    headings: tuple[Heading, ...]
    groups: tuple[RowGroup, ...]
    texts: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table: its heading, and what a row has there.

    Attributes:
        title: of the heading.
        of: the cell of a row, or its text alone; None where nothing was measured.
        detail: unit, metric or n, under the title.
        is_text: words rather than numbers.
        is_shown: false leaves it out.
    """

    title: str
    of: Callable[[Row], Cell | str | None]
    detail: str = ""
    is_text: bool = False
    is_shown: bool = True


Group = tuple[str, str, Iterable[Row]]
"""The title and the detail of a group of rows, and the rows before they are text."""


def table(caption: str, columns: Sequence[Column[Row]], rows: Iterable[Row]) -> Table:
    """A table without groups. The first column names the row."""
    return grouped_table(caption, columns, [("", "", rows)])


def grouped_table(
    caption: str, columns: Sequence[Column[Row]], groups: Iterable[Group[Row]]
) -> Table:
    """A table whose rows stand in groups, each under its title."""
    columns = [column for column in columns if column.is_shown]
    return Table(
        caption,
        tuple(Heading(column.title, column.detail) for column in columns),
        tuple(
            RowGroup(
                title,
                detail,
                tuple(tuple(_cell(column.of(row)) for column in columns) for row in rows),
            )
            for title, detail, rows in groups
        ),
        tuple(place for place, column in enumerate(columns) if place == 0 or column.is_text),
    )


def _cell(value: Cell | str | None) -> Cell:
    if value is None:
        return EMPTY
    return Cell(value) if isinstance(value, str) else value


class Figure(NamedTuple):
    """A chart with what goes with it.

    Attributes:
        name: for links and file names.
        title: above the chart.
        caption: what can be read from it; where there is nothing to draw, why.
        description: what it shows in words, for those who do not see it.
        chart: without its title; None where the study has nothing to draw.
        detail: under the title: units, n, and what bars and points are.
        is_wide: it takes the whole width of the page.
        letters: of a line of the title and of a line of the detail, at most.
    """

    name: str
    title: str
    caption: str
    description: str = ""
    chart: Chart | None = None
    detail: str = ""
    is_wide: bool = False
    letters: tuple[int, int] = (62, 92)


class TitledTable(NamedTuple):
    """A table with its heading."""

    title: str
    table: Table


class OfTask(Protocol):
    """What is found of one trained task."""

    @property
    def train_task(self) -> str: ...


class Stated(OfTask, Protocol):
    """What is found of one trained task, with sentences that say it."""

    @property
    def statements(self) -> Sequence[str]: ...


Found = TypeVar("Found", bound=OfTask)


class TrainedTask(NamedTuple):
    """How figures, tables and sentences name the trained task: where it is the only one, not."""

    name: str
    is_named: bool

    @classmethod
    def each(cls, found: Sequence[Found]) -> list[tuple[Found, TrainedTask]]:
        """What was found of each trained task, with the task."""
        return [(part, cls(part.train_task, len(found) > 1)) for part in found]

    @property
    def after(self) -> str:
        """At the end of a title."""
        return f", trained on {self.name}" if self.is_named else ""

    @property
    def before(self) -> str:
        """At the beginning of a sentence."""
        return f"Trained on {self.name}: " if self.is_named else ""

    @property
    def heading(self) -> str:
        """Of its only table."""
        return f"Trained on {self.name}" if self.is_named else "Every number"

    def figures(self, kind: str, figures: Iterable[Figure]) -> list[Figure]:
        """The figures with the section's kind and the task in their names and titles."""
        prefix = f"{kind}-{file_name(self.name)}" if self.is_named else kind
        return [
            figure._replace(name=f"{prefix}-{figure.name}", title=f"{figure.title}{self.after}")
            for figure in figures
        ]

    def tables(self, tables: Iterable[tuple[str, Table]]) -> list[TitledTable]:
        """The tables with the task in their titles."""
        return [TitledTable(f"{title}{self.after}", shown) for title, shown in tables]


def stated(tasks: Iterable[tuple[Stated, TrainedTask]]) -> Iterator[str]:
    """Every statement, with its trained task where there are several."""
    for found, task in tasks:
        yield from (f"{task.before}{statement}" for statement in found.statements)


class ReportSection(NamedTuple):
    """The answer to one question about the study, over all trained tasks.

    Attributes:
        name: for links and file names; lower case with hyphens.
        title: its heading.
        remarks: sentences before the figures and tables.
        figures: each with its own caption; those that cannot be drawn say why.
        tables: every number of the section.
        files: their numbers without rounding, as CSV by file name.
    """

    name: str
    title: str
    remarks: Sequence[str]
    figures: Sequence[Figure] = ()
    tables: Sequence[TitledTable] = ()
    files: Mapping[str, str] = MappingProxyType({})


def file_name(text: str) -> str:
    """The text as part of a file name: other characters become hyphens."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
