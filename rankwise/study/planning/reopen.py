"""A finished study, opened again to score some of its models on some tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rankwise.engine.models.devices import DTYPES
from rankwise.engine.models.placed import cards_to_score
from rankwise.errors import PlanError, TaskError, closest
from rankwise.records.study import StudyRecord
from rankwise.study.planning.issues import Issues
from rankwise.study.planning.model import StudyModel, refuse_scores, study_model
from rankwise.study.planning.plan import StudyPlan, task_fingerprint
from rankwise.study.planning.tasks import TaskFinder
from rankwise.tasks.requests import PreparedTask, prepared_task
from rankwise.tasks.resolution import LoadedTask, TaskNotFound, load_tasks


def reopen_study(
    study: StudyRecord,
    tasks: Sequence[str],
    limit: int | None,
    report: Callable[[str], None] = lambda _: None,
) -> StudyPlan:
    """A plan of a study that exists, with some tasks prepared and nothing to train.

    Tasks of the study are prepared as it scores them, others with its settings. Nothing else is
    tokenised, unless one of the tasks is made of training rows.

    Args:
        study: the record of the study.
        tasks: names of tasks, groups or tags.
        limit: score N items of each, the first of the random order; None: as the study does.
        report: receives a line for each download and conversion.

    Raises:
        PlanError: the base model cannot be had, or is another one than the study was made with, or
            a task has other items than the study scored.
        TaskError: a name is unknown, or a task cannot be scored.
        DataError: the data of a task cannot be had.
    """
    refuse_scores(study)
    model = study_model(study.config, report)
    if model.base.fingerprint != study.base_model_fingerprint:
        problem = "base_model: it is no longer the study's model"
        raise PlanError(study.config.name, model.base.name, [problem])
    prepared = _prepared(study, model, tasks, limit)
    return StudyPlan(
        record=study,
        base=model.base,
        tokenizer=model.tokenizer,
        device=model.machine.device,
        examples={},
        order={},
        tasks={task.name: task for task in prepared},
        inputs={},
        cards=cards_to_score(model.skeleton, DTYPES[model.precision], model.machine),
    )


def _prepared(
    study: StudyRecord, model: StudyModel, names: Sequence[str], limit: int | None
) -> list[PreparedTask]:
    config = study.config
    # the user's rows, trained rows and other formats of a task are made by planning the study
    has_own = config.train.data is not None or bool(study.own_sets)
    planned: dict[str, PreparedTask] = {}
    if has_own or any("@" in name for name in names):
        issues = Issues()
        tasks = TaskFinder(config, model, issues).plan()
        issues.refuse(config.name, model.base.name)
        planned = {task.name: task for task in tasks.prepared}
    others = [name for name in names if name not in planned]
    loaded = (
        load_tasks(others, config.tasks_path, allow_code=config.allow_task_code) if others else {}
    )
    prepared: dict[str, PreparedTask] = {}
    for name in names:
        leaves = loaded.get(name, ())
        if isinstance(leaves, TaskError):
            raise leaves
        if isinstance(leaves, TaskNotFound):
            near = closest(name, study.scored_tasks())
            hint = f"; the study scores {near!r}" if near else ""
            raise TaskError(f"--tasks: {leaves}{hint}")
        for task in [planned[name]] if name in planned else leaves:
            prepared[task.name] = _limited(study, model, task, limit)
    return list(prepared.values())


def _limited(
    study: StudyRecord, model: StudyModel, task: PreparedTask | LoadedTask, limit: int | None
) -> PreparedTask:
    """The first items of a task's random order, which begin with those that the study scored."""
    settings = study.config.evaluation
    whole = task
    if not isinstance(whole, PreparedTask):
        whole = prepared_task(whole, model.tokenizer, model.max_length, settings)
    # a study that was stopped at a part of its items has that part's fingerprint
    known = study.task_fingerprints.get(whole.name) if study.share == 1.0 else None
    if known not in (
        None,
        task_fingerprint(study.config, study.precision, whole, whole.digest, whole.limit),
    ):
        problem = (
            f"{whole.name}: its items are no longer those that the study scored; put its rows back "
            "as they were, or run a study of the new ones in another folder"
        )
        raise PlanError(study.config.name, model.base.name, [problem])
    if limit is None:
        return whole
    if limit > whole.num_items and not isinstance(task, PreparedTask):  # more than the study scored
        return prepared_task(task, model.tokenizer, model.max_length, settings, limit=limit)
    return whole if limit >= whole.num_items else whole.first(limit)._replace(limit=limit)
