"""The stages of a study: what there is to do, in which order, and what of it is done.

A study is a graph of stages. It is made from ``study.json`` alone and needs no torch, so that
``rankwise status`` on a laptop, ``rankwise run`` and a worker elsewhere walk over the same graph.
What does a stage is in :mod:`rankwise.study.work`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from rankwise.records.base import Record
from rankwise.records.behaviour import Behaviour
from rankwise.records.deployment import FormRecord
from rankwise.records.fingerprints import (
    behaviour_fingerprint,
    divergence_fingerprint,
    fingerprint,
    form_fingerprint,
    gauges_fingerprint,
    head_changes_fingerprint,
    scoring_fingerprint,
    spectra_fingerprint,
)
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.forms import model_in_form
from rankwise.records.heads import HeadChanges
from rankwise.records.results import Divergence
from rankwise.records.spectra import SpectraRecord
from rankwise.records.study import (
    PlannedPass,
    PlannedRun,
    RunRecord,
    StageRecord,
    StudyRecord,
    TaskEvaluation,
)
from rankwise.study.times import ANALYSIS_WORK, furthest, training_work

TOKEN_BYTES = 8
"""Of a samples file per scored token: its text, and the answers beside it."""

Model = PlannedRun | None
"""A model of a study: a run, or the untouched base (None)."""


@dataclass(frozen=True)
class Stage(ABC):
    """One piece of a study that is done as a whole and leaves a record for each of its models."""

    model: str
    """What the user sees: "base", a run's name, or "pass 1: 9 adapters"."""
    models: tuple[Model, ...]
    """The models that the stage writes records of."""
    fingerprints: tuple[str, ...]
    """The fingerprint that the record of each model must have, in the order of ``models``."""
    needs: tuple[str, ...]
    """The ids of the stages whose records it reads."""
    work: float
    """Scored tokens, or what takes as long; for the time left and to share work out."""
    memory_bytes: int
    """What it holds at once: of training the planned peak, else the weights of its models."""
    disk_bytes: int
    """What it leaves on the disk, about."""

    kind: ClassVar[str]
    record: ClassVar[type[Record]]

    @cached_property
    def id(self) -> str:
        """The same however often the study is planned: what it does, and to which models."""
        return f"{self.kind}-{fingerprint([self.name, *self.fingerprints])[:12]}"

    @property
    def name(self) -> str:
        """What the stage does, in a word or two."""
        return self.kind

    @property
    def num_tokens(self) -> int | None:
        """Tokens that are scored or trained on for the work; None: it reads no tokens."""
        return round(self.work)

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """The models that are runs."""
        return tuple(run for run in self.models if run is not None)

    @abstractmethod
    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        """Where the record of a model is written."""

    def fingerprint_of(self, model: Model) -> str:
        """The fingerprint that the record of a model must have."""
        return self._fingerprint_of[model_name(model)]

    @cached_property
    def _fingerprint_of(self) -> Mapping[str, str]:
        return dict(zip(map(model_name, self.models), self.fingerprints, strict=True))

    def described(self, folder: StudyFolder) -> dict[str, Any]:
        """The stage as JSON: what it is, what it needs and costs, and whether it is finished."""
        return {
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            "model": self.model,
            "runs": [run.name for run in self.runs],
            "needs": list(self.needs),
            "work": self.work,
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "is_finished": self.is_finished(folder),
        }

    def is_finished(self, folder: StudyFolder) -> bool:
        """Whether every record exists and has its fingerprint.

        Raises:
            RecordError: a record exists and cannot be read.
        """
        return not self.left(folder)

    def left(self, folder: StudyFolder) -> tuple[Model, ...]:
        """The models whose record is missing or was made under other settings.

        Nothing is due of a run that diverged.
        """
        pairs = zip(self.models, self.fingerprints, strict=True)
        return tuple(model for model, wanted in pairs if not self._is_done(folder, model, wanted))

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """Those of some models that can be worked on now: they are trained and did not diverge.

        Which models are left is known before anything is trained: records that belong to weights
        that are trained again are made again.
        """
        return tuple(model for model in models if _is_usable(folder, model))

    def _is_done(self, folder: StudyFolder, model: Model, wanted: str) -> bool:
        if model is not None:
            run = folder.finished_run(model)
            if run is None:
                return False  # a record of weights that are gone counts for nothing
            if run.status == "diverged":
                return True
        assert issubclass(self.record, StageRecord)
        return folder.is_finished(self.path_of(folder, model), self.record, wanted)


