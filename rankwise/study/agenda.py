"""What there is to do of a study: its stages as units, what can be done now, and what has failed.

A unit is stages that one worker does together, with what is in its memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rankwise.errors import RankwiseError
from rankwise.records.fingerprints import fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun, StageFailure
from rankwise.study.observer import StageLeftOut
from rankwise.study.speeds import remembered_speeds
from rankwise.study.stages.graph import stages, study_outline
from rankwise.study.stages.stage import Model, Stage

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext


@dataclass(frozen=True)
class Unit:
    """What a worker takes as a whole: such as a pass, which it trains and then scores."""

    kind: str
    """"base", "pass", "full", "imported", or the kind of its stages."""
    stages: tuple[Stage, ...]
    """The stages in the order in which they are done."""

    @cached_property
    def id(self) -> str:
        """The same in every process that reads the same ``study.json``."""
        return f"{self.kind}-{fingerprint([stage.id for stage in self.stages])[:12]}"

    @property
    def work(self) -> float:
        """The work in scored tokens."""
        return sum(stage.work for stage in self.stages)

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """The models of its stages that are runs."""
        return tuple({run.name: run for stage in self.stages for run in stage.runs}.values())

    @property
    def memory_bytes(self) -> int:
        """The most that one of its stages holds at once."""
        return max(stage.memory_bytes for stage in self.stages)

    def described(self, unit_of: Mapping[str, Unit], folder: StudyFolder) -> dict[str, Any]:
        """The unit as JSON: what it is, what it needs and costs, and whether it is finished.

        ``unit_of``: see ``owners``.
        """
        return {
            "id": self.id,
            "kind": self.kind,
            "model": self.stages[0].model,
            "stages": [stage.id for stage in self.stages],
            "needs": self.needs(unit_of),
            "work": self.work,
            "memory_bytes": self.memory_bytes,
            "is_finished": all(stage.is_finished(folder) for stage in self.stages),
        }

    def needs(self, unit_of: Mapping[str, Unit]) -> tuple[str, ...]:
        """The ids of the units that its stages need; see ``owners`` for ``unit_of``."""
        stages = (need for stage in self.stages for need in stage.needs if need in unit_of)
        units = dict.fromkeys(unit_of[stage].id for stage in stages)
        return tuple(unit for unit in units if unit != self.id)


def units(graph: Sequence[Stage]) -> tuple[Unit, ...]:
    """The stages of a study as units, in the order of the stages.

    A unit is the scoring of the base; a pass, or what is imported together, with its scoring; all
    comparisons with one full fine-tuning; or another stage by itself. It can be begun when one of
    its stages can: the training of a pass does not wait until the base is scored.
    """
    return tuple(
        Unit(together[0].unit_kind, together)
        for _, group in itertools.groupby(graph, key=lambda stage: stage.together)
        for together in [tuple(group)]
    )


def owners(all_units: Sequence[Unit]) -> dict[str, Unit]:
    """The id of each stage -> the unit that it is of."""
    return {stage.id: unit for unit in all_units for stage in unit.stages}


def longest_chains(units_left: Sequence[Unit]) -> dict[str, float]:
    """The id of each unit -> the work of the longest chain of units that begins with it.

    Units of a chain need each other. Executors start the unit with the longest chain first (list
    scheduling; Graham, 1969).

    Args:
        units_left: in an order in which each comes after those that it needs; other units that
            they need count as done.
    """
    unit_of = owners(units_left)
    work = {unit.id: unit.work for unit in units_left}
    longest = dict(work)
    for unit in reversed(units_left):
        for need in unit.needs(unit_of):
            longest[need] = max(longest[need], work[need] + longest[unit.id])
    return longest


class Agenda:
    """The stages of a plan and what has come of them, as this process knows.

    Attributes:
        graph: the stages, each after those that it needs.
        units: the same, as what is done together.
        failures: what was tried and failed.

    Args:
        context: of the study, under the plan.
        failed: the ids of stages that others have failed at.
    """

    def __init__(self, context: StudyContext, failed: Collection[str] = ()) -> None:
        self._context, self._folder = context, context.folder
        self.graph = stages(context.study)
        self.units = units(self.graph)
        self.failures: list[StageFailure] = []
        self._outline = study_outline(self.graph, self._folder, remembered_speeds(context.study))
        # of which nothing more comes: finished, failed, or without what they need
        self._over = {stage.id for stage in self._outline if stage.is_finished} | set(failed)

    def announce(self) -> None:
        """Say which stages there are and what is done of them."""
        self._context.tell.planned(self._outline)

    def due(self, unit: Unit) -> list[Stage]:
        """The stages of a unit that can be done now; see ``is_due``."""
        return [stage for stage in unit.stages if self.is_due(stage)]

    def is_due(self, stage: Stage) -> bool:
        """Whether a stage is left, and can be done now.

        Where what it needs has diverged or failed, nothing can be done for it, ever: that is said.

        Raises:
            RecordError: a record exists and cannot be read.
        """
        if stage.id in self._over or not self._over.issuperset(stage.needs):
            return False
        if self.ready(stage):
            return True
        self._over.add(stage.id)
        self._context.tell.event(StageLeftOut(stage.id))
        return False

    def ready(self, stage: Stage) -> tuple[Model, ...]:
        """The models that a stage can be done for, once what it needs is over."""
        return stage.ready(self._folder, stage.left(self._folder))

    def is_left(self, unit: Unit) -> bool:
        """Whether something may come of a unit yet."""
        return any(stage.id not in self._over for stage in unit.stages)

    def models_of(self, unit: Unit) -> list[str]:
        """The names of the models whose files a unit reads or makes, besides the base's."""
        by_id = {stage.id: stage for stage in self.graph}
        needed = [by_id[need] for stage in unit.stages for need in stage.needs]
        return sorted({run.name for stage in (*unit.stages, *needed) for run in stage.runs})

    def finished(self, stage: str) -> None:
        """A stage, by its id, is done: its records are in the folder."""
        self._folder.remove_failure(stage)
        self._over.add(stage)

    def failed(self, stage: Stage, error: RankwiseError) -> None:
        """A stage was tried and failed."""
        self.failed_elsewhere(
            StageFailure(
                stage=stage.id,
                kind=stage.kind,
                name=stage.name,
                model=stage.model,
                runs=tuple(run.name for run in stage.left(self._folder) if run is not None),
                error=type(error).__name__,
                message=str(error),
                failed_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )

    def failed_elsewhere(self, failure: StageFailure) -> None:
        """Another process has tried a stage and failed."""
        self._folder.write_failure(failure)
        self.failures.append(failure)
        self._over.add(failure.stage)
        self._context.tell.stage_failed(failure)
