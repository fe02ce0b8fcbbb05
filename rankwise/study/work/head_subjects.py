"""Whose heads are studied, and on what: a run of a study, its models, and tasks by name."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.errors import ConfigError, ModelError, RecordError, TaskError, did_you_mean
from rankwise.heads.answers import refuse_unasked
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun, Relation, StudyRecord
from rankwise.tasks.requests import PreparedTask


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


def check_trained(folder: StudyFolder, run: PlannedRun) -> None:
    """Refuse a run that has no weights.

    Raises:
        RecordError: it is not trained yet.
        ModelError: it diverged.
    """
    record = folder.finished_run(run)
    if record is None:
        raise RecordError(f"{run.name} is not trained yet; finish the study first (rankwise run).")
    if record.status == "diverged":
        raise ModelError(
            f"{run.name} diverged: it has no weights to look into. Choose another run."
        )


def check_tasks(tasks: Sequence[PreparedTask]) -> None:
    """Refuse tasks on which heads cannot be studied.

    Raises:
        TaskError: there is none, one is not scored by likelihood, or one has a single item.
    """
    if not tasks:
        raise TaskError("--tasks names no task.")
    for task in tasks:
        refuse_unasked(task)
        if task.num_items < 2:
            raise TaskError(f"task {task.name!r} has one item; an error needs two at least.")


def relation_of(study: StudyRecord, run: PlannedRun, task: str) -> Relation | None:
    """What a task is to a run, None where the study does not score it."""
    relations = study.tasks[run.train_task]
    return next((relation for relation, names in relations.items() if task in names), None)
