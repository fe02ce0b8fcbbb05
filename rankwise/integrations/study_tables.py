"""The numbers of a study for other programs, as CSV or Parquet: the tables of its report, whole."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from rankwise.findings.rows import Row, column_names
from rankwise.findings.tables import study_tables
from rankwise.integrations.exported import Exported
from rankwise.records.files import write_atomically
from rankwise.records.folder import StudyFolder
from rankwise.study.conclusion import conclude


def export_tables(
    folder: StudyFolder, place: Path, *, suffix: str, encode: Callable[[list[Row]], str | bytes]
) -> list[Exported]:
    """Write every table as ``<name>.<suffix>``; a cell is empty where nothing was measured.

    Args:
        folder: a finished study's.
        place: the folder to write into.
        suffix: of the files.
        encode: the rows of a table as the content of its file.

    Raises:
        RecordError: the study is not finished, or a record cannot be read.
        StorageError: a file cannot be written.
    """
    tables = study_tables(*conclude(folder))
    exported = [Exported(name, place / f"{name}.{suffix}") for name in tables]
    for each, rows in zip(exported, tables.values(), strict=True):
        write_atomically(each.file, encode(rows))
    return exported


def parquet_bytes(rows: list[Row]) -> bytes:
    """Rows as a Parquet file; a cell is null where nothing was measured."""
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row.get(name) for row in rows] for name in column_names(rows)}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()
