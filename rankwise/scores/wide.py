"""Sheets as people keep them: a column for each model, and a last row that sums up."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rankwise.errors import DataError, did_you_mean
from rankwise.records import quantities
from rankwise.records.lm_eval_samples import LOWER_IS_BETTER
from rankwise.records.yaml_reading import shown
from rankwise.scores.models import BASE_NAMES, names_a_setting, score_of, with_decimal_point
from rankwise.tasks.row_files import RawRow

TOTALS = frozenset(
    {"total", "totals", "sum", "mean", "average", "avg", "overall", "all", "gesamt", "mittelwert"}
)
"""What a row is called that sums up the others; the last rows of a sheet only."""

_NOTHING = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "—"})
"""What stands in a cell of a sheet where there is no score."""

_SHORT = {"ppl": "perplexity"}
"""Short names of metrics, in the names of columns."""

_WORDS = re.compile(r"[^\s_/()\[\]:]+")
_AROUND = " \t\r\n_-./()[]:"


class Sheet(NamedTuple):
    """Rows with one score each, and what was assumed to get there."""

    rows: list[RawRow]
    notes: tuple[str, ...] = ()
    columns: Mapping[str, str] = {}
    """Role -> column, where columns were made."""


def without_totals(
    source: str, rows: Sequence[RawRow], item: str | None, model: str | None
) -> Sheet:
    """The rows but for last ones that sum up the others, at most one for each model.

    Args:
        source: the sheet's name, for the note.
        rows: with cells by column.
        item: the column that names items; None: there is none, and the first text is looked at.
        model: the column that names models; None: there is none.
    """
    if not rows:
        return Sheet(list(rows))
    column = item or next((k for k, v in rows[0].content.items() if isinstance(v, str)), None)
    names = [_name(row.content.get(column)) if column else "" for row in rows]
    kept = len(rows)
    while kept and names[kept - 1] in TOTALS:
        kept -= 1
    dropped = rows[kept:]
    models = [shown(row.content.get(model)) for row in dropped] if model else []
    is_one_each = len({*models}) == len(models) if model else len(dropped) <= 2
    if not dropped or not kept or not is_one_each or TOTALS & {*names[:kept]}:
        return Sheet(list(rows))
    called = quantities.listed(sorted({*names[kept:]}))
    said = f"the last row is called {called}, and is left out as a total"
    if len(dropped) > 1:
        said = f"the last {len(dropped)} rows are called {called}, and are left out as totals"
    return Sheet(list(rows[:kept]), (f"{source}: {said}",))


def _name(cell: Any) -> str:
    return cell.strip().rstrip(":").lower() if isinstance(cell, str) else ""


def one_score_a_row(
    source: str,
    rows: Sequence[RawRow],
    scores: Sequence[str],
    metrics: Sequence[str],
    others: Iterable[str],
    item: str | None,
) -> Sheet:
    """A sheet with a column for each model, as rows of one item and one model.

    A column is a model's where it holds scores and its name says base, full or a rank; ``scores``
    names other ones. A row without an item of its own is one.

    Args:
        source: the sheet's name, for errors.
        rows: with cells by column.
        scores: the columns of models that a user names; empty: they are found.
        metrics: the words of a name that say what is scored, not by whom.
        others: columns that are known to be something else.
        item: the column that names items; None: there is none.

    Raises:
        DataError: a named column is not there, a column of a model's name has no scores, or some
            columns of scores have other names.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.content))
    for column in scores:
        if column not in names:
            hint = did_you_mean(column, names)
            there = f"it has {quantities.listed(names)}"
            said = f"{source} has no column {column!r}; {f'{hint} ' if hint else ''}{there}."
            raise DataError(said)
    metric = _metric(scores or names, metrics)
    models = {c: _model(c, metric) for c in scores}
    if not scores:
        models = _models(source, rows, [name for name in names if name not in others], metric)
    if len(models) < 2:
        return Sheet(list(rows))
    made: list[RawRow] = []
    called = "score" if metric is None else _SHORT.get(metric, metric)
    for number, row in enumerate(rows, start=1):
        beside = {name: cell for name, cell in row.content.items() if name not in models}
        if item is None or item in models:
            beside["item"] = number
        for column, model in models.items():
            if _is_nothing(cell := row.content.get(column)):
                continue
            scored = {**beside, "model": model, called: cell}
            made.append(RawRow(f"{row.place}, column {quantities.shortened(column)}", scored))
    note = f"{source}: each of the columns {quantities.listed(list(models))} is read as a model"
    columns = {"model": "model", "score": called}
    if item is None or item in models:
        note += ", and each row as an item"
        columns["item"] = "item"
    return Sheet(made, (note,), columns)


