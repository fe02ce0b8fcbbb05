"""What the page is made of: cells, columns, tables, figures, sections."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from rankwise.findings.card import RuleDraws
from rankwise.records import quantities
from rankwise.records.quantities import NOT_MEASURED
from rankwise.records.recommendation import Recommendation

Row = TypeVar("Row")
T = TypeVar("T")
Chart: TypeAlias = dict[str, Any]
"""A specification in Vega-Lite's terms, or a layer of one."""


MOST_ROWS, LEAST_ROWS = 400, 12
"""The most rows of a table on a page, and of a group while there are more: who needs all reads the
files."""


LEAST_POINTS = 6
"""The fewest points of a correlation: over fewer, it is nothing to draw or to list."""


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


EMPTY = Cell(NOT_MEASURED)

Content: TypeAlias = Cell | str | int | None
"""What a row has in a column: a cell, its text alone, a number of things, or nothing measured."""


class Heading(NamedTuple):
    """A column's title, and its unit, metric or n."""

    title: str
    detail: str = ""


class RowGroup(NamedTuple):
    """Rows under a common heading, which may be empty."""

    title: str
    detail: str
    rows: tuple[tuple[Cell, ...], ...]


class Column(NamedTuple, Generic[Row]):
    """A column of a table: its heading, and what a row has there.

    Attributes:
        title: of the heading.
        of: the cell of a row, its text alone, or a number of things; None where nothing was
            measured.
        detail: unit, metric or n, under the title.
        is_text: words rather than numbers.
        is_optional: it is left out where no row has anything there.
    """

    title: str
    of: Callable[[Row], Content]
    detail: str = ""
    is_text: bool = False
    is_optional: bool = False

    def cell(self, row: Row) -> Cell:
        """What a row has in this column."""
        match value := self.of(row):
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

    # static: a type checker does not infer a class method's row from the rows of a table
    @staticmethod
    def text(title: str, of: Callable[[T], Content], detail: str = "") -> Column[T]:
        """A column of words."""
        return Column(title, of, detail, is_text=True)

    @staticmethod
    def optional(title: str, of: Callable[[T], Content], detail: str = "") -> Column[T]:
        """A column of numbers that is left out where no row has one."""
        return Column(title, of, detail, is_optional=True)


class Table(NamedTuple):
    """A table as text. The first cell of each row names it. ``texts`` are the columns of words."""

    caption: str
    headings: tuple[Heading, ...]
    groups: tuple[RowGroup, ...]
    texts: tuple[int, ...] = (0,)

    @staticmethod
    def of(caption: str, rows: Iterable[T], *columns: Column[T]) -> Table:
        """A table without groups. The first column names the row."""
        return Table.grouped(caption, [("", "", rows)], *columns)

    @staticmethod
    def grouped(
        caption: str, groups: Iterable[tuple[str, str, Iterable[T]]], *columns: Column[T]
    ) -> Table:
        """A table of rows in groups, each under its title and detail; empty ones are left out."""
        written = [
            (title, detail, [[column.cell(row) for column in columns] for row in rows])
            for title, detail, rows in groups
        ]
        every = [row for *_, rows in written for row in rows]
        kept = [
            place
            for place, column in enumerate(columns)
            if not column.is_optional or any(row[place] != EMPTY for row in every)
        ]
        return Table(
            caption,
            tuple(Heading(columns[place].title, columns[place].detail) for place in kept),
            tuple(
                RowGroup(title, detail, tuple(tuple(row[place] for place in kept) for row in rows))
                for title, detail, rows in written
                if rows
            ),
            tuple(at for at, place in enumerate(kept) if at == 0 or columns[place].is_text),
        )


def thinned(
    items: Sequence[T], most: int, is_needed: Callable[[T], bool] = lambda _: False
) -> list[T]:
    """So many, evenly from the first to the last (of one, the last), and those that are needed."""
    last = len(items) - 1
    if last < most:
        return list(items)
    even = {round(place * last / (most - 1)) for place in range(most)} if most > 1 else {last}
    return [item for place, item in enumerate(items) if place in even or is_needed(item)]


def some_of(num_shown: int, num_all: int, are: str) -> str:
    """A sentence for a caption, where not all of them are."""
    if num_shown == num_all:
        return ""
    return f"{quantities.count(num_shown)} of {quantities.count(num_all)} {are}."


