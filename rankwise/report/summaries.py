"""The table of a study as text: one row for each model, the same in the terminal and the report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from rankwise.findings.models import BASE_LABEL, ModelSummary
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.records.judgement import Outcome
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import TrainTaskResults
from rankwise.records.study import Relation
from rankwise.report import cells
from rankwise.report.cells import Cell
from rankwise.report.parts import Column, Table

Summaries = Sequence[ModelSummary]
"""The models of one trained task, the base first."""

RELATION_NAMES: dict[Relation, str] = {
    "in_domain": "in-domain",
    "out_of_domain": "out-of-domain",
    "retention": "retention",
    "held_out_text": "held-out prose",
}

OUTCOMES: dict[Outcome, str] = {
    "recommended": "Recommended",
    "no_evidence": "Not shown that fine-tuning helps",
    "none_helps": "No rank helps",
    "none_keeps_enough": "No rank keeps enough",
    "cannot_tell": "Not settled",
}


_PLAN = ("method", "rank", "mean_rank", "alpha", "scaling", "learning_rate", "seed",
         "target_modules", "num_trainable_parameters", "trainable_share")  # fmt: skip
_MEANS = ("in_domain", "gain", "out_of_domain", "out_of_domain_change", "retention",
          "retention_change", "held_out_loss", "forgetting")  # fmt: skip
_COST = ("num_steps", "num_tokens", "train_seconds", "peak_memory_bytes")
_TEXTS = ("reward_first", "reward_last", "no_spread_share", "tokens_first", "tokens_last",
          "cut_first", "cut_last", "entropy_first", "entropy_last", "kl_last")  # fmt: skip
_IN_FILES: dict[str, str | Callable[[ModelSummary], str]] = {
    "run": "name",
    "status": lambda row: "base" if row.run is None else row.run.status,
    **{name: f"run.planned.{name}" for name in _PLAN},
    "recommended": "is_recommended",
    **{name: name for name in _MEANS},
    "worst_retention_task": "worst_retention.task",
    "worst_retention_change": "worst_retention.difference",
    **{name: f"run.{name}" for name in _COST},
}
"""A model's settings, its means with their bounds and its cost, by their names in files."""


def verdict_table(
    results: TrainTaskResults,
    recommendation: Recommendation,
    summaries: Summaries,
    left_out: Collection[str] = (),
) -> Table:
    """The base, then every run by method, rank and seed.

    The base comes first: where the others have differences it has the score or the loss that
    they start from, and says so.

    Args:
        results: of the trained task.
        recommendation: made from them.
        summaries: of its models.
        left_out: titles of columns.
    """
    base = summaries[0]
    columns: list[Column] = [
        Column(_model, "Model"),
        Column("run.planned.seed", "Seed", write=str),
        Column("run.planned", "Alpha", write=quantities.alpha),
        Column("run.planned.learning_rate", "Learning rate", write=quantities.learning_rate),
        Column(_parameters, "Trainable parameters", "share of full"),
        Column(
            lambda row: cells.mean(row.in_domain, signed=False),
            "In-domain score",
            _detail(base.in_domain, recommendation.in_domain_metric),
        ),
        Column("gain", "Gain", cells.unit_name(recommendation.unit)),
        Column(
            lambda row: cells.mean(row.out_of_domain, signed=False),
            "Out-of-domain score",
            _detail(base.out_of_domain),
        ),
        Column(
            lambda row: _from(row, row.retention, row.retention_change, "score"),
            "Retention change",
            _detail(base.retention),
        ),
        Column(_worst, "Worst retention task", "points"),
        Column(
            lambda row: _from(row, row.held_out_loss, row.forgetting, "loss"),
            "Forgetting",
            _detail(base.held_out_loss),
        ),
        Column(_reward, "Reward", "of own texts, first and last steps"),
        Column(_lengths, "Own texts", "tokens, first and last steps"),
        Column(lambda row: _cost(row, "train_seconds", quantities.seconds), "Training time"),
        Column(
            lambda row: _cost(row, "peak_memory_bytes", quantities.memory),
            "Peak memory",
            "in training",
        ),
        *(Column(key, file=name) for name, key in _IN_FILES.items()),
    ]
    if any(row.run is not None and row.run.learned_texts is not None for row in summaries):
        columns += (Column(f"run.learned_texts.{x}", file=f"texts_{x}") for x in _TEXTS)
    seeds = sorted({plan.seed for plan in results.planned if plan.seed is not None})
    with_seeds = f", {'all with seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    shown = [column for column in columns if not column.title or column.title not in left_out]
    caption = f"The {base.label} and every run{with_seeds if seeds else ''}."
    return Table.of(caption, summaries, *shown, file="runs")