@dataclass(frozen=True)
class Train(Stage):
    """Train runs together in one pass over the base, or take over imported models."""

    planned_pass: PlannedPass | None
    """How the pass is cut to fit into memory; None for imported models."""
    saves_states: bool
    """Whether states from which it can be resumed are saved as time goes by."""

    kind = "training"
    record = RunRecord

    @property
    def num_tokens(self) -> int:
        return sum(model.num_tokens for model in furthest(self.runs))

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        assert model is not None
        return folder.run_file(model.name)

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """All of them: training needs no weights but the base's."""
        return tuple(models)

    def _is_done(self, folder: StudyFolder, model: Model, wanted: str) -> bool:
        assert model is not None
        return folder.is_trained(model)


@dataclass(frozen=True)
class Truncate(Train):
    """Truncate trained adapters to lower ranks, and train the new ones a little further."""

    sources: tuple[PlannedRun, ...]
    """The runs whose adapters are truncated."""

    kind = "truncation"

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """Those whose source is done; where it diverged, that is what there is to record."""
        done = {run.name for run in self.sources if folder.finished_run(run) is not None}
        return tuple(
            model
            for model in models
            if model is not None and model.of is not None and model.of.name in done
        )


@dataclass(frozen=True)
class Score(Stage):
    """Score the base, or the runs of a pass together, on one task."""

    task: str
    base_fingerprint: str
    """Of the base's record on the task: the scores of runs are checked against its samples."""

    kind = "scoring"
    record = TaskEvaluation

    @property
    def name(self) -> str:
        return self.task

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return folder.evaluation_file(model_name(model), self.task)

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """The usable models, once the base is scored."""
        path = folder.evaluation_file(BASE, self.task)
        if self.runs and folder.finished(path, TaskEvaluation, self.base_fingerprint) is None:
            return ()
        return super().ready(folder, models)


@dataclass(frozen=True)
class CompareDistributions(Stage):
    """Compare a model's next-token distributions with those of a full fine-tuning."""

    reference: PlannedRun
    """The full fine-tuning."""

    kind = "divergence"
    record = Divergence

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return folder.divergence_file(model_name(model), self.reference.name)

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """The model, where the full fine-tuning is usable too."""
        return super().ready(folder, models) if _is_usable(folder, self.reference) else ()

    def _is_done(self, folder: StudyFolder, model: Model, wanted: str) -> bool:
        reference = folder.finished_run(self.reference)
        if reference is not None and reference.status == "diverged":
            return model is None or folder.finished_run(model) is not None
        return reference is not None and super()._is_done(folder, model, wanted)


@dataclass(frozen=True)
class ObserveBehaviour(Stage):
    """Let the base and every model that is scored on test items answer short prompts."""

    kind = "behaviour"
    record = Behaviour

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return folder.behaviour_file(model_name(model))


@dataclass(frozen=True)
class CompareWithBase(Stage):
    """Compare next-token distributions of the models of one trained task with the base's.

    So the base reads once for all of them.
    """

    train_task: str

    kind = "gauges"
    record = Divergence

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return folder.gauges_file(model_name(model))


@dataclass(frozen=True)
class CompareHeads(Stage):
    """Compare the attention heads of the runs of one trained task with the base's."""

    train_task: str

    kind = "heads"
    record = HeadChanges

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return folder.head_changes_file(model_name(model))


@dataclass(frozen=True)
class AnalyseWeights(Stage):
    """Analyse the weights of the runs of one trained task, matrix by matrix.

    So each matrix of the base is decomposed once for all of them.
    """

    train_task: str

    kind = "spectra"
    record = SpectraRecord

    @property
    def num_tokens(self) -> None:
        return None

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return folder.spectra_file(model_name(model))


@dataclass(frozen=True)
class CheckForm(Stage):
    """Score a run that the verdict names in a form in which it is deployed."""

    form: str
    tasks: tuple[str, ...]

    kind = "form"
    record = FormRecord

    @property
    def name(self) -> str:
        return self.form

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return folder.form_file(model_name(model), self.form)

    def _is_done(self, folder: StudyFolder, model: Model, wanted: str) -> bool:
        scored = model_in_form(model_name(model), self.form)
        files = [folder.evaluation_file(scored, task) for task in self.tasks]
        return super()._is_done(folder, model, wanted) and all(map(folder.has, files))


def finished_work(graph: Sequence[Stage], folder: StudyFolder) -> set[tuple[str, str | None]]:
    """The (model, task) pairs that are scored, and (run, None) for each run that is trained.

    Raises:
        RecordError: a record exists and cannot be read.
    """
    done: set[tuple[str, str | None]] = set()
    for stage in graph:
        if isinstance(stage, Train | Score):
            task = stage.task if isinstance(stage, Score) else None
            left = set(map(model_name, stage.left(folder)))
            done |= {(name, task) for name in map(model_name, stage.models) if name not in left}
    return done


