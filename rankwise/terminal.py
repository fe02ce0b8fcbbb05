"""Tables and sentences for the terminal; the same numbers and formats as the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rankwise.quantities import count, memory, parameters
from rankwise.records import Recommendation, StudyRecord, StudyResults
from rankwise.status import ModelStatus
from rankwise.summaries import verdict_table

Done = Set[tuple[str, str | None]]


def plan_table(study: StudyRecord, tasks: Sequence[str], done: Done) -> Table:
    """What a study will do: one row per model.

    Args:
        study: the planned study.
        tasks: names of the tasks that every model is scored on.
        done: finished (model, task) pairs; task None is the training.
    """
    table = Table(title=f"{study.config.name} on {study.config.base_model.name}")
    for name in ("run", "steps", "tokens", "trainable", "of full", "memory", "trained", "scored"):
        table.add_column(name, justify="left" if name == "run" else "right", overflow="fold")
    scored = sum(("base", task) in done for task in tasks)
    table.add_row("base", "", "", "", "", "", "", f"{scored}/{len(tasks)}")
    for run in study.runs:
        scored = sum((run.name, task) in done for task in tasks)
        table.add_row(
            run.name,
            str(run.num_steps),
            count(run.num_tokens),
            parameters(run.num_trainable_parameters),
            f"{run.trainable_share:.2%}",
            f"~{memory(run.estimated_memory_bytes)}",
            "yes" if (run.name, None) in done else "no",
            f"{scored}/{len(tasks)}",
        )
    return table


def status_table(lines: Sequence[ModelStatus]) -> Table:
    """What of a study is done: one row per model."""
    table = Table()
    for name in ("model", "training", "steps", "scored", "left"):
        table.add_column(name, overflow="fold")
    for line in lines:
        steps = f"{line.num_steps_done}/{line.num_steps}" if line.num_steps else ""
        table.add_row(
            line.model,
            line.training,
            steps,
            ", ".join(line.tasks_scored) or "nothing",
            ", ".join(line.tasks_left) or "nothing",
        )
    return table


def verdict(results: StudyResults, recommendation: Recommendation) -> Iterator[RenderableType]:
    """The table, the reasons, and last the sentence that people look for."""
    yield verdict_table(results, recommendation)
    for reason in recommendation.reasons:
        yield Text(f"- {reason}")
    yield Text(recommendation.statement, style="bold")
