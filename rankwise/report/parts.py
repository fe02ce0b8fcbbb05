"""What the page is made of: cells, columns, tables, figures, sections."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, TypeVar

from rankwise.findings.card import RuleDraws
from rankwise.findings.options import TrainTaskFinding
from rankwise.records import quantities
from rankwise.records.recommendation import Recommendation
from rankwise.records.search import TrainTaskSearch
from rankwise.report.cells import EMPTY, Cell, Content, as_cell, formatted, left_out
from rankwise.report.rows import Row, flat

T = TypeVar("T")
Chart: TypeAlias = dict[str, Any]
"""A specification in Vega-Lite's terms, or a layer of one."""


MOST_ROWS, LEAST_ROWS = 400, 12
"""The most rows of a table on a page, and of a group while there are more: who needs all reads the
files."""


LEAST_POINTS = 6
"""The fewest points of a correlation: over fewer, it is nothing to draw or to list."""


class Heading(NamedTuple):
    """A column's title, and its unit, metric or n."""

    title: str
    detail: str = ""


class RowGroup(NamedTuple):
    """Rows under a common heading, which may be empty."""

    title: str
    detail: str
    rows: tuple[tuple[Cell, ...], ...]


class Column(NamedTuple):
    """A column of a table: what a row has there, its heading, and how it is written.

    Without a title it is in files alone. A column that no row has anything in is left out, unless
    it is the first.

    Attributes:
        key: a field of the row's record, also of one in a field ("option.label") or in a tuple
            ("0.task"); or what makes the value of a row. None where nothing was measured.
        title: of the heading.
        detail: unit, metric or n, under the title.
        write: the value as a cell or its text, the words of each value, or Python's format of a
            number. None: by its type.
        is_text: words rather than numbers; a field of words is so without it.
        file: the column's name in files, of what is no field of the row's record, which has all its
            fields there.
    """

    key: str | Callable[[Any], Any]
    title: str = ""
    detail: str = ""
    write: Callable[[Any], Content] | Mapping[Any, str] | str | None = None
    is_text: bool = False
    file: str = ""

    def value(self, row: Any) -> Any:
        """What a row has in this column."""
        if not isinstance(self.key, str):
            return self.key(row)
        for name in self.key.split("."):
            if row is not None:
                row = row[int(name)] if name.isdigit() else getattr(row, name)
        return row

    def cell(self, row: Any) -> Cell:
        """The value of a row as it is written."""
        value = self.value(row)
        if value is None or self.write is None:
            return as_cell(value)
        if isinstance(self.write, str):
            return formatted(value, self.write)
        return as_cell(self.write[value] if isinstance(self.write, Mapping) else self.write(value))

    def has_words(self, rows: Iterable[Any]) -> bool:
        """Whether it is set as text."""
        if self.is_text or not isinstance(self.key, str):
            return self.is_text
        values = (self.value(row) for row in rows)
        return all(isinstance(value, str | bool) for value in values if value is not None)


class Table(NamedTuple):
    """A table as text, for page and terminal, and unrounded, for files and data frames.

    Attributes:
        caption: below it.
        headings: none of a table that is in files alone.
        groups: of rows, whose first cell names them.
        texts: the columns of words.
        file: its name among files and data frames, several tables may share one; empty: in none.
        rows: there: every field of every record.
    """

    caption: str
    headings: tuple[Heading, ...]
    groups: tuple[RowGroup, ...]
    texts: tuple[int, ...] = (0,)
    file: str = ""
    rows: tuple[Row, ...] = ()

    @staticmethod
    def of(
        caption: str,
        rows: Iterable[Any],
        *columns: Column,
        by: Callable[[Any], str | tuple[str, str]] = lambda _: "",
        file: str = "",
        records: Iterable[Any] | None = None,
    ) -> Table:
        """A table of rows, for the page and for files.

        Args:
            caption: below it.
            rows: records, or several as a tuple.
            columns: the first names the row.
            by: the title of a row's group, or title and detail; groups come in the order of their
                first rows.
            file: its name among files; empty: it is in none.
            records: the rows of files where these are not the rows shown: all, of a selection, and
                one under the other what is shown side by side.
        """
        rows = list(rows)
        headed = [column for column in columns if column.title]
        shown = [
            column
            for place, column in enumerate(headed)
            if place == 0 or any(column.cell(row) != EMPTY for row in rows)
        ]
        named = [column for column in columns if column.file and records is None]

        def in_files(row: Any) -> Row:
            own = {column.file: column.value(row) for column in named}
            return flat(own, *(row if isinstance(row, tuple) else (row,)), own)

        groups: dict[tuple[str, str], list[tuple[Cell, ...]]] = {}
        for row in rows if shown else ():
            title = by(row)
            heads = (title, "") if isinstance(title, str) else title
            groups.setdefault(heads, []).append(tuple(column.cell(row) for column in shown))
        return Table(
            caption,
            tuple(Heading(column.title, column.detail) for column in shown),
            tuple(RowGroup(*heads, tuple(own)) for heads, own in groups.items()),
            tuple(at for at, column in enumerate(shown) if at == 0 or column.has_words(rows)),
            file,
            tuple(map(in_files, rows if records is None else records)) if file else (),
        )

    @staticmethod
    def in_files(file: str, records: Iterable[Any]) -> Table:
        """A table that is not on the page: records, mappings, or several of them as a tuple."""
        return Table.of("", (), file=file, records=records)

    def and_more(self, number: int, said: str = "") -> Table:
        """The same with a last row, for this many that are not shown."""
        blanks = [Cell("")] * (len(self.headings) - 2)
        more = Cell(f"and {number} more"), *blanks, Cell(said)
        return self._replace(groups=(*self.groups, RowGroup("", "", (more,))))

    def behind(self, **cells: Any) -> Table:
        """The same with these cells in front of every row in files."""
        return self._replace(rows=tuple({**cells, **row} for row in self.rows))


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


