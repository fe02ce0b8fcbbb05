"""Progress of a study for whoever waits: bars on a terminal, lines in a log, or nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column

from rankwise.errors import StorageError
from rankwise.records import quantities
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.progress import StudyProgress
from rankwise.records.study import StageFailure
from rankwise.study.observer import StageOutline, TrainingStep
from rankwise.study.pace import Pace

LINE_SECONDS = 30.0
"""Where there is no terminal, a line at least so far from the last: a log stays short, and whoever
follows it sees that something goes on."""

TELL_SECONDS = 5.0
"""The study's folder is told at most so often."""

_STAGE_SECONDS = 1.0
"""So long after it was told, a stage that begins is told again: short ones come by the hundred."""

_ESTIMATE_SECONDS = 0.5
"""How old an estimate of the time left may be: steps of small models come by the thousand."""


class Now(NamedTuple):
    """Where a study is.

    Attributes:
        stage: that is being done.
        share_done: of its work.
        tokens_per_second: that it reads; None where it reads none, or at its beginning.
        seconds_left: of every stage that is left, by its id; empty before anything is known.
    """

    stage: StageOutline
    share_done: float
    tokens_per_second: float | None
    seconds_left: Mapping[str, float]

    @property
    def stage_seconds_left(self) -> float | None:
        """Of the stage that is being done."""
        return self.seconds_left.get(self.stage.id)


class Follower:
    """Implements the study's ``Observer``: keeps the time, and shows nothing itself.

    Args:
        memory: the peak of the memory in use, in bytes.
        folder: of the study, where others are told; None: they are not.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        memory: Callable[[], int],
        folder: StudyFolder | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory, self._folder, self._clock = memory, folder, clock
        self._told_at: float | None = None
        self._pace = Pace()
        self.stages: dict[str, StageOutline] = {}
        self.stage: StageOutline | None = None
        self._done = 0.0
        self._left_of: dict[str, float] = {}
        self._stage_started = self._estimated_at = clock()
        self._left: dict[str, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def study_started(self, stages: Sequence[StageOutline]) -> None:
        self.stages = {stage.id: stage for stage in stages}
        self._left_of = {stage.id: stage.work_left for stage in stages}
        self._pace.planned(stages)
        self._left = None

    def stage_started(self, stage: str) -> None:
        self.stage, self._done = self.stages[stage], 0.0
        self._stage_started = self._clock()
        self._pace.started(self.stage, self._stage_started)
        self._tell_after(_STAGE_SECONDS)

    def advanced(self, work: float) -> None:
        self._done += work
        self._pace.advanced(work, self._clock())
        self._tell_after(TELL_SECONDS)

    def skipped(self, work: float) -> None:
        self._done += work
        self._pace.skipped(work)

    def stepped(self, step: TrainingStep) -> None: ...

    def stage_finished(self) -> None:
        assert self.stage is not None
        self._pace.finished(self._clock())
        self._ended(self.stage.id)

    def stage_failed(self, failure: StageFailure) -> None:
        self._ended(failure.stage)

    def stage_left_out(self, stage: str) -> None:
        self._ended(stage)

    def noted(self, text: str) -> None: ...

    def decided(self, text: str) -> None: ...

    def now(self) -> Now | None:
        """Where the study is; None between two stages."""
        if self.stage is None:
            return None
        share = min(self._done / self.stage.work, 1.0) if self.stage.work else 1.0
        return Now(self.stage, share, self._pace.tokens_per_second(), self.seconds_left())

    def seconds_left(self) -> Mapping[str, float]:
        """Of every stage that is left, by its id; empty before anything is known."""
        now = self._clock()
        # while nothing is known it is asked again: that costs nothing
        if not self._left or now - self._estimated_at >= _ESTIMATE_SECONDS:
            self._left, self._estimated_at = dict(self._pace.stages_left(now)), now
        return self._left

    def study_seconds_left(self) -> float | None:
        """Of all stages that are planned; None before anything is known, and at the end."""
        left = self.seconds_left()
        return sum(left.values()) if left else None

    @property
    def stage_seconds(self) -> float:
        """Since the stage began."""
        return self._clock() - self._stage_started

    @property
    def work(self) -> tuple[float, float]:
        """What is done of the study's work, and all of it."""
        total = sum(stage.work for stage in self.stages.values())
        left = dict(self._left_of)
        if self.stage is not None:
            left[self.stage.id] = max(self.stage.work - self._done, 0.0)
        return total - sum(left.values()), total

    def _tell_after(self, seconds: float) -> None:
        if self._told_at is None or self._clock() - self._told_at >= seconds:
            self._tell()

    def _tell(self) -> None:
        """Write where the study is; the next stage says it where the folder cannot be written."""
        now = self.now()
        if self._folder is None or self._folder.progress_file is None or now is None:
            return
        self._told_at = self._clock()
        with contextlib.suppress(StorageError):
            self._folder.write(
                self._folder.progress_file,
                StudyProgress(
                    told_at=datetime.now(UTC).isoformat(timespec="seconds"),
                    stage=now.stage.id,
                    share_done=now.share_done,
                    tokens_per_second=now.tokens_per_second,
                    peak_memory_bytes=self._memory(),
                    seconds_left=dict(now.seconds_left),
                ),
            )

    def _ended(self, stage: str) -> None:
        self._pace.dropped(stage)
        self._left_of[stage] = 0.0
        if self._left:
            self._left.pop(stage, None)
        if self.stage is not None and self.stage.id == stage:
            self.stage = None


