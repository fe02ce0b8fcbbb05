"""Files that are complete or absent, and that say so when a byte of them has changed.

A file is written to a temporary name, flushed and renamed. A record carries a checksum of itself
and, of each file that it stands on, a ``FileDigest``: what the disk, a copy or a hand has changed
since is noticed when it is read.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import stat
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

import platformdirs
import psutil
from pydantic import ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError

from rankwise.errors import NewerRecordError, RecordError, StorageError
from rankwise.records.base import SCHEMA_VERSION, Record

R = TypeVar("R", bound=Record)

_TEMPORARY = ".rankwise-tmp"
_TEMPORARY_NAME = re.compile(r"\.(?P<host>[^.]+)\.(?P<process>\d+)\.rankwise-tmp$")
# The last entry of a record's JSON: the sha256 of the JSON without it.
_CHECKSUM = re.compile(rb',\n  "checksum": "([0-9a-f]{64})"\n}\n$')

# How Rust, of which safetensors and tokenizers are made, ends the message of a system's error.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")

# It can only be read by setting it, which no other thread must see: once, at the start.
_UMASK = os.umask(0o022)
os.umask(_UMASK)

_REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space within your quota",
    errno.EFBIG: "Raise the limit of the size of files (`ulimit -f`)",
    errno.EACCES: "Give yourself permission to write there",
    errno.EPERM: "Give yourself permission to write there",
    errno.EROFS: "The disk is read-only: make it writable",
    errno.ENAMETOOLONG: "Use shorter names",
}

# Errors of reading after which a file may be as it was written.
_OUT_OF_REACH = frozenset({errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE})


class FileDigest(Record):
    """What a file must be: its size in bytes and the sha256 of its content."""

    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> FileDigest:
        """The digest of what a file is to hold."""
        return cls(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write to a temporary name, fsync, rename: the file is complete or absent; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yields a temporary name; what the block wrote there is flushed and renamed to ``path``.

    Raises:
        StorageError: disk full, no permission; the temporary file is removed.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        if os.name == "posix":  # the rename survives a power cut; elsewhere there is no such call
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def share_as_usual(path: Path) -> None:
    """Let others read a new file as the user's umask has it: safetensors lets its owner alone.

    Raises:
        OSError: the file is not there, or is somebody else's.
    """
    if path.stat().st_mode & 0o777 == 0o600:
        path.chmod(0o666 & ~_UMASK)


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn the errors of the system, or of a library that writes, into ours, with the remedy.

    Raises:
        StorageError: disk full, no permission.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error
    except Exception as error:
        system = _RUST_ERROR.search(str(error))  # tokenizers raises a bare Exception
        if system is not None:
            number = int(system[1])
            raise storage_error(path, OSError(number, os.strerror(number))) from error
        if isinstance(error, SafetensorError):
            raise storage_error(path, OSError(str(error))) from error
        raise


def temporary_beside(path: Path) -> Path:
    """The name of a file while this process writes it; see ``remove_leftovers``."""
    return path.with_name(f".{path.name[-100:]}.{host_name()}.{os.getpid()}{_TEMPORARY}")


def storage_error(path: Path, error: OSError) -> StorageError:
    """The error to raise when ``path`` could not be written."""
    remedy = _REMEDIES.get(error.errno or 0, "Check the disk and its free space")
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}. {remedy} or choose another "
        "folder, then run again: finished work is kept."
    )


def refuse_out_of_reach(path: Path, error: OSError) -> None:
    """Tell a file that the system does not give from a damaged one, which is made again.

    Raises:
        StorageError: it may not be read, or the disk does not give it.
    """
    if error.errno in _OUT_OF_REACH:
        raise StorageError(
            f"{path} cannot be read: {error.strerror or error}. Give yourself permission, or check "
            "the disk, then run again: nothing was changed."
        ) from error


def require_room(path: Path, num_bytes: int) -> None:
    """Refuse to begin a large write that the disk has no room for.

    Raises:
        StorageError: fewer than ``num_bytes`` bytes are free where ``path`` would be.
    """
    free = free_bytes(path)
    if free < num_bytes:
        raise StorageError(
            f"{path} takes {in_words(num_bytes)} and {in_words(free)} are free on the disk. "
            "Free some space or choose another folder, then run again: finished work is kept."
        )


def cache_folder() -> Path:
    """What this machine keeps and can make again: ``RANKWISE_CACHE``, else the user's cache."""
    return Path(os.environ.get("RANKWISE_CACHE") or platformdirs.user_cache_dir("rankwise"))


