"""Whether anything that a finished study comes from has changed; without torch.

To plan a study takes ten seconds, of which most are libraries and rehearsed steps. Where config,
data, model, code and records are what they were when it was finished, the plan is too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import rankwise
from rankwise.errors import StorageError
from rankwise.records.config.study import StudyConfig
from rankwise.records.files import read_regular, state_of, unless_damaged, write_atomically
from rankwise.records.folder import StudyFolder
from rankwise.records.study import RELATIONS
from rankwise.study.conclusion import StudyOutcome, conclude, keep
from rankwise.tasks.task_files import is_bundled

_PACKAGE = Path(rankwise.__file__).parent
_TASKS = ("task", *RELATIONS)
"""The keys under which a config names tasks."""


def remember(folder: StudyFolder, config: StudyConfig) -> None:
    """Note that a study is finished, with the state of all that it comes from.

    The caller holds the folder's lock. A folder that cannot be written costs time only.
    """
    with contextlib.suppress(StorageError):
        write_atomically(folder.finished_file, _state(folder, config) or "")


def concluded_again(folder: StudyFolder, config: StudyConfig) -> StudyOutcome | None:
    """A study that was finished, and of which nothing has changed since; it is written.

    None where anything differs, where a record is damaged, or where that cannot be known without
    planning it.

    Raises:
        StudyLockedError: another process is working on the study.
        NewerRecordError: a newer version of rankwise made the folder.
    """
    if not folder.has(folder.finished_file):
        return None
    with folder.lock():
        noted = ""
        with contextlib.suppress(OSError, ValueError):
            noted = read_regular(folder.finished_file).decode()
        if not noted or noted != _state(folder, config):
            return None
        with unless_damaged():
            outcome = conclude(folder)
            keep(folder, outcome)
            return outcome
    return None


def _state(folder: StudyFolder, config: StudyConfig) -> str | None:
    """A digest of config, code, data and records; None where not all of the data is here.

    On a hub, what has the same name can be new, and a user's task or check may read anything.
    """
    named = list(_entries(config.model_dump(exclude={"base_model"})))
    data = [value for _, value in named if isinstance(value, Path)]
    data += [] if config.base_model.is_embedded else [Path(config.base_model.name)]
    tasks = [value for key, value in named if key in _TASKS and value is not None]
    has_code = config.tasks_path or any(key == "code" and value for key, value in named)
    if has_code or not all(map(os.path.exists, data)) or not all(map(is_bundled, tasks)):
        return None
    # an installation of any package makes or removes entries there
    packages = sorted({sysconfig.get_path(kind) for kind in ("purelib", "platlib")})
    state = [
        config.model_dump_json(),
        [[place, os.stat(place).st_mtime_ns] for place in packages],
        *map(_states, ([_PACKAGE], data, folder.records)),
    ]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _entries(part: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value of a config, with the key that it stands under."""
    if isinstance(part, Mapping):
        for name, each in part.items():
            yield from _entries(each, name)
    elif isinstance(part, list | tuple):
        for each in part:
            yield from _entries(each, key)
    else:
        yield key, part


def _states(places: Iterable[Path]) -> dict[str, list[int]]:
    """The states of files, and of all files below folders; compiled code may come and go."""
    files: dict[str, list[int]] = {}
    for place in places:
        below = place.rglob("*") if place.is_dir() else [place]
        for path in below:
            with contextlib.suppress(OSError):
                if "__pycache__" not in path.parts and not path.is_dir():
                    files[str(path)] = state_of(path)
    return dict(sorted(files.items()))
