"""The numbers of a study for other programs, as CSV or Parquet: the tables of its report, whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rankwise.findings.models import summarise
from rankwise.integrations.exported import Exported
from rankwise.records.files import write_atomically
from rankwise.records.folder import StudyFolder
from rankwise.report.cells import column_names, csv_text
from rankwise.report.tables import row_tables
from rankwise.study.conclusion import StudyOutcome, conclude


def study_rows(outcome: StudyOutcome) -> dict[str, list[dict[str, Any]]]:
    """The rows of the report's tables by name, all trained tasks together.

    The columns are those of the report's CSV files, behind ``train_task``.
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    for part in outcome.recommendation.by_train_task:
        results = outcome.results.of(part.train_task)
        for name, rows in row_tables(results, part, summarise(results, part)).items():
            tables.setdefault(name, []).extend({"train_task": part.train_task, **r} for r in rows)
    return tables


def export_csv(folder: StudyFolder, place: Path) -> list[Exported]:
    """Write every table as ``<name>.csv``; a cell is empty where nothing was measured.

    Args:
        folder: a finished study's.
        place: the folder to write into.

    Raises:
        RecordError: the study is not finished, or a record cannot be read.
        StorageError: a file cannot be written.
    """
    tables = study_rows(conclude(folder))
    contents = {f"{name}.csv": csv_text(rows) for name, rows in tables.items()}
    return _written(contents, place)


def export_parquet(folder: StudyFolder, place: Path) -> list[Exported]:
    """Write every table as ``<name>.parquet``; a cell is null where nothing was measured.

    Arguments and errors are those of ``export_csv``.
    """
    tables = study_rows(conclude(folder))
    contents = {f"{name}.parquet": _parquet(rows) for name, rows in tables.items()}
    return _written(contents, place)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row.get(name) for row in rows] for name in column_names(rows)}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def _written(contents: dict[str, str] | dict[str, bytes], place: Path) -> list[Exported]:
    for name, content in contents.items():
        write_atomically(place / name, content)
    return [Exported(Path(name).stem, place / name) for name in contents]
