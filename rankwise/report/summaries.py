"""The table of a study as text: one row for each model, the same in the terminal and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from rankwise.findings.models import ModelSummary
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import TrainTaskResults
from rankwise.records.study import Relation, RunRecord
from rankwise.report import cells
from rankwise.report.parts import EMPTY, Cell, Heading

Summaries = Sequence[ModelSummary]
"""The models of one trained task, the base first."""

RELATION_NAMES: dict[Relation, str] = {
    "in_domain": "in-domain",
    "out_of_domain": "out-of-domain",
    "retention": "retention",
    "held_out_text": "held-out prose",
}


@dataclass(frozen=True)
class VerdictRow:
    """One model. The fields from ``model`` to ``peak_memory`` are the columns, in order.

    The base comes first: where the others have differences it has the score or the loss that
    they start from, and says so. ``problem`` says why a run has no scores.
    """

    name: str
    is_recommended: bool
    problem: str | None
    model: Cell
    seed: Cell = EMPTY
    alpha: Cell = EMPTY
    learning_rate: Cell = EMPTY
    parameters: Cell = EMPTY
    in_domain: Cell = EMPTY
    gain: Cell = EMPTY
    out_of_domain: Cell = EMPTY
    retention: Cell = EMPTY
    worst_retention: Cell = EMPTY
    forgetting: Cell = EMPTY
    train_time: Cell = EMPTY
    peak_memory: Cell = EMPTY


COLUMNS = tuple(field.name for field in fields(VerdictRow))[3:]
"""The names of the columns: the fields of ``VerdictRow`` that are cells."""


def verdict_table(summaries: Summaries) -> list[VerdictRow]:
    """The base, then every run by method, rank and seed, every number already text."""
    return [
        _base_row(summary) if summary.run is None else _run_row(summary, summary.run)
        for summary in summaries
    ]


def verdict_headings(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Summaries
) -> dict[str, Heading]:
    """The heading of each of ``COLUMNS``, with unit, metric and number of items."""
    base = summaries[0]
    return {
        "model": Heading("Model"),
        "seed": Heading("Seed"),
        "alpha": Heading("Alpha"),
        "learning_rate": Heading("Learning rate"),
        "parameters": Heading("Trainable parameters", "share of full"),
        "in_domain": Heading(
            "In-domain score", _detail(results, "in_domain", base.in_domain, with_metric=True)
        ),
        "gain": Heading("Gain", cells.unit_name(recommendation.unit)),
        "out_of_domain": Heading(
            "Out-of-domain score", _detail(results, "out_of_domain", base.out_of_domain)
        ),
        "retention": Heading("Retention change", _detail(results, "retention", base.retention)),
        "worst_retention": Heading("Worst retention task", "points"),
        "forgetting": Heading("Forgetting", _detail(results, "held_out_text", base.held_out_loss)),
        "train_time": Heading("Training time"),
        "peak_memory": Heading("Peak memory", "in training"),
    }


def verdict_notes(recommendation: Recommendation, summaries: Summaries) -> tuple[str, ...]:
    """What the table does not show by itself: how intervals are made, and what is missing."""
    confidence = quantities.percent(recommendation.confidence)
    notes = [
        f"Intervals are {confidence}, each for one number by itself. Differences from the base "
        "(gain, retention change, forgetting) are paired over the same items."
    ]
    base = summaries[0]
    if base.out_of_domain is None:
        notes.append("Out-of-domain scores were not measured: the study names no such task.")
    if base.retention is None:
        notes.append(
            "Retention was not measured: the study names no retention task scored in points."
        )
    elif base.retention.num_tasks > 1:
        notes.append("Retention change is the mean over the tasks, each counting the same.")
    if base.held_out_loss is None:
        notes.append("Forgetting on prose was not measured: the study names no held-out text.")
    return tuple(notes)


def _base_row(base: ModelSummary) -> VerdictRow:
    return VerdictRow(
        name=base.name,
        is_recommended=False,
        problem=None,
        model=Cell("base", "", "untouched"),
        in_domain=cells.mean(base.in_domain, signed=False),
        out_of_domain=cells.mean(base.out_of_domain, signed=False),
        retention=cells.mean(base.retention, signed=False, prefix="score"),
        forgetting=cells.mean(base.held_out_loss, signed=False, prefix="loss"),
    )


def _run_row(summary: ModelSummary, run: RunRecord) -> VerdictRow:
    plan = run.planned
    name = "full fine-tuning" if plan.rank is None else f"LoRA rank {plan.rank}"
    if plan.imported_as is not None:
        name = f"{name}, imported {plan.imported_as}"
    problem = None
    if run.status == "diverged":
        problem = f"diverged and was not scored: {run.message or 'no reason was recorded'}"
    rate, parameters = plan.learning_rate, quantities.parameters(plan.num_trainable_parameters)
    return VerdictRow(
        name=summary.name,
        is_recommended=summary.is_recommended,
        problem=problem,
        model=Cell(name, "", "recommended" if summary.is_recommended else ""),
        seed=EMPTY if plan.seed is None else Cell(str(plan.seed)),
        alpha=EMPTY if plan.alpha is None else Cell(quantities.number(plan.alpha)),
        learning_rate=EMPTY if rate is None else Cell(quantities.learning_rate(rate)),
        parameters=Cell(parameters, "", quantities.share(plan.trainable_share)),
        in_domain=cells.mean(summary.in_domain, signed=False),
        gain=cells.mean(summary.gain),
        out_of_domain=cells.mean(summary.out_of_domain, signed=False),
        retention=cells.mean(summary.retention_change),
        worst_retention=_worst(summary),
        forgetting=cells.mean(summary.forgetting),
        train_time=Cell(quantities.seconds(run.train_seconds)),
        peak_memory=Cell(quantities.memory(run.peak_memory_bytes)),
    )


def _worst(summary: ModelSummary) -> Cell:
    worst = summary.worst_retention
    if worst is None:
        return EMPTY
    note = f"{worst.task}, {quantities.sample_size(worst)}"
    return cells.interval(worst.interval, worst.unit, note=note)


def _detail(
    results: TrainTaskResults, relation: Relation, base: TaskMean | None, with_metric: bool = False
) -> str:
    """acc, points, n = 400 in 2 tasks."""
    if base is None:
        return "not measured"
    items = results.base.items
    metrics = {
        items[task].metric
        for task in results.tasks[relation]
        if task in items and items[task].unit == base.unit
    }
    parts = [metrics.pop()] if with_metric and len(metrics) == 1 else []
    parts.append(cells.unit_name(base.unit))
    size = quantities.sample_size(base)
    parts.append(size if base.num_tasks == 1 else f"{size} in {base.num_tasks} tasks")
    return ", ".join(parts)
