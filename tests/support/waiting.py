"""Waiting for what another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_for(is_there: Callable[[], Any], patience_seconds: float = 60.0) -> None:
    """Return when something is there; that it never comes is a failure."""
    until = time.monotonic() + patience_seconds
    while not is_there():
        assert time.monotonic() < until
        time.sleep(0.02)
