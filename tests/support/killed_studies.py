"""Studies in processes that are killed; a module of its own, for those processes to import."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.conclusion import StudyOutcome
from rankwise.study.growing import run_to_verdict
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.run import run_study
from tests.support.file_events import FileEvent, file_events
from tests.support.observers import Silent

Moment = Literal["before", "after"]

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


def started(function: Callable[..., None], *args: Any) -> BaseProcess:
    """A process that does nothing but call a function of this module."""
    process = _PROCESSES.Process(target=function, args=args)
    process.start()
    return process


def finish(plan: StudyPlan, root: Path) -> StudyOutcome:
    """Run a study to its end."""
    return run_study(plan, StudyFolder(root), Silent())


def run_alone(study_file: Path, root: Path) -> None:
    """Plan a study and run it."""
    finish(plan_study(load_config(study_file)), root)


def run_until(study_file: Path, root: Path, number: int, moment: Moment) -> None:
    """Run a study, and kill the process before, in the middle of, or after a file event."""

    def kill(event: FileEvent) -> None:
        if event.number == number:
            os.kill(os.getpid(), signal.SIGKILL)

    _run_with(study_file, root, moment, kill)


def run_until_path(study_file: Path, root: Path, parts: tuple[str, ...], count: int) -> None:
    """Run a study, and kill the process before the event number ``count`` (from 0) of such paths.

    Unlike the number of an event of all, it does not depend on what is written by the clock.
    """
    _run_with(study_file, root, "before", _killing(parts, count))


def grow_until_path(study_file: Path, root: Path, parts: tuple[str, ...], count: int) -> None:
    """The same for a study that is run until it is decided."""
    with file_events(root, before=_killing(parts, count)):
        run_to_verdict(load_config(study_file), plan_study, StudyFolder(root), Silent())


def run_and_wait(study_file: Path, root: Path, number: int, waiting: Path) -> None:
    """Run a study up to a file event, say in a file that it waits there, and wait."""

    def wait(event: FileEvent) -> None:
        if event.number == number:
            waiting.touch()
            time.sleep(600)

    _run_with(study_file, root, "before", wait)


def _killing(parts: tuple[str, ...], count: int) -> Callable[[FileEvent], None]:
    seen: list[FileEvent] = []

    def kill(event: FileEvent) -> None:
        if all(part in event.path for part in parts):
            if len(seen) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(event)

    return kill


def _run_with(
    study_file: Path, root: Path, moment: Moment, hook: Callable[[FileEvent], None]
) -> None:
    hooks = {moment: hook}
    with file_events(root, **hooks):
        run_alone(study_file, root)
