"""Workers of a folder in processes of their own; a module for those processes to import."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rankwise.errors import LeaseLostError
from rankwise.records.folder import StudyFolder
from rankwise.records.leases import Crew

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


def begun(function: Callable[..., None], *args: Any) -> BaseProcess:
    """A process that does nothing but call a function of this module."""
    process = _PROCESSES.Process(target=function, args=args)
    process.start()
    return process


def wait_for(
    what: Callable[[], object],
    process: BaseProcess | None = None,
    *,
    patience_seconds: float = 300,  # machines stall
) -> None:
    """Until something is true; fails after a while, or where the process ends before."""
    until = time.monotonic() + patience_seconds
    while time.monotonic() < until:
        if what():
            return
        assert process is None or process.is_alive(), "the process has ended"
        time.sleep(0.01)
    raise AssertionError(f"it took more than {patience_seconds} s")


def joined(root: Path, lease_seconds: float | None = None) -> Crew:
    """A worker of a folder."""
    with StudyFolder(root).lock(shares=True):
        return Crew(root, lease_seconds).join()


def do_units(root: Path, num_units: int, seconds: float) -> None:
    """Do units until all are done, and write a line into ``log`` at the ends of each."""
    crew = joined(root)
    while left := [n for n in range(num_units) if not (root / f"done-{n}").exists()]:
        for number in left:
            if not crew.take(f"unit-{number}"):
                continue
            if not (root / f"done-{number}").exists():
                _log(root, f"begin {number} {crew.name}")
                time.sleep(seconds)
                crew.require()
                _log(root, f"end {number} {crew.name}")
                (root / f"done-{number}").touch()
            crew.give_back()
    crew.leave()


def hold(root: Path, lease_seconds: float) -> None:
    """Take a unit, and write a line whenever ``go`` appears, until the lease is lost."""
    crew = joined(root, lease_seconds)
    assert crew.take("unit")
    _log(root, f"took {crew.name}")
    while True:
        time.sleep(0.01)
        try:
            crew.require()
        except LeaseLostError:
            _log(root, f"lost {crew.name}")
            return
        if (root / "go").exists():
            _log(root, f"wrote {crew.name}")


def _log(root: Path, line: str) -> None:
    descriptor = os.open(root / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)
