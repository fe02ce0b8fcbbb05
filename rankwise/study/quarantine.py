"""Files of a study that are not to be used any more go into ``quarantine/``, with the reason."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

from rankwise.records.files import write_atomically, writing
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
        places = (quarantine / f"{number:03d}" for number in itertools.count(1))
        target = next(place for place in places if not place.exists())
        target.mkdir(parents=True)
    write_atomically(target / "why.txt", f"{why}\n")
    for path in paths:
        if path.exists() and path.is_relative_to(folder.root):
            moved = target / path.relative_to(folder.root)
            with writing(moved):
                moved.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, moved)  # also where ``runs`` is a link to another disk
    return target
