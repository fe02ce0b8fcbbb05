"""A study's numbers as CSV: unrounded, one table for each kind of record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rankwise.records.recommendation import (
    AccuracyDifference,
    Comparison,
    FormatEffect,
    RankVerdict,
    Recommendation,
)
from rankwise.records.results import TrainTaskResults
from rankwise.report import cells
from rankwise.report.summaries import Summaries


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
        "runs.csv": cells.csv_text(_runs(summaries)),
        "differences.csv": cells.csv_text(
            map(_difference, recommendation.comparisons),
            _columns(Comparison, (*_RATIO, *_ACCURACY)),
        ),
        "formats.csv": cells.csv_text(
            map(_format, recommendation.format_effects),
            _columns(FormatEffect, cells.csv_row(None, "by_format")),
        ),
        "ranks.csv": cells.csv_text(map(_verdict, recommendation.verdicts)),
        "scores.csv": cells.csv_text(_scores(results)),
    }


_RATIO = (*cells.csv_row(None, "retention_ratio"), "retention_ratio_reason")

_NESTED = {"retention_ratio", "accuracy"}

_ACCURACY = tuple(f"accuracy_{name}" for name in AccuracyDifference.model_fields)


def _columns(record: type[Comparison | FormatEffect], last: Iterable[str]) -> list[str]:
    """The fields of a record, and at the end the columns that one of them becomes."""
    own = [name for name in record.model_fields if name not in (*last, *_NESTED)]
    return [*own, *last]


def _difference(row: Comparison) -> cells.CsvRow:
    ratio = row.retention_ratio
    columns = dict.fromkeys(_RATIO)
    if ratio is not None:
        values = (ratio.estimate, ratio.lower, ratio.upper, ratio.reason)
        columns = dict(zip(_RATIO, values, strict=True))
    columns |= dict.fromkeys(_ACCURACY)
    if row.accuracy is not None:
        columns |= {f"accuracy_{name}": value for name, value in row.accuracy}
    return row.model_dump(exclude=_NESTED) | columns


def _format(effect: FormatEffect) -> cells.CsvRow:
    return effect.model_dump(exclude={"by_format"}) | cells.csv_row(effect.by_format, "by_format")


def _runs(summaries: Summaries) -> Iterator[cells.CsvRow]:
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
            row |= cells.csv_row(getattr(summary, name), name, cells.SIZE_AND_UNIT)
        worst = summary.worst_retention
        row["worst_retention_task"] = None if worst is None else worst.task
        row["worst_retention_change"] = None if worst is None else worst.difference
        for name in ("num_steps", "num_tokens", "train_seconds", "peak_memory_bytes"):
            row[name] = None if run is None else getattr(run, name)
        yield row


def _verdict(verdict: RankVerdict) -> cells.CsvRow:
    row: dict[str, Any] = {
        "rank": verdict.rank,
        "alpha": verdict.alpha,
        "learning_rate": verdict.learning_rate,
        "target_modules": " ".join(verdict.target_modules),
        "num_runs": len(verdict.runs),
        **cells.csv_row(verdict.gain, "gain"),
        **cells.csv_row(verdict.retention_loss, "retention_loss"),
        **cells.csv_row(verdict.shortfall, "shortfall"),
    }
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


def _scores(results: TrainTaskResults) -> Iterator[cells.CsvRow]:
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
