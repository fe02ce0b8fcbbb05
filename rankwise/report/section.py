"""A section of the page: what it is called, and the remarks, figures and tables in it."""

from __future__ import annotations

from typing import NamedTuple

from rankwise.report.figures import Figure
from rankwise.report.tables import Table


class TitledTable(NamedTuple):
    """A table under a heading of its own."""

    title: str
    table: Table


class Section(NamedTuple):
    """What one question of the study comes to, over all trained tasks.

    Attributes:
        name: for links and file names; lower case with hyphens.
        title: its heading.
        remarks: sentences that stand before figures and tables.
        figures: each with its own caption; those that cannot be drawn say why.
        tables: every number of the section.
    """

    name: str
    title: str
    remarks: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    tables: tuple[TitledTable, ...] = ()