def shortened(whole: Table) -> Table:
    """The table as a page shows it: of very many rows some of each group, and the first groups."""
    num_rows = sum(len(group.rows) for group in whole.groups)
    if num_rows <= MOST_ROWS:
        return whole
    most = max(MOST_ROWS // len(whole.groups), LEAST_ROWS)
    longest = min(most, max(len(group.rows) for group in whole.groups))
    groups = tuple(
        group._replace(rows=tuple(thinned(group.rows, most, lambda row: row[0].is_marked)))
        for group in whole.groups[: MOST_ROWS // longest]
    )
    num_shown = sum(len(group.rows) for group in groups)
    said = some_of(num_shown, num_rows, "rows are shown; the report's files have all")
    return whole._replace(caption=f"{whole.caption} {said}", groups=groups)


def option_columns(title: str, labels: Iterable[str]) -> list[Column[Sequence[Cell]]]:
    """What a row is, the base's score, and the change of every option; rows are these cells."""
    headings = [(title, ""), ("Base", "points"), *((label, "change") for label in labels)]
    return [
        Column(name, operator.itemgetter(place), detail)
        for place, (name, detail) in enumerate(headings)
    ]


class Drawing(NamedTuple):
    """A chart without its title.

    Attributes:
        chart: the specification.
        words: what it shows, for those who do not see it.
        is_wide: it takes the width of the page.
        note: a sentence for the caption, where not everything is drawn.
    """

    chart: Chart
    words: str
    is_wide: bool = False
    note: str = ""


class Figure(NamedTuple):
    """A chart with what goes with it.

    Attributes:
        name: for links and file names.
        title: above the chart.
        caption: what can be read from it.
        drawing: the chart.
        detail: under the title: units, n, and what bars and points are.
    """

    name: str
    title: str
    caption: str
    drawing: Drawing
    detail: str = ""


class Sliders(NamedTuple):
    """What the page's script needs to judge again under other margins.

    Attributes:
        draws: of what the options are worth, smallest first.
        own: what was judged by the study's own margins.
    """

    draws: RuleDraws
    own: Recommendation


class TitledTable(NamedTuple):
    """A table with its heading; or names with what they are, or a sentence in a table's place.

    ``dial`` stands below it: sliders, or the odds of a recommendation at other acceptable losses.
    """

    title: str
    table: Table | Mapping[str, str] | str
    dial: Recommendation | Sliders | None = None


def titled(tables: Mapping[str, Table]) -> list[TitledTable]:
    """Tables by their titles; one without rows is left out."""
    return [TitledTable(title, own) for title, own in tables.items() if own.groups]


class OfTask(Protocol):
    """What is found of one trained task."""

    @property
    def train_task(self) -> str: ...


Found = TypeVar("Found", bound=OfTask)


Shown: TypeAlias = str | Figure | Table | tuple[str, Table]
"""What a section shows: a sentence, a figure, or a table, which may have a title."""


def file_name(text: str) -> str:
    """The text as part of a file name: other characters become hyphens."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")


class ReportSection(NamedTuple):
    """The answer to one question.

    Attributes:
        name: for links and file names; lower case with hyphens.
        title: its heading.
        remarks: sentences before the figures and tables.
        figures: each with its own caption.
        tables: every number of the section.
        points: a list of sentences below the remarks.
        listings: text to copy, such as a file or commands, by heading; at the end.
        is_folded: it opens when its title is clicked, something in it is linked to, or the page is
            printed.
    """

    name: str
    title: str
    remarks: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[TitledTable] = ()
    points: Sequence[str] = ()
    listings: Mapping[str, str] = MappingProxyType({})
    is_folded: bool = False

    @staticmethod
    def of(
        name: str,
        title: str,
        about: str | Sequence[str],
        found: Sequence[Found],
        show: Callable[[Found], Iterable[Shown]],
        *,
        figures: str = "",
    ) -> ReportSection:
        """A section of what each trained task has; several of them are named everywhere.

        A table without rows is left out.

        Args:
            name: of the section.
            title: its heading.
            about: the sentences that come first, the same for every trained task.
            found: at least one.
            show: what is shown of one, sentences, figures and tables each in their order.
            figures: what the figures' names begin with, where that is not the section's name.
        """
        remarks: list[str] = [about] if isinstance(about, str) else [*about]
        drawn: list[Figure] = []
        tables: dict[str, Table] = {}
        for part in found:
            task = part.train_task if len(found) > 1 else ""
            after = f", trained on {task}" if task else ""
            for shown in show(part):
                match shown:
                    case str():
                        remarks.append(f"Trained on {task}: {shown}" if task else shown)
                    case Figure():
                        places = (figures or name, file_name(task), shown.name)
                        its_name = "-".join(place for place in places if place)
                        drawn.append(shown._replace(name=its_name, title=f"{shown.title}{after}"))
                    case Table():
                        tables[f"Every number{after}"] = shown
                    case (heading, table):
                        tables[f"{heading}{after}"] = table
        return ReportSection(name, title, remarks, drawn, titled(tables))
