"""A run of a study by its name, as it is written on a command line."""

from __future__ import annotations

from rankwise.errors import ConfigError, did_you_mean
from rankwise.records.study import PlannedRun, StudyRecord


def find_run(study: StudyRecord, name: str, verb: str = "heads") -> PlannedRun:
    """A run by its name, or by as much of its beginning as no other has.

    ``verb`` is what was asked for, and begins an error.

    Raises:
        ConfigError: there is none, or several.
    """
    by_name = {run.name: run for run in study.runs}
    matches = [run for run in study.runs if run.name.startswith(name)] if name else []
    if name in by_name or len(matches) == 1:
        return by_name.get(name) or matches[0]
    hint = did_you_mean(name, by_name, cutoff=0.4) or f"there are {', '.join(by_name) or 'none'}"
    if matches:
        hint = f"several begin so: {', '.join(run.name for run in matches)}"
    raise ConfigError(verb, [f"--run: no run named {name!r} in {study.config.name}; {hint}"])
