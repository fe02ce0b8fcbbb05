"""Progress of a study for whoever waits: bars on a terminal, lines in a log, or nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Column

from rankwise.errors import RecordError, StorageError
from rankwise.records import quantities
from rankwise.records.folder import StudyFolder
from rankwise.records.locking import StageProgress, StudyProgress
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
)
from rankwise.study.printer import Printer
from rankwise.study.speeds import remember_speeds
from rankwise.study.times import Doing, Rates

LINE_SECONDS = 30.0
"""Where there is no terminal, a line at least so far from the last: a log stays short, and whoever
follows it sees that something goes on."""

TELL_SECONDS = 5.0
"""The study's folder is told at most so often."""

_BARS_SECONDS = 0.5
"""Bars are drawn at most so often: steps of small models come by the thousand."""

_STAGE_SECONDS = 1.0
"""So long after it was told, a stage that begins is told again: short ones come by the hundred."""


class Follower:
    """Keeps the time of a study, and shows nothing itself: an ``Observer`` for others to build on.

    Attributes:
        stages: of the study by their ids, as they were planned last.
        doing: those that are being done, in the order in which they began.

    Args:
        folder: of the study, where others can read how far it is; None: they cannot.
        clock: seconds that only go forward.
    """

    def __init__(
        self, folder: StudyFolder | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._clock = folder, clock
        self._told_at: float | None = None
        self._rates = Rates()
        self.stages: dict[str, StageOutline] = {}
        self.doing: dict[str, Doing] = {}
        self._left_of: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, event: Event) -> None:
        """Take an event into account."""
        match event:
            case Planned(stages):
                self.stages = {stage.id: stage for stage in stages}
                self._left_of = {stage.id: stage.work_left for stage in stages}
                self._rates.planned(stages)
            case StageStarted(stage):
                self.doing[stage] = Doing(self.stages[stage], self._clock())
                self._tell_after(_STAGE_SECONDS)
            case Advanced(stage, work, peak_memory_bytes):
                doing = self.doing[stage]
                doing.advanced(work, self._clock())
                doing.peak_memory_bytes = max(doing.peak_memory_bytes, peak_memory_bytes)
                self._tell_after(TELL_SECONDS)
            case Skipped(stage, work):
                self.doing[stage].skipped += work
            case StageFinished(stage):
                self._rates.finished(self.doing[stage], self._clock())
                self._ended(stage)
            case StageFailed(failure):
                self._ended(failure.stage)
            case StageLeftOut(stage):
                self._ended(stage)
            case Stepped() | Noted() | Decided():
                pass

    def seconds_left(self) -> dict[str, float]:
        """The seconds of every stage that is left, by its id; empty before anything is known."""
        return self._rates.seconds_left(self.doing, self._clock())

    def study_seconds_left(self) -> float | None:
        """The seconds of all stages that are planned.

        None before anything is known, and at the end.
        """
        left = self.seconds_left()
        return sum(left.values()) / max(1, len(self.doing)) if left else None

    def remember(self) -> None:
        """Keep how long work took, for the next study of this base on this machine."""
        if self._folder is not None:
            with contextlib.suppress(RecordError):
                remember_speeds(self._folder.read_study(), self._rates.spent_now)

    def seconds_of(self, stage: str) -> float:
        """Since a stage that is being done began."""
        return self._clock() - self.doing[stage].started

    @property
    def work(self) -> tuple[float, float]:
        """What is done of the study's work, and all of it."""
        total = sum(stage.work for stage in self.stages.values())
        left = dict(self._left_of)
        for stage, doing in self.doing.items():
            left[stage] = (1 - doing.share_done) * doing.outline.work
        return total - sum(left.values()), total

    def _tell_after(self, seconds: float) -> None:
        """Write where the study is; the next stage says it where the folder cannot be written."""
        now = self._clock()
        if self._folder is None or (self._told_at is not None and now - self._told_at < seconds):
            return
        self._told_at = now
        progress = StudyProgress(
            told_at=datetime.now(UTC).isoformat(timespec="seconds"),
            stages=tuple(
                StageProgress(
                    stage=stage,
                    share_done=doing.share_done,
                    tokens_per_second=doing.tokens_per_second,
                    peak_memory_bytes=doing.peak_memory_bytes,
                )
                for stage, doing in self.doing.items()
            ),
            seconds_left=self.seconds_left(),
        )
        with contextlib.suppress(StorageError):
            self._folder.write(self._folder.progress_file, progress)

    def _ended(self, stage: str) -> None:
        self._rates.dropped(stage)
        self._left_of[stage] = 0.0
        self.doing.pop(stage, None)


