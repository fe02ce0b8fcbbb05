"""Where files of a study go that are not to be used any more, and why."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rankwise.records.files import storage_error, write_atomically, writing
from rankwise.records.folder import StudyFolder


def set_aside(folder: StudyFolder, paths: Sequence[Path], why: str) -> Path:
    """Move files and folders of a study into a new folder below ``quarantine/``.

    Args:
        folder: of the study.
        paths: what to move; keeps its place below the new folder.
        why: written beside them.

    Returns:
        The new folder.

    Raises:
        StorageError: they cannot be moved.
    """
    quarantine = folder.root / "quarantine"
    with writing(quarantine):
        number = 1
        while True:
            target = quarantine / f"{number:03d}"
            try:
                target.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                break
    write_atomically(target / "why.txt", f"{why}\n")
    for path in paths:
        if path.exists() and path.is_relative_to(folder.root):
            moved = target / path.relative_to(folder.root)
            try:
                moved.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, moved)  # also where ``runs`` is a link to another disk
            except OSError as error:
                raise storage_error(moved, error) from error
    return target
