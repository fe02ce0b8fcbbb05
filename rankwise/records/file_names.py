"""Names of files that are made of names of tasks, which may be long and in any script."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import quote

_LONGEST = 200
"""In bytes, before a file's endings; the systems in use take 255."""

MANIFEST = ".rankwise-written.json"
"""In a folder of users that rankwise writes into: what it wrote there, see ``outputs``."""

WEIGHTS = ("adapter", "checkpoint")
"""Folders of a run's weights: a PEFT adapter, and a whole checkpoint."""


def task_file_name(task: str) -> str:
    """A task's name as that of a file: what systems do not take is quoted, a long one is cut."""
    name = re.sub(r"^\.", "%2E", quote(task, safe=" @"))  # no hidden file, and no way out
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(task.encode()).hexdigest()[:12]
    return re.sub(r"%[0-9A-F]?$", "", name[: _LONGEST - 20]) + f"-{digest}"


def is_large(name: str) -> bool:
    """Whether a file of a study, by its name in the folder, is of weights or a training's state."""
    *folders, file = name.split("/")
    is_state = file.endswith(".pt") or any(part.startswith("training-") for part in folders)
    return is_state or not {*WEIGHTS, "repaired"}.isdisjoint(folders)


def order(name: str) -> int:
    """What a record stands on comes before it, and the parts of a state before the state."""
    if name.endswith(MANIFEST):
        return -1  # it knows the files that it finds there until the others come, too
    if is_large(name):
        return int(name.endswith(".pt"))
    return 2 if name.endswith(".json") else 0


def samples_beside(evaluation: Path) -> Path:
    """Where the items of a scoring are."""
    return evaluation.with_suffix(".samples.jsonl")
