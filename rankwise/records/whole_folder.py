"""Folders that are written whole: a failure leaves what was there before, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from rankwise.errors import StorageError
from rankwise.records.files import host_name, storage_error, writing


@contextlib.contextmanager
def whole_folder(target: Path) -> Generator[Path]:
    """Yields a temporary folder on the target's file system; the target gets what is written there.

    A target that is new is renamed into place. In one that exists, each file is, once all of them
    are written; its other files stay.

    Raises:
        StorageError: disk full, no permission, or the target is a file. Errors of the block are
            passed on. In every case the temporary folder is removed.
    """
    target = Path(os.path.abspath(target))
    if target.exists() and not target.is_dir():
        raise storage_error(target, NotADirectoryError(errno.ENOTDIR, "it is a file"))
    place = next(path for path in (target, *target.parents) if path.is_dir())
    temporary = place / f".{target.name}.{host_name()}.{os.getpid()}.tmp"
    try:
        with writing(target):
            temporary.mkdir()
        yield temporary
        with writing(target):
            _move(temporary, target)
    except StorageError as error:  # names the temporary folder
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise storage_error(target, cause) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(temporary: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(target)
        return
    for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
        place = target / path.relative_to(temporary)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
