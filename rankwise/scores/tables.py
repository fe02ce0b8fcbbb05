"""Reads tables with a row for each item and model: CSV, JSON Lines, JSON, Parquet, data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from rankwise.errors import ConfigError, DataError, did_you_mean
from rankwise.records import quantities
from rankwise.records.json_reading import whole_characters
from rankwise.records.yaml_reading import shown
from rankwise.scores.asked import Asked
from rankwise.scores.models import (
    READ,
    Item,
    TableModel,
    TableScores,
    answered,
    has_decimal_commas,
    score_of,
    settings_of,
    with_decimal_point,
)
from rankwise.scores.wide import (
    Sheet,
    one_score_a_row,
    score_columns,
    scores_named,
    without_totals,
)
from rankwise.tasks.row_files import RawRow, flat_row

NAMES: Mapping[str, tuple[str, ...]] = {
    "item": (
        "item", "item_id", "id", "doc_id", "question_id", "example_id", "sample_id", "instance_id",
        "idx", "index", "qid", "uid",
    ),
    "score": (
        "score", "acc", "accuracy", "correct", "is_correct", "all_correct", "exact_match", "em",
        "pass", "passed", "pass@1", "p_right", "acc_norm", "f1", "rouge", "bleu", "reward",
        "rating", "loss", "nll", "loss_nats", "value",
    ),
    "model": ("model", "model_name", "run", "run_name", "adapter", "checkpoint", "system"),
    "task": ("task", "task_name", "dataset", "benchmark", "eval"),
    "seed": ("seed",),
    "rank": ("rank", "lora_rank", "r"),
    "alpha": ("alpha", "lora_alpha"),
    "learning_rate": ("learning_rate", "lr"),
    "modules": ("modules", "target_modules", "lora_target_modules"),
    "epochs": ("epochs", "num_epochs", "num_train_epochs"),
    "prompt": ("prompt", "input", "question", "instruction"),
    "target": ("target", "reference", "expected", "gold", "label"),
    "answer": ("response", "output", "prediction", "completion", "answer", "generated"),
}  # fmt: skip
"""The names by which a column is recognised, in any case; earlier ones go first."""

_ONE_OF_SEVERAL: tuple[str, ...] = ("score", "model")
"""Roles of which several candidates are refused: a wrong guess would be a wrong verdict."""

_TEXTS: tuple[str, ...] = ("prompt", "target", "answer")


class ScoreTable(NamedTuple):
    """A table as it was read: ``name`` is for errors.

    ``task`` and ``model`` are what its rows are of where no column says it; without a model, a
    column has to.
    """

    name: str
    rows: Sequence[RawRow]
    task: str = "scores"
    model: str | None = None


def table_scorings(
    tables: Sequence[ScoreTable], asked: Asked
) -> tuple[list[TableScores], dict[str, str], tuple[str, ...]]:
    """What each model scored on each task, the column that was read for each role, and notes.

    Raises:
        DataError: a row or a column is not what it has to be; the sentence names both.
    """
    scorings: dict[tuple[TableModel, str], TableScores] = {}
    found: dict[str, str] = {}
    notes: list[str] = []
    described: dict[str, dict[Any, dict[str, Any]]] = {}
    for table in tables:
        rows: list[RawRow] = []
        for row in table.rows:
            place = f"{table.name} {row.place}"
            if row.problem is not None:
                raise DataError(f"{place}: {row.problem}.")
            if not isinstance(row.content, Mapping):
                raise DataError(f"{place}: {shown(row.content)} is not a row of columns.")
            try:
                rows.append(RawRow(place, _plain(flat_row(row.content))))
            except RecursionError as error:  # of rows in memory; files are bounded
                raise DataError(f"{place}: nested too deep; flatten it.") from error
        if not rows:
            raise DataError(f"{table.name} has no rows; give one for each item and model.")
        sheet, long = _made_long(table, rows, said := dict(asked.columns))
        columns = find_columns(table.name, long.rows, {**said, **long.columns})
        notes += (*sheet.notes, *long.notes)
        if has_decimal_commas(row.content.get(columns["score"]) for row in long.rows):
            notes.append(f"{table.name}: commas in {columns['score']} are read as decimal points")
            long = Sheet([_with_points(row, columns["score"]) for row in long.rows])
        found |= columns
        for row in long.rows:
            _add(scorings, described, table, row, columns)
    for (_, task), scoring in scorings.items():
        shared = set.intersection(*map(set, described[task].values()))
        for item, (_, line) in scoring.items.items():
            line["doc"] = {k: v for k, v in described[task][item].items() if k in shared}
    return list(scorings.values()), found, tuple(notes)


def _made_long(
    table: ScoreTable, rows: Sequence[RawRow], said: dict[str, str]
) -> tuple[Sheet, Sheet]:
    """A table without its totals, and the same with one score a row.

    Args:
        table: what it is of.
        rows: with cells by column.
        said: role -> column, as a user says; a score that is several columns is taken out.
    """
    names = _columns_of(rows)
    roles = {role: _candidates(role, names) for role in NAMES}
    roles |= {role: [column] for role, column in said.items()}
    item, model = (next(iter(roles[role]), None) for role in ("item", "model"))
    sheet, several = without_totals(table.name, rows, item, model), list[str]()
    score = said.get("score", "")
    if score not in names and "," in score:
        several = [name for each in said.pop("score").split(",") if (name := each.strip())]
        if "model" in said:
            problem = f"--score {score} names a column for each model; leave --model out"
            raise ConfigError("verdict", [problem])
    exact = {name.lower() for name in names}
    is_long = any(exact & {*NAMES[role]} for role in ("score", "model", "rank"))
    if not several and (is_long or table.model is not None or said.keys() & {"score", "model"}):
        return sheet, Sheet(sheet.rows)
    known = [name for role, found in roles.items() if role != "score" for name in found]
    return sheet, one_score_a_row(table.name, sheet.rows, several, NAMES["score"], known, item)


def _columns_of(rows: Sequence[RawRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.content))


def _with_points(row: RawRow, column: str) -> RawRow:
    """The row with its score's decimals behind a point."""
    cell = row.content.get(column)
    if not isinstance(cell, str):
        return row
    return RawRow(row.place, {**row.content, column: with_decimal_point(cell)})


