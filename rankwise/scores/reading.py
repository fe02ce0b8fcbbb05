"""Files of any kind that has scores of items, as what each model scored on each task."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import DataError
from rankwise.records.files import digest_of
from rankwise.records.grouping import grouped
from rankwise.records.lm_eval_samples import file_names, is_samples_file, read_compared, task_of
from rankwise.records.p_right import ACCURACY, P_RIGHT, option_nats
from rankwise.records.quantities import shortened
from rankwise.records.results import LOSS_METRIC
from rankwise.scores.asked import Asked
from rankwise.scores.lm_eval_folders import holds_samples, refuse_results, samples_in
from rankwise.scores.logs import log_scorings, read_log
from rankwise.scores.models import Given, Item, TableModel, TableScores
from rankwise.scores.tables import ScoreTable, table_scorings
from rankwise.tasks.row_files import RawRow, flat_row, read_raw_rows


def read_scores(paths: Sequence[Path], asked: Asked) -> Given:
    """What the files say: sample files of lm-eval, logs of Inspect or HELM, or tables.

    Args:
        paths: of one kind; a name with ``*`` stands for all files that it fits.
        asked: how they are read.

    Raises:
        DataError: a file cannot be read, is not there, or lacks what is needed.
        TaskError: sample files lack the metric or the filter.
        RecordError: sample files are not about the same items.
    """
    paths = list(_found(paths))
    if all(path.is_file() and is_samples_file(path) for path in paths):
        return samples_given(paths, asked)
    if all(path.is_dir() for path in paths) and any(map(holds_samples, paths)):
        found = samples_in(paths)
        names = {path: model.model for model in found.models for path in model.files}
        given = samples_given([*names], asked, names)
        given = given._replace(notes=(*found.notes, *given.notes))
        return given if found.has_order else given._replace(base=None)
    for path in paths:
        refuse_results(path)
    logs = [read_log(path) for path in paths]
    read = [log for log in logs if log is not None]
    if len(read) == len(paths):
        scorings = [log_scorings(log, asked.metric) for log in read]
        seen: dict[tuple[str, str], Path] = {}
        for log, scoring in zip(read, scorings, strict=True):
            key = scoring.model.name, scoring.task
            if key in seen:
                model, task = map(shortened, key)
                raise DataError(
                    f"{seen[key]} and {log.path} are both of {model} on {task}; give one."
                )
            seen[key] = log.path
        return Given(scorings, {str(log.path): log.sha256 for log in read})
    folder = next((path for path in paths if path.is_dir()), None)
    if folder is not None:
        raise DataError(f"{folder} is a folder; give its files, such as '{folder}/*.csv'.")
    if read:
        other = next(path for path, log in zip(paths, logs, strict=True) if log is None)
        for row in read_raw_rows(other).rows:
            if row.problem is not None:  # a log that was cut short
                raise DataError(f"{other} {row.place}: {row.problem}.")
        raise DataError(f"{read[0].path} is a log and {other} is none; give files of one kind.")
    raw = [read_raw_rows(path) for path in paths]
    tables = [ScoreTable(str(paths[0]), raw[0].rows, paths[0].stem)]
    if len(paths) > 1:
        named = zip(paths, file_names(paths), raw, strict=True)
        tables = [ScoreTable(str(path), each.rows, model=name) for path, name, each in named]
    scorings, columns, notes = table_scorings(tables, asked)
    files = {str(path): each.sha256 or "" for path, each in zip(paths, raw, strict=True)}
    return Given(scorings, files, columns, notes=notes)


def samples_given(
    paths: Sequence[Path], asked: Asked, names: Mapping[Path, str] | None = None
) -> Given:
    """What sample files of lm-eval say; the first file's model is the base.

    Args:
        paths: of the files.
        asked: how they are read.
        names: of the model of each file; None: they are told by the paths.

    Raises:
        DataError: a file cannot be read, or is given twice.
        TaskError: a file does not have the metric or the filter.
        RecordError: files of a task are not about the same items.
    """
    by_task = grouped((task_of(path) or "task", path) for path in paths)
    if names is None and len(by_task) == 1:
        names = dict(zip(paths, file_names(paths), strict=True))
    elif names is None:  # of several tasks, a model is the folder that has a file of each
        names = {path: path.resolve().parent.name for path in paths}
    scorings: list[TableScores] = []
    notes: list[str] = []
    for task, (base, *others) in by_task.items():
        compared = read_compared(base, others, asked.metric, asked.filter)
        notes += compared.notes
        for file in compared.files:
            lines = file.lines[compared.filter]
            has_options = all(len(option_nats(line)) > 1 for line in lines)
            is_rolling = all(item.is_rolling for item in file.filters[compared.filter])
            output_type = "multiple_choice" if has_options else "generate_until"
            if not has_options and is_rolling and compared.metric == LOSS_METRIC:
                output_type = "loglikelihood_rolling"
            scorings.append(
                TableScores(
                    TableModel(names[file.path]),
                    task,
                    ACCURACY if compared.metric == P_RIGHT else compared.metric,
                    {
                        line["doc_id"]: Item(
                            f"{file.path} doc_id {line['doc_id']}",
                            {**line, "filter": compared.filter},
                        )
                        for line in lines
                    },
                    unit=compared.unit,
                    higher_is_better=compared.higher_is_better,
                    filter=compared.filter,
                    output_type=output_type,
                    decides=compared.metric,
                )
            )
    files = {str(path): digest_of(path).sha256 for path in paths}
    return Given(scorings, files, base=names[paths[0]], notes=tuple(notes))


def rows_given(rows: Any, asked: Asked) -> Given:
    """Scores in memory: a list of dictionaries, or a data frame of pandas or polars.

    Raises:
        DataError: a row or a column is not what it has to be.
    """
    if hasattr(rows, "to_dicts"):  # polars
        rows = rows.to_dicts()
    elif hasattr(rows, "to_dict"):  # pandas, whose missing values are of several kinds
        if not rows.columns.is_unique:
            raise DataError("the table has two columns of one name. Rename one.")
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    if not isinstance(rows, Iterable):
        raise DataError(f"{type(rows).__name__} is not a table; give a data frame, rows or a path.")
    listed: list[Any] = list(rows)
    raw = [RawRow(f"row {number}", row) for number, row in enumerate(listed, 1)]
    scorings, columns, notes = table_scorings([ScoreTable("the table", raw)], asked)
    content = json.dumps([*map(flat_row, listed)], default=str)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return Given(scorings, {"the table": digest}, columns, notes=notes)


def _found(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if os.path.exists(path):  # a name may be too long to ask pathlib
            yield path
            continue
        if not glob.has_magic(str(path)):  # nor is it looked for on the Hub
            raise DataError(f"{path} does not exist. Check the path.")
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:
            raise DataError(f"no file is called {path}. Check the path.")
        yield from matches
