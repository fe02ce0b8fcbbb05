"""A run of a study, by whatever is its own on a command line."""

from __future__ import annotations

import re

from rankwise.errors import ConfigError, did_you_mean
from rankwise.records.study import PlannedRun, StudyRecord


def find_run(study: StudyRecord, text: str, verb: str = "heads") -> PlannedRun:
    """A run by its name, or by parts of it that no other run has together: r4-s0.

    A number alone is a rank, and zeros in front of numbers may be left out. ``verb`` is what was
    asked for, and begins an error.

    Raises:
        ConfigError: there is none, or several.
    """
    names = [run.name for run in study.runs]
    matches = [run for run in study.runs if _is_meant(run, text)]
    exact = [run for run in matches if run.name == text]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    if matches:
        hint = f"that is {', '.join(run.name for run in matches)}; write more of one name"
        raise ConfigError(verb, [f"--run: {text!r} is several runs of {study.config.name}; {hint}"])
    hint = did_you_mean(text, names, cutoff=0.4) or f"there are {', '.join(names) or 'none'}"
    raise ConfigError(verb, [f"--run: no run named {text!r} in {study.config.name}; {hint}"])


def _is_meant(run: PlannedRun, text: str) -> bool:
    if text.isdecimal():
        return run.rank == int(text)
    if text and run.name.startswith(text):
        return True
    parts = _parts(text)
    return bool(parts) and parts <= _parts(run.name)


def _parts(name: str) -> set[str]:
    """What dashes separate; r008 is r8."""
    return {re.sub(r"(?<=[a-z])0+(?=\d)", "", part) for part in name.split("-") if part}
