"""Collections of studies: the one that comes with the package, and the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from rankwise.prediction.collected import CollectedStudy
from rankwise.records.files import read_record, write_record

SHIPPED = Path(__file__).parent / "studies"


def own_collection() -> Path:
    """The folder of the user's studies: ``RANKWISE_COLLECTION``, else in the user's data folder."""
    named = os.environ.get("RANKWISE_COLLECTION")
    return Path(named or Path(platformdirs.user_data_dir("rankwise")) / "collection")


def add_study(folder: Path, study: CollectedStudy) -> Path:
    """Write a study into a collection, in the place of an earlier record of it.

    What was measured for that record is kept.

    Raises:
        RecordError: a file of its name is there and is no such record.
        StorageError: it cannot be written there.
    """
    path = folder / study.file_name
    write_record(path, study.after(read_record(path, CollectedStudy)) if path.exists() else study)
    return path


def read_collection(*folders: Path) -> tuple[CollectedStudy, ...]:
    """Every study of some folders, each once, as the last folder has it.

    A folder that is not there has none. What one record of a study was measured for, all are.

    Raises:
        RecordError: a file is no such record.
    """
    found = dict[str, CollectedStudy]()
    for study in (study for folder in folders for study in _read(folder)):
        found[study.source] = study.after(found.get(study.source, study))
    return tuple(found.values())


def _read(folder: Path) -> Iterator[CollectedStudy]:
    for path in sorted(folder.glob("*.json")):
        yield read_record(path, CollectedStudy)