def _candidates(role: str, names: Sequence[str]) -> list[str]:
    """The columns that a role's names fit, or else the ends of their names."""
    place = {name.lower(): name for name in names}
    by_end = {name.lower().rpartition(".")[2]: name for name in names}
    known = NAMES[role]
    found = [place[name] for name in known if name in place]
    return found or [by_end[name] for name in known if name in by_end]


def find_columns(source: str, rows: Sequence[RawRow], said: Mapping[str, str]) -> dict[str, str]:
    """Role -> column of a table, for the roles that it has.

    Args:
        source: the table's name, for errors.
        rows: with cells by column.
        said: what a user says.

    Raises:
        DataError: a column that is said is not there, or several may be the score or the model.
    """
    names = _columns_of(rows)
    there = f"it has {quantities.listed(list(names)) or 'no columns'}"
    found: dict[str, str] = {}
    for role, column in said.items():
        if column not in names:
            hint = did_you_mean(column, names)
            raise DataError(
                f"{source} has no column {column!r}; {f'{hint} ' if hint else ''}{there}."
            )
        found[role] = column
    for role in NAMES:
        if role in found:
            continue
        left = [name for name in names if name not in found.values()]
        candidates = _candidates(role, left)
        if len(candidates) > 1 and role in _ONE_OF_SEVERAL:
            raise DataError(
                f"{source}: {quantities.listed(candidates)} may be the {role}; say which: "
                f"--{role} {candidates[0]}."
            )
        if candidates:
            found[role] = candidates[0]
    if "item" not in found and "prompt" in found:  # a question asked once of each model is one
        found["item"] = found["prompt"]
    if "score" not in found:
        scores = [name for name in score_columns(rows, names) if name not in found.values()]
        if 1 < len(scores) <= quantities.MOST_LISTED and "model" not in found:
            raise DataError(
                f"{source}: no column is recognised as the score; say which: --score COLUMN. If it "
                f"has a column for each model, name these: {scores_named(scores)}."
            )
    _refuse_means(source, rows, found)
    for role in ("item", "score"):
        if role not in found:
            raise DataError(
                f"{source}: no column is recognised as the {role}; say which: --{role} COLUMN; "
                f"{there}."
            )
    return found


