"""What of a study folder is not as it was written, and what it takes to make it again.

Files that are not to be used any more go into ``quarantine/``, with the reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rankwise.errors import NewerRecordError, RecordError
from rankwise.findings.study import StudyFindings
from rankwise.records.base import Record
from rankwise.records.deployment import FormRecord
from rankwise.records.files import (
    FileDigest,
    storage_error,
    without_remedy,
    write_atomically,
    writing,
)
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.forms import model_in_form
from rankwise.records.heads import TaskHeadEffects
from rankwise.records.judgement import StudyLooks
from rankwise.records.names import samples_beside
from rankwise.records.own_texts import OwnTexts
from rankwise.records.provenance import AcceptedStacks
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.repair_scores import RepairDivergences, RepairScores
from rankwise.records.repairs import AdapterRepair
from rankwise.records.search import SearchRecord
from rankwise.records.study import RunRecord, StageFailure, StudyRecord, TaskEvaluation
from rankwise.study.observer import Teller
from rankwise.study.stages.graph import KINDS


class Damage(NamedTuple):
    """A file that is not as it was written.

    Attributes:
        path: the file.
        problem: what is wrong with it, in words.
        made_by: the work that made it, in words: "training RUN", "scoring base on arc_easy".
        spoils: what is to be set aside, so that the work is done again.
    """

    path: Path
    problem: str
    made_by: str
    spoils: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{self.path} {self.problem}; it was made by {self.made_by}"


def find_damage(
    folder: StudyFolder, models: Sequence[str] | None = None, *, thorough: bool = False
) -> list[Damage]:
    """Every record that is unreadable or another model's, and files that are not as recorded.

    Args:
        folder: of a study.
        models: the runs to look at, besides the base; None: all that are there.
        thorough: read every file; otherwise one that was checked before is read again only if the
            system says that it was written since.

    Raises:
        NewerRecordError: a newer version of rankwise wrote a record.
    """
    if models is None:
        runs = folder.model_folder("_").parent
        models = sorted(path.name for path in runs.iterdir()) if runs.is_dir() else []
    inspector = _Inspector(folder, thorough)
    damages = list(inspector.of_study())
    for model in (BASE, *models):
        damages += inspector.of_model(model)
    folder.checked.save()
    return damages


def set_aside(folder: StudyFolder, paths: Sequence[Path], why: str) -> Path:
    """Move files and folders of a study into a new folder below ``quarantine/``.

    Args:
        folder: of the study.
        paths: what to move; keeps its place below the new folder.
        why: written beside them.

    Returns:
        The new folder.

    Raises:
        StorageError: they cannot be moved.
    """
    quarantine = folder.root / "quarantine"
    with writing(quarantine):
        number = 1
        while True:
            target = quarantine / f"{number:03d}"
            try:
                target.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                break
    write_atomically(target / "why.txt", f"{why}\n")
    for path in paths:
        if path.exists() and path.is_relative_to(folder.root):
            moved = target / path.relative_to(folder.root)
            try:
                moved.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, moved)  # also where ``runs`` is a link to another disk
            except OSError as error:
                raise storage_error(moved, error) from error
    return target


def set_damaged_aside(folder: StudyFolder, damages: Sequence[Damage], tell: Teller) -> None:
    """Move what is damaged into quarantine, so that it is made again."""
    if not damages:
        return
    spoils = dict.fromkeys(path for damage in damages for path in damage.spoils)
    place = set_aside(folder, list(spoils), "\n".join(map(str, damages)))
    for damage in damages:
        run = damage.path.parent.name
        if damage.path == folder.metrics_file(run):  # the weights stay, without losses
            record = folder.read(folder.run_file(run), RunRecord)
            folder.write(folder.run_file(run), record.model_copy(update={"metrics": None}))
        tell.noted(f"{damage}: moved to {place}")


def models_of(study: StudyRecord, folder: StudyFolder) -> list[str]:
    """The names of a study's runs, and of what else was trained in its folder."""
    there = folder.model_folder("_").parent
    names = [model.name for model in study.models]
    if study.config.is_searched and there.is_dir():  # a search may have come further than the plan
        names += sorted(path.name for path in there.iterdir())
    return list(dict.fromkeys(names))


