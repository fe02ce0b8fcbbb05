"""A full fine-tuning in processes of its own, one for each device: started, followed, stopped."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from rankwise.engine.models.base import fetch_weights
from rankwise.errors import ModelError
from rankwise.records.study import PlannedPass, PlannedRun
from rankwise.study.context import StudyContext
from rankwise.study.observer import TrainingStep

MARK = "rankwise: "
"""Begins a line in which the first process tells what it has done; others are for people."""

STOP = "stop"
"""Line by which the processes are asked to save and end; they end at once when the pipe closes."""

WRITE = "write"
"""What the first process asks before it writes, as it has no lease of its own, and the line by
which it is allowed."""

_LAST_LINES = 30  # of the processes' output, in an error
_KILLED = re.compile(r"Signal \d+ \(SIG(KILL|SEGV|BUS|ABRT)\) received")  # by torch.distributed.run
_EVERY_SECONDS = 0.2  # how often a signal is looked for
# torch.distributed.run gives its processes 30 s to end before it kills them
_PATIENCE_SECONDS = 45


def train_in_processes(
    context: StudyContext, runs: Sequence[PlannedRun], planned: PlannedPass
) -> None:
    """Train all weights in one process for each device, and write what comes of it.

    The first of them writes into the study's folder, and asks this one before, which has the lease.
    This one only follows. A signal is passed on: the processes save the state at the end of the
    step.

    Raises:
        LeaseLostError: this worker was not heard of for too long; nothing more is written.
        ModelError: a process failed; with its last lines.
        MemoryError: a device has too little memory.
        Stopped: a signal came; the state is saved.
    """
    plan = context.plan
    weights = fetch_weights(plan.base)  # once, before several look for them
    job = {
        "folder": str(context.folder.root),
        "base": [plan.base.name, str(weights), plan.base.fingerprint],
        "device": plan.device.type,
        "runs": [run.model_dump(mode="json") for run in runs],
        "pass": planned.model_dump(mode="json"),
        "examples": plan.examples[runs[0].train_task],
    }
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={planned.num_devices}", "-m", "rankwise.study.work.part"]
        with context.signals.deferred(), _Started([*command, str(path)]) as started:
            _follow(context, started)


def _follow(context: StudyContext, started: _Started) -> None:
    """Tell what the processes do, until they have ended."""
    is_asked = False
    said: dict[str, Any] = {}
    while (event := started.next_event()) is not None:
        if context.signals.is_pending and not is_asked:
            is_asked = True
            started.say(STOP)
        match event:
            case {"advanced": work}:
                context.observer.advanced(work)
            case {"skipped": work}:
                context.observer.skipped(work)
            case {"asks": _}:
                context.folder.guard()
                started.say(WRITE)
            case {"noted": text}:
                context.observer.noted(text)
            case {"stepped": step}:
                context.observer.stepped(TrainingStep(*step))
            case _:
                said = {**event, **said}  # what failed first is the reason of the rest
    if "done" in said or (is_asked and "stopped" in said):
        return
    if "memory" in said:
        raise MemoryError(said["memory"])
    # a process that was killed could say nothing, and what the others say is that it is gone
    killed = next((line for line in started.last_lines if _KILLED.search(line)), None)
    reason = killed or said.get("failed") or "\n".join(started.last_lines)
    raise ModelError(
        f"a process of the full fine-tuning ended with {started.code}: {reason}\n"
        "Run again: it goes on from the state that was saved last."
    )


class _Started:
    """Processes that ``torch.distributed.run`` has started; they end with the block."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches this process, which passes it on
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> _Started:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._pipe.close()
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def code(self) -> int:
        """With which they ended."""
        return self._process.wait()

    @property
    def _pipe(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._lines.put(line.rstrip())
        self._lines.put(None)

    def next_event(self) -> dict[str, Any] | None:
        """What is told next, nothing (an empty event) after a while; None: they have ended."""
        with contextlib.suppress(queue.Empty):
            line = self._lines.get(timeout=_EVERY_SECONDS)
            if line is None:
                return None
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            if line:
                self.last_lines.append(line)
        return {}

    def say(self, line: str) -> None:
        """Write a line for the first of them to read, unless they have ended."""
        with contextlib.suppress(OSError):
            self._pipe.write(f"{line}\n")
            self._pipe.flush()
