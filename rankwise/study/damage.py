"""What of a study folder is not as it was written, and what it takes to make it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rankwise.errors import NewerRecordError, RecordError
from rankwise.findings.study import StudyFindings
from rankwise.records.base import Record
from rankwise.records.deployment import FormRecord
from rankwise.records.files import FileDigest, without_remedy
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.forms import model_in_form
from rankwise.records.heads import TaskHeadEffects
from rankwise.records.judgement import StudyLooks
from rankwise.records.names import samples_beside
from rankwise.records.own_texts import OwnTexts
from rankwise.records.provenance import AcceptedStacks
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.repair_scores import RepairScores
from rankwise.records.repairs import AdapterRepair
from rankwise.records.search import SearchRecord
from rankwise.records.study import RunRecord, StageFailure, StudyRecord, TaskEvaluation
from rankwise.study.observer import Teller
from rankwise.study.quarantine import set_aside
from rankwise.study.stages.graph import KINDS
from rankwise.study.stages.stage import Written


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
    misfit = partial(folder.checked.misfit, thorough=thorough)
    failures = sorted(folder.failures_folder.glob("*.json"))
    of_study = (
        Written(folder.study_file, StudyRecord, "planning the study"),
        *records_of_study(folder),
        *(Written(path, StageFailure, "a stage that failed") for path in failures),
    )
    damages = [damage for each in of_study for damage in _of_record(folder, misfit, each)]
    for model in (BASE, *models):
        damages += _of_model(folder, misfit, model)
    folder.checked.save()
    return damages


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


def records_of_study(folder: StudyFolder) -> list[Written]:
    """The records of a study as a whole besides its plan."""
    again = "judging the study; looks are counted from one again"
    return [
        Written(folder.looks_file, StudyLooks, again),
        Written(folder.search_file, SearchRecord, "searching; it is decided again"),
        Written(
            folder.stacks_file, AcceptedStacks, "accepting another stack; it is asked for again"
        ),
        Written(folder.own_texts_file, OwnTexts, "training; the base writes its texts again"),
        Written(folder.recommendation_file, StudyRecommendation, "judging the study"),
        Written(folder.findings_file, StudyFindings, "judging the study"),
    ]


def records_of_repairs(folder: StudyFolder, model: str) -> Iterator[Written]:
    """What was found by intervening on a model and repairing it: no stage makes these."""
    for path in folder.head_effects_files(model):
        yield Written(path, TaskHeadEffects, f"intervening on the heads of {model}")
    for path in sorted(folder.repair_scores_file(model, "_").parent.glob("*.json")):
        yield Written(path, RepairScores, f"scoring repairs of {model}")
    path = folder.adapter_repair_file(model)
    again = f"repairing {model} (`rankwise repair` makes it again)"
    yield Written(path, AdapterRepair, again, (path, folder.repaired_adapter_folder(model)))


Misfit = Callable[[Path, FileDigest], str | None]
"""What tells a file from its digest, in words."""


def _of_model(folder: StudyFolder, misfit: Misfit, model: str) -> Iterator[Damage]:
    """Damage in a model's folder; where its training is damaged, all of it goes."""
    if model != BASE:
        place, run = folder.model_folder(model), folder.run_file(model)
        training = Written(run, RunRecord, f"training {model}", (place,))
        damages = list(_of_record(folder, misfit, training, model))
        yield from damages
        if damages:
            return
        record, losses = folder.read_if_there(run, RunRecord), folder.metrics_file(model)
        problem = record and record.metrics and misfit(losses, record.metrics)
        if problem:
            yield Damage(losses, problem, f"training {model}, whose weights stay", (losses,))
    for kind in KINDS:
        for written in kind.written(folder, model):
            yield from _of_record(folder, misfit, written, model)
    for own in folder.models_in_forms(model):
        yield from _of_model(folder, misfit, own)
    for written in records_of_repairs(folder, model):
        yield from _of_record(folder, misfit, written, model)


def _of_record(
    folder: StudyFolder, misfit: Misfit, written: Written, model: str | None = None
) -> Iterator[Damage]:
    """Damage of a record, if it is there, and of the files that it stands on."""
    path = written.path
    damage = partial(Damage, made_by=written.made_by, spoils=written.spoils or (path,))
    if not path.exists():
        return
    try:
        record = folder.read(path, written.kind)
    except NewerRecordError:
        raise
    except RecordError as error:
        yield damage(path, without_remedy(error).removeprefix(f"{path} "))
        return
    owner, files = _claims(folder, path, record)
    if model is not None and owner != model:
        yield damage(path, f"is of {owner}")
        return
    for file, digest in files.items():
        problem = misfit(file, digest)
        if problem is not None:
            yield damage(file, problem)


def _claims(
    folder: StudyFolder, path: Path, record: Record
) -> tuple[str | None, dict[Path, FileDigest]]:
    """The model that a record is of, by what it says, and the files that it stands on."""
    match record:
        case RunRecord(planned=planned):
            return planned.name, folder.files_of(planned.name, record.files)
        case AdapterRepair():
            return record.model, folder.files_of(record.model, record.files)
        case TaskEvaluation(samples=FileDigest() as samples):
            return record.model, {samples_beside(path): samples}
        case FormRecord():
            return model_in_form(record.model, record.form), {}
        case _:
            return getattr(record, "model", None), {}
