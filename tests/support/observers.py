"""Observers of a study: one that says nothing, and one that remembers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rankwise.records.study import StageFailure
from rankwise.study.observer import StageOutline, TrainingStep


class Silent:
    """Is told everything and does nothing with it."""

    def study_started(self, stages: Sequence[StageOutline]) -> None: ...

    def stage_started(self, stage: str) -> None: ...

    def advanced(self, work: float) -> None: ...

    def skipped(self, work: float) -> None:
        self.advanced(work)

    def stepped(self, step: TrainingStep) -> None: ...

    def stage_finished(self) -> None: ...

    def stage_failed(self, failure: StageFailure) -> None: ...

    def stage_left_out(self, stage: str) -> None: ...

    def noted(self, text: str) -> None: ...

    def decided(self, text: str) -> None: ...


class Recorder(Silent):
    """Remembers which stages ran, and the work that was announced and done."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []
        self.outline: tuple[StageOutline, ...] = ()
        self.done = 0.0

    @property
    def models(self) -> list[str]:
        """The models and passes in the order in which they were worked on."""
        return [model for model, _ in groupby(model for model, _ in self.stages)]

    @property
    def work(self) -> tuple[float, float]:
        """All work that was announced last, and what of it was finished before."""
        finished = sum(stage.work for stage in self.outline if stage.is_finished)
        return sum(stage.work for stage in self.outline), finished

    def study_started(self, stages: Sequence[StageOutline]) -> None:
        self.outline = tuple(stages)

    def stage_started(self, stage: str) -> None:
        (started,) = (each for each in self.outline if each.id == stage)
        self.stages.append((started.model, started.name))

    def stage_left_out(self, stage: str) -> None:
        self.done += next(each.work for each in self.outline if each.id == stage)

    def advanced(self, work: float) -> None:
        self.done += work