def option_columns(title: str, labels: Iterable[str]) -> list[Column]:
    """What a row is, the base's score, and the change of every option; rows are these cells."""
    headings = [(title, ""), ("Base", "points"), *((label, "change") for label in labels)]
    return [Column(str(place), name, detail) for place, (name, detail) in enumerate(headings)]


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


Found = TypeVar("Found", bound=TrainTaskFinding | TrainTaskSearch | Recommendation)


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
        files: tables that are in files alone.
    """

    name: str
    title: str
    remarks: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[TitledTable] = ()
    points: Sequence[str] = ()
    listings: Mapping[str, str] = MappingProxyType({})
    is_folded: bool = False
    files: Sequence[Table] = ()

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

        What a finding says in words, and whom it leaves out, comes first. A table without rows is
        left out; rows in files have the trained task in front.

        Args:
            name: of the section.
            title: its heading.
            about: the sentences that come first, the same for every trained task.
            found: at least one.
            show: what else is shown of one, sentences, figures and tables each in their order.
            figures: what the figures' names begin with, where that is not the section's name.
        """
        remarks: list[str] = [about] if isinstance(about, str) else [*about]
        drawn: list[Figure] = []
        tables: dict[str, Table] = {}
        files: list[Table] = []
        for part in found:
            task = part.train_task if len(found) > 1 else ""
            after = f", trained on {task}" if task else ""
            said = list[str]()
            if isinstance(part, TrainTaskFinding):
                said += (*part.statements, *left_out(part.left_out))
            for shown in (*said, *show(part)):
                match shown:
                    case str():
                        remarks.append(f"Trained on {task}: {shown}" if task else shown)
                    case Figure():
                        places = (figures or name, file_name(task), shown.name)
                        its_name = "-".join(place for place in places if place)
                        drawn.append(shown._replace(name=its_name, title=f"{shown.title}{after}"))
                    case _:
                        named = ("Every number", shown) if isinstance(shown, Table) else shown
                        table = named[1].behind(train_task=part.train_task)
                        if table.groups:
                            tables[f"{named[0]}{after}"] = table
                        else:
                            files.append(table)
        return ReportSection(name, title, remarks, drawn, titled(tables), files=files)


Build = TypeVar("Build", bound=Callable[..., ReportSection | None])

SECTIONS: dict[str, Callable[..., ReportSection | None]] = {}
"""By the name of a finding, what makes its section of what was found and the study's results."""


def shows(finding: str) -> Callable[[Build], Build]:
    """Name the finding whose section a function makes."""

    def kept(build: Build) -> Build:
        SECTIONS[finding] = build
        return build

    return kept


def rows_of(sections: Iterable[ReportSection]) -> dict[str, list[Row]]:
    """The rows of every table that has any in files, by its name there."""
    tables: dict[str, list[Row]] = {}
    for section in sections:
        shown = [each.table for each in section.tables if isinstance(each.table, Table)]
        for table in (*shown, *section.files):
            if table.rows:
                tables.setdefault(table.file, []).extend(table.rows)
    return tables
