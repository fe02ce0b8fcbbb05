"""Processes that share one model, one for each device: started, asked, listened to, stopped.

Each runs :mod:`rankwise.study.work.part`. What the first one has to say it writes to stdout, one
line for an event; it is asked through stdin.
"""

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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rankwise.errors import ModelError, StorageError

MARK = "rankwise: "
"""Begins a line in which the first process tells what it has done; others are for people."""

DONE = {"done", "stopped"}
"""What the first process tells once nothing is left to do, or where it was asked to stop."""

_LAST_LINES = 30  # of the processes' output, in an error
_KILLED = re.compile(r"Signal \d+ \(SIG(KILL|SEGV|BUS|ABRT)\) received")  # by torch.distributed.run
_EVERY_SECONDS = 0.2  # how often a signal is looked for
# torch.distributed.run gives its processes 30 s to end before it kills them
_PATIENCE_SECONDS = 45


class Started:
    """Processes that ``torch.distributed.run`` has started; ``close`` ends them.

    Attributes:
        folder: for what is too long for a line; it goes with them.
        is_open: whether they can be asked.
    """

    def __init__(self, job: Mapping[str, Any], num_processes: int) -> None:
        """Start them on a job, whose ``does`` is what ``part`` calls it."""
        self._does, self.is_open = job["does"], True
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        path = self.folder / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={num_processes}", "-m", "rankwise.study.work.part"]
        self._process = subprocess.Popen(
            [*command, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches this process, which passes it on
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        threading.Thread(target=self._read, daemon=True).start()

    def close(self) -> None:
        """End them, and wait until they and their memory are gone."""
        self.is_open = False
        with contextlib.suppress(OSError):
            self._pipe.close()
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._temporary.cleanup()

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

    def events(self) -> Iterator[dict[str, Any]]:
        """What they tell until their job is done, and nothing (an empty event) now and then.

        Raises:
            ModelError: one has failed, with its last lines.
            MemoryError: a device has too little memory.
            StorageError: a file cannot be written.
        """
        said: dict[str, Any] = {}
        while (event := self._next_event()) is not None:
            said = {**event, **said}  # what failed first is the reason of the rest
            yield event
        if not said.keys() & DONE:
            error = self._error(said)
            self.close()
            raise error

    def _next_event(self) -> dict[str, Any] | None:
        with contextlib.suppress(queue.Empty):
            line = self._lines.get(timeout=_EVERY_SECONDS)
            if line is None:
                return None
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            if line:
                self._last_lines.append(line)
        return {}

    def say(self, line: str) -> None:
        """Write a line that the first process reads; one that has ended is told by its events."""
        with contextlib.suppress(OSError):
            self._pipe.write(f"{line}\n")
            self._pipe.flush()

    def _error(self, said: Mapping[str, Any]) -> ModelError | MemoryError | StorageError:
        """Why they have ended, by what they have said."""
        if "memory" in said:
            return MemoryError(said["memory"])
        if "storage" in said:
            return StorageError(said["storage"])
        # a process that was killed could say nothing, and what the others say is that it is gone
        killed = next((line for line in self._last_lines if _KILLED.search(line)), None)
        reason = killed or said.get("failed") or "\n".join(self._last_lines)
        return ModelError(
            f"a process of the {self._does} ended with {self._process.wait()}: {reason}\n"
            "Run again: it goes on from what was saved last."
        )
