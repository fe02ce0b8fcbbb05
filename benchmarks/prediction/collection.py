"""Collections of studies: the one in ``studies/``, and others."""

from __future__ import annotations

from pathlib import Path

from benchmarks.prediction.collected import CollectedStudy
from rankwise.errors import NewerRecordError, RecordError
from rankwise.records.files import read_record, without_remedy, write_record

SHIPPED = Path(__file__).parent / "studies"
SECOND = Path(__file__).parent / "second_studies"
"""Of another model (``benchmarks.prediction.second``); no predictor learns from them."""


def add_study(folder: Path, study: CollectedStudy) -> Path:
    """Write a study into a collection, in the place of an earlier record of it.

    What was measured for that record is kept.

    Raises:
        RecordError: a file of its name is there and is no such record, or is of another study: its
            runs, its training or its tasks in-domain are others.
        StorageError: it cannot be written there.
    """
    path = folder / study.file_name
    if path.exists():
        earlier = _read(path)
        if not study.extends(earlier):
            raise RecordError(
                f"{path} is a study of the same name with other runs, training or tasks, and would "
                "be lost. Give one of the two another `name` in its study file, or name another "
                "folder by --to."
            )
        study = study.after(earlier)
    write_record(path, study)
    return path


def read_collection(*folders: Path) -> tuple[CollectedStudy, ...]:
    """Every study of some folders, each once, as the record with the most runs has it.

    A folder that is not there has none. What one record of a study was measured for, all are.

    Raises:
        RecordError: a file is no such record.
    """
    found = list[CollectedStudy]()
    for study in (_read(path) for folder in folders for path in sorted(folder.glob("*.json"))):
        for place, earlier in enumerate(found):
            if study.extends(earlier):
                found[place] = study.after(earlier)
                break
            if earlier.extends(study):
                found[place] = earlier.after(study)
                break
        else:
            found.append(study)
    return tuple(found)


def _read(path: Path) -> CollectedStudy:
    try:
        return read_record(path, CollectedStudy)
    except NewerRecordError:
        raise
    except RecordError as error:
        raise RecordError(
            f"{without_remedy(error)}. Remove it from the collection, and collect the study again."
        ) from error
