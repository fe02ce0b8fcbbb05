"""Sheets as people keep them: a column for each model, and a last row that sums up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rankwise.errors import DataError, did_you_mean
from rankwise.records import quantities
from rankwise.scores.models import BASE_NAMES, score_of, with_decimal_point
from rankwise.tasks.row_files import RawRow

TOTALS = frozenset(
    {"total", "totals", "sum", "mean", "average", "avg", "overall", "all", "gesamt", "mittelwert"}
)
"""What a row is called that sums up the others; the last rows of a sheet only."""

_SAYS_RANK = re.compile(r"(?<![a-z])(?:r|rank)[-_= ]?\d+(?![\d.])|(?<![a-z])full(?![a-z])", re.I)
_WORDS = re.compile(r"[^\s_./()\[\]:-]+")


class Sheet(NamedTuple):
    """Rows with one score each, and what was assumed to get there."""

    rows: list[RawRow]
    notes: tuple[str, ...] = ()
    columns: Mapping[str, str] = {}
    """Role -> column, where columns were made."""


def without_totals(source: str, rows: Sequence[RawRow]) -> Sheet:
    """The rows but for the last ones that sum up the others."""
    kept = list(rows)
    while len(kept) > 1 and _is_total(kept[-1]):
        kept.pop()
    if (left_out := len(rows) - len(kept)) == 0:
        return Sheet(kept)
    last = (
        "row sums up the others, and is"
        if left_out == 1
        else f"{left_out} rows sum up the others, and are"
    )
    return Sheet(kept, (f"{source}: the last {last} left out",))


def _is_total(row: RawRow) -> bool:
    cells = [cell for cell in row.content.values() if isinstance(cell, str)]
    return any(cell.strip().rstrip(":").lower() in TOTALS for cell in cells)


def one_score_a_row(
    source: str,
    rows: Sequence[RawRow],
    scores: Sequence[str],
    metrics: Sequence[str],
    roles: Mapping[str, Sequence[str]],
) -> Sheet:
    """A sheet with a column for each model, as rows of one item and one model.

    A column is a model's where it holds scores and its name says base, full or a rank; ``scores``
    names other ones. A row without an item of its own is one.

    Args:
        source: the sheet's name, for errors.
        rows: with cells by column.
        scores: the columns of models that a user names; empty: they are found.
        metrics: the words of a name that say what is scored, not by whom.
        roles: role -> the columns that may have it.

    Raises:
        DataError: a named column is not there.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.content))
    for column in scores:
        if column not in names:
            hint = did_you_mean(column, names)
            there = f"it has {quantities.listed(names)}"
            said = f"{source} has no column {column!r}; {f'{hint} ' if hint else ''}{there}."
            raise DataError(said)
    models = {column: column for column in scores} or _models(rows, names, metrics)
    if len(models) < 2 or (roles["model"] and not scores):
        return Sheet(list(rows))
    found = {word for column in models for word in _words(column)} & {*metrics}
    metric = found.pop() if len(found) == 1 else "score"
    has_item = any(column not in models for column in roles["item"])
    made: list[RawRow] = []
    for number, row in enumerate(rows, start=1):
        others = {name: cell for name, cell in row.content.items() if name not in models}
        if not has_item:
            others["item"] = number
        for column, model in models.items():
            cell = row.content.get(column)
            if cell is None or (isinstance(cell, str) and not cell.strip()):
                continue
            scored = {**others, "model": model, metric: cell}
            made.append(RawRow(f"{row.place}, column {quantities.shortened(column)}", scored))
    note = f"{source}: each of the columns {quantities.listed(list(models))} is read as a model"
    columns = {"model": "model", "score": metric} | ({} if has_item else {"item": "item"})
    return Sheet(made, (note + ("" if has_item else ", and each row as an item"),), columns)


def score_columns(rows: Sequence[RawRow], names: Sequence[str]) -> list[str]:
    """The columns that hold a number, or yes and no, in every row that has anything there."""
    return [name for name in names if _holds_scores(row.content.get(name) for row in rows)]


def _models(rows: Sequence[RawRow], names: Sequence[str], metrics: Sequence[str]) -> dict[str, str]:
    """Column -> model, of the columns whose names say which model it is."""
    models: dict[str, str] = {}
    for column in score_columns(rows, names):
        words = [word for word in _WORDS.findall(column) if word.lower() not in metrics]
        model = "_".join(words)
        if model.lower() in BASE_NAMES or _SAYS_RANK.search(model):
            models[column] = model
    return models if len({*models.values()}) == len(models) else {}


def _words(column: str) -> Iterator[str]:
    return (word.lower() for word in _WORDS.findall(column))


def _holds_scores(cells: Iterator[Any]) -> bool:
    has_any = False
    for cell in cells:
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            continue
        try:
            score_of(with_decimal_point(cell) if isinstance(cell, str) else cell)
        except (ValueError, TypeError):
            return False
        has_any = True
    return has_any