class QuietObserver(Follower):
    """Shows warnings alone; see ``Follower``."""

    def __init__(self, console: Printer, folder: StudyFolder | None = None) -> None:
        super().__init__(folder)
        self._console = console

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Noted):
            self._console.print(event.text, soft_wrap=True)


class TerminalObserver(Follower):
    """Shows the progress of a study with rich.

    Args:
        console: a terminal gets a bar of the study and one of each stage that is being done;
            anything else a line per stage, and one about every ``LINE_SECONDS`` within it.
        folder: see ``Follower``, as for the others.
        is_open: more may be planned than is known; the time left is of what is planned.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        console: Printer,
        folder: StudyFolder | None = None,
        *,
        is_open: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(folder, clock=clock)
        self._console, self._is_open = console, is_open
        self._is_live = console.is_terminal
        self._last_line = self._last_bars = clock()
        self._progress = Progress(
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            BarColumn(bar_width=10),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}", justify="right"),
            TextColumn("{task.fields[left]}", justify="right"),
            console=console,
            disable=not self._is_live,
            expand=True,
        )
        study = "planned so far" if is_open else "study"
        self._study_bar = self._progress.add_task(study, total=None, speed="", left="")
        self._stage_bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        super().__exit__(*error)

    def __call__(self, event: Event) -> None:
        """Take an event into account, and show it."""
        line = self._line(event)
        super().__call__(event)
        match event:
            case Planned(stages):
                done, total = self.work
                if all(stage.is_finished for stage in stages):
                    line = "everything is done; nothing is trained or scored again"
                elif done:
                    line = f"resuming: {done / total:.0%} is done"
            case Advanced(stage):
                if self._is_live and self._clock() - self._last_bars < _BARS_SECONDS:
                    return
                if not self._is_live and self._clock() - self._last_line >= LINE_SECONDS:
                    doing = self.doing[stage]
                    share, memory = doing.share_done, quantities.memory(doing.peak_memory_bytes)
                    so_far = [f"{doing.label} {share:.0%} done", *self._speed(stage), memory]
                    line = "; ".join([", ".join(so_far), *self._study_left()])
            case StageFinished():
                line = "; ".join([line, *([] if self._is_live else self._study_left())])
            case _:
                pass
        if line:
            self._console.print(line, soft_wrap=True)
            self._last_line = self._clock()
        if not isinstance(event, Skipped | Stepped):
            self._show_bars()

    def _line(self, event: Event) -> str:
        """What an event says, before it is taken into account."""
        match event:
            case StageFinished(stage):
                took = quantities.seconds(self.seconds_of(stage))
                return f"{self.doing[stage].label} done in {took}"
            case StageFailed(failure):
                return self._of(failure.stage, f"failed: {failure.message}")
            case Noted(text, stage):
                return self._of(stage, text)
            case Decided(text):
                return text
            case _:
                return ""

    def _of(self, stage: str | None, text: str) -> str:
        doing = self.doing.get(stage or "")
        return text if doing is None else f"{doing.label}: {text}"

    def _speed(self, stage: str) -> list[str]:
        speed = self.doing[stage].tokens_per_second
        return [] if speed is None else [f"{speed:,.0f} tokens/s"]

    def _study_left(self) -> list[str]:
        """The time left of the study; nothing before anything is known, and at its end."""
        left = self.study_seconds_left()
        if left is None:
            return []
        of_what = " of what is planned so far" if self._is_open else ""
        return [f"about {quantities.seconds(left)} left{of_what}"]

    def _show_bars(self) -> None:
        """All bars as they are now."""
        if not self._is_live:
            return
        done, total = self.work
        memory = max((doing.peak_memory_bytes for doing in self.doing.values()), default=0)
        self._progress.update(
            self._study_bar,
            completed=done,
            total=total or 1.0,
            speed=quantities.memory(memory) if memory else "",
            left=_left(self.study_seconds_left()),
        )
        for stage in self._stage_bars.keys() - self.doing.keys():
            self._progress.remove_task(self._stage_bars.pop(stage))
        for stage, doing in self.doing.items():
            if stage not in self._stage_bars:
                bar = self._progress.add_task("", total=1.0, speed="", left="")
                self._stage_bars[stage] = bar
            self._progress.update(
                self._stage_bars[stage],
                # a name that is too long loses its end
                description=f"{doing.outline.name}: {doing.outline.model}",
                completed=doing.share_done,
                speed=", ".join(self._speed(stage)),
                left=_left(self.seconds_left().get(stage)),
            )
        self._last_bars = self._clock()


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{quantities.seconds(seconds)} left"
