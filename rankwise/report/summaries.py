"""The table of a study as text: one row for each model, the same in the terminal and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from rankwise.findings.models import ModelSummary
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.records.results import TrainTaskResults
from rankwise.records.study import Interval, PlannedRun, Recommendation, Relation, RunRecord, Unit
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
    seed: Cell
    alpha: Cell
    learning_rate: Cell
    parameters: Cell
    in_domain: Cell
    gain: Cell
    out_of_domain: Cell
    retention: Cell
    worst_retention: Cell
    forgetting: Cell
    train_time: Cell
    peak_memory: Cell


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
        "gain": Heading("Gain", _unit(recommendation.unit)),
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


def interval_cell(
    interval: Interval, unit: Unit, *, signed: bool = True, note: str = "", prefix: str = ""
) -> Cell:
    """A difference with its sign, or a score; ``prefix`` is a word before the number."""
    write = quantities.change if signed else quantities.score
    ends = quantities.change_interval if signed else quantities.score_interval
    value = f"{prefix} {write(interval.estimate, unit)}".strip()
    return Cell(value, ends(interval.lower, interval.upper, unit), note)


def mean_cell(
    mean: TaskMean | None, *, signed: bool = True, note: str = "", prefix: str = ""
) -> Cell:
    """The same for a mean over tasks; EMPTY where there is none."""
    if mean is None:
        return EMPTY
    return interval_cell(mean, mean.unit, signed=signed, note=note, prefix=prefix)


def correlation_cell(rho: Interval | None, reason: str | None = None) -> Cell:
    """Spearman's ρ with its interval, or why there is none."""
    if rho is None:
        return Cell(quantities.NOT_MEASURED, "", reason or "")
    value, _, interval = quantities.correlation(rho).partition(" ")
    return Cell(value, interval.strip("()"))


def _base_row(base: ModelSummary) -> VerdictRow:
    return VerdictRow(
        name=base.name,
        is_recommended=False,
        problem=None,
        model=Cell("base", "", "untouched"),
        seed=EMPTY,
        alpha=EMPTY,
        learning_rate=EMPTY,
        parameters=EMPTY,
        in_domain=mean_cell(base.in_domain, signed=False),
        gain=EMPTY,
        out_of_domain=mean_cell(base.out_of_domain, signed=False),
        retention=mean_cell(base.retention, signed=False, prefix="score"),
        worst_retention=EMPTY,
        forgetting=mean_cell(base.held_out_loss, signed=False, prefix="loss"),
        train_time=EMPTY,
        peak_memory=EMPTY,
    )


def _run_row(summary: ModelSummary, run: RunRecord) -> VerdictRow:
    plan = run.planned
    name = "full fine-tuning" if plan.rank is None else f"LoRA rank {plan.rank}"
    if plan.imported_as is not None:
        name = f"{name}, imported {plan.imported_as}"
    problem = None
    if run.status == "diverged":
        problem = f"diverged and was not scored: {run.message or 'no reason was recorded'}"
    return VerdictRow(
        name=summary.name,
        is_recommended=summary.is_recommended,
        problem=problem,
        model=Cell(name, "", "recommended" if summary.is_recommended else ""),
        seed=EMPTY if plan.seed is None else Cell(str(plan.seed)),
        alpha=EMPTY if plan.alpha is None else Cell(quantities.number(plan.alpha)),
        learning_rate=_rate(plan),
        parameters=Cell(
            quantities.parameters(plan.num_trainable_parameters),
            "",
            quantities.share(plan.trainable_share),
        ),
        in_domain=mean_cell(summary.in_domain, signed=False),
        gain=mean_cell(summary.gain),
        out_of_domain=mean_cell(summary.out_of_domain, signed=False),
        retention=mean_cell(summary.retention_change),
        worst_retention=_worst(summary),
        forgetting=mean_cell(summary.forgetting),
        train_time=Cell(quantities.seconds(run.train_seconds)),
        peak_memory=Cell(quantities.memory(run.peak_memory_bytes)),
    )


def _rate(plan: PlannedRun) -> Cell:
    if plan.learning_rate is None:
        return EMPTY
    return Cell(quantities.learning_rate(plan.learning_rate))


def _worst(summary: ModelSummary) -> Cell:
    worst = summary.worst_retention
    if worst is None:
        return EMPTY
    note = f"{worst.task}, {quantities.sample_size(worst)}"
    return interval_cell(worst.interval, worst.unit, note=note)


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
    parts.append(_unit(base.unit))
    size = quantities.sample_size(base)
    parts.append(size if base.num_tasks == 1 else f"{size} in {base.num_tasks} tasks")
    return ", ".join(parts)


def _unit(unit: Unit) -> str:
    return "points" if unit == "points" else "nats per token"