def stages(study: StudyRecord) -> tuple[Stage, ...]:
    """All stages of a study, in an order in which each comes after those that it needs.

    The base is scored; the runs of every pass are trained together and then scored together, and
    likewise the adapters that are truncated from them, and the arms against forgetting; all answer
    short prompts where that is asked for; models are compared with the base, and runs with full
    fine-tuning, one full fine-tuning after the other; then come the heads and the weights of the
    runs of each trained task, and the forms of the runs that the verdict names.
    """
    graph = _Graph(study)
    graph.score_the_base()
    for number, (planned_pass, runs) in enumerate(_passes(study), start=1):
        graph.train_and_score(number, planned_pass, runs)
    graph.observe_behaviour()
    graph.compare_with_base()
    graph.compare_distributions()
    graph.compare_heads()
    graph.analyse_weights()
    graph.check_forms()
    return tuple(graph.stages)


class _Graph:
    """Stages as they are added, and which of them train and score what."""

    def __init__(self, study: StudyRecord) -> None:
        self.stages: list[Stage] = []
        self._study = study
        self._training_of: dict[str, str] = {}
        self._base_scoring_of: dict[str, str] = {}

    def score_the_base(self) -> None:
        for task in self._study.scored_tasks():
            stage = self._score(BASE, (None,), task)
            self._base_scoring_of[task] = stage.id

    def train_and_score(
        self, number: int, planned_pass: PlannedPass | None, runs: tuple[PlannedRun, ...]
    ) -> None:
        sources = self._sources(runs)
        what = "adapters" if runs[0].method == "lora" else "checkpoints"
        what = f"truncated {what}" if sources else what
        what = f"mitigated {what}" if runs[0].role == "mitigated" else what
        model = runs[0].name if len(runs) == 1 else f"pass {number}: {len(runs)} {what}"
        if len(runs) > 1 and planned_pass is None:
            model = f"imported: {len(runs)} adapters"
        make = partial(Truncate, sources=sources) if sources else Train
        train = make(
            model,
            runs,
            tuple(run.fingerprint for run in runs),
            needs=self._trainings(sources),
            work=training_work(runs),
            memory_bytes=0 if planned_pass is None else planned_pass.estimated_memory_bytes,
            disk_bytes=sum(run.stored_bytes for run in runs),
            planned_pass=planned_pass,
            saves_states=planned_pass is not None
            and self._study.config.train.save_every is not None,
        )
        self.stages.append(train)
        self._training_of |= {run.name: train.id for run in runs}
        scored = {run.name: self._study.tasks_of(run) for run in runs}
        for task in self._study.scored_tasks():
            together = tuple(run for run in runs if task in scored[run.name])
            if together:
                self._score(model, together, task)

    def observe_behaviour(self) -> None:
        study = self._study
        if study.behaviour_fingerprint is None:
            return
        models = (None, *study.tested)
        self.stages.append(
            ObserveBehaviour(
                "behaviour",
                models,
                tuple(behaviour_fingerprint(study, _fingerprint(study, each)) for each in models),
                needs=self._trainings(study.tested),
                work=float(study.num_tokens.behaviour * len(models)),
                memory_bytes=study.weights_bytes,
                disk_bytes=0,
            )
        )

    def compare_with_base(self) -> None:
        study = self._study
        for train_task in study.gauge_fingerprints:
            models = tuple(model for model in study.tested if model.train_task == train_task)
            if models:
                tokens = study.num_tokens.gauges.get(train_task, 0)
                self.stages.append(
                    CompareWithBase(
                        "gauges",
                        models,
                        tuple(gauges_fingerprint(study, model) for model in models),
                        needs=self._trainings(models),
                        work=float(tokens * (len(models) + 1)),
                        memory_bytes=2 * study.weights_bytes,
                        disk_bytes=0,
                        train_task=train_task,
                    )
                )

    def compare_distributions(self) -> None:
        study = self._study
        references = {run.name: study.full_run_of(run) for run in study.runs}
        reference_of = {run: full and full.name for run, full in references.items()}
        for full in study.full_runs_compared:
            if full.train_task not in study.answers_fingerprints:
                continue
            compared = [run for run in study.runs if reference_of[run.name] == full.name]
            work = 2.0 * study.num_tokens.answers.get(full.train_task, 0)  # both models read them
            for model in (None, *compared):
                wanted = divergence_fingerprint(study, _fingerprint(study, model), full)
                runs = (full,) if model is None else (model, full)
                self.stages.append(
                    CompareDistributions(
                        model_name(model),
                        (model,),
                        (wanted,),
                        needs=self._trainings(runs),
                        work=work,
                        memory_bytes=2 * study.weights_bytes,
                        disk_bytes=0,
                        reference=full,
                    )
                )

    def compare_heads(self) -> None:
        study = self._study
        for train_task, runs in self._by_train_task():
            tokens = study.num_tokens.head_prompts.get(train_task)
            if study.config.analysis.heads and tokens != 0:
                self.stages.append(
                    CompareHeads(
                        "heads",
                        runs,
                        tuple(head_changes_fingerprint(study, run) for run in runs),
                        needs=self._trainings(runs),
                        work=float((tokens or 0) * (len(runs) + 1)),
                        memory_bytes=2 * study.weights_bytes,
                        disk_bytes=0,
                        train_task=train_task,
                    )
                )

    def analyse_weights(self) -> None:
        study = self._study
        for train_task, runs in self._by_train_task():
            if study.config.analysis.spectra:
                # the update, and the base with each of the random updates of both kinds
                decompositions = 1 + 2 * study.config.analysis.null_draws
                self.stages.append(
                    AnalyseWeights(
                        "weights",
                        runs,
                        tuple(spectra_fingerprint(study, run) for run in runs),
                        needs=self._trainings(runs),
                        work=ANALYSIS_WORK * decompositions * len(runs),
                        memory_bytes=2 * study.weights_bytes,
                        disk_bytes=0,
                        train_task=train_task,
                    )
                )

    def check_forms(self) -> None:
        study = self._study
        for run in (run for run in study.runs if run.name in study.deployed):
            own = [s.id for s in self.stages if isinstance(s, Score) and run in s.models]
            tasks = study.compared_tasks(run.train_task)
            num_tokens = sum(study.num_tokens.scored.get(task, 0) for task in tasks)
            for form in study.forms:
                self.stages.append(
                    CheckForm(
                        run.name,
                        (run,),
                        (form_fingerprint(study, run, form),),
                        needs=(*self._trainings([run]), *own),
                        work=float(num_tokens),
                        memory_bytes=2 * 4 * study.num_parameters,  # its own weights wait meanwhile
                        disk_bytes=TOKEN_BYTES * num_tokens,
                        form=form,
                        tasks=tasks,
                    )
                )

    def _score(self, model: str, models: tuple[Model, ...], task: str) -> Score:
        study = self._study
        runs = [run for run in models if run is not None]
        needs = (*self._trainings(runs), *([self._base_scoring_of[task]] if runs else []))
        stage = Score(
            model,
            models,
            tuple(scoring_fingerprint(study, _fingerprint(study, one), task) for one in models),
            needs=needs,
            work=float(study.num_tokens.scored.get(task, 0) * len(models)),
            memory_bytes=study.weights_bytes,
            disk_bytes=round(TOKEN_BYTES * study.num_tokens.scored.get(task, 0) * len(models)),
            task=task,
            base_fingerprint=scoring_fingerprint(study, study.base_model_fingerprint, task),
        )
        self.stages.append(stage)
        return stage

    def _sources(self, runs: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
        """The runs whose adapters some models are truncated from; empty where none is."""
        names = {run.of.name for run in runs if run.role == "truncated" and run.of is not None}
        return tuple(run for run in self._study.runs if run.name in names)

    def _trainings(self, runs: Sequence[PlannedRun]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._training_of[run.name] for run in runs))

    def _by_train_task(self) -> list[tuple[str, tuple[PlannedRun, ...]]]:
        """The runs of each trained task that has any."""
        by_task: dict[str, list[PlannedRun]] = {}
        for run in self._study.runs:
            by_task.setdefault(run.train_task, []).append(run)
        return [(task, tuple(runs)) for task, runs in by_task.items()]


