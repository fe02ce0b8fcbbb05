"""A study's numbers as CSV: unrounded, one table for each kind of record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rankwise.findings.options import TaskMean
from rankwise.records.results import TrainTaskResults
from rankwise.records.study import (
    AccuracyDifference,
    Comparison,
    FormatEffect,
    RankVerdict,
    Recommendation,
)
from rankwise.report.summaries import Summaries

CsvRow = Mapping[str, Any]


def csv_tables(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Summaries
) -> dict[str, str]:
    """The text of every table by file name.

    ``runs.csv`` has one row for each model, ``differences.csv`` one for each run and task,
    ``formats.csv`` the same for tasks that were also scored in the format of the training,
    ``ranks.csv`` what each rank was judged on, ``scores.csv`` every metric of every model and
    task as lm-evaluation-harness defines it. A cell is empty where nothing was measured.
    """
    return {
        "runs.csv": csv_text(_runs(summaries)),
        "differences.csv": csv_text(
            [
                row.model_dump(exclude=_NESTED) | dict(_ratio(row)) | dict(_accuracy(row))
                for row in recommendation.comparisons
            ],
            [
                *(name for name in Comparison.model_fields if name not in _NESTED),
                *_RATIO,
                *(f"accuracy_{name}" for name in AccuracyDifference.model_fields),
            ],
        ),
        "formats.csv": csv_text(
            [_format(effect) for effect in recommendation.format_effects],
            [*(name for name in FormatEffect.model_fields if name != "by_format"), *_BY_FORMAT],
        ),
        "ranks.csv": csv_text([_verdict(row) for row in recommendation.verdicts]),
        "scores.csv": csv_text(_scores(results)),
    }


_NESTED = {"retention_ratio", "accuracy"}

_RATIO = (
    "retention_ratio",
    "retention_ratio_lower",
    "retention_ratio_upper",
    "retention_ratio_reason",
)


_BY_FORMAT = ("by_format", "by_format_lower", "by_format_upper")


def _format(effect: FormatEffect) -> CsvRow:
    part = effect.by_format
    bounds = (None,) * 3 if part is None else (part.estimate, part.lower, part.upper)
    return effect.model_dump(exclude={"by_format"}) | dict(zip(_BY_FORMAT, bounds, strict=True))


def csv_text(rows: Iterable[CsvRow], columns: Sequence[str] | None = None) -> str:
    """Rows under one line of names: those of ``columns``, or of the first row."""
    rows = list(rows)
    names = list(columns or (rows[0] if rows else ()))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _runs(summaries: Summaries) -> Iterable[CsvRow]:
    for summary in summaries:
        run = summary.run
        plan = None if run is None else run.planned
        row: dict[str, Any] = {"run": summary.name, "status": "base" if run is None else run.status}
        for name in ("method", "rank", "alpha", "scaling", "learning_rate", "seed"):
            row[name] = None if plan is None else getattr(plan, name)
        row["target_modules"] = None if plan is None else " ".join(plan.target_modules)
        row["num_trainable_parameters"] = 0 if plan is None else plan.num_trainable_parameters
        row["trainable_share"] = 0.0 if plan is None else plan.trainable_share
        row["recommended"] = summary.is_recommended
        for name in (
            "in_domain",
            "gain",
            "out_of_domain",
            "out_of_domain_change",
            "retention",
            "retention_change",
            "held_out_loss",
            "forgetting",
        ):
            row |= _mean_columns(name, getattr(summary, name))
        worst = summary.worst_retention
        row["worst_retention_task"] = None if worst is None else worst.task
        row["worst_retention_change"] = None if worst is None else worst.difference
        for name in ("num_steps", "num_tokens", "train_seconds", "peak_memory_bytes"):
            row[name] = None if run is None else getattr(run, name)
        yield row


def _mean_columns(name: str, mean: TaskMean | None) -> CsvRow:
    if mean is None:
        return dict.fromkeys([name, *(f"{name}_{end}" for end in ("lower", "upper", "n", "unit"))])
    return {
        name: mean.estimate,
        f"{name}_lower": mean.lower,
        f"{name}_upper": mean.upper,
        f"{name}_n": mean.num_examples,
        f"{name}_unit": mean.unit,
    }


def _ratio(row: Comparison) -> CsvRow:
    ratio = row.retention_ratio
    if ratio is None:
        return dict.fromkeys(_RATIO)
    return dict(zip(_RATIO, (ratio.estimate, ratio.lower, ratio.upper, ratio.reason), strict=True))


def _accuracy(row: Comparison) -> CsvRow:
    accuracy = row.accuracy
    return {
        f"accuracy_{name}": None if accuracy is None else getattr(accuracy, name)
        for name in AccuracyDifference.model_fields
    }


def _verdict(verdict: RankVerdict) -> CsvRow:
    row: dict[str, Any] = {
        "rank": verdict.rank,
        "alpha": verdict.alpha,
        "learning_rate": verdict.learning_rate,
        "target_modules": " ".join(verdict.target_modules),
        "num_runs": len(verdict.runs),
    }
    for name in ("gain", "retention_loss", "shortfall"):
        bound = getattr(verdict, name)
        row[name] = None if bound is None else bound.estimate
        row[f"{name}_lower"] = None if bound is None else bound.lower
        row[f"{name}_upper"] = None if bound is None else bound.upper
    for name in (
        "worst_retention_task",
        "worst_retention_loss",
        "better_than_base",
        "keeps_enough",
        "near_the_best",
        "qualifies",
    ):
        row[name] = getattr(verdict, name)
    return row


def _scores(results: TrainTaskResults) -> Iterable[CsvRow]:
    for model in (results.base, *results.runs):
        for evaluation in model.evaluations.values():
            for score in evaluation.metrics:
                yield {
                    "model": model.name,
                    "task": evaluation.task,
                    "task_version": evaluation.task_version,
                    "metric": score.metric,
                    "filter": score.filter,
                    "value": score.value,
                    "stderr": score.stderr,
                    "num_examples": score.num_examples,
                    "higher_is_better": score.higher_is_better,
                    "decides": score == evaluation.decision,
                    "num_fewshot": evaluation.num_fewshot,
                    "chat_template": evaluation.chat_template,
                    "chance": evaluation.chance,
                }
