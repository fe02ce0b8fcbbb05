"""What the page is made of: cells, tables, figures, sections."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import altair as alt

from rankwise.records.quantities import NOT_MEASURED


class Cell(NamedTuple):
    """A number as text, its interval ("75.1 to 84.1") and a remark; the last two may be empty."""

    value: str
    interval: str = ""
    note: str = ""

    def __str__(self) -> str:
        """On one line: 81.0 (76.2 to 85.0)."""
        text = f"{self.value} ({self.interval})" if self.interval else self.value
        return f"{text} {self.note}" if self.note else text


class Heading(NamedTuple):
    """A column's title, and its unit, metric and n."""

    title: str
    detail: str = ""


EMPTY = Cell(NOT_MEASURED)


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


Chart = alt.LayerChart | alt.FacetChart | alt.VConcatChart


class Figure(NamedTuple):
    """A chart with what goes with it.

    ``description`` says in words what the chart shows, for those who do not see it. ``chart``
    is None where the study has nothing to draw, and ``caption`` then says why. A ``is_wide``
    chart takes the whole width of the page.
    """

    name: str
    title: str
    caption: str
    description: str
    chart: Chart | None
    is_wide: bool = False


class TitledTable(NamedTuple):
    """A table with its heading."""

    title: str
    table: Table


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
    remarks: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    tables: tuple[TitledTable, ...] = ()
    files: Mapping[str, str] = MappingProxyType({})


def file_name(text: str) -> str:
    """The text as part of a file name: other characters become hyphens."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
