"""Whose heads are studied, and on what: a run of a study, its models, and tasks by name."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.errors import ModelError, RecordError, TaskError
from rankwise.heads.answers import refuse_unasked
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun, Relation, StudyRecord
from rankwise.tasks.requests import PreparedTask


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
