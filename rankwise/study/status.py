"""What of a study is done, read from its folder alone and without torch."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from rankwise.records import quantities
from rankwise.records.files import read_regular
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.leases import LEASE_SECONDS, Watch
from rankwise.records.progress import StudyProgress
from rankwise.records.study import PlannedRun, StageFailure, StudyRecord
from rankwise.study.damage import find_damage, models_of
from rankwise.study.stages import (
    AnalyseWeights,
    CheckForm,
    CompareDistributions,
    CompareHeads,
    CompareWithBase,
    ObserveBehaviour,
    Score,
    Stage,
    model_name,
    stages,
)


class ModelStatus(NamedTuple):
    """One model of a study: the base, or a run.

    Attributes:
        model: its name.
        training: "trained", "diverged", "started", "not started", or "none needed" for the base.
        num_steps_done: optimizer steps taken.
        num_steps: optimizer steps planned.
        tasks_scored: the tasks that it is scored on under the study's present settings.
        tasks_left: the tasks that it is still to be scored on.
        divergence_left: whether it is still to be compared with full fine-tuning.
        gauges_left: whether it is still to be compared with the base, token by token.
        behaviour_left: whether it is still to answer the prompts of behaviour.
        spectra_left: whether its weights are still to be analysed.
        heads_left: whether its attention heads are still to be compared with the base's.
        forms_left: the forms that it is still to be checked in, where the verdict names it.
        failed: the stages of it that failed when they were last tried, and why.
        damaged: its files that are not as they were written; running the study makes them again.
    """

    model: str
    training: str
    num_steps_done: int
    num_steps: int
    tasks_scored: tuple[str, ...]
    tasks_left: tuple[str, ...]
    divergence_left: bool
    gauges_left: bool
    behaviour_left: bool
    spectra_left: bool
    heads_left: bool
    forms_left: tuple[str, ...]
    failed: tuple[str, ...]
    damaged: tuple[str, ...]

    @property
    def left(self) -> tuple[str, ...]:
        """What is still to be done after training, in words."""
        others = {
            "divergence": self.divergence_left,
            "gauges": self.gauges_left,
            "behaviour": self.behaviour_left,
            "heads": self.heads_left,
            "spectra": self.spectra_left,
        }
        return (
            *self.tasks_left,
            *(name for name, is_left in others.items() if is_left),
            *self.forms_left,
        )


class WorkerStatus(NamedTuple):
    """A process that works on a study.

    Attributes:
        worker: its name: host, process and a random number.
        model: that it works on, as of ``Stage.model``; None: it has no unit.
        stage: the task that it scores the model on, or what else it does.
        progress: what it last told; None: it has no unit.
    """

    worker: str
    model: str | None
    stage: str | None
    progress: StudyProgress | None

    def __str__(self) -> str:
        progress = self.progress
        if progress is None:
            return f"worker {self.worker}: has nothing to do at the moment"
        speed = progress.tokens_per_second
        parts = [
            f"worker {self.worker}: {self.model}: {self.stage} is "
            f"{quantities.share(progress.share_done)} done",
            *([] if speed is None else [f"{quantities.count(round(speed))} tokens per second"]),
            f"peak memory {quantities.memory(progress.peak_memory_bytes)}",
        ]
        age = datetime.now(UTC) - datetime.fromisoformat(progress.told_at)
        return f"{', '.join(parts)}; told {quantities.seconds(age.total_seconds())} ago"


def worker_status(folder: StudyFolder, watch: Watch | None = None) -> list[WorkerStatus]:
    """The workers of a study that are there, and what each is at.

    Args:
        folder: of the study.
        watch: that has seen them before; without one, a worker of another machine counts as there
            until its files are gone.

    Raises:
        RecordError: the folder has no study, or its plan cannot be read.
    """
    by_id = {stage.id: stage for stage in stages(folder.read_study())}
    found: list[WorkerStatus] = []
    for name, progress in folder.workers(watch or Watch(LEASE_SECONDS)):
        stage = None if progress is None else by_id.get(progress.stage)
        if stage is None:
            found.append(WorkerStatus(name, None, None, None))
        else:
            found.append(WorkerStatus(name, stage.model, stage.name, progress))
    return found


def study_status(folder: StudyFolder) -> list[ModelStatus]:
    """One line per model, from the stages that ``rankwise run`` would go through.

    What is damaged counts as left.

    Raises:
        RecordError: the folder has no study, or its plan cannot be read.
    """
    study = folder.read_study()
    graph = stages(study)
    damages = find_damage(folder, models_of(study, folder))
    spoilt = {path for damage in damages for path in damage.spoils}
    intact = folder.without(spoilt)
    todo: dict[str, list[Stage]] = {BASE: [], **{run.name: [] for run in study.models}}
    for stage in graph:
        for model in stage.left(intact):
            todo[model_name(model)].append(stage)
    failures = intact.failures()
    lines: list[ModelStatus] = []
    for model in (None, *study.models):
        name = model_name(model)
        place = folder.model_folder(name)
        damaged = [str(damage) for damage in damages if damage.path.is_relative_to(place)]
        lines.append(_line(intact, study, model, todo[name], failures, damaged))
    return lines


def what_is_left(folder: StudyFolder, study: StudyRecord) -> list[str]:
    """What a plan expects and the folder has not, or of other settings: not made yet, or gone."""
    left = [
        f"{stage.name} of {model_name(m)}" for stage in stages(study) for m in stage.left(folder)
    ]
    verdict = (folder.looks_file, folder.recommendation_file, folder.findings_file)
    expected = (*verdict, folder.search_file) if study.config.is_searched else verdict
    return left + [f"{path.name} of the study" for path in expected if not folder.has(path)]


def _line(
    folder: StudyFolder,
    study: StudyRecord,
    model: PlannedRun | None,
    todo: list[Stage],
    failures: tuple[StageFailure, ...],
    damaged: list[str],
) -> ModelStatus:
    name, training, done = BASE, "none needed", 0
    tasks = study.scored_tasks()
    if model is not None:
        name, tasks = model.name, study.tasks_of(model)
        training, done = _training(folder, model)
        if training == "diverged":
            tasks = ()
    tasks_left = {stage.task for stage in todo if isinstance(stage, Score)}
    ids_left = {stage.id for stage in todo}
    return ModelStatus(
        model=name,
        training=training,
        num_steps_done=done,
        num_steps=0 if model is None else model.num_steps,
        tasks_scored=tuple(task for task in tasks if task not in tasks_left),
        tasks_left=tuple(task for task in tasks if task in tasks_left),
        divergence_left=any(isinstance(stage, CompareDistributions) for stage in todo),
        gauges_left=any(isinstance(stage, CompareWithBase) for stage in todo),
        behaviour_left=any(isinstance(stage, ObserveBehaviour) for stage in todo),
        spectra_left=any(isinstance(stage, AnalyseWeights) for stage in todo),
        heads_left=any(isinstance(stage, CompareHeads) for stage in todo),
        forms_left=tuple(stage.form for stage in todo if isinstance(stage, CheckForm)),
        failed=tuple(
            f"{failure.what}: {failure.message}"
            for failure in failures
            if failure.stage in ids_left
        ),
        damaged=tuple(damaged),
    )


def _training(folder: StudyFolder, run: PlannedRun) -> tuple[str, int]:
    """How far the training of a run is, and its steps so far."""
    record = folder.finished_run(run)
    if record is not None:
        return record.status, record.num_steps
    metrics = folder.metrics_file(run.name)
    if folder.has(metrics):
        return "started", read_regular(metrics).count(b"\n")
    return "not started", 0
