"""A list of a folder's files and their digests, to tell later whether they are as written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from rankwise.errors import RecordError, StorageError
from rankwise.records.base import Record, VersionedRecord
from rankwise.records.files import digest_of, read_record, write_record

DIGESTS_FILE = "digests.json"


class FileDigest(Record):
    """One file: its size, when it was written last, and the SHA-256 of its content."""

    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileDigest:
        """Read the whole file."""
        stat = path.stat()
        return cls(size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256(path))


class FolderDigests(VersionedRecord):
    """``digests.json``: every other file of its folder."""

    files: Mapping[str, FileDigest]


def write_digests(folder: Path) -> None:
    """List the files that are in the folder now.

    Raises:
        StorageError: the list cannot be written.
    """
    paths = (path for path in sorted(folder.iterdir()) if path.name != DIGESTS_FILE)
    digests = FolderDigests(files={path.name: FileDigest.of(path) for path in paths})
    write_record(folder / DIGESTS_FILE, digests)


def is_as_written(folder: Path) -> bool:
    """Whether all listed files are what they were when the list was written.

    A file of the same size and time is believed; of another time, as after a copy, it is read.
    Bytes that change on the disk without a trace in the file's time are not noticed.
    """
    try:
        listed = read_record(folder / DIGESTS_FILE, FolderDigests).files
        stats = {name: (folder / name).stat() for name in listed}
        if any(stat.st_size != listed[name].size for name, stat in stats.items()):
            return False
        touched = [n for n, stat in stats.items() if stat.st_mtime_ns != listed[n].mtime_ns]
        if any(sha256(folder / name) != listed[name].sha256 for name in touched):
            return False
    except (RecordError, OSError):
        return False
    if touched:
        with contextlib.suppress(StorageError):  # it only spares reading them again
            write_digests(folder)
    return True


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    return digest_of(path).sha256
