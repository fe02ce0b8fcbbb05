"""Holds a study's folder, so that two processes do not write into it at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

from filelock import FileLock, Timeout

from rankwise.errors import StudyLockedError
from rankwise.records.files import remove_leftovers, storage_error


@contextlib.contextmanager
def locked(root: Path, tidy: Callable[[], None]) -> Generator[None]:
    """Within the block, no other process holds the folder; what was left half-written is removed.

    The system lets go of the lock when the process ends, however it ends.

    Args:
        root: the folder; is created.
        tidy: called once the folder is held.

    Raises:
        StudyLockedError: another process holds it.
        StorageError: the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(root / ".lock"), timeout=0)
        lock.acquire()
    except Timeout as error:
        raise StudyLockedError(
            f"another process is working on {root}. Wait for it, or choose another --study-dir."
        ) from error
    except OSError as error:
        raise storage_error(root, error) from error
    try:
        remove_leftovers(root)
        tidy()
        yield
    finally:
        lock.release()
