"""A study's folder is led by one process at a time, which says how far it is."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Generator
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import Field

from rankwise.errors import ConfigError, StudyLockedError
from rankwise.records.base import Record, VersionedRecord
from rankwise.records.files import (
    host_name,
    read_regular,
    remove_leftovers,
    storage_error,
    write_atomically,
)
from rankwise.records.outputs import FOREIGN, IN_THE_WAY


class StageProgress(Record):
    """A stage that is being done."""

    stage: str
    """Its id."""
    share_done: float
    """Share of its work that is done."""
    tokens_per_second: float | None
    """Tokens that it reads; None where it reads none, or at its beginning."""
    peak_memory_bytes: int
    """Peak of the process that does it, or of tensors on its card."""


class StudyProgress(VersionedRecord, has_texts=False):
    """``.progress.json``: written every few seconds while a study runs."""

    told_at: str
    """When it was written: an ISO 8601 date and time with its zone."""
    stages: tuple[StageProgress, ...]
    """Those that are being done: several where a cluster does them."""
    seconds_left: dict[str, float] = Field(default_factory=dict)
    """Stage that is left, by its id -> about how long it takes; empty while it is not known."""


_LEADER, _LOCK = ".leader", ".lock"
_PATIENCE_SECONDS = 1.0
"""A process that asks who leads holds the lock for a moment."""

_WORKING_FILES = {
    ".lock": rb"(?s:filelock.*)?",  # filelock writes into it where the disk has no locks
    ".leader": rb"process \d+ on [A-Za-z0-9-]+\n[0-9a-f]{16}",
    ".progress.json": rb'(?s:\{.*"checksum": "[0-9a-f]{64}"\n\}\n)',
    ".finished": rb"(?:[0-9a-f]{64})?",
    ".checked.json": rb'\{(?:"(?:[^"\\]|\\.)+": \[(?:\d+, ){4}"[0-9a-f]{64}"\](?:, )?)*\}',
}
"""What a study writes into a file while it works, by its name."""

_MOST_WORKING_BYTES = 1 << 26
"""``.checked.json`` has about 200 bytes for each file that was checked: room for 300,000 files."""


def refuse_working_files_of_others(root: Path) -> None:
    """Refuse a folder in which other files have names that a study works with.

    Raises:
        ConfigError: with their names.
    """
    problems: list[str] = []
    for name, form in _WORKING_FILES.items():
        path, content = root / name, None
        with contextlib.suppress(OSError):
            content = None if path.is_symlink() else read_regular(path, _MOST_WORKING_BYTES)
        if os.path.lexists(path) and (content is None or not re.fullmatch(form, content)):
            problems.append(f"{name} {FOREIGN}; {IN_THE_WAY}")
    if problems:
        raise ConfigError(str(root), problems)


@contextlib.contextmanager
def locked(root: Path) -> Generator[None]:
    """Within the block, no other process leads the study of the folder.

    The system lets go of the lock when the process ends, however it ends. What an earlier process
    has left half-written is removed.

    Args:
        root: the folder; is created.

    Raises:
        StudyLockedError: another process holds it.
        StorageError: the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / _LOCK, timeout=_PATIENCE_SECONDS)
        lock.acquire()
    except Timeout as error:
        leader = (leader_in(root) or "another process").partition("\n")[0]
        raise StudyLockedError(
            f"{leader} is working on {root}. Wait for it, or choose another --study-dir."
        ) from error
    except OSError as error:
        raise storage_error(root, error) from error
    try:
        about = f"process {os.getpid()} on {host_name()}\n{secrets.token_hex(8)}"
        write_atomically(root / _LEADER, about)  # in place of a link, not through it
        remove_leftovers(root)
        yield
    finally:
        with contextlib.suppress(OSError):
            (root / _LEADER).unlink()
        lock.release()


def leader_of(root: Path) -> str | None:
    """The process that leads the study of a folder, in words; None where none does."""
    leader = leader_in(root)
    if leader is None:
        return None
    lock = FileLock(root / _LOCK, timeout=0)
    try:
        lock.acquire()
    except OSError:  # it is held, or cannot be asked
        return leader.partition("\n")[0]
    lock.release()
    return None


def leader_in(root: Path) -> str | None:
    """What the process that leads, or led, has written of itself; None where none has.

    No two write the same.
    """
    with contextlib.suppress(OSError, ValueError):
        return read_regular(root / _LEADER).decode()
    return None
