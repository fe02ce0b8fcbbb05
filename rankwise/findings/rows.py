"""Records as rows of tables, for CSV, Parquet and data frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rankwise.records.base import Record

Row = Mapping[str, Any]
"""The cells of a row by column; what is not in it is empty there."""

RowsOf = Callable[[Any, Any], Iterable[Row]]
"""Makes the rows of a table from a finding and the results that it was made from."""


def flat(record: Iterable[tuple[str, Any]], **before: Any) -> dict[str, Any]:
    """A record, or names and values, as one row, behind the cells of ``before``.

    An estimate with bounds under ``gain`` becomes ``gain``, ``gain_lower`` and so on, an option its
    label and its rank, a list of words one text; settings have a cell each. Records in a list have
    rows of their own.
    """
    row = dict(before)
    for name, value in record:
        _put(row, name, value)
    return row


def _put(row: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, tuple | list):
        if not any(isinstance(part, Record) for part in value):
            row[name] = " ".join(map(str, value))
    elif isinstance(value, Record | Mapping):
        for key, part in value.items() if isinstance(value, Mapping) else value:
            own = f"{name}_{key.replace(' ', '_')}"
            _put(row, name if key in ("estimate", "label") else own, part)
    else:
        row[name] = value


def each_of(*names: str) -> RowsOf:
    """A row for each record in these lists of every trained task.

    "models.changes" are the changes of every model, each behind the cells of its model; "models"
    may be one record, or None.
    """

    def rows(found: Sequence[Any], _: Any) -> Iterator[Row]:
        for part in found:
            for name in names:
                outer, *inner = name.split(".")
                for record in _listed(getattr(part, outer)):
                    row = flat(record, train_task=part.train_task)
                    if inner:
                        yield from (flat(each, **row) for each in getattr(record, inner[0]))
                    else:
                        yield row

    return rows


def _listed(found: Sequence[Any] | Record | None) -> Sequence[Any]:
    return (found,) if isinstance(found, Record) else found or ()


def column_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
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
