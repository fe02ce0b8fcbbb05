"""``--json`` of the verbs that run a study: what happens to a study, one JSON object a line."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rankwise.cli.application import INTERRUPTED, RUN_FAILED, exit_code_of, json_text
from rankwise.errors import RankwiseError, StorageError
from rankwise.records.folder import StudyFolder
from rankwise.records.study import StageFailure
from rankwise.study.observer import StageOutline, TrainingStep
from rankwise.study.progress import Follower

if TYPE_CHECKING:
    from rankwise.study.conclusion import StudyOutcome

PROGRESS_SECONDS = 1.0
"""Events of progress are at least so far apart."""


class Events:
    """Writes events; the last one, ``ended``, says how it went, also where an error ends the block.

    Args:
        write: takes a line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell of the error, if one ends the block."""
        from rankwise.study.stopping import Stopped

        if error is None:
            return
        outcome, code = "error", RUN_FAILED
        match error:
            case Stopped():
                outcome, code = "stopped", 128 + error.number
            case KeyboardInterrupt():
                outcome, code = "stopped", INTERRUPTED
            case RankwiseError():
                code = exit_code_of(error)
            case _:
                pass
        with contextlib.suppress(StorageError):
            self.ended(outcome, code, message=f"{type(error).__name__}: {error}")

    def concluded(self, outcome: StudyOutcome, report: Path | None, code: int) -> None:
        """The last event of a study that has a verdict."""
        parts = outcome.recommendation.by_train_task
        fields = {"train_task", "outcome", "rank", "statement"}
        self.ended(
            "incomplete" if code else "done",
            code,
            recommendations=[part.model_dump(include=fields) for part in parts],
            report=report,
        )

    def write(self, event: str, **content: Any) -> None:
        """Write an event.

        Raises:
            StorageError: nobody reads them any more.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write(json_text({"event": event, "time": now, **content}))

    def ended(
        self,
        outcome: str,
        code: int,
        *,
        message: str | None = None,
        recommendations: Sequence[Mapping[str, Any]] = (),
        report: Path | None = None,
    ) -> None:
        """Write the last event."""
        self.write(
            "ended",
            outcome=outcome,
            exit_code=code,
            message=message,
            recommendations=recommendations,
            report=report,
        )


class EventObserver(Follower):
    """Writes an event of everything that it is told.

    Args:
        events: where to.
        memory: see ``Follower``, as for the others.
        folder: of the study.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        events: Events,
        memory: Callable[[], int],
        folder: StudyFolder | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(memory, folder, clock=clock)
        self._event = events.write
        self._last_progress = clock()

    def study_started(self, stages: Sequence[StageOutline]) -> None:
        super().study_started(stages)
        fields = ("id", "kind", "name", "model", "work", "num_tokens", "is_finished")
        listed = [{field: getattr(stage, field) for field in fields} for stage in stages]
        self._event("planned", stages=listed, **self._left_of_study())

    def stage_started(self, stage: str) -> None:
        super().stage_started(stage)
        self._event("stage_started", **self._stage(), **self._left_of_study())
        self._last_progress = self._clock()

    def advanced(self, work: float) -> None:
        super().advanced(work)
        now = self.now()
        if now is None or self._clock() - self._last_progress < PROGRESS_SECONDS:
            return
        self._event(
            "progress",
            **self._stage(),
            share_done=now.share_done,
            tokens_per_second=now.tokens_per_second,
            peak_memory_bytes=self._memory(),
            stage_seconds_left=now.stage_seconds_left,
            **self._left_of_study(),
        )
        self._last_progress = self._clock()

    def stepped(self, step: TrainingStep) -> None:
        self._event("step", **self._stage(), **step._asdict(), **self._left_of_study())

    def stage_finished(self) -> None:
        stage, seconds = self._stage(), self.stage_seconds
        super().stage_finished()
        self._event("stage_finished", **stage, seconds=seconds, **self._left_of_study())

    def stage_failed(self, failure: StageFailure) -> None:
        super().stage_failed(failure)
        told = failure.model_dump(include={"stage", "kind", "name", "model", "error", "message"})
        self._event("stage_failed", **told, **self._left_of_study())

    def stage_left_out(self, stage: str) -> None:
        super().stage_left_out(stage)
        self._event("stage_left_out", **_named(self.stages[stage]))

    def noted(self, text: str) -> None:
        self._event("noted", text=text)

    def decided(self, text: str) -> None:
        self._event("decided", text=text)

    def _stage(self) -> Mapping[str, str]:
        assert self.stage is not None
        return _named(self.stage)

    def _left_of_study(self) -> Mapping[str, float | None]:
        return {"seconds_left": self.study_seconds_left()}


def print_line(line: str, output: TextIO | None = None) -> None:
    """Print a line to stdout at once, or to what it was before it was redirected.

    Raises:
        StorageError: nobody reads it any more.
    """
    place = sys.stdout if output is None else output
    try:
        print(line, file=place, flush=True)
    except OSError as error:
        # what is buffered would fail again when the process ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), place.fileno())
        raise StorageError(
            f"stdout cannot be written: {error.strerror}. Read the events to their end, and run "
            "again: finished work is kept."
        ) from error


def _named(stage: StageOutline) -> Mapping[str, str]:
    return {"stage": stage.id, "kind": stage.kind, "name": stage.name, "model": stage.model}
