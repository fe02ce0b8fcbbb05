"""What is left of a study: which stages can be done now, and which have failed."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

from rankwise.errors import RankwiseError
from rankwise.records.folder import StudyFolder
from rankwise.records.study import StageFailure
from rankwise.study.context import StudyContext
from rankwise.study.outline import study_outline
from rankwise.study.stages.graph import stages
from rankwise.study.stages.stage import Model, Stage
from rankwise.study.units import Unit, units


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
        self._context = context
        self.graph = stages(context.study)
        self.units = units(self.graph)
        self.failures: list[StageFailure] = []
        self._outline = study_outline(self.graph, context.folder)
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
        self._context.tell.stage_left_out(stage.id)
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

    @property
    def _folder(self) -> StudyFolder:
        return self._context.folder
