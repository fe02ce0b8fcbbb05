"""Holds a study's folder, so that two processes do not plan or conclude it at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

from filelock import FileLock, Timeout

from rankwise.errors import StudyLockedError
from rankwise.records import leases
from rankwise.records.files import remove_leftovers, storage_error


@contextlib.contextmanager
def locked(root: Path, tidy: Callable[[], None], *, shares: bool = False) -> Generator[None]:
    """Within the block, no other process holds the folder.

    The system lets go of the lock when the process ends, however it ends. Where nobody works on the
    folder, what was left half-written is removed.

    Args:
        root: the folder; is created.
        tidy: called once the folder is held, where nobody works on it.
        shares: wait for whoever holds the folder, and hold it also while others work on it.

    Raises:
        StudyLockedError: another process holds it or works on it.
        StorageError: the folder cannot be written.
    """
    refused = StudyLockedError(
        f"another process is working on {root}. Wait for it, share its work with rankwise run "
        "--worker, or choose another --study-dir."
    )
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(root / ".lock"), timeout=-1 if shares else 0)
        lock.acquire()
    except Timeout as error:
        raise refused from error
    except OSError as error:
        raise storage_error(root, error) from error
    try:
        is_shared = leases.are_at_work(root, patient=not shares)
        if is_shared and not shares:
            raise refused
        if not is_shared:
            _tidy(root)
            tidy()
        yield
    finally:
        lock.release()


def _tidy(root: Path) -> None:
    remove_leftovers(root)
    try:
        leases.clear(root)
    except OSError as error:
        raise storage_error(root, error) from error