def _passes(study: StudyRecord) -> list[tuple[PlannedPass | None, tuple[PlannedRun, ...]]]:
    """What is trained and scored together, in the study's order; imported models come last.

    Imported adapters are scored together too, each imported checkpoint alone.
    """
    by_name = {run.name: run for run in study.models}
    in_pass = {name for planned in study.passes for name in planned.runs}
    passes: list[tuple[PlannedPass | None, tuple[PlannedRun, ...]]] = [
        (planned, tuple(by_name[name] for name in planned.runs)) for planned in study.passes
    ]
    imported = [run for run in study.runs if run.name not in in_pass]
    adapters = tuple(run for run in imported if run.method == "lora")
    passes += [(None, adapters)] if adapters else []
    return passes + [(None, (run,)) for run in imported if run.method == "full"]


def _is_usable(folder: StudyFolder, model: Model) -> bool:
    """Whether a model has weights: the base has, and a run that is trained and did not diverge."""
    run = None if model is None else folder.finished_run(model)
    return model is None or (run is not None and run.status == "trained")


def model_name(model: Model) -> str:
    """The name of a model's folder."""
    return BASE if model is None else model.name


def _fingerprint(study: StudyRecord, model: Model) -> str:
    return study.base_model_fingerprint if model is None else model.fingerprint
