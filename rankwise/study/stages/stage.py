"""A stage of a study: one piece of it that is done as a whole and leaves a record for each model.

A study is a graph of stages. It is made from ``study.json`` alone and needs no torch, so that
``rankwise status`` on a laptop, ``rankwise run`` and a worker elsewhere walk over the same graph.
Everything that is particular to a kind of stage is in the kind's file; whoever needs it asks the
kind. What a kind does with torch is imported when it is done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from rankwise.errors import ModelError, RecordError
from rankwise.records.base import FileRecord
from rankwise.records.fingerprints import fingerprint
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.grouping import grouped
from rankwise.records.study import PlannedRun, StageInputs, StageRecord, StudyRecord

if TYPE_CHECKING:
    from rankwise.records.config.study import StudyConfig
    from rankwise.records.study import Relation
    from rankwise.study.context import StudyContext
    from rankwise.tasks.questions import RightAnswer
    from rankwise.tasks.requests import PreparedTask

TOKEN_BYTES = 8
"""The bytes of a samples file per scored token: its text, and the answers beside it."""

Model = PlannedRun | None
"""A model of a study: a run, or the untouched base (None)."""


@dataclass(frozen=True)
class PlannedTasks:
    """The scored tasks of a study that is planned; a kind of stage makes its inputs from them.

    Attributes:
        config: of the study.
        precision: of the matrix products.
        relations: trained task -> relation to it -> names of scored tasks.
        prepared: every scored task by name, with its requests.
        tokenizer: the base model's.
        vocabulary_size: tokens that the base model gives probabilities of.
        has_full: whether a model is fully fine-tuned, here or elsewhere.
    """

    config: StudyConfig
    precision: str
    relations: Mapping[str, Mapping[Relation, tuple[str, ...]]]
    prepared: Mapping[str, PreparedTask]
    tokenizer: Any
    vocabulary_size: int
    has_full: bool

    @cached_property
    def answers(self) -> Mapping[str, tuple[RightAnswer, ...]]:
        """Trained task -> its right answers in-domain; a task that has none is left out."""
        from rankwise.tasks.right_answers import right_answers

        found = {
            source: right_answers(
                [self.prepared[name] for name in relations["in_domain"]],
                self.tokenizer,
                self.vocabulary_size,
            )
            for source, relations in self.relations.items()
        }
        return {source: answers for source, answers in found.items() if answers}


class Written(NamedTuple):
    """A record that a study may have left.

    Attributes:
        path: of the record.
        kind: what it is.
        made_by: the work that makes it, in words.
        spoils: what goes where it is damaged; empty: it alone.
    """

    path: Path
    kind: type[FileRecord]
    made_by: str
    spoils: tuple[Path, ...] = ()


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
    record: ClassVar[type[FileRecord]]
    slowness: ClassVar[float] = 1.0
    """Seconds for the same work against scoring's: what is expected before a kind was seen."""
    reads_tokens: ClassVar[bool] = True
    took: ClassVar[str] = "score_seconds"
    """The field in which its record says what it took."""
    is_of_pass: ClassVar[bool] = False
    """Whether it is one unit with the training and the scoring of its models."""
    scores_tasks: ClassVar[bool] = False
    """Whether its scores depend on the stack of versions and device."""

    @classmethod
    def inputs(cls, planned: PlannedTasks) -> Mapping[str, tuple[Any, StageInputs]]:
        """Trained task -> what the kind reads besides the scored tasks, and what is recorded of it.

        The first goes into ``StudyPlan.inputs``, the second into ``StudyRecord.inputs``. A trained
        task that has nothing to read is left out.
        """
        return {}

    @classmethod
    def planned(cls, graph: Graph) -> Iterator[Stage]:
        """The stages of this kind, where they follow all training and scoring of the runs."""
        yield from ()

    @classmethod
    def written(cls, folder: StudyFolder, model: str) -> Iterator[Written]:
        """The records of this kind that a model's folder may have, under whatever settings."""
        yield from ()

    @classmethod
    def results(cls, folder: StudyFolder, study: StudyRecord, model: Model) -> Mapping[str, Any]:
        """What is finished under the study's present settings, as fields of ``ModelResults``."""
        return {}

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
        return round(self.work) if self.reads_tokens else None

    @property
    def seconds_by_arithmetic(self) -> float | None:
        """What it takes on the device that is planned for; None: as its work has it."""
        return None

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """The models that are runs."""
        return tuple(run for run in self.models if run is not None)

    @property
    def together(self) -> Hashable:
        """The same for stages that follow each other and are one unit."""
        return ("", self.model) if self.is_of_pass else self.id

    @property
    def unit_kind(self) -> str:
        """What a unit is called that begins with it."""
        return self.kind

    @abstractmethod
    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        """Where the record of a model is written."""

    @abstractmethod
    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        """Do the stage for some of its models, and write their records.

        Raises:
            RankwiseError: it cannot be done.
        """

    def records_of(
        self, folder: StudyFolder, model: Model
    ) -> Iterator[tuple[Path, type[FileRecord]]]:
        """All that it writes of a model."""
        yield self.path_of(folder, model), self.record

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
        return tuple(model for model in self.models if not self._is_done(folder, model))

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """Those of some models that can be worked on now: they are trained and did not diverge.

        Which models are left is known before anything is trained: records that belong to weights
        that are trained again are made again.
        """
        return tuple(model for model in models if is_usable(folder, model))

    def work_of(self, models: Sequence[Model]) -> float:
        """The part of its work that some of its models are."""
        return self.work * len(models) / len(self.models)

    def seconds(self, folder: StudyFolder) -> float | None:
        """What it took by its records, once it is finished; None where they do not say."""
        seconds = 0.0
        for model in self.models:
            record = folder.read_if_there(self.path_of(folder, model), self.record)
            if record is None:  # nothing is due of a run that diverged
                return None
            seconds += getattr(record, self.took)
        return seconds or None

    def _is_done(self, folder: StudyFolder, model: Model) -> bool:
        if model is not None:
            run = folder.finished_run(model)
            if run is None:
                return False  # a record of weights that are gone counts for nothing
            if run.status == "diverged":
                return True
        assert issubclass(self.record, StageRecord)
        path = self.path_of(folder, model)
        return folder.is_finished(path, self.record, self.fingerprint_of(model))


