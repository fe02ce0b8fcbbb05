"""What an export of a study is made of, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rankwise.records.folder import StudyFolder
from rankwise.records.reading import read_results
from rankwise.records.results import ModelResults
from rankwise.records.study import StudyRecord


class Exported(NamedTuple):
    """A file of an export.

    Attributes:
        name: of the model, run or table that is in it.
        file: that was written.
        remarks: what it does not say, one sentence each.
        samples_files: that were written beside it, with a model's items.
    """

    name: str
    file: Path
    remarks: tuple[str, ...] = ()
    samples_files: tuple[Path, ...] = ()

    def moved(self, source: Path, target: Path) -> Exported:
        """The same files in another folder."""
        file, *samples = (
            target / path.relative_to(source) for path in (self.file, *self.samples_files)
        )
        return self._replace(file=file, samples_files=tuple(samples))


def export_models(
    folder: StudyFolder, place: Path, write: Callable[[StudyRecord, ModelResults, Path], Exported]
) -> list[Exported]:
    """Write the base and the trained runs of a finished study, on the tasks that decide.

    The other tasks (trained rows, tasks in the training format) are how a study looks at itself.

    Args:
        folder: the study's.
        place: the folder to write into.
        write: writes one model of the study into a folder.

    Raises:
        RecordError: the study is not finished, or a record cannot be read.
        StorageError: a file cannot be written.
    """
    results = read_results(folder)
    by_relation = (names.values() for names in results.study.tasks.values())
    tasks = {task for relations in by_relation for names in relations for task in names}
    trained = [model for model in results.runs if model.run and model.run.status == "trained"]
    models = [model.limited_to(tasks) for model in (results.base, *trained)]
    return [write(results.study, model, place) for model in models]