def score_columns(rows: Sequence[RawRow], names: Sequence[str]) -> list[str]:
    """The columns that hold a number, or yes and no, in every row that has anything there."""
    return [
        name
        for name in names
        if _has_any(cells := [row.content.get(name) for row in rows]) and _unread(cells) is None
    ]


def scores_named(columns: Sequence[str]) -> str:
    """The option that names the columns of models, as it is typed."""
    return f"--score {shlex.quote(','.join(columns))}"


def _models(
    source: str, rows: Sequence[RawRow], names: Sequence[str], metric: str | None
) -> dict[str, str]:
    """Column -> model, of the columns whose names say which model it is.

    Raises:
        DataError: such a column has a cell that is no score, or other columns hold scores too.
    """
    said = {name: model for name in names if (model := _model(name, metric)) and _is_model(model)}
    if len(said) < 2:
        return {}
    bases = [name for name, model in said.items() if _is_base(model)]
    for name in said:
        cell = _unread([row.content.get(name) for row in rows])
        if cell is not None:
            raise DataError(
                f"{source}: column {name!r} is named like a model and has {shown(cell)}, which is "
                "no score. Correct the cell, or empty it."
            )
    strangers = [
        name
        for name in score_columns(rows, names)
        if name not in said and not _is_index([row.content.get(name) for row in rows])
    ]
    if strangers or len(bases) > 1 or len({*said.values()}) < len(said):
        raise DataError(
            f"{source}: {quantities.listed(list(said))} are named like models, and "
            f"{quantities.listed(strangers) or 'their names are not told apart'} may be models "
            "too. Say which columns are: "
            f"{scores_named([*said, *strangers])}, and "
            "which is the base: --base COLUMN."
        )
    return {name: "base" if name in bases else model for name, model in said.items()}


def _model(column: str, metric: str | None) -> str:
    """A column's name without the word that says what is scored."""
    if metric is None:
        return column.strip(_AROUND)
    word = rf"(?:^|[{re.escape(_AROUND)}]+){re.escape(metric)}(?=$|[{re.escape(_AROUND)}])"
    return re.sub(word, "", column, flags=re.IGNORECASE).strip(_AROUND)


def _is_base(model: str) -> bool:
    return any(word.lower() in BASE_NAMES for word in (model, *_WORDS.findall(model)))


def _is_model(model: str) -> bool:
    return _is_base(model) or names_a_setting(model)


def _metric(columns: Sequence[str], metrics: Sequence[str]) -> str | None:
    """The word of two columns or more that says what is scored; None where there is none."""
    known = {*metrics, *LOWER_IS_BETTER, *_SHORT}
    counts: dict[str, int] = {}
    for column in columns:
        for word in {*_words(column)} & known:
            counts[word] = counts.get(word, 0) + 1
    found = [word for word, count in counts.items() if count > 1]
    return found[0] if len(found) == 1 else None


def _words(column: str) -> Iterator[str]:
    return (word.lower() for word in re.split(rf"[{re.escape(_AROUND)}]+", column))


def _is_index(cells: Sequence[Any]) -> bool:
    """Whether a column numbers the rows, as data frames write it."""
    numbers = [str(cell).removesuffix(".0") for cell in cells]
    return any(numbers == [str(i + first) for i in range(len(numbers))] for first in (0, 1))


def _is_nothing(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and _name(cell) in _NOTHING)


def _has_any(cells: Sequence[Any]) -> bool:
    return any(not _is_nothing(cell) for cell in cells)


def _unread(cells: Sequence[Any]) -> Any:
    """The first cell that is no score; None where all are, or nothing stands there."""
    for cell in cells:
        if _is_nothing(cell):
            continue
        try:
            score_of(with_decimal_point(cell) if isinstance(cell, str) else cell)
        except (ValueError, TypeError):
            return cell
    return None
