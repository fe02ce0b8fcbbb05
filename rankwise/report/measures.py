"""One line for each model of a study: scores, differences from the base, and cost.

Differences and their intervals are those of the recommendation's comparisons; over several
tasks of one relation they are averaged, every task counting the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy import special

from rankwise.findings.stats.estimates import wilson_interval
from rankwise.records.axes import run_labels
from rankwise.records.results import ModelResults, TaskItems, TrainTaskResults
from rankwise.records.study import (
    Comparison,
    PlannedRun,
    Recommendation,
    Relation,
    RunRecord,
    TaskEvaluation,
    Unit,
)

BASE_LABEL = "base"


class Measure(NamedTuple):
    """An estimate with its two-sided interval, in points or nats; bounds None if unknown."""

    estimate: float
    lower: float | None
    upper: float | None
    num_examples: int
    unit: Unit

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval; where there is none, the estimate twice."""
        if self.lower is None or self.upper is None:
            return self.estimate, self.estimate
        return self.lower, self.upper


@dataclass(frozen=True)
class ModelSummary:
    """What the table and the charts say of one model; ``run`` is None for the base.

    ``kind`` is "base", "full" or the rank, and decides the colour. ``gain``,
    ``out_of_domain_change`` and ``retention_change`` are adapted - base, positive if better;
    ``forgetting`` is the rise of the loss, positive if worse. None where it was not measured.
    """

    name: str
    label: str
    kind: str
    run: RunRecord | None
    is_recommended: bool
    in_domain: Measure | None
    gain: Measure | None
    out_of_domain: Measure | None
    out_of_domain_change: Measure | None
    retention: Measure | None
    retention_change: Measure | None
    worst_retention: Comparison | None
    held_out_loss: Measure | None
    forgetting: Measure | None

    @property
    def is_scored(self) -> bool:
        """Whether it took part in the comparisons."""
        return self.run is None or self.run.status == "trained"


def summarise(
    results: TrainTaskResults, recommendation: Recommendation
) -> tuple[ModelSummary, ...]:
    """The base, then every run in the order of method, rank and seed."""
    models = [model for model in results.runs if model.run is not None]
    models.sort(key=lambda model: _order(_planned(model)))
    labels = seeded_labels([_planned(model) for model in models])
    return (
        _summary(results, recommendation, results.base, BASE_LABEL),
        *(_summary(results, recommendation, model, labels[model.name]) for model in models),
    )


def seeded_labels(planned: Sequence[PlannedRun]) -> dict[str, str]:
    """A label for each run by name: only what tells it from the others, the seed included."""
    labels = run_labels(planned)
    if len({run.seed for run in planned if run.seed is not None}) > 1:
        labels |= {
            run.name: f"{labels[run.name]}, seed {run.seed}"
            for run in planned
            if run.seed is not None
        }
    return labels


def relation_tasks(results: TrainTaskResults, relation: Relation, unit: Unit) -> tuple[str, ...]:
    """The tasks of a relation that are scored in this unit: those that are averaged."""
    return tuple(
        task
        for task in results.tasks.get(relation, ())
        if task in results.base.items and results.base.items[task].unit == unit
    )


def task_score(evaluation: TaskEvaluation, items: TaskItems, confidence: float) -> Measure:
    """The deciding score of one model on one task, with an interval of its own.

    Wilson's where every item is right or wrong, else estimate ± t * stderr.
    """
    decision = evaluation.decision
    size = decision.num_examples
    scale = 100.0 if items.unit == "points" else 1.0
    estimate = scale * decision.value
    if items.unit == "points" and all(value in (0.0, 1.0) for value in items.values):
        lower, upper = wilson_interval(decision.value * size, size, confidence)
        return Measure(estimate, scale * lower, scale * upper, size, items.unit)
    if decision.stderr is None or size < 2:
        return Measure(estimate, None, None, size, items.unit)
    reach = float(special.stdtrit(size - 1, (1.0 + confidence) / 2.0)) * scale * decision.stderr
    return Measure(estimate, estimate - reach, estimate + reach, size, items.unit)


def difference(comparison: Comparison) -> Measure:
    """One comparison as a measure."""
    return Measure(
        comparison.difference,
        comparison.lower,
        comparison.upper,
        comparison.num_examples,
        comparison.unit,
    )