def records_of_study(folder: StudyFolder) -> list[tuple[Path, type[Record], str]]:
    """The records of a study as a whole besides its plan, and the work that makes each."""
    return [
        (folder.looks_file, StudyLooks, "judging the study; looks are counted from one again"),
        (folder.search_file, SearchRecord, "searching; it is decided again"),
        (folder.stacks_file, AcceptedStacks, "accepting another stack; it is asked for again"),
        (folder.own_texts_file, OwnTexts, "training; the base writes its texts again"),
        (folder.recommendation_file, StudyRecommendation, "judging the study"),
        (folder.findings_file, StudyFindings, "judging the study"),
    ]


def records_of_repairs(
    folder: StudyFolder, model: str
) -> Iterator[tuple[Path, type[Record], str, tuple[Path, ...]]]:
    """What was found by intervening on a model and repairing it: no stage makes these.

    With each the work that makes it, and what goes with it where it is damaged.
    """
    for path in folder.head_effects_files(model):
        yield path, TaskHeadEffects, f"intervening on the heads of {model}", (path,)
    for path in sorted(folder.repair_scores_file(model, "_").parent.glob("*.json")):
        yield path, RepairScores, f"scoring repairs of {model}", (path,)
    path = folder.repair_divergences_file(model)
    yield path, RepairDivergences, f"comparing repairs of {model}", (path,)
    path = folder.adapter_repair_file(model)
    again = f"repairing {model} (`rankwise repair` makes it again)"
    yield path, AdapterRepair, again, (path, folder.repaired_adapter_folder(model))


class _Inspector:
    """Reads a folder's records, and compares files with them."""

    def __init__(self, folder: StudyFolder, thorough: bool) -> None:
        self._folder, self._thorough = folder, thorough

    def of_study(self) -> Iterator[Damage]:
        folder = self._folder
        failures = sorted(folder.failures_folder.glob("*.json"))
        for path, kind, made_by in (
            (folder.study_file, StudyRecord, "planning the study"),
            *records_of_study(folder),
            *((path, StageFailure, "a stage that failed") for path in failures),
        ):
            yield from self._record(path, kind, made_by)

    def of_model(self, model: str) -> Iterator[Damage]:
        """Damage in a model's folder; where its training is damaged, all of it goes."""
        folder = self._folder
        place, run = folder.model_folder(model), folder.run_file(model)
        if model != BASE:
            training = list(self._record(run, RunRecord, f"training {model}", model, (place,)))
            yield from training
            if training:
                return
            record, losses = folder.read_if_there(run, RunRecord), folder.metrics_file(model)
            misfit = record and record.metrics and self._misfit(losses, record.metrics)
            if misfit:
                yield Damage(losses, misfit, f"training {model}, whose weights stay", (losses,))
        for kind in KINDS:
            for path, made_by, spoils in kind.written(folder, model):
                yield from self._record(path, kind.record, made_by, model, spoils)
        for own in folder.models_in_forms(model):
            yield from self.of_model(own)
        for path, kind, made_by, spoils in records_of_repairs(folder, model):
            yield from self._record(path, kind, made_by, model, spoils)

    def _record(
        self,
        path: Path,
        kind: type[Record],
        made_by: str,
        model: str | None = None,
        spoils: tuple[Path, ...] = (),
    ) -> Iterator[Damage]:
        """Damage of a record, if it is there, and of the files that it stands on."""
        if not path.exists():
            return
        try:
            record = self._folder.read(path, kind)
        except NewerRecordError:
            raise
        except RecordError as error:
            reason = without_remedy(error).removeprefix(f"{path} ")
            yield Damage(path, reason, made_by, spoils or (path,))
            return
        owner, files = self._claims(path, record)
        if model is not None and owner != model:
            yield Damage(path, f"is of {owner}", made_by, spoils or (path,))
            return
        for file, digest in files.items():
            misfit = self._misfit(file, digest)
            if misfit is not None:
                yield Damage(file, misfit, made_by, spoils or (path,))

    def _claims(self, path: Path, record: Record) -> tuple[str | None, dict[Path, FileDigest]]:
        """The model that a record is of, by what it says, and the files that it stands on."""
        match record:
            case RunRecord(planned=planned):
                return planned.name, self._folder.files_of(planned.name, record.files)
            case AdapterRepair():
                return record.model, self._folder.files_of(record.model, record.files)
            case TaskEvaluation(samples=FileDigest() as samples):
                return record.model, {samples_beside(path): samples}
            case FormRecord():
                return model_in_form(record.model, record.form), {}
            case _:
                return getattr(record, "model", None), {}

    def _misfit(self, file: Path, digest: FileDigest) -> str | None:
        return self._folder.checked.misfit(file, digest, thorough=self._thorough)
