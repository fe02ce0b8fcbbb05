"""``rankwise run --workers N`` and ``--gpus all``: workers as processes, in one display."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

from rich.console import Console
from rich.progress import TaskID

from rankwise.cli.application import OK, RUN_FAILED, note, stderr
from rankwise.cli.events import Events, print_line
from rankwise.errors import ConfigError
from rankwise.records import quantities
from rankwise.records.folder import StudyFolder
from rankwise.study.progress import bars
from rankwise.study.stopping import Stopped, StopSignals

MOST_RESTARTS = 3
"""A worker that is killed, as by a system without memory, is started again so often."""


class Heard(NamedTuple):
    """What a worker has said: an event, a line on stderr, or that it has ended.

    Attributes:
        worker: its number, from 1; 0 is the process that leads them, where one does.
        event: of ``rankwise run --json``; empty where it said something else.
        line: on its stderr.
        code: its exit code, negative for a signal; None as long as it runs.
    """

    worker: int
    event: Mapping[str, Any] = {}
    line: str = ""
    code: int | None = None


class Workers:
    """Processes of ``rankwise run --worker``. None of them outlives the block.

    Args:
        command: that each of them is.
        environments: what each of them has in its environment besides.
    """

    def __init__(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        self._command, self._environments = command, environments
        self._heard: queue.Queue[Heard] = queue.Queue()
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._restarts = dict.fromkeys(range(1, len(environments) + 1), 0)

    def __enter__(self) -> Self:
        for number in self._restarts:
            self._start(number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let those that still run save what they train; a second signal does not wait for it."""
        running = [each for each in self._processes.values() if each.poll() is None]
        try:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
        finally:
            for process in running:
                process.kill()

    def heard(self) -> Iterator[Heard]:
        """What they say, until all have ended; one that was killed is started again."""
        running = set(self._restarts)
        while running:
            heard = self._heard.get()
            yield heard
            if heard.code is None:
                continue
            if heard.code < 0 and self._restarts[heard.worker] < MOST_RESTARTS:
                self._restarts[heard.worker] += 1
                self._start(heard.worker)
            else:
                running.remove(heard.worker)

    def _start(self, number: int) -> None:
        process = subprocess.Popen(
            self._command,
            env={**os.environ, **self._environments[number - 1]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is for this process, which tells them once
        )
        self._processes[number] = process
        threading.Thread(target=self._listen, args=(number, process), daemon=True).start()

    def _listen(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = threading.Thread(target=self._read, args=(number, process.stderr), daemon=True)
        lines.start()
        with process.stdout as events:
            for line in events:
                try:
                    self._heard.put(Heard(number, event=json.loads(line)))
                except ValueError:  # it was killed in the middle of a line
                    self._heard.put(Heard(number, line=line.rstrip("\n")))
        lines.join()
        self._heard.put(Heard(number, code=process.wait()))

    def _read(self, number: int, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._heard.put(Heard(number, line=line.rstrip("\n")))


class Doing(NamedTuple):
    """What a worker is at.

    Attributes:
        stage: its id.
        words: model and name of it.
        share_done: of its work.
        tokens_per_second: that it reads; None where that is not known.
    """

    stage: str
    words: str
    share_done: float = 0.0
    tokens_per_second: float | None = None


class Team:
    """What workers do together, as their events tell it.

    Attributes:
        doing: worker -> what it is at; nothing while it waits.
        errors: worker -> the message with which it ended, if it did.
        codes: worker -> the exit code with which it ended last.
    """

    def __init__(self) -> None:
        self.doing: dict[int, Doing] = {}
        self.errors: dict[int, str] = {}
        self.codes: dict[int, int] = {}
        self._work: dict[str, float] = {}
        self._finished: set[str] = set()

    def hear(self, heard: Heard) -> None:
        """Take an event into account."""
        event, worker = heard.event, heard.worker
        match event.get("event"):
            case "planned":
                self._work = {stage["id"]: stage["work"] for stage in event["stages"]}
                done = {stage["id"] for stage in event["stages"] if stage["is_finished"]}
                self._finished = (self._finished | done) & self._work.keys()
            case "stage_started":
                words = f"{event['model']}: {event['name']}"
                self.doing[worker] = Doing(event["stage"], words)
            case "progress" if worker in self.doing:
                now = event["share_done"], event["tokens_per_second"]
                self.doing[worker] = Doing(*self.doing[worker][:2], *now)
            case "stage_finished" | "stage_failed" | "stage_left_out":
                self._finished.add(event["stage"])
                self.doing.pop(worker, None)
            case "ended" if event["outcome"] == "error":
                self.errors[worker] = event["message"]
            case _:
                pass
        if heard.code is not None:
            self.doing.pop(worker, None)
            self.codes[worker] = heard.code

    @property
    def has_come_to_the_end(self) -> bool:
        """Whether a worker has seen that all is done."""
        return any(
            code in (OK, RUN_FAILED) and worker not in self.errors
            for worker, code in self.codes.items()
        )

    @property
    def share_done(self) -> float:
        """Of the study's work, as it is planned."""
        of_stage = dict.fromkeys(self._finished, 1.0)
        for doing in self.doing.values():
            of_stage.setdefault(doing.stage, doing.share_done)
        total = sum(self._work.values())
        done = sum(self._work.get(stage, 0.0) * share for stage, share in of_stage.items())
        return done / total if total else 0.0


class TeamDisplay:
    """Shows what workers do: a bar of the study and one of each on a terminal, else lines.

    Args:
        console: where to.
        num_workers: that there are from the beginning; others get a bar when they are heard.
        quiet: show warnings alone.
    """

    def __init__(self, console: Console, num_workers: int, *, quiet: bool = False) -> None:
        self.team = Team()
        self._console, self._quiet = console, quiet
        self._said: set[str] = set()
        self._begun = self._shown_at = time.monotonic()
        self._share_before: float | None = None
        self._progress = bars(console, "more", is_shown=console.is_terminal and not quiet)
        self._study = self._progress.add_task("study", total=1.0, more="")
        self._bars: dict[int, TaskID] = {}
        for number in range(1, num_workers + 1):
            self._add_bar(number)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, heard: Heard) -> None:
        """Show what a worker has said."""
        event, doing = heard.event, self.team.doing.get(heard.worker)
        self.team.hear(heard)
        if heard.worker and heard.worker not in self._bars:
            self._add_bar(heard.worker)
        match event.get("event"):
            case "planned" if self._share_before is None:
                self._share_before = self.team.share_done
            case "stage_finished" if doing is not None and not self._quiet:
                done = f"{doing.words} done in {quantities.seconds(event['seconds'])}"
                self._say(f"{self._of(heard)}{done}; {self._so_far()}")
            case "stage_failed":  # also by who leads, which is at no stage
                words = f"{event['model']}: {event['name']}"
                self._say(f"{self._of(heard)}{words} failed: {event['message']}")
            case "noted":
                self._say(f"{self._of(heard)}{event['text']}")
            case "decided" if not self._quiet:
                self._say_once(event["text"])
            case _:
                pass
        if heard.line:
            self._say_once(heard.line)
        if heard.code is not None and heard.code < 0:
            self._say(f"{self._of(heard)}was ended by signal {-heard.code}; others do its work")
        self._show_bars()

    def _add_bar(self, number: int) -> None:
        self._bars[number] = self._progress.add_task("", total=1.0, more="")

    @staticmethod
    def _of(heard: Heard) -> str:
        return f"worker {heard.worker}: " if heard.worker else ""

    def _so_far(self) -> str:
        """How much of the study is done, and how long the rest takes at this pace."""
        share, before = self.team.share_done, self._share_before or 0.0
        text = f"{quantities.share(share)} of the study is done"
        if before < share < 1:
            pace = (time.monotonic() - self._begun) / (share - before)
            text += f", about {quantities.seconds(pace * (1 - share))} left"
        return text

    def _say_once(self, line: str) -> None:
        """What all workers say, such as a warning of the plan."""
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _show_bars(self) -> None:
        self._progress.update(self._study, completed=self.team.share_done, more=self._so_far())
        for number, bar in self._bars.items():
            doing = self.team.doing.get(number)
            words, share, speed = ("waits", 0.0, None) if doing is None else doing[1:]
            more = "" if speed is None else f"{speed:,.0f} tokens/s"
            words = f"worker {number}: {words}"
            self._progress.update(bar, description=words, completed=share, more=more)


def worker_places(
    num_workers: int | None, gpus: str | None, *, is_worker: bool
) -> list[Mapping[str, str]]:
    """What each of the workers has in its environment: a card, if any are named, and some cores.

    A number of threads that is set stays.

    Raises:
        ConfigError: there are no such cards, or the options do not go together.
    """
    if gpus is not None and (is_worker or num_workers is not None):
        problem = "--gpus starts a worker for each card; give it without --workers and --worker"
        raise ConfigError("run", [problem])
    names = [] if gpus is None else _cards(gpus)
    number = len(names) or num_workers or 1
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // number)))
    cards = [{"CUDA_VISIBLE_DEVICES": name} for name in names] or [{} for _ in range(number)]
    return [{"OMP_NUM_THREADS": threads, **card} for card in cards]


def _cards(text: str) -> list[str]:
    """The cards of a list, or all, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    here = [str(index) for index in range(torch.cuda.device_count())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        here = [name.strip() for name in visible.split(",")][: len(here)]
    wanted = here if text == "all" else [name.strip() for name in text.split(",")]
    if not here:
        problem = f"--gpus {text}: there is no card here; give --workers N to share a CPU"
        raise ConfigError("run", [problem])
    missing = [name for name in wanted if name not in here]
    if missing:
        problem = f"--gpus {text}: there is no card {missing[0]}; there are {', '.join(here)}"
        raise ConfigError("run", [problem])
    return list(dict.fromkeys(wanted))


def run_workers(
    given: Sequence[str],
    places: Sequence[Mapping[str, str]],
    folder: StudyFolder,
    *,
    quiet: bool,
    as_json: bool,
) -> int:
    """Let workers run a study to its end, and report.

    Args:
        given: the study and its options, as ``rankwise run`` was given them.
        places: see ``worker_places``.
        folder: of the study.
        quiet: show warnings alone.
        as_json: print their events, each with its worker, and ``ended`` at the end.
    """
    from rankwise.cli.running import (
        check_output,
        check_page,
        report_events,
        report_on,
        told_of_stop,
    )
    from rankwise.study.conclusion import conclude

    check_output(quiet=quiet, as_json=as_json)
    shared = ["--worker", f"--workers={len(places)}", "--json"]
    command = [sys.executable, "-m", "rankwise", "run", *given, *shared]
    events = Events(print_line) if as_json else None
    display = TeamDisplay(stderr, len(places), quiet=quiet or as_json)
    try:
        with events or contextlib.nullcontext(), StopSignals().listening():
            check_page(folder)
            with display, Workers(command, places) as workers:
                for heard in workers.heard():
                    pass_on(heard, display, events)
            if not display.team.has_come_to_the_end:
                return _failed(display.team, events)
            outcome = conclude(folder)
            if events is not None:
                return report_events(folder, outcome, events)
            return report_on(folder, outcome)
    except Stopped as stopped:
        return told_of_stop(stopped, folder.address)


def pass_on(heard: Heard, display: TeamDisplay, events: Events | None) -> None:
    """Show what a worker has said, and write its event; how all of it ends is told once."""
    display.show(heard)
    name = heard.event.get("event", "ended")
    if events is not None and name != "ended":
        content = {**heard.event, "worker": heard.worker}
        events.write(name, **{k: v for k, v in content.items() if k != "event"})


def _failed(team: Team, events: Events | None) -> int:
    """The exit code where no worker has come to the end of the study; they have said why."""
    messages = [*dict.fromkeys(team.errors.values())]
    if not messages:
        messages = ["every worker was killed. Run the same command again: finished work is kept."]
        note(messages[0], style="red")
    code = max([code for code in team.codes.values() if code > 0], default=RUN_FAILED)
    if events is not None:
        events.ended("error", code, message="; ".join(messages))
    return code