def _refuse_means(source: str, rows: Sequence[RawRow], columns: Mapping[str, str]) -> None:
    """Refuse a table with one row for each model: nothing says how sure its means are."""
    by = [columns[role] for role in ("model", "rank", "seed", "task") if role in columns]
    settings = [tuple(shown(row.content.get(column)) for column in by) for row in rows]
    if by and "item" not in columns and len({*settings}) == len(settings):
        raise DataError(
            f"{source} has one row for each model: means, of which nobody knows how sure they are. "
            "A verdict needs a row for each item and model; lm_eval writes these with "
            "--log_samples."
        )


def _add(
    scorings: dict[tuple[TableModel, str], TableScores],
    described: dict[str, dict[Any, dict[str, Any]]],
    table: ScoreTable,
    row: RawRow,
    columns: Mapping[str, str],
) -> None:
    """Put a row where it belongs."""
    model = _model(table, row, columns)
    task = _cell(row, columns["task"]) if "task" in columns else table.task
    item = _cell(row, columns["item"])
    metric = columns["score"].rpartition(".")[2]
    scoring = scorings.setdefault((model, task), TableScores(model, task, metric, {}))
    if item in scoring.items:
        before = scoring.items[item].place
        raise DataError(
            f"{row.place}: item {shown(item)} of model {model.label!r} on "
            f"{quantities.shortened(task)} stands in {before} too. Keep one, or say what tells "
            "them apart: a column of the seed or of the task."
        )
    texts = {role: row.content.get(columns[role]) for role in _TEXTS if role in columns}
    scoring.items[item] = Item(row.place, answered(metric, _score(row, columns), **texts))
    own = {column for role, column in columns.items() if role not in _TEXTS}
    document = {name: value for name, value in row.content.items() if name not in own}
    document["item"] = item
    # what every model's row says alike describes the item: it is not a part of an answer
    known = described.setdefault(task, {}).setdefault(item, dict(document))
    for name in [name for name, value in known.items() if document.get(name) != value]:
        del known[name]


def _model(table: ScoreTable, row: RawRow, columns: Mapping[str, str]) -> TableModel:
    cells = {role: row.content.get(columns[role]) for role in READ if role in columns}
    settings = settings_of(cells, row.place)
    if "model" in columns:
        return TableModel(_cell(row, columns["model"]), **settings)
    if "rank" in columns:
        rank = settings.get("rank")
        return TableModel("base" if not rank else f"r{rank}", **settings)
    if table.model is None:
        raise DataError(
            f"{table.name}: no column is recognised as the model; say which: --model COLUMN. It "
            f"has {quantities.listed(list(row.content))}."
        )
    return TableModel(table.model, **settings)


def _plain(value: Any) -> Any:
    """A cell as JSON has it: arrays are lists, and texts have whole characters."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, dict):
        cells = cast(dict[str, Any], value).items()
        return {whole_characters(name): _plain(cell) for name, cell in cells}
    if isinstance(value, list):
        return list(map(_plain, cast(list[Any], value)))
    if isinstance(value, bytes):  # as some tools write texts to Parquet
        return value.decode(errors="replace")
    return value.tolist() if hasattr(value, "tolist") else value


def _is_nothing(value: Any) -> bool:
    """Whether a cell is empty: NaN too is how data frames write that."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _cell(row: RawRow, column: str) -> str:
    """The name of an item, a model or a task: a text, a whole number, or yes and no."""
    value = row.content.get(column)
    where = f"{row.place}, column {quantities.shortened(column)}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of numbers with gaps is one of floats
    if _is_nothing(value):
        raise DataError(f"{where}: it is empty; give every row one.")
    if isinstance(value, list | dict):
        raise DataError(f"{where}: {shown(value)} is no name; give a text or a number.")
    return str(value).strip()


def _score(row: RawRow, columns: Mapping[str, str]) -> float:
    value = row.content.get(columns["score"])
    where = f"{row.place}, column {quantities.shortened(columns['score'])}"
    remedy = "Score the item, or leave it out of all models."
    if value is None or value == "":
        raise DataError(f"{where}: there is no score. {remedy}")
    try:
        return score_of(value)
    except ValueError as error:
        raise DataError(f"{where}: {error}. {remedy}") from error
