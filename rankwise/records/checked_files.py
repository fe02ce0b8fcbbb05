"""Which files are as they were written: each is read once, and again when the system says it moved.

Large weights are not read at every command. Size, inode and times of change of a file whose digest
was right are kept in the study folder; while they stay, so does the answer. A disk that loses bits
without a write changes none of them: ``rankwise verify`` reads everything.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from rankwise.errors import StorageError
from rankwise.records.files import (
    FileDigest,
    digest_of,
    read_regular,
    refuse_out_of_reach,
    write_atomically,
)


class CheckedFiles:
    """Files whose digest was checked, by what the system says of them.

    The memory on disk is a convenience: one that is missing, damaged or cannot be written costs
    time only.
    """

    def __init__(self, root: Path) -> None:
        """Files below ``root`` are known by their names in it, others by their absolute paths."""
        self._root = root
        self._file = root / ".checked.json"
        self._known: dict[str, list[Any]] | None = None
        self._is_changed = False

    def digest(self, path: Path) -> FileDigest:
        """The digest of a file that was written just now; it is remembered.

        Raises:
            OSError: the file cannot be read.
        """
        digest = digest_of(path)
        self._remember(path, digest)
        return digest

    def misfit(self, path: Path, digest: FileDigest, *, thorough: bool = False) -> str | None:
        """What is wrong with a file, in words; None where it has its digest.

        Args:
            path: the file.
            digest: what it must be.
            thorough: read it, whatever is remembered.

        Raises:
            StorageError: it may not be read, or the disk does not give it.
        """
        try:
            state = state_of(path)
            if state[0] != digest.num_bytes:
                return f"has {state[0]:,} bytes and had {digest.num_bytes:,} when it was written"
            if not thorough and self._memory().get(self._key(path)) == [*state, digest.sha256]:
                return None
            if digest_of(path) != digest:
                return "has other bytes than when it was written"
        except FileNotFoundError:
            return "is gone"
        except OSError as error:
            refuse_out_of_reach(path, error)
            return f"cannot be read: {error.strerror or error}"
        self._remember(path, digest)
        return None

    def save(self) -> None:
        """Keep what is remembered; where the folder cannot be written, nothing is kept."""
        if self._is_changed:
            with contextlib.suppress(StorageError):
                write_atomically(self._file, json.dumps(self._memory()))
                self._is_changed = False

    def _remember(self, path: Path, digest: FileDigest) -> None:
        with contextlib.suppress(OSError):
            self._memory()[self._key(path)] = [*state_of(path), digest.sha256]
            self._is_changed = True

    def _memory(self) -> dict[str, list[Any]]:
        if self._known is None:
            self._known = {}
            with contextlib.suppress(OSError, ValueError, RecursionError):
                read = json.loads(read_regular(self._file))
                self._known = read if isinstance(read, dict) else {}
        return self._known

    def _key(self, path: Path) -> str:
        return (
            path.relative_to(self._root).as_posix()
            if path.is_relative_to(self._root)
            else str(path)
        )


def state_of(path: Path) -> list[int]:
    """Whatever changes when a file is written or replaced.

    Raises:
        OSError: it is not there.
    """
    stat: os.stat_result = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
