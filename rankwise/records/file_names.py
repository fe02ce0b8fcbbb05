"""Names of files that are made of names of tasks, which may be long and in any script."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import quote

_LONGEST = 200
"""In bytes, before a file's endings; the systems in use take 255."""


def task_file_name(task: str) -> str:
    """A task's name as that of a file: what systems do not take is quoted, a long one is cut."""
    name = quote(task, safe=" @")
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(task.encode()).hexdigest()[:12]
    return re.sub(r"%[0-9A-F]?$", "", name[: _LONGEST - 20]) + f"-{digest}"


def samples_beside(evaluation: Path) -> Path:
    """Where the items of a scoring are."""
    return evaluation.with_suffix(".samples.jsonl")