def merged_base_folder(fingerprint: str) -> Path:
    """Where a base with an adapter merged into it is kept; its fingerprint is that of both."""
    return cache_folder() / f"merged-base-{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}"


def in_words(num_bytes: int) -> str:
    """A size for people: "1.2 GB", "340.0 MB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def free_bytes(path: Path) -> int:
    """The free bytes of the disk that ``path`` is on, or would be on."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def remove_leftovers(root: Path) -> None:
    """Remove what processes of this machine that are gone were writing below a folder.

    Files and folders of running processes, of other machines and of other programs stay, and what
    cannot be removed.
    """
    for leftover in list(root.rglob(f".*{_TEMPORARY}")):
        name = _TEMPORARY_NAME.search(leftover.name)
        if name is None or name["host"] != host_name():
            continue
        process = int(name["process"])
        # this one holds the folder's lock, and no thread of it writes then
        if process != os.getpid() and psutil.pid_exists(process):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink()


def host_name() -> str:
    """The name of this machine, as names of files have it."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:60]


def require_regular(path: Path) -> None:
    """Refuse to open what blocks, or has no end: a pipe, a socket, a device.

    Raises:
        OSError: it is not there, or is not a regular file.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(kind, "it is not a regular file", str(path))


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """The content of a file, of ``most_bytes`` at most: of records and data nothing else is read.

    Raises:
        OSError: it cannot be read, is larger, or is not a regular file.
    """
    require_regular(path)
    if most_bytes is None:
        return path.read_bytes()
    content, size = b"", path.stat().st_size
    if size <= most_bytes:
        with path.open("rb") as file:
            content = file.read(size + 1)
            # one that grows, or of /proc, has more than its size says
            while len(content) <= most_bytes and (more := file.read(len(content) + 1)):
                content += more
    if max(size, len(content)) > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {in_words(most_bytes)}", str(path))
    return content


def digest_of(path: Path) -> FileDigest:
    """Size and sha256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    require_regular(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(num_bytes=file.tell(), sha256=sha256)


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON whose last entry is a checksum of the others.

    Raises:
        StorageError: disk full, no permission.
    """
    write_atomically(path, sealed(record.model_dump_json(indent=2)))


def sealed(content: str) -> str:
    """The indented JSON of a record, with a checksum of it as its last entry."""
    checksum = hashlib.sha256(content.encode()).hexdigest()
    return content.removesuffix("\n}") + f',\n  "checksum": "{checksum}"\n}}\n'


def read_record(path: Path, record_type: type[R]) -> R:
    """Read one record.

    Raises:
        RecordError: the file does not exist, is not JSON, is not such a record, lacks its checksum,
            or was changed since it was written.
        NewerRecordError: a newer version of rankwise wrote it.
        StorageError: it may not be read, or the disk does not give it.
    """
    try:
        content = read_regular(path)
    except FileNotFoundError as error:
        raise RecordError(f"{path} is not there; run the study first.") from error
    except OSError as error:
        refuse_out_of_reach(path, error)
        raise _unreadable(path, record_type, str(error)) from error
    try:
        return record_type.model_validate_json(_checked(content))
    except ValidationError as error:
        version = None
        with contextlib.suppress(ValueError, RecursionError):
            data = json.loads(content)
            version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise NewerRecordError(
                f"{path} was written by a newer rankwise (schema {version}; this one reads "
                f"{SCHEMA_VERSION}). Upgrade rankwise, or choose another folder."
            ) from error
        first, *others = error.errors(include_url=False)
        where = ".".join(map(str, first["loc"]))
        misfit = f"{where}: {first['msg']}" if where else first["msg"]
        more = f" (and {len(others)} more)" if others else ""
        raise _unreadable(path, record_type, misfit + more) from error
    except ValueError as error:
        raise _unreadable(path, record_type, str(error)) from error


