"""``--json`` of the verbs that run a study: what happens to a study, one JSON object a line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Self, TextIO

from rankwise.cli.application import INTERRUPTED, RUN_FAILED, USAGE, json_text
from rankwise.errors import RankwiseError, StorageError
from rankwise.records.folder import StudyFolder
from rankwise.study import observer
from rankwise.study.progress import Follower

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

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Tell of the error, if one ends the block."""
        from rankwise.study.stopping import Stopped

        if error is None:
            return
        outcome, code = "error", RUN_FAILED
        if isinstance(error, Stopped):
            outcome, code = "stopped", 128 + error.number
        elif isinstance(error, KeyboardInterrupt):
            outcome, code = "stopped", INTERRUPTED
        elif isinstance(error, RankwiseError):
            code = USAGE if error.is_usage else RUN_FAILED
        with contextlib.suppress(StorageError):
            self.ended(outcome, code, message=f"{type(error).__name__}: {error}")

    def write(self, event: str, **content: Any) -> None:
        """Write an event.

        Raises:
            StorageError: nobody reads them any more.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write(json_text({"event": event, "time": now, **content}))

    def ended(self, outcome: str, code: int, **said: Any) -> None:
        """Write the last event, with a message, recommendations and a report where there are."""
        content = {"message": None, "recommendations": (), "report": None, **said}
        self.write("ended", outcome=outcome, exit_code=code, **content)


class EventObserver(Follower):
    """Writes each event of a study.

    Args:
        events: where to.
        folder: see ``Follower``.
    """

    def __init__(self, events: Events, folder: StudyFolder) -> None:
        super().__init__(folder)
        self._write = events.write
        self._last_progress: dict[str, float] = {}

    def __call__(self, event: observer.Event) -> None:
        """Take an event into account, and write it."""
        seconds = self.seconds_of(event.stage) if isinstance(event, observer.StageFinished) else 0.0
        super().__call__(event)
        match event:
            case observer.Planned(stages):
                fields = ("id", "kind", "name", "model", "work", "num_tokens", "is_finished")
                listed = [{field: getattr(stage, field) for field in fields} for stage in stages]
                self._event("planned", stages=listed)
            case observer.StageStarted(stage):
                self._last_progress[stage] = self._clock()
                self._event("stage_started", **_named(self.stages[stage]))
            case observer.Advanced(stage):
                if self._clock() - self._last_progress[stage] < PROGRESS_SECONDS:
                    return
                self._last_progress[stage] = self._clock()
                doing = self.doing[stage]
                self._event(
                    "progress",
                    **_named(doing.outline),
                    share_done=doing.share_done,
                    tokens_per_second=doing.tokens_per_second,
                    peak_memory_bytes=doing.peak_memory_bytes,
                    stage_seconds_left=self.seconds_left().get(stage),
                )
            case observer.Stepped(stage, step):
                self._event("step", **_named(self.stages[stage]), **step._asdict())
            case observer.StageFinished(stage):
                self._event("stage_finished", **_named(self.stages[stage]), seconds=seconds)
            case observer.StageFailed(failure):
                fields = {"stage", "kind", "name", "model", "error", "message"}
                self._event("stage_failed", **failure.model_dump(include=fields))
            case observer.StageLeftOut(stage):
                self._event("stage_left_out", **_named(self.stages[stage]))
            case observer.Noted(text):
                self._write("noted", text=text)
            case observer.Decided(text):
                self._write("decided", text=text)
            case observer.Skipped():
                pass

    def _event(self, event: str, /, **content: Any) -> None:
        self._write(event, **content, seconds_left=self.study_seconds_left())


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


def _named(stage: observer.StageOutline) -> Mapping[str, str]:
    return {"stage": stage.id, "kind": stage.kind, "name": stage.name, "model": stage.model}
