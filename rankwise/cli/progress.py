"""Progress on a terminal (bars with time left) or in a log (lines, with time left too)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rankwise.records.folder import BASE

LINE_SECONDS = 30.0
"""Where there is no terminal, a line at least so far from the last: a log stays short, and whoever
follows it sees that something goes on."""


class TerminalObserver:
    """Shows the progress of a study; implements the study's ``Observer`` with rich.

    Args:
        console: a terminal gets bars; anything else a line per stage, and one about every
            ``LINE_SECONDS`` within it.
        clock: seconds that only go forward.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._is_live = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not self._is_live,
        )
        self._study = self._progress.add_task("study", total=None, start=False)
        self._model: TaskID | None = None
        self._name = ""
        self._label = ""
        self._total = self._finished = self._skipped = 0.0
        self._stage_work = self._stage_finished = self._stage_skipped = 0.0
        self._stage_tokens: int | None = None
        self._started = self._stage_started = self._last_line = clock()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def study_started(self, total_work: float, finished_work: float) -> None:
        self._total, self._finished, self._skipped = total_work, finished_work, finished_work
        self._started = self._clock()
        remaining = total_work - finished_work
        if remaining <= 0:
            self._progress.update(self._study, visible=False)
            self._print("everything is done; nothing is trained or scored again")
        elif finished_work:
            self._print(f"resuming: {finished_work / total_work:.0%} is done")
        self._progress.start_task(self._study)
        self._progress.update(self._study, total=max(remaining, 1.0))

    def model_started(self, model: str, work: float) -> None:
        if self._model is not None:
            self._progress.remove_task(self._model)
        self._name = "base model" if model == BASE else model
        self._model = self._progress.add_task(self._name, total=work)

    def stage_started(self, model: str, stage: str, work: float, num_tokens: int | None) -> None:
        self._label = f"{self._name}: {stage}"
        self._stage_work, self._stage_tokens = work, num_tokens
        self._stage_finished = self._stage_skipped = 0.0
        self._stage_started = self._clock()
        if self._model is not None:
            self._progress.update(self._model, description=self._label)

    def advanced(self, work: float) -> None:
        self._finished += work
        self._stage_finished += work
        self._progress.advance(self._study, work)
        if self._model is not None:
            self._progress.advance(self._model, work)
        if not self._is_live and self._clock() - self._last_line >= LINE_SECONDS:
            self._print("; ".join([self._stage_so_far(), *self._left()]))

    def skipped(self, work: float) -> None:
        self._skipped += work
        self._stage_skipped += work
        self.advanced(work)

    def noted(self, text: str) -> None:
        self._print(f"{self._label}: {text}" if self._label else text)

    def stage_finished(self) -> None:
        line = f"{self._label} done in {_duration(self._clock() - self._stage_started)}"
        self._print("; ".join([line, *([] if self._is_live else self._left())]))

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)
        self._last_line = self._clock()

    def _stage_so_far(self) -> str:
        """How much of the stage is done, and how fast; stages of analysis read no tokens."""
        share = self._stage_finished / self._stage_work if self._stage_work else 1.0
        line = f"{self._label} {share:.0%} done"
        seconds = self._clock() - self._stage_started
        if self._stage_tokens is None or not self._stage_work or seconds <= 0:
            return line
        new = (self._stage_finished - self._stage_skipped) / self._stage_work
        return f"{line}, {self._stage_tokens * new / seconds:,.0f} tokens/s"

    def _left(self) -> list[str]:
        """The time left of the study, by what this call has done so far; nothing at its end."""
        done, left = self._finished - self._skipped, self._total - self._finished
        if done <= 0 or left <= 0:
            return []
        return [f"about {_duration((self._clock() - self._started) / done * left)} left"]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    )