def _unreadable(path: Path, record_type: type[Record], reason: str) -> RecordError:
    return RecordError(
        f"{path} is not a readable {record_type.__name__}: {reason}. Run the study again: it is "
        "set aside, and only what is missing is computed."
    )


@contextlib.contextmanager
def unless_damaged() -> Generator[None]:
    """Leave the block at a record that is damaged: it is set aside when its study is run.

    Raises:
        NewerRecordError: a newer version of rankwise wrote it; that is never touched.
    """
    try:
        yield
    except NewerRecordError:
        raise
    except RecordError:
        return


def without_remedy(error: RecordError) -> str:
    """What is wrong with a file, without the advice to run the study again."""
    return str(error).partition(". Run the study")[0]


def _checked(content: bytes) -> bytes:
    """A record's JSON without its checksum."""
    written = _CHECKSUM.search(content)
    if written is None:
        raise ValueError("it does not end in its checksum")
    bare = content[: written.start()] + b"\n}"
    if hashlib.sha256(bare).hexdigest().encode() != written[1]:
        raise ValueError("it was changed since it was written")
    return bare


def is_sealed(path: Path) -> bool:
    """Whether a file ends in a checksum that fits: rankwise wrote it, and nobody changed it."""
    with contextlib.suppress(OSError, ValueError):
        _checked(read_regular(path))
        return True
    return False


def read_items(path: Path, digest: FileDigest | None) -> list[dict[str, Any]]:
    """The items of a JSON Lines file, after it was compared with its digest.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has other bytes than its digest says, or a line is not a JSON object.
    """
    content = read_regular(path)
    if digest != FileDigest.of(content):
        raise ValueError("it has other bytes than when it was written")
    # not splitlines(): JSON leaves U+0085, U+2028 and the like as they are inside a text
    lines = from_json(b"[%b]" % content.rstrip(b"\n").replace(b"\n", b","))
    for line in lines:
        if not isinstance(line, dict):
            raise ValueError(f"{json.dumps(line)[:40]} is no item")
    return lines


class CheckedFiles:
    """Files whose digest was checked: each is read once, and again when the system says it moved.

    Large weights are not read at every command. Size, inode and times of change of a file whose
    digest was right are kept in the study folder; while they stay, so does the answer. A disk that
    loses bits without a write changes none of them: ``rankwise verify`` reads everything. The
    memory on disk is a convenience: one that is missing, damaged or cannot be written costs time
    only.
    """

    def __init__(self, root: Path) -> None:
        """Files below ``root`` are known by their names in it, others by their absolute paths."""
        self._root = root
        self._file = root / ".checked.json"
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
            if not thorough and self._known.get(self._key(path)) == [*state, digest.sha256]:
                return None
            if digest_of(path) != digest:
                self.forget(path)
                return "has other bytes than when it was written"
        except FileNotFoundError:
            return "is gone"
        except OSError as error:
            refuse_out_of_reach(path, error)
            return f"cannot be read: {error.strerror or error}"
        self._remember(path, digest)
        return None

    def forget(self, path: Path) -> None:
        """Read a file the next time: its bytes have changed, whatever the system says."""
        self._is_changed = self._known.pop(self._key(path), None) is not None or self._is_changed

    def save(self) -> None:
        """Keep what is remembered; where the folder cannot be written, nothing is kept."""
        if self._is_changed:
            with contextlib.suppress(StorageError):
                write_atomically(self._file, json.dumps(self._known))
                self._is_changed = False

    def _remember(self, path: Path, digest: FileDigest) -> None:
        with contextlib.suppress(OSError):
            self._known[self._key(path)] = [*state_of(path), digest.sha256]
            self._is_changed = True

    @functools.cached_property
    def _known(self) -> dict[str, list[Any]]:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            read = json.loads(read_regular(self._file))
            return read if isinstance(read, dict) else {}
        return {}

    def _key(self, path: Path) -> str:
        is_below = path.is_relative_to(self._root)
        return path.relative_to(self._root).as_posix() if is_below else str(path)


def state_of(path: Path) -> list[int]:
    """Whatever changes when a file is written or replaced.

    Raises:
        OSError: it is not there.
    """
    stat: os.stat_result = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
