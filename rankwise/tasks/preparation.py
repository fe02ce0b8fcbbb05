"""Tasks by name, prepared with the settings of a study's ``evaluation`` section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.errors import TaskError
from rankwise.records.config import EvaluationConfig
from rankwise.tasks.requests import PreparedTask, prepare_task
from rankwise.tasks.resolution import LoadedTask, TaskNotFound, load_tasks


def prepared_tasks(
    names: Sequence[str],
    tasks_path: Sequence[Path],
    tokenizer: Any,
    max_length: int,
    evaluation: EvaluationConfig,
) -> list[PreparedTask]:
    """Every named task once, groups and tags as their leaves.

    Raises:
        TaskError: a name is unknown, or a task cannot be scored; all unknown names at once.
        DataError: a prompt or an answer is empty.
    """
    leaves: dict[str, LoadedTask] = {}
    unknown: list[str] = []
    for found in load_tasks(names, tasks_path).values():
        if isinstance(found, TaskNotFound):
            unknown.append(str(found))
        else:
            leaves |= {task.name: task for task in found}
    if unknown:
        raise TaskError(f"{'; '.join(unknown)}. `rankwise tasks` lists the known ones.")
    return [prepared_task(task, tokenizer, max_length, evaluation) for task in leaves.values()]


def prepared_task(
    task: LoadedTask,
    tokenizer: Any,
    max_length: int,
    evaluation: EvaluationConfig,
    *,
    limit: int | None = None,
) -> PreparedTask:
    """One task; see ``prepare_task``.

    Args:
        task: as loaded.
        tokenizer: of the base model; where it has no chat template, none is used.
        max_length: context limit in tokens.
        evaluation: its settings.
        limit: number of documents to score, in place of the section's.

    Raises:
        TaskError: the task cannot be scored.
        DataError: a prompt or an answer is empty.
    """
    return prepare_task(
        task,
        tokenizer,
        max_length=max_length,
        num_fewshot=evaluation.num_fewshot,
        limit=limit or evaluation.limit,
        chat_template=evaluation.chat_template and bool(tokenizer.chat_template),
        fewshot_as_multiturn=evaluation.fewshot_as_multiturn,
    )
