"""Which device of several does what of a study, and when, if work takes as long as planned.

What one device does without a break is a unit (see ``units``). The analysis of weights is left out,
as its work is of another kind: see ``needs``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun
from rankwise.study.costs import TRAINING_WORK, training_work
from rankwise.study.needs import share_left
from rankwise.study.planning.passes import shares_a_pass
from rankwise.study.planning.schedule import Job, Schedule, Task, lower_bound, scheduled
from rankwise.study.stages import (
    CheckForm,
    CompareDistributions,
    CompareHeads,
    CompareWithBase,
    Model,
    Score,
    Stage,
    Train,
    Truncate,
)
from rankwise.study.units import units


class Timetable(NamedTuple):
    """What is left of a study on several devices.

    Attributes:
        schedule: of jobs, in scored tokens.
        titles: the job's name -> what it is, in words.
        least: scored tokens before which no schedule ends, whatever shares a pass.
        scored_per_second: tokens, by which work is time; None: not known.
        price_per_hour: of a device; None: not known.
    """

    schedule: Schedule
    titles: Mapping[str, str]
    least: float
    scored_per_second: float | None
    price_per_hour: float | None = None

    @property
    def busy_share(self) -> float:
        """Of the devices' time until all is done, what they are at work."""
        whole = self.schedule.num_devices * self.schedule.makespan
        return sum(slot.job.work for slot in self.schedule.slots) / whole if whole else 0.0

    def seconds(self, work: float) -> float | None:
        """Of some work."""
        return None if self.scored_per_second is None else work / self.scored_per_second

    @property
    def device_hours(self) -> float | None:
        """Summed over devices, each from the start to the end of its last job."""
        held = self.seconds(self.schedule.held)
        return None if held is None else held / 3600

    @property
    def cost(self) -> float | None:
        """Of the device-hours; None where no speed or no price is known."""
        if self.device_hours is None or self.price_per_hour is None:
            return None
        return self.device_hours * self.price_per_hour

    def described(self) -> dict[str, Any]:
        """As JSON; times are null where no speed is known."""
        makespan = self.schedule.makespan
        return {
            "num_devices": self.schedule.num_devices,
            "work": makespan,
            "least_work": self.least,
            "seconds": self.seconds(makespan),
            "least_seconds": self.seconds(self.least),
            "busy_share": self.busy_share,
            "device_hours": self.device_hours,
            "price_per_hour": self.price_per_hour,
            "cost": self.cost,
            "jobs": [
                {
                    "name": self.titles[slot.job.name],
                    "id": slot.job.name,
                    "needs": slot.job.needs,  # other ids
                    "device": slot.device,
                    "start_work": slot.start,
                    "end_work": slot.end,
                    "start_seconds": self.seconds(slot.start),
                    "end_seconds": self.seconds(slot.end),
                }
                for slot in self.schedule.slots
            ],
        }


def timetable(
    graph: Sequence[Stage],
    folder: StudyFolder,
    num_devices: int,
    pass_work: float,
    tokens_per_second: float | None,
    price_per_hour: float | None = None,
) -> Timetable:
    """When what is left of a study is done, by which device.

    Args:
        graph: the stages of a study.
        folder: with its records.
        num_devices: at least one.
        pass_work: see ``PASS_WORK``.
        tokens_per_second: of LoRA training; None: not known.
        price_per_hour: of a device; None: not known.

    Raises:
        RecordError: a record exists and cannot be read.
    """
    left = _Left(graph, folder, pass_work)
    task = Task(left.adapters, left.alone, num_devices, pass_work)
    return Timetable(
        scheduled(task.jobs(left.passes), num_devices),
        left.titles,
        lower_bound(task),
        None if tokens_per_second is None else tokens_per_second * TRAINING_WORK["lora"],
        price_per_hour,
    )


