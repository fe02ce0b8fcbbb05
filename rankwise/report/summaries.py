"""The table of a study as text: one row for each model, the same in the terminal and the report."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rankwise.records import quantities
from rankwise.records.results import TrainTaskResults
from rankwise.records.study import PlannedRun, Recommendation, Relation, Unit
from rankwise.report.measures import Measure, ModelSummary, difference, relation_tasks, summarise
from rankwise.report.parts import EMPTY, Cell, Heading

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


def verdict_table(results: TrainTaskResults, recommendation: Recommendation) -> list[VerdictRow]:
    """The base, then every run by method, rank and seed, every number already text."""
    return [
        _row(each, recommendation.unit) if each.run is not None else _base_row(each)
        for each in summarise(results, recommendation)
    ]


def verdict_headings(
    results: TrainTaskResults, recommendation: Recommendation
) -> dict[str, Heading]:
    """The heading of each of ``COLUMNS``, with unit, metric and number of items."""
    base = summarise(results, recommendation)[0]
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


def verdict_notes(results: TrainTaskResults, recommendation: Recommendation) -> tuple[str, ...]:
    """What the table does not show by itself: how intervals are made, and what is missing."""
    confidence = quantities.percent(recommendation.confidence)
    notes = [
        f"Intervals are {confidence}, each for one number by itself. Differences from the base "
        "(gain, retention change, forgetting) are paired over the same items."
    ]
    base = summarise(results, recommendation)[0]
    if base.out_of_domain is None:
        notes.append("Out-of-domain scores were not measured: the study names no such task.")
    if base.retention is None:
        notes.append(
            "Retention was not measured: the study names no retention task scored in points."
        )
    elif len(relation_tasks(results, "retention", "points")) > 1:
        notes.append("Retention change is the mean over the tasks, each counting the same.")
    if base.held_out_loss is None:
        notes.append("Forgetting on prose was not measured: the study names no held-out text.")
    return tuple(notes)


def measure_cell(
    measure: Measure | None, *, signed: bool, note: str = "", prefix: str = ""
) -> Cell:
    """A score, or a difference with its sign; ``prefix`` is a word before the number."""
    if measure is None:
        return EMPTY
    write = quantities.change if signed else quantities.score
    value = f"{prefix} {write(measure.estimate, measure.unit)}".strip()
    interval = quantities.change_interval if signed else quantities.score_interval
    if measure.lower is None or measure.upper is None:
        return Cell(value, "", note or "no interval")
    return Cell(value, interval(measure.lower, measure.upper, measure.unit), note)


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
        in_domain=measure_cell(base.in_domain, signed=False),
        gain=EMPTY,
        out_of_domain=measure_cell(base.out_of_domain, signed=False),
        retention=measure_cell(base.retention, signed=False, prefix="score"),
        worst_retention=EMPTY,
        forgetting=measure_cell(base.held_out_loss, signed=False, prefix="loss"),
        train_time=EMPTY,
        peak_memory=EMPTY,
    )


def _row(summary: ModelSummary, unit: Unit) -> VerdictRow:
    run = summary.run
    assert run is not None
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
        in_domain=measure_cell(summary.in_domain, signed=False),
        gain=measure_cell(summary.gain, signed=True),
        out_of_domain=measure_cell(summary.out_of_domain, signed=False),
        retention=measure_cell(summary.retention_change, signed=True),
        worst_retention=_worst(summary),
        forgetting=measure_cell(summary.forgetting, signed=True),
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
    return measure_cell(
        difference(worst),
        signed=True,
        note=f"{worst.task}, {quantities.size(worst.num_examples)}",
    )


def _detail(
    results: TrainTaskResults, relation: Relation, base: Measure | None, with_metric: bool = False
) -> str:
    """acc, points, n = 400 in 2 tasks."""
    if base is None:
        return "not measured"
    tasks = relation_tasks(results, relation, base.unit)
    metrics = {results.base.items[task].metric for task in tasks}
    parts = [metrics.pop()] if with_metric and len(metrics) == 1 else []
    parts.append(_unit(base.unit))
    size = quantities.size(base.num_examples)
    parts.append(size if len(tasks) == 1 else f"{size} in {len(tasks)} tasks")
    return ", ".join(parts)


def _unit(unit: Unit) -> str:
    return "points" if unit == "points" else "nats per token"
