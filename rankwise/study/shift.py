"""One worker's way through the units of a plan, which other workers may share."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator
from datetime import UTC, datetime
from functools import cached_property
from time import sleep
from typing import NamedTuple

from rankwise.engine.models.devices import is_out_of_memory
from rankwise.errors import LeaseLostError, OutOfMemoryError, RankwiseError, StorageError
from rankwise.records.folder import StudyFolder
from rankwise.records.leases import Crew
from rankwise.records.study import StageFailure
from rankwise.study.context import StudyContext
from rankwise.study.outline import study_outline
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.stages import Model, Score, Stage, Train, stages
from rankwise.study.units import Unit, units
from rankwise.study.work.worker import Worker

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
"""Seconds before a worker that waits for others looks again: each time twice as long."""


class Waiting(NamedTuple):
    """A unit of which something is left.

    Attributes:
        unit: the unit.
        until: the ids of the units that must be done before it is begun. A pass that is to be
            trained does not wait for the base, by which it is scored.
    """

    unit: Unit
    until: tuple[str, ...]


class Shift:
    """Does units of a plan until nothing is left that anybody could do.

    Other workers may do what a stage needs, so what is left is read from the folder again and
    again. A worker that finds nothing to do waits, as long as others are at what is left.

    Attributes:
        graph: the stages of the plan.

    Args:
        context: of the study, under the plan.
        crew: this worker among the others; it has the lease of each unit while it does it.
        leads: others do all units, and come and go as this worker has them begun.
    """

    def __init__(self, context: StudyContext, crew: Crew, *, leads: bool = False) -> None:
        self._context, self._crew, self._leads = context, crew, leads
        self.graph = stages(context.study)
        self._by_id = {stage.id: stage for stage in self.graph}
        self._units = units(self.graph)
        self._unit_of = {stage.id: unit.id for unit in self._units for stage in unit.stages}
        # of which nothing more comes: finished, failed, or without what they need
        self._over = {stage.id for stage in self.graph if stage.is_finished(context.folder)}
        self._is_told = False

    def work(self, only: str | None = None) -> bool:
        """Do what is left, together with the other workers; what fails is recorded.

        Args:
            only: the id of the one unit to do.

        Returns:
            Whether nothing is left that anybody could do.

        Raises:
            LeaseLostError: this worker was not heard of for too long.
            StorageError: the folder cannot be written.
            Stopped: a signal asked for it; what was trained is saved.
        """
        self._tell()
        pause = _FIRST_PAUSE
        while due := [unit for unit in self._due() if only in (None, unit.id)]:
            unit = next((unit for unit in due if self._crew.take(unit.id)), None)
            if unit is None:
                sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            try:
                self._do(unit)
            finally:
                self._crew.give_back()
            pause = _FIRST_PAUSE
        wanted = [unit for unit in self._units if only in (None, unit.id)]
        return all(self._is_over(stage) for unit in wanted for stage in unit.stages)

    def waiting(self) -> list[Waiting]:
        """The units that are left for others to do, in the order of the study.

        Raises:
            RecordError: a record exists and cannot be read.
            StorageError: the URL of the study cannot be read.
        """
        self._context.folder.refresh()
        for stage in self.graph:
            self._is_due(stage)  # finds out what is over
        self._tell()
        waiting: list[Waiting] = []
        for unit in self._units:
            left = [stage for stage in unit.stages if stage.id not in self._over]
            first = left[:1] if left and isinstance(left[0], Train) else left
            needs = (need for stage in first for need in stage.needs if need not in self._over)
            until = dict.fromkeys(self._unit_of[need] for need in needs)
            if left:
                waiting.append(Waiting(unit, tuple(each for each in until if each != unit.id)))
        return waiting

    def give_up(self, unit: Unit, error: RankwiseError) -> None:
        """Record that what could be done of a unit by now has failed."""
        for stage in [stage for stage in unit.stages if self._is_due(stage)]:
            self._fail(stage, error)

    def hear_of(self, failed: Collection[str]) -> None:
        """Take stages, by their ids, as failed: others did, perhaps in a folder of their own."""
        for stage in self.graph:
            if stage.id in failed:
                self._crew.mark(_failed(stage))
                self._over.add(stage.id)
                self._is_told = False

    def failures(self) -> list[StageFailure]:
        """What this crew has tried and failed to do."""
        failed = {stage.id for stage in self.graph if self._crew.is_marked(_failed(stage))}
        return [each for each in self._context.folder.failures() if each.stage in failed]

    @cached_property
    def _worker(self) -> Worker:
        """Made at the first stage: who leads does none, and may have no card."""
        return Worker(self._context)

    def _due(self) -> list[Unit]:
        """The units with a stage that can be done now, by this worker or another.

        The first stage that is left has all that it needs or never will. So if there are no such
        units, everything is over.
        """
        due = {stage.id for stage in self.graph if self._is_due(stage)}
        return [unit for unit in self._units if any(stage.id in due for stage in unit.stages)]

    def _is_due(self, stage: Stage) -> bool:
        """Whether a stage is left, and can be done now."""
        needs = [self._by_id[need] for need in stage.needs]
        if self._is_over(stage) or not all(map(self._is_over, needs)):
            return False
        if self._ready(stage):
            return True
        self._leave_out(stage)  # what it needs has diverged, and nothing is due, or has failed
        return False

    def _is_over(self, stage: Stage) -> bool:
        if stage.id not in self._over:
            is_finished = stage.is_finished(self._context.folder)
            if is_finished or self._crew.is_marked(_failed(stage)):
                if self._leads or self._crew.others():
                    self._over.add(stage.id)
                    self._is_told = False  # another worker did it
                else:
                    self._leave_out(stage)  # what it needs has diverged since this shift began
        return stage.id in self._over

    def _leave_out(self, stage: Stage) -> None:
        self._over.add(stage.id)
        self._tell()
        self._context.observer.stage_left_out(stage.id)

    def _ready(self, stage: Stage) -> tuple[Model, ...]:
        """The models that a stage can be done for, once what it needs is over."""
        folder = self._context.folder
        return stage.ready(folder, stage.left(folder))

    def _tell(self) -> None:
        """Say which stages there are and what is done of them, where that has changed."""
        if not self._is_told:
            outline = study_outline(self.graph, self._context.folder)
            self._context.observer.study_started(outline)
            self._is_told = True

    def _do(self, unit: Unit) -> None:
        """Do what can be done of a unit."""
        for stage in sorted(unit.stages, key=lambda stage: _is_by_vllm(stage, self._context.plan)):
            if self._is_due(stage):
                self._tell()
                self._do_stage(stage, self._ready(stage))

    def _do_stage(self, stage: Stage, models: tuple[Model, ...]) -> None:
        context = self._context
        try:
            with _enough_memory():
                self._worker.do(stage, models)
        except (StorageError, LeaseLostError):
            raise  # a full disk fails every stage, and so does a worker that comes too late
        except RankwiseError as error:
            self._fail(stage, error)
        else:
            context.folder.remove_failure(stage.id)
            self._over.add(stage.id)
            return
        context.models.release(base=True)  # only now: the error held on to its frames

    def _fail(self, stage: Stage, error: RankwiseError) -> None:
        failure = _failure(stage, self._context.folder, error)
        self._context.folder.write_failure(failure)
        self._crew.mark(_failed(stage))
        self._over.add(stage.id)
        self._context.observer.stage_failed(failure)


def _failed(stage: Stage) -> str:
    """What is marked where a stage has failed: no worker of the crew tries it again."""
    return f"failed-{stage.id}"


def _is_by_vllm(stage: Stage, plan: StudyPlan) -> bool:
    """Whether vLLM does a stage; these come last of a unit's, since it takes minutes to open."""
    if not isinstance(stage, Score):
        return False
    engines = plan.record.config.evaluation.engine
    return engines.of(plan.tasks[stage.task].loaded.output_type) == "vllm"


def _failure(stage: Stage, folder: StudyFolder, error: RankwiseError) -> StageFailure:
    return StageFailure(
        stage=stage.id,
        kind=stage.kind,
        name=stage.name,
        model=stage.model,
        runs=tuple(run.name for run in stage.left(folder) if run is not None),
        error=type(error).__name__,
        message=str(error),
        failed_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextlib.contextmanager
def _enough_memory() -> Generator[None]:
    """Within the block, an error that says that memory ran out says what to do about it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"it does not fit into memory ({_first_line(error)}). "
            "Lower train.max_length or evaluation.max_batch_tokens, choose "
            "train.base_precision=4bit or methods.full.weights=bfloat16, or leave full fine-tuning "
            "out with methods.full=null; then run again: finished work is kept."
        ) from error
