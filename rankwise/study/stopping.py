"""Stopping a study by a signal: what is being trained is saved first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType

from rankwise.errors import Stopped

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class StopSignals:
    """Receives the signals that stop a study, at once or at the end of a step.

    A second signal does not wait for the end of the step.
    """

    def __init__(self) -> None:
        self._is_deferring = False
        self._pending: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Generator[None]:
        """Within the block, the signals raise ``Stopped``; only a main thread receives any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        hangup = getattr(signal, "SIGHUP", None)
        before = {
            number: signal.signal(number, self._received)
            for number in SIGNALS  # nohup starts what a closed terminal does not stop
            if number != hangup or signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Generator[None]:
        """Within the block, the first signal waits until it is asked for."""
        self._is_deferring = True
        try:
            yield
        finally:
            self._is_deferring = False
        self.stop_if_asked()

    @property
    def is_pending(self) -> bool:
        """Whether a signal waits."""
        return self._pending is not None

    def stop_if_asked(self) -> None:
        """Raise what waits, if anything does.

        Raises:
            Stopped: a signal came.
        """
        if self._pending is not None:
            raise Stopped(self._pending)

    def _received(self, number: int, _: FrameType | None) -> None:
        if self._is_deferring and self._pending is None:
            self._pending = number
            return
        raise Stopped(number)