def verdict_notes(recommendation: Recommendation, summaries: Summaries) -> Iterator[str]:
    """What the table does not show by itself: how intervals are made, and who has no scores."""
    for row in summaries:
        if row.run is not None and row.run.status == "diverged":
            why = row.run.message or "no reason was recorded"
            yield f"{row.label}: {row.run.ending} and was not scored: {why}"
    yield (
        "What a rank gains and keeps has the bounds of its verdict. Other intervals are "
        f"{quantities.percent(recommendation.confidence)}, each for one number by itself. "
        "Differences from the base (gain, retention change, forgetting) are paired over "
        "the same items."
    )
    retention = summaries[0].retention
    if retention is not None and retention.num_tasks > 1:
        yield "Retention change is the mean over the tasks, each counting the same."


def _model(summary: ModelSummary) -> Cell:
    if summary.run is None:
        return Cell(summary.label, "", "untouched" if summary.label == BASE_LABEL else "")
    plan = summary.run.planned
    name = "full fine-tuning" if plan.rank is None else f"LoRA {quantities.rank(plan)}"
    if plan.imported is not None:
        name = f"{name}, imported {plan.imported.label}"
    elif plan.called is not None:
        name = plan.called
    note = "recommended" if summary.is_recommended else ""
    return Cell(name, "", note, is_marked=summary.is_recommended)


def _cost(summary: ModelSummary, name: str, write: Callable[[Any], str]) -> str | None:
    """The cost of a training; what was not trained here has 0, and nothing is shown."""
    value = None if summary.run is None else getattr(summary.run, name)
    return write(value) if value else None


def _reward(summary: ModelSummary) -> Cell | None:
    """From the first to the last steps, where texts were rewarded."""
    texts = None if summary.run is None else summary.run.learned_texts
    if texts is None or texts.reward_first is None or texts.reward_last is None:
        return None
    shown = f"{texts.reward_first:.2f} → {texts.reward_last:.2f}"
    same = f"{quantities.share(texts.no_spread_share or 0.0)} of rows without spread"
    return Cell(shown, "", same)


def _lengths(summary: ModelSummary) -> Cell | None:
    """From the first to the last steps, where a run wrote what it learned from."""
    texts = None if summary.run is None else summary.run.learned_texts
    if texts is None:
        return None
    shown = f"{texts.tokens_first:.0f} → {texts.tokens_last:.0f}"
    return Cell(shown, "", f"{quantities.share(texts.cut_last)} cut in the last steps")


def _parameters(summary: ModelSummary) -> Cell | None:
    if summary.run is None or not summary.run.planned.num_trainable_parameters:
        return None
    plan = summary.run.planned
    parameters = quantities.parameters(plan.num_trainable_parameters)
    return Cell(parameters, "", quantities.share(plan.trainable_share))


def _from(
    summary: ModelSummary, score: TaskMean | None, change: TaskMean | None, word: str
) -> Cell:
    """The base's own score or loss, or the change from it."""
    if summary.run is not None:
        return cells.mean(change)
    its = cells.mean(score, signed=False)
    return its if score is None else its._replace(value=f"{word} {its.value}")


def _worst(summary: ModelSummary) -> Cell | None:
    worst = summary.worst_retention
    if worst is None:
        return None
    note = f"{worst.task}, {quantities.sample_size(worst)}"
    return cells.interval(worst.difference, worst.unit, note=note)


def _detail(base: TaskMean | None, metric: str | None = None) -> str:
    """Such as: acc, points, n = 400 in 2 tasks."""
    if base is None:
        return ""
    size = quantities.sample_size(base)
    size += f" in {base.num_tasks} tasks" if base.num_tasks > 1 else ""
    return ", ".join(filter(None, (metric, cells.unit_name(base.unit), size)))
