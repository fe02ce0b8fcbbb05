"""Files of any kind that has scores of items, as what each model scored on each task."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import DataError
from rankwise.records.lm_eval_samples import file_names, is_samples_file
from rankwise.scores.asked import Asked
from rankwise.scores.lm_eval import samples_given
from rankwise.scores.logs import log_scorings, read_log
from rankwise.scores.scoring import Given
from rankwise.scores.tables import Table, table_scorings
from rankwise.tasks.row_files import RawRow, read_raw_rows


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
    paths = _found(paths)
    if all(path.is_file() and is_samples_file(path) for path in paths):
        return samples_given(paths, asked)
    logs = [read_log(path) for path in paths]
    read = [log for log in logs if log is not None]
    if len(read) == len(paths):
        scorings = [log_scorings(log, asked.metric) for log in read]
        seen: dict[tuple[str, str], Path] = {}
        for log, scoring in zip(read, scorings, strict=True):
            key = scoring.model.name, scoring.task
            if key in seen:
                raise DataError(
                    f"{seen[key]} and {log.path} are both of {key[0]} on {key[1]}; give one."
                )
            seen[key] = log.path
        return Given(scorings, {str(log.path): log.sha256 for log in read})
    folder = next((path for path in paths if path.is_dir()), None)
    if folder is not None:
        raise DataError(f"{folder} is a folder; give its files, such as '{folder}/*.csv'.")
    if read:
        other = next(path for path, log in zip(paths, logs, strict=True) if log is None)
        raise DataError(f"{read[0].path} is a log and {other} is none; give files of one kind.")
    raw = [read_raw_rows(path) for path in paths]
    tables = [Table(str(paths[0]), raw[0].rows, paths[0].stem)]
    if len(paths) > 1:
        named = zip(paths, file_names(paths), raw, strict=True)
        tables = [Table(str(path), each.rows, model=name) for path, name, each in named]
    scorings, columns = table_scorings(tables, asked)
    files = {str(path): each.sha256 or "" for path, each in zip(paths, raw, strict=True)}
    return Given(scorings, files, columns)


def rows_given(rows: Any, asked: Asked) -> Given:
    """Scores in memory: a list of dictionaries, or a data frame of pandas or polars.

    Raises:
        DataError: a row or a column is not what it has to be.
    """
    if hasattr(rows, "to_dicts"):  # polars
        rows = rows.to_dicts()
    elif hasattr(rows, "to_dict"):  # pandas
        rows = rows.to_dict("records")
    if not isinstance(rows, Iterable):
        raise DataError(f"{type(rows).__name__} is not a table; give a data frame, rows or a path.")
    listed: list[Any] = list(rows)
    raw = [RawRow(f"row {number}", row) for number, row in enumerate(listed, 1)]
    scorings, columns = table_scorings([Table("the table", raw)], asked)
    digest = hashlib.sha256(json.dumps(listed, default=str).encode()).hexdigest()
    return Given(scorings, {"the table": digest}, columns)


def _found(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if os.path.exists(path):  # a name may be too long to ask pathlib
            found.append(path)
            continue
        if not glob.has_magic(str(path)):  # nor is it looked for on the Hub
            raise DataError(f"{path} does not exist. Check the path.")
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:
            raise DataError(f"no file is called {path}. Check the path.")
        found += matches
    return found
