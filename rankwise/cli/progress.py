"""Progress on a terminal (bars with time left) or in a log (a line per stage)."""

from __future__ import annotations

import time
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


class TerminalObserver:
    """Shows the progress of a study; implements the study's ``Observer`` with rich."""

    def __init__(self, console: Console) -> None:
        self._console = console
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
        self._total = self._finished = self._at_start = 0.0
        self._started = self._stage_started = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def study_started(self, total_work: float, finished_work: float) -> None:
        self._total, self._finished, self._at_start = total_work, finished_work, finished_work
        self._started = time.monotonic()
        remaining = total_work - finished_work
        if remaining <= 0:
            self._progress.update(self._study, visible=False)
            self._console.print("everything is done; nothing is trained or scored again")
        elif finished_work:
            self._console.print(f"resuming: {finished_work / total_work:.0%} is done")
        self._progress.start_task(self._study)
        self._progress.update(self._study, total=max(remaining, 1.0))

    def model_started(self, model: str, work: float) -> None:
        if self._model is not None:
            self._progress.remove_task(self._model)
        self._name = "base model" if model == BASE else model
        self._model = self._progress.add_task(self._name, total=work)

    def stage_started(self, model: str, stage: str, work: float) -> None:
        self._label = f"{self._name}: {stage}"
        self._stage_started = time.monotonic()
        if self._model is not None:
            self._progress.update(self._model, description=self._label)

    def advanced(self, work: float) -> None:
        self._finished += work
        self._progress.advance(self._study, work)
        if self._model is not None:
            self._progress.advance(self._model, work)

    def noted(self, text: str) -> None:
        self._console.print(f"{self._label}: {text}", highlight=False, soft_wrap=True)

    def stage_finished(self) -> None:
        now = time.monotonic()
        line = f"{self._label} done in {_duration(now - self._stage_started)}"
        done = self._finished - self._at_start
        left = self._total - self._finished
        if not self._is_live and done > 0 and left > 0:
            line += f"; about {_duration((now - self._started) / done * left)} left"
        self._console.print(line, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    )
