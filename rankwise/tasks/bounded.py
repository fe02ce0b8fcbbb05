"""Calls functions of rankwise in a process of its own, where time and memory have a limit.

What a schema or a pattern of somebody else makes of an answer has no bound that shows beforehand: a
few lines of either take years, or all memory. The limits are the system's, which end the process
whatever it is doing. The next call starts another.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from rankwise.errors import WorkerLostError
from rankwise.tasks.line_process import LineProcess

SECONDS = 5.0
"""The seconds of processor time for one call. An answer of 30,000 tokens against a schema of 300
fields takes half a second."""

MOST_BYTES = 1_000_000_000
"""The most bytes of address space: Python and what it imports take a twentieth of it."""

_READY = b"ready\n"
_OUT_OF_MEMORY = 77
"""An exit code that nothing else gives."""

# Libraries are those of the parent; nothing comes from the current folder or the environment.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    f"from {__name__} import serve; serve()"
)


class BeyondLimit(Exception):  # noqa: N818 (an answer to a question, no fault)
    """A call took more time or memory than it may."""


def bounded(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives; its arguments and its result are JSON.

    Args:
        function: of a module of rankwise. It takes as little as it can with it into the process,
            and raises nothing.
        arguments: of it.

    Raises:
        BeyondLimit: it takes more than ``SECONDS`` or ``MOST_BYTES``.
        WorkerLostError: no process can be started, or the function fails.
    """
    return _process.answer([function.__module__, function.__name__, arguments, SECONDS])


class _Process(LineProcess):
    """The process that answers calls."""

    def answer(self, call: Any) -> Any:
        """The result of a call; if the process is killed from outside, it is made once more."""
        written = json.dumps(call).encode() + b"\n"
        with self._lock:
            line, code = self._asked(written)
            if code in (-signal.SIGKILL, -signal.SIGTERM):
                line, code = self._asked(written)
        if code is None:
            return json.loads(line)
        if code == 1:
            raise WorkerLostError(f"{call[0]}.{call[1]} fails. Please report this with its input.")
        raise BeyondLimit

    def _start(self) -> subprocess.Popen[bytes]:
        what = f"{sys.executable}, which judges answers in a process of its own,"
        try:
            self._running = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C is for the parent
            )
        except OSError as error:
            raise WorkerLostError(f"{what} cannot be started: {error}.") from error
        assert self._running.stdout is not None
        if self._running.stdout.readline() != _READY:
            raise WorkerLostError(
                f"{what} ends with exit code {self._ended()} as it starts. Free memory."
            )
        return self._running


_process = _Process()


def serve() -> None:
    """Answer calls, one a line; what the process does in a life of its own. It ends with them."""
    import resource  # of POSIX; the module is imported everywhere

    _, most = resource.getrlimit(resource.RLIMIT_AS)
    most = MOST_BYTES if most == resource.RLIM_INFINITY else min(MOST_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    answers.write(_READY)
    answers.flush()
    try:
        for line in sys.stdin.buffer:
            module, name, arguments, seconds = json.loads(line)
            function = getattr(importlib.import_module(module), name)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            answer = json.dumps(function(*arguments)).encode()
            signal.setitimer(signal.ITIMER_PROF, 0)
            answers.write(answer + b"\n")
            answers.flush()
    except MemoryError:
        raise SystemExit(_OUT_OF_MEMORY) from None
