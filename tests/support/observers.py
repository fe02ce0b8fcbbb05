"""Observers of a study: one that says nothing, and one that remembers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rankwise.records.study import StageFailure
from rankwise.study.observer import (
    Advanced,
    Decided,
    Event,
    Noted,
    Planned,
    Skipped,
    StageFailed,
    StageFinished,
    StageLeftOut,
    StageOutline,
    StageStarted,
    Stepped,
    TrainingStep,
)


class Silent:
    """Is told everything and does nothing with it; a method for each event."""

    def __call__(self, event: Event) -> None:
        match event:
            case Planned(stages):
                self.planned(stages)
            case StageStarted(stage):
                self.stage_started(stage)
            case Advanced(_, work):
                self.advanced(work)
            case Skipped(_, work):
                self.skipped(work)
            case Stepped(_, step):
                self.stepped(step)
            case StageFinished():
                self.stage_finished()
            case StageFailed(failure):
                self.stage_failed(failure)
            case StageLeftOut(stage):
                self.stage_left_out(stage)
            case Noted(text):
                self.noted(text)
            case Decided(text):
                self.decided(text)

    def planned(self, stages: Sequence[StageOutline]) -> None: ...

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
        self.steps: list[TrainingStep] = []
        self.notes: list[str] = []

    @property
    def models(self) -> list[str]:
        """The models and passes in the order in which they were worked on."""
        return [model for model, _ in groupby(model for model, _ in self.stages)]

    @property
    def work(self) -> tuple[float, float]:
        """All work that was announced last, and what of it was finished before."""
        finished = sum(stage.work for stage in self.outline if stage.is_finished)
        return sum(stage.work for stage in self.outline), finished

    def planned(self, stages: Sequence[StageOutline]) -> None:
        self.outline = tuple(stages)

    def stage_started(self, stage: str) -> None:
        (started,) = (each for each in self.outline if each.id == stage)
        self.stages.append((started.model, started.name))

    def stage_left_out(self, stage: str) -> None:
        self.done += next(each.work for each in self.outline if each.id == stage)

    def advanced(self, work: float) -> None:
        self.done += work

    def stepped(self, step: TrainingStep) -> None:
        self.steps.append(step)

    def noted(self, text: str) -> None:
        self.notes.append(text)
