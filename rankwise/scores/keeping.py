"""A scored study in a folder of the user's: files of others there stay, or are refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from rankwise.errors import ConfigError
from rankwise.records.files import unless_damaged
from rankwise.records.folder import StudyFolder
from rankwise.records.outputs import IN_THE_WAY, output_folder, refuse_foreign
from rankwise.records.study import StudyRecord
from rankwise.scores.study import ScoredStudy

_JUDGED = ("recommendation.json", "findings.json")
_RECORDS = ("study.json", "looks.json", *_JUDGED)
"""``rankwise verdict DIR`` writes them again."""

_MODELS = ("base", "runs")


@contextlib.contextmanager
def kept(
    scored: ScoredStudy, folder: StudyFolder, *, overwrite: bool = False
) -> Generator[StudyFolder]:
    """Yields the study in a temporary folder, to be judged; then all of it is moved.

    Args:
        scored: what to keep.
        folder: where. Of earlier scores there, what rankwise wrote and nobody changed makes room.
        overwrite: replace other files that are in the way.

    Raises:
        ConfigError: the folder has a study that trained its models, or other files are in the way;
            nothing was changed.
        NewerRecordError: a newer version of rankwise made the folder.
        StudyLockedError: another process is working on it.
        StorageError: it cannot be written.
    """
    _refuse_others(folder, overwrite=overwrite)
    earlier = (*_JUDGED, *(f"{name}/" for name in _MODELS))
    moved = output_folder(folder.root, overwrite=overwrite, replaces=earlier, records=_RECORDS)
    with folder.lock(), moved as temporary:
        new = StudyFolder(temporary)
        with unless_damaged():
            if (looks := folder.read_looks()) is not None:
                new.write(new.looks_file, looks)
        for run in scored.runs:
            new.write(new.run_file(run.planned.name), run)
        for by_task in scored.evaluations.values():
            for record, lines in by_task.values():
                new.write_evaluation(record, lines)
        new.write(new.study_file, scored.record)
        yield new


def _refuse_others(folder: StudyFolder, *, overwrite: bool) -> None:
    """Refuse a folder of another study, or in which files of the user's are in the way."""
    earlier = None
    with unless_damaged():
        earlier = folder.read_if_there(folder.study_file, StudyRecord)
    if earlier is not None and earlier.scores is None:
        problem = f"--output: {folder.root} has a study that trained its models; write elsewhere"
        raise ConfigError("verdict", [problem])
    # they would be read as this study's, and it has none
    others = (folder.stacks_file, folder.search_file, folder.own_texts_file, folder.failures_folder)
    refuse_foreign(folder.root, [path.name for path in others], remedy=IN_THE_WAY)
    found = [*_RECORDS, folder.report_file.name]
    if earlier is None:  # beside earlier scores, the user's notes may lie in these folders
        found += [
            path.relative_to(folder.root).as_posix()
            for name in _MODELS
            for path in sorted((folder.root / name).rglob("*"))
            if path.is_symlink() or not path.is_dir()
        ]
    refuse_foreign(folder.root, found, overwrite=overwrite, records=_RECORDS)
