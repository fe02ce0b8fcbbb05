"""The files of a study that may go elsewhere: those that it writes, by name, and no links."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rankwise.errors import RecordError
from rankwise.records.base import FileRecord
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.names import samples_beside
from rankwise.records.study import StudyRecord, TaskEvaluation
from rankwise.study.damage import records_of_repairs, records_of_study
from rankwise.study.stages.graph import stages


class StudyFile(NamedTuple):
    """A file that a study has written.

    Attributes:
        path: of the file.
        kind: of the record; None: lines, of items or of steps.
        has_texts: of items, or what a model wrote.
    """

    path: Path
    kind: type[FileRecord] | None
    has_texts: bool


def study_files(folder: StudyFolder, study: StudyRecord) -> list[StudyFile]:
    """Everything that a study has written but weights, ``study.json`` and its report.

    Raises:
        RecordError: a file, or a folder on the way to it, is a link, or a file is a pipe.
    """
    records = [(path, kind) for path, kind, *_ in records_of_study(folder)]
    for stage in stages(study):
        for model in stage.models:
            records += stage.records_of(folder, model)
    for name in (BASE, *(model.name for model in study.models)):
        records += [(path, kind) for path, kind, *_ in records_of_repairs(folder, name)]
    found: list[StudyFile] = []
    for path, kind in records:
        found.append(StudyFile(path, kind, kind.has_texts))
        if kind is TaskEvaluation:
            found.append(StudyFile(samples_beside(path), None, has_texts=True))
    for model in study.models:
        found.append(StudyFile(folder.metrics_file(model.name), None, has_texts=False))
    refuse_links(folder, [folder.study_file, *(each.path for each in found)])
    there = [each for each in found if each.path.exists()]
    for each in there:
        if not each.path.is_file():
            raise RecordError(f"{each.path} is not a regular file. Take it out of the study.")
    return there


def refuse_links(folder: StudyFolder, paths: list[Path]) -> None:
    """Refuse to give away what lies elsewhere.

    Raises:
        RecordError: a file of the study, or a folder of it on the way there, is a link.
    """
    on_the_way = {
        part
        for path in paths
        for part in (path, *path.parents)
        if part.is_relative_to(folder.root) and part != folder.root
    }
    link = min((part for part in on_the_way if part.is_symlink()), default=None)
    if link is not None:
        raise RecordError(
            f"{link} is a link, and nothing outside the study is exported. Copy the study "
            "with what its links lead to (cp -rL), look at it, and give that folder."
        )
