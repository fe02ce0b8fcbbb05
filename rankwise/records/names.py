"""Names of files made of names of tasks, and the names by which runs are asked for."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import quote

from rankwise.errors import ConfigError, did_you_mean
from rankwise.records.study import PlannedRun, StudyRecord

_LONGEST = 200
"""Bytes of a file's name before its endings; the systems in use take 255."""

MANIFEST = ".rankwise-written.json"
"""The file in a user's folder that rankwise writes into: what it wrote there, see ``outputs``."""

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


def find_run(study: StudyRecord, text: str, verb: str = "heads") -> PlannedRun:
    """A run by its name, or by parts of it that no other run has together: r4-s0.

    A number alone is a rank, and zeros in front of numbers may be left out. ``verb`` is what was
    asked for, and begins an error.

    Raises:
        ConfigError: there is none, or several.
    """
    names = [run.name for run in study.runs]
    if text.isdecimal():
        matches = [run for run in study.runs if run.rank == int(text) and run.mean_rank is None]
    else:
        parts = _parts(text)
        matches = [
            run
            for run in study.runs
            if (text and run.name.startswith(text)) or (parts and parts <= _parts(run.name))
        ]
    exact = [run for run in matches if run.name == text]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    if matches:
        hint = f"that is {', '.join(run.name for run in matches)}; write more of one name"
        raise ConfigError(verb, [f"--run: {text!r} is several runs of {study.config.name}; {hint}"])
    hint = did_you_mean(text, names, cutoff=0.4) or f"there are {', '.join(names) or 'none'}"
    raise ConfigError(verb, [f"--run: no run named {text!r} in {study.config.name}; {hint}"])


def _parts(name: str) -> set[str]:
    """What dashes separate; r008 is r8."""
    return {re.sub(r"(?<=[a-z])0+(?=\d)", "", part) for part in name.split("-") if part}
