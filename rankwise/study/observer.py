"""Who follows a study while it runs."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Receives the progress of a study; the terminal's progress bars are one."""

    def study_started(self, total_work: float, finished_work: float) -> None:
        """Work is counted in scored tokens; some of it may be finished from an earlier call."""
        ...

    def model_started(self, model: str, work: float) -> None:
        """What is left to do for one model or pass, until the next one starts."""
        ...

    def stage_started(self, model: str, stage: str, work: float, num_tokens: int | None) -> None:
        """``num_tokens`` are trained or scored for this work; None: a stage that reads none."""
        ...

    def advanced(self, work: float) -> None: ...

    def skipped(self, work: float) -> None:
        """Work of a stage that an earlier call has done; it says nothing about the speed."""
        ...

    def stage_finished(self) -> None: ...

    def noted(self, text: str) -> None:
        """Something that whoever waits should know."""
        ...
