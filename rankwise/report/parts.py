"""A section of the page: what it is called, and the remarks, figures and tables in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from rankwise.report.sections.overview import Figure
from rankwise.report.tables.decision import Table


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
        files: their numbers without rounding, as CSV by file name.
    """

    name: str
    title: str
    remarks: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    tables: tuple[TitledTable, ...] = ()
    files: Mapping[str, str] = MappingProxyType({})


def file_name(text: str) -> str:
    """A part of a file's name that says as much as this text can there."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
