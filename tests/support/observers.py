"""Observers of a study: one that says nothing, and one that remembers."""

from __future__ import annotations


class Silent:
    """Is told everything and does nothing with it."""

    def study_started(self, total_work: float, finished_work: float) -> None: ...

    def model_started(self, model: str, work: float) -> None: ...

    def stage_started(
        self, model: str, stage: str, work: float, num_tokens: int | None
    ) -> None: ...

    def advanced(self, work: float) -> None: ...

    def skipped(self, work: float) -> None:
        self.advanced(work)

    def stage_finished(self) -> None: ...

    def noted(self, text: str) -> None: ...


class Recorder(Silent):
    """Remembers which stages ran, and the work that was announced and done."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []
        self.models: list[tuple[str, float]] = []
        self.work = (0.0, 0.0)
        self.done = 0.0

    def study_started(self, total_work: float, finished_work: float) -> None:
        self.work = (total_work, finished_work)

    def model_started(self, model: str, work: float) -> None:
        self.models.append((model, work))

    def stage_started(self, model: str, stage: str, work: float, num_tokens: int | None) -> None:
        self.stages.append((model, stage))

    def advanced(self, work: float) -> None:
        self.done += work