def opposite(measure: Measure) -> Measure:
    """The same with the other sign: a gain in nats as forgetting."""
    lower, upper = measure.lower, measure.upper
    return measure._replace(
        estimate=-measure.estimate,
        lower=None if upper is None else -upper,
        upper=None if lower is None else -lower,
    )


def mean_difference(comparisons: Sequence[Comparison], confidence: float) -> Measure | None:
    """The mean over tasks, each counting the same; the tasks' items are independent.

    The interval is that of the comparison itself for one task, else estimate ± t * stderr with
    Satterthwaite's degrees of freedom.
    """
    if len(comparisons) < 2:
        return difference(comparisons[0]) if comparisons else None
    parts = [(row.stderr / len(comparisons), row.num_examples) for row in comparisons]
    estimate = sum(row.difference for row in comparisons) / len(comparisons)
    reach = _reach(parts, confidence)
    size = sum(row.num_examples for row in comparisons)
    return Measure(estimate, estimate - reach, estimate + reach, size, comparisons[0].unit)


def _reach(parts: Sequence[tuple[float, int]], confidence: float) -> float:
    """Half an interval from independent (stderr, number of items)."""
    variance = sum(stderr**2 for stderr, _ in parts)
    if variance == 0.0:
        return 0.0
    spread = sum(stderr**4 / max(size - 1, 1) for stderr, size in parts)
    freedom = variance**2 / spread
    return float(special.stdtrit(freedom, (1.0 + confidence) / 2.0)) * math.sqrt(variance)


def _mean_score(model: ModelResults, tasks: Iterable[str], confidence: float) -> Measure | None:
    names = [task for task in tasks if task in model.evaluations and task in model.items]
    scores = [task_score(model.evaluations[t], model.items[t], confidence) for t in names]
    if len(scores) < 2:
        return scores[0] if scores else None
    unit = scores[0].unit
    estimate = sum(score.estimate for score in scores) / len(scores)
    size = sum(score.num_examples for score in scores)
    scale = (100.0 if unit == "points" else 1.0) / len(scores)
    parts: list[tuple[float, int]] = []
    for name in names:
        decision = model.evaluations[name].decision
        if decision.stderr is None:
            return Measure(estimate, None, None, size, unit)
        parts.append((scale * decision.stderr, decision.num_examples))
    reach = _reach(parts, confidence)
    return Measure(estimate, estimate - reach, estimate + reach, size, unit)


def _summary(
    results: TrainTaskResults, recommendation: Recommendation, model: ModelResults, label: str
) -> ModelSummary:
    confidence = recommendation.confidence
    rows = [row for row in recommendation.comparisons if row.run == model.name]

    def changed(relation: Relation, unit: Unit) -> Measure | None:
        chosen = [row for row in rows if (row.relation, row.unit) == (relation, unit)]
        return mean_difference(chosen, confidence)

    def scored(relation: Relation, unit: Unit) -> Measure | None:
        return _mean_score(model, relation_tasks(results, relation, unit), confidence)

    retention = [row for row in rows if (row.relation, row.unit) == ("retention", "points")]
    prose = changed("held_out_text", "nats")
    return ModelSummary(
        name=model.name,
        label=label,
        kind=_kind(model),
        run=model.run,
        is_recommended=_is_recommended(model, recommendation),
        in_domain=scored("in_domain", recommendation.unit),
        gain=changed("in_domain", recommendation.unit),
        out_of_domain=scored("out_of_domain", "points"),
        out_of_domain_change=changed("out_of_domain", "points"),
        retention=scored("retention", "points"),
        retention_change=changed("retention", "points"),
        worst_retention=min(retention, key=lambda row: row.difference, default=None),
        held_out_loss=scored("held_out_text", "nats"),
        forgetting=None if prose is None else opposite(prose),
    )


def _planned(model: ModelResults) -> PlannedRun:
    assert model.run is not None
    return model.run.planned


def _order(run: PlannedRun) -> tuple[bool, int, float, float, int, int]:
    settings = run.rank or 0, run.alpha or 0.0, run.learning_rate or 0.0, run.epochs or 0
    return run.rank is None, *settings, run.seed or 0


def _kind(model: ModelResults) -> str:
    if model.run is None:
        return "base"
    return "full" if model.run.planned.rank is None else str(model.run.planned.rank)


def _is_recommended(model: ModelResults, recommendation: Recommendation) -> bool:
    if model.run is None or recommendation.rank is None:
        return False
    chosen = next((v.runs for v in recommendation.verdicts if v.qualifies), ())
    return model.name in chosen