class QuietObserver(Follower):
    """Shows warnings alone; see ``Follower``."""

    def __init__(
        self, console: Console, memory: Callable[[], int], folder: StudyFolder | None = None
    ) -> None:
        super().__init__(memory, folder)
        self._console = console

    def noted(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def bars(console: Console, *fields: str, is_shown: bool) -> Progress:
    """Room for bars: each has its description, its share, and the fields of its task."""
    return Progress(
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        BarColumn(bar_width=10),
        TaskProgressColumn(),
        *(TextColumn(f"{{task.fields[{field}]}}", justify="right") for field in fields),
        console=console,
        disable=not is_shown,
        expand=True,
    )


class TerminalObserver(Follower):
    """Shows the progress of a study with rich.

    Args:
        console: a terminal gets a bar of the study and one of the stage; anything else a line per
            stage, and one about every ``LINE_SECONDS`` within it.
        memory: see ``Follower``, as for the others.
        folder: of the study.
        is_open: more may be planned than is known; the time left is of what is planned.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        console: Console,
        memory: Callable[[], int],
        folder: StudyFolder | None = None,
        *,
        is_open: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(memory, folder, clock=clock)
        self._console, self._is_open = console, is_open
        self._is_live = console.is_terminal
        self._last_line = self._last_bars = clock()
        self._progress = bars(console, "speed", "left", is_shown=self._is_live)
        study = "planned so far" if is_open else "study"
        self._study_bar = self._progress.add_task(study, total=None, speed="", left="")
        self._stage_bar = self._progress.add_task("", visible=False, speed="", left="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        super().__exit__(*error)

    def study_started(self, stages: Sequence[StageOutline]) -> None:
        super().study_started(stages)
        done, total = self.work
        if all(stage.is_finished for stage in stages):
            self._print("everything is done; nothing is trained or scored again")
        elif done:
            self._print(f"resuming: {done / total:.0%} is done")
        self._show_bars()

    def stage_started(self, stage: str) -> None:
        super().stage_started(stage)
        self._show_bars()

    def advanced(self, work: float) -> None:
        super().advanced(work)
        if self._is_live:
            if self._clock() - self._last_bars >= _ESTIMATE_SECONDS:
                self._show_bars()
        elif self._clock() - self._last_line >= LINE_SECONDS:
            self._print("; ".join([self._so_far(), *self._study_left()]))

    def stage_finished(self) -> None:
        line = f"{self._label} done in {_duration(self.stage_seconds)}"
        super().stage_finished()
        self._print("; ".join([line, *([] if self._is_live else self._study_left())]))
        self._show_bars()

    def stage_failed(self, failure: StageFailure) -> None:
        self.noted(f"failed: {failure.message}")
        super().stage_failed(failure)

    def noted(self, text: str) -> None:
        self._print(f"{self._label}: {text}" if self.stage else text)

    def decided(self, text: str) -> None:
        self._print(text)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._last_line = self._clock()

    @property
    def _label(self) -> str:
        assert self.stage is not None
        model = "base model" if self.stage.model == BASE else self.stage.model
        return f"{model}: {self.stage.name}"

    def _so_far(self) -> str:
        """How much of the stage is done, how fast, and in how much memory."""
        now = self.now()
        assert now is not None
        parts = [f"{self._label} {now.share_done:.0%} done", *_speed(now), self._used()]
        return ", ".join(parts)

    def _used(self) -> str:
        return quantities.memory(self._memory())

    def _study_left(self) -> list[str]:
        """The time left of the study; nothing before anything is known, and at its end."""
        left = self.study_seconds_left()
        if left is None:
            return []
        of_what = " of what is planned so far" if self._is_open else ""
        return [f"about {_duration(left)} left{of_what}"]

    def _show_bars(self) -> None:
        """Both bars as they are now."""
        if not self._is_live:
            return
        done, total = self.work
        now = self.now()
        self._progress.update(
            self._study_bar,
            completed=done,
            total=total or 1.0,
            speed=self._used(),
            left=_left(self.study_seconds_left()),
        )
        if now is None:
            self._progress.update(self._stage_bar, visible=False)
        else:
            self._progress.update(
                self._stage_bar,
                # a name that is too long loses its end
                description=f"{now.stage.name}: {now.stage.model}",
                visible=True,
                completed=now.share_done,
                total=1.0,
                speed=", ".join(_speed(now)),
                left=_left(now.stage_seconds_left),
            )
        self._last_bars = self._clock()


def peak_memory() -> Callable[[], int]:
    """Says the peak of the memory in use, in bytes: of the process, or of tensors on the card."""
    from rankwise.engine.models.devices import PeakMemory, choose_device

    return PeakMemory(choose_device()).so_far


def _speed(now: Now) -> list[str]:
    speed = now.tokens_per_second
    return [] if speed is None else [f"{speed:,.0f} tokens/s"]


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{_duration(seconds)} left"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    )
