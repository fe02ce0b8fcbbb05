"""A process of its own that answers lines: what runs in it may end it, and its caller goes on."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import threading


class LineProcess:
    """Answers one line with one line; a process is started where none is running.

    What a process is comes from ``_start``. Whoever asks holds ``_lock``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=self._forget)  # the answers are the parent's
        atexit.register(self.end)

    @property
    def pid(self) -> int | None:
        """The id of the process, if there is one."""
        return None if self._running is None else self._running.pid

    def end(self) -> None:
        """End the process, if one is running."""
        if self._running is not None:
            self._running.kill()
            self._ended()

    def _start(self) -> subprocess.Popen[bytes]:
        """A process that has begun, with pipes to its input and from its output."""
        raise NotImplementedError

    def _asked(self, line: bytes) -> tuple[bytes, int | None]:
        """The line of an answer; the exit code where the process ends without one."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.end)  # at Ctrl-C before an answer, which the next call would read
            if self._running is not None and self._running.poll() is not None:
                self._ended()
            if self._running is None:
                self._running = self._start()
            running = self._running
            assert running.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended, which its exit code says
                running.stdin.write(line)
                running.stdin.flush()
            answer = self._read(running)
            stack.pop_all()
        return answer, None if answer.endswith(b"\n") else self._ended()

    @staticmethod
    def _read(process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        return process.stdout.readline()

    def _ended(self) -> int:
        """The exit code of the process, which is ending."""
        assert self._running is not None
        ended, self._running = self._running, None
        with contextlib.suppress(BrokenPipeError), ended:  # closes its pipes and waits for it
            pass
        return ended.returncode

    def _forget(self) -> None:
        self._lock, self._running = threading.Lock(), None
