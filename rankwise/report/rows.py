"""Records as rows of tables, for CSV, Parquet and data frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rankwise.records.base import Record

Row = dict[str, Any]
"""The cells of a row by column; what is not in it is empty there."""


def flat(*parts: Any) -> Row:
    """The fields of records and mappings as one row; other parts have none.

    An estimate with bounds under ``gain`` becomes ``gain``, ``gain_lower`` and so on, an option its
    label and its rank, a list of words one text; settings have a cell each. Records in a list have
    rows of their own.
    """
    row: Row = {}
    for part in parts:
        if isinstance(part, Record | Mapping):
            for name, value in part.items() if isinstance(part, Mapping) else part:
                _put(row, name, value)
    return row


def _put(row: Row, name: str, value: Any) -> None:
    if isinstance(value, tuple | list):
        if not any(isinstance(part, Record) for part in value):
            row[name] = " ".join(map(str, value))
    elif isinstance(value, Record | Mapping):
        for key, part in value.items() if isinstance(value, Mapping) else value:
            own = f"{name}_{key.replace(' ', '_')}"
            _put(row, name if key in ("estimate", "label") else own, part)
    else:
        row[name] = value


def column_names(rows: Iterable[Row]) -> list[str]:
    """All names of some rows; one that is new stands behind the one before it."""
    names: list[str] = []
    for row in dict.fromkeys(map(tuple, rows)):
        place = 0
        for name in row:
            if name in names:
                place = names.index(name) + 1
            else:
                names.insert(place, name)
                place += 1
    return names