class OneRecord(Stage):
    """A kind whose record has one place in a model's folder and one field in its results."""

    file: ClassVar[str]
    field: ClassVar[str]
    """The field of ``ModelResults``."""
    made_by: ClassVar[str]
    """The words that a model's name follows."""
    of_base: ClassVar[bool] = False
    """Whether the base has one too."""

    @classmethod
    @abstractmethod
    def wanted(cls, study: StudyRecord, model: Model) -> str:
        """The fingerprint of everything that a model's record depends on."""

    @classmethod
    def of(cls, graph: Graph, title: str, models: Sequence[Model], work: float, **own: Any) -> Self:
        """The stage of some models, once they are trained; two of them are in memory at once."""
        usual = {"memory_bytes": 2 * graph.study.weights_bytes, "disk_bytes": 0}
        return cls(
            title,
            tuple(models),
            tuple(cls.wanted(graph.study, model) for model in models),
            needs=graph.trainings(models),
            work=float(work),
            **(usual | own),
        )

    @classmethod
    def path(cls, folder: StudyFolder, model: str) -> Path:
        """Where the record of a model is, by its name."""
        return folder.model_folder(model) / cls.file

    @classmethod
    def written(cls, folder: StudyFolder, model: str) -> Iterator[Written]:
        yield Written(cls.path(folder, model), cls.record, f"{cls.made_by} {model}")

    @classmethod
    def results(cls, folder: StudyFolder, study: StudyRecord, model: Model) -> Mapping[str, Any]:
        if model is None and not cls.of_base:
            return {}
        assert issubclass(cls.record, StageRecord)
        path = cls.path(folder, model_name(model))
        return {cls.field: folder.finished(path, cls.record, cls.wanted(study, model))}

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return self.path(folder, model_name(model))


@dataclass
class Graph:
    """The stages of a study as they are added, and which of them train and score what."""

    study: StudyRecord
    stages: list[Stage] = field(default_factory=list[Stage])
    training_of: dict[str, str] = field(default_factory=dict[str, str])
    """A model's name -> the id of the stage that trains it."""
    base_scoring_of: dict[str, str] = field(default_factory=dict[str, str])
    """A task -> the id of the stage that scores the base on it."""

    def trainings(self, models: Sequence[Model]) -> tuple[str, ...]:
        """The ids of the stages that train some models; a model without a pass has none."""
        return self.trainings_by_name(map(model_name, models))

    def trainings_by_name(self, names: Iterable[str]) -> tuple[str, ...]:
        """The same, by the models' names."""
        known = map(self.training_of.get, names)
        return tuple(dict.fromkeys(each for each in known if each is not None))

    def by_train_task(self) -> dict[str, list[PlannedRun]]:
        """The runs of each trained task that has any."""
        return grouped((run.train_task, run) for run in self.study.runs)


def is_usable(folder: StudyFolder, model: Model) -> bool:
    """Whether a model has weights: the base has, and a run that is trained and did not diverge."""
    run = None if model is None else folder.finished_run(model)
    return model is None or (run is not None and run.status == "trained")


def check_trained(folder: StudyFolder, run: PlannedRun) -> None:
    """Refuse a run that has no weights.

    Raises:
        RecordError: it is not trained yet.
        ModelError: it diverged.
    """
    record = folder.finished_run(run)
    if record is None:
        raise RecordError(f"{run.name} is not trained yet; finish the study first (rankwise run).")
    if record.status == "diverged":
        raise ModelError(
            f"{run.name} diverged: it has no weights to look into. Choose another run."
        )


def model_name(model: Model) -> str:
    """The name of a model's folder."""
    return BASE if model is None else model.name


def fingerprint_in(study: StudyRecord, model: Model) -> str:
    """The fingerprint of a model's weights."""
    return study.base_model_fingerprint if model is None else model.fingerprint
