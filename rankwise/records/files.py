"""Files that are complete or absent: atomic writes, records read back, and what to do if not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError

from rankwise.errors import RecordError, StorageError
from rankwise.records.base import Record

R = TypeVar("R", bound=Record)


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
    except SafetensorError as error:
        raise storage_error(path, OSError(str(error))) from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """The error to raise when ``path`` could not be written."""
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}. Free some space or choose another "
        "--study-dir, then run again: finished work is kept."
    )


def _sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut (POSIX; elsewhere there is no such call)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_record(path: Path, record_type: type[R]) -> R:
    """Read one record.

    Raises:
        RecordError: the file does not exist, is not JSON, or is not such a record.
    """
    try:
        return record_type.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise RecordError(f"{path} is not there; run the study first.") from error
    except (OSError, ValidationError) as error:
        reason = _first_misfit(error) if isinstance(error, ValidationError) else str(error)
        raise RecordError(
            f"{path} is not a readable {record_type.__name__}: {reason}. If it is damaged, move it "
            "away and run the study again: only what is missing is computed."
        ) from error


def read_if_there(path: Path, record_type: type[R]) -> R | None:
    """Read one record; None where there is no such file. Raises as ``read_record`` does."""
    return read_record(path, record_type) if path.exists() else None


def _first_misfit(error: ValidationError) -> str:
    first, *others = error.errors(include_url=False)
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    return f"{where}: {first['msg']}{more}" if where else f"{first['msg']}{more}"
