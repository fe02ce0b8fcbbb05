"""Whose heads are studied, and on what: a run of a study, its models, and tasks by name."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.engine.models import base as models
from rankwise.errors import ConfigError, ModelError, RecordError, TaskError, closest, did_you_mean
from rankwise.heads.answers import refuse_unasked
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun, Relation, StudyRecord
from rankwise.study.planning.plan import StudyPlan
from rankwise.tasks.requests import PreparedTask, prepare_task
from rankwise.tasks.resolution import LoadedTask, TaskNotFound, load_tasks


def find_run(study: StudyRecord, name: str) -> PlannedRun:
    """A run by its name, or by as much of its beginning as no other has.

    Raises:
        ConfigError: there is none, or several.
    """
    by_name = {run.name: run for run in study.runs}
    found = [run for run in study.runs if run.name.startswith(name)] if name else []
    if name in by_name or len(found) == 1:
        return by_name.get(name) or found[0]
    hint = did_you_mean(name, by_name, cutoff=0.4) or f"there are {', '.join(by_name) or 'none'}"
    if found:
        hint = f"several begin so: {', '.join(run.name for run in found)}"
    raise ConfigError("heads", [f"--run: no run named {name!r} in {study.config.name}; {hint}"])


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


def find_tasks(plan: StudyPlan, names: Sequence[str], limit: int | None) -> list[PreparedTask]:
    """Tasks as the study scores them; others with its settings.

    Args:
        plan: of the study.
        names: tasks, groups or tags.
        limit: score the first so many items; None is the study's own.

    Raises:
        TaskError: a name that nothing has, or a task that heads are not studied on.
    """
    others = [name for name in names if name not in plan.tasks]
    loaded = load_tasks(others, plan.record.config.tasks_path) if others else {}
    found: dict[str, PreparedTask] = {}
    for name in names:
        given = loaded.get(name)
        if isinstance(given, TaskNotFound):
            near = closest(name, plan.tasks)
            hint = f"; the study scores {near!r}" if near else ""
            raise TaskError(f"--tasks: {given}{hint}")
        leaves = [plan.tasks[name].loaded] if given is None else list(given)
        for leaf in leaves:
            found[leaf.name] = _prepared(plan, leaf, limit)
            refuse_unasked(found[leaf.name])
            if found[leaf.name].num_items < 2:
                raise TaskError(f"task {leaf.name!r} has one item; an error needs two at least.")
    if not found:
        raise TaskError("--tasks names no task.")
    return list(found.values())


def _prepared(plan: StudyPlan, loaded: LoadedTask, limit: int | None) -> PreparedTask:
    known, evaluation = plan.tasks.get(loaded.name), plan.record.config.evaluation
    if known is not None and limit is None:
        return known
    skeleton = models.model_skeleton(plan.base.folder)
    chat = evaluation.chat_template and bool(plan.tokenizer.chat_template)
    return prepare_task(
        loaded,
        plan.tokenizer,
        max_length=models.context_length(skeleton.config, plan.tokenizer),
        num_fewshot=evaluation.num_fewshot if known is None else known.num_fewshot,
        limit=limit or evaluation.limit,
        chat_template=chat if known is None else known.chat_template,
        fewshot_as_multiturn=evaluation.fewshot_as_multiturn,
    )


def relation_of(study: StudyRecord, run: PlannedRun, task: str) -> Relation | None:
    """What a task is to a run, None where the study does not score it."""
    relations = study.tasks[run.train_task]
    return next((each for each, names in relations.items() if task in names), None)