class _Left:
    """The jobs that are left of a study; a job's name is the id of its first stage."""

    def __init__(self, graph: Sequence[Stage], folder: StudyFolder, pass_work: float) -> None:
        self.adapters: list[Job] = []
        self.alone: list[Job] = []
        self.passes: dict[str, list[int]] = {}
        self.titles: dict[str, str] = {}
        self._folder, self._pass_work = folder, pass_work
        self._job_of: dict[str, str] = {}  # by a stage that is not of a shared pass
        self._adapters_of: dict[str, dict[str, str]] = {}  # by such a stage: training -> adapter
        for unit in units(graph):
            stages = [stage for stage in unit.stages if stage.num_tokens is not None]
            if not stages:
                continue
            first = stages[0]
            self.titles[first.id] = _title(first)
            if isinstance(first, Train) and _is_shared(first):
                self._add_pass(first, stages[1:])
            else:
                self._add_alone(stages)

    def _add_pass(self, train: Train, scorings: Sequence[Stage]) -> None:
        left = {stage.id: _names(stage.left(self._folder)) for stage in (train, *scorings)}
        names, places = dict[str, str](), list[int]()
        needs_of_scores = self._needed(scorings, ())
        for training, models in _by_training(train.runs).items():
            trained = training_work([each for each in models if each.name in left[train.id]])
            own = _names(models)
            scored = sum(
                stage.work * len(own & left[stage.id]) / len(stage.models) for stage in scorings
            )
            if not trained + scored:
                continue
            names[training] = f"{train.id} {training}"
            needs = needs_of_scores if scored else ()
            places.append(len(self.adapters))
            self.adapters.append(Job(names[training], trained + scored, needs, trained))
        if places:
            self.passes[train.id] = places
        self._adapters_of |= dict.fromkeys((stage.id for stage in (train, *scorings)), names)

    def _add_alone(self, stages: Sequence[Stage]) -> None:
        first, own = stages[0], {stage.id for stage in stages}
        works = [stage.work * share_left(stage, self._folder) for stage in stages]
        if not sum(works):
            return
        is_free = isinstance(first, Train) and not first.needs
        needs = tuple(need for need in self._needed(stages, own) if need != first.id)
        loads = self._pass_work if isinstance(first, Train) else 0.0
        self.alone.append(Job(first.id, loads + sum(works), needs, works[0] if is_free else 0.0))
        self._job_of |= dict.fromkeys(own, first.id)

    def _needed(self, stages: Sequence[Stage], own: Iterable[str]) -> tuple[str, ...]:
        """The jobs and adapters whose ends some stages need."""
        needs: dict[str, None] = {}
        for stage in stages:
            wanted = {run.training.name for run in _read(stage)}
            for need in stage.needs:
                if need in self._job_of and need not in own:
                    needs[self._job_of[need]] = None
                for training, adapter in self._adapters_of.get(need, {}).items():
                    if training in wanted:
                        needs[adapter] = None
        return tuple(needs)


def _title(stage: Stage) -> str:
    """What a job that begins with this stage is, in words."""
    match stage:
        case Train() | Score():
            return stage.model
        case CheckForm():
            return f"{stage.model}, {stage.form}"
        case CompareDistributions():
            return f"{stage.name} from {stage.reference.name}"
        case CompareWithBase() | CompareHeads():
            return f"{stage.name} on {stage.train_task}"
        case _:
            return stage.name


def _names(models: Iterable[Model]) -> set[str]:
    return {model.name for model in models if model is not None}


def _is_shared(train: Train) -> bool:
    """Whether its models might be trained in another pass."""
    is_free = train.planned_pass is not None and not isinstance(train, Truncate)
    return is_free and all(map(shares_a_pass, train.runs))


def _by_training(runs: Sequence[PlannedRun]) -> dict[str, list[PlannedRun]]:
    by_training: dict[str, list[PlannedRun]] = {}
    for run in runs:
        by_training.setdefault(run.training.name, []).append(run)
    return by_training


def _read(stage: Stage) -> tuple[PlannedRun, ...]:
    """The runs whose weights a stage reads."""
    if isinstance(stage, Truncate):
        return stage.sources
    if isinstance(stage, CompareDistributions):
        return (*stage.runs, stage.reference)
    return stage.runs
