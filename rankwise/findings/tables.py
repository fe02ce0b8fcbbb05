"""Every table of a study as rows: those of each trained task, and those of the findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rankwise.findings.models import ModelSummary, summarise
from rankwise.findings.rows import Row, flat
from rankwise.findings.study import StudyFindings, finding_tables
from rankwise.records.recommendation import Recommendation, StudyRecommendation
from rankwise.records.results import StudyResults, TrainTaskResults

_PLAN = ("method", "rank", "alpha", "scaling", "learning_rate", "seed", "target_modules",
         "num_trainable_parameters", "trainable_share")  # fmt: skip
_RUN = ("num_steps", "num_tokens", "train_seconds", "peak_memory_bytes")
_SUMMARY = ("in_domain", "gain", "out_of_domain", "out_of_domain_change", "retention",
            "retention_change", "held_out_loss", "forgetting")  # fmt: skip
_EVALUATION = ("task", "task_version", "num_fewshot", "chat_template", "chance")


def study_tables(
    results: StudyResults, recommendation: StudyRecommendation, findings: StudyFindings
) -> dict[str, list[Row]]:
    """The rows of every table that has any, by the table's name, all trained tasks together."""
    tables: dict[str, list[Row]] = {}
    for part in recommendation.by_train_task:
        own = results.of(part.train_task)
        for name, rows in task_tables(own, part, summarise(own, part)).items():
            tables.setdefault(name, []).extend({"train_task": part.train_task, **r} for r in rows)
    return tables | finding_tables(findings, results)


def task_tables(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Sequence[ModelSummary]
) -> dict[str, list[Row]]:
    """The rows of every table of a trained task that has any, by the table's name.

    ``runs`` has one row for each model, ``differences`` one for each run and task, ``formats`` the
    same for tasks that were also scored in the format of the training, ``ranks`` what each rank was
    judged on, ``scores`` every metric of every model and task as lm-evaluation-harness defines it.
    """
    tables: dict[str, Iterable[Row]] = {
        "runs": _run_rows(summaries),
        "differences": map(flat, recommendation.comparisons),
        "formats": map(flat, recommendation.format_effects),
        "ranks": map(flat, recommendation.verdicts),
        "scores": (
            flat(
                score,
                model=model.name,
                **{name: getattr(evaluation, name) for name in _EVALUATION},
                decides=score == evaluation.decision,
            )
            for model in (results.base, *results.runs)
            for evaluation in model.evaluations.values()
            for score in evaluation.metrics
        ),
    }
    return {name: listed for name, rows in tables.items() if (listed := list(rows))}


def _run_rows(summaries: Sequence[ModelSummary]) -> Iterator[Row]:
    """One row for each model, flat: its settings, its means with their bounds, its cost."""
    for summary in summaries:
        run, worst = summary.run, summary.worst_retention
        row: dict[str, Any] = {"run": summary.name, "status": "base" if run is None else run.status}
        row |= {name: None if run is None else getattr(run.planned, name) for name in _PLAN}
        row["recommended"] = summary.is_recommended
        row |= {name: getattr(summary, name) for name in _SUMMARY}
        row["worst_retention_task"] = None if worst is None else worst.task
        row["worst_retention_change"] = None if worst is None else worst.difference
        row |= {name: None if run is None else getattr(run, name) for name in _RUN}
        yield flat(row.items())
