"""Every trained model of a trained task, summarised and in groups.

A model here is the base or one run of one seed. Means over tasks and their intervals are made by
the functions that average options over seeds, so an option of one seed has the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from rankwise.findings.options import OptionGains, Runs, TaskMean
from rankwise.findings.pairs import run_record, trained
from rankwise.findings.stats.estimates import mean_over_tasks, student_interval, wilson_interval
from rankwise.findings.stats.items import POINTS, Items, num_clusters
from rankwise.records import quantities
from rankwise.records.axes import Kind, run_labels
from rankwise.records.recommendation import Comparison, Recommendation
from rankwise.records.results import ModelResults, TaskItems, TrainTaskResults
from rankwise.records.study import (
    COMPARED,
    PlannedRun,
    Relation,
    Role,
    RunRecord,
    TaskEvaluation,
    Unit,
)

BASE_LABEL = "base"


@dataclass(frozen=True)
class ModelSummary:
    """What the table and the charts say of one model; ``run`` is None for the base.

    ``label`` tells it from every other model, ``option`` from those that differ by more than seed.
    ``gain``, ``out_of_domain_change`` and ``retention_change`` are adapted - base, positive if
    better; ``forgetting`` is the rise of the loss, positive if worse. None where not measured.
    """

    name: str
    label: str
    option: str
    run: RunRecord | None
    is_recommended: bool
    in_domain: TaskMean | None
    gain: TaskMean | None
    out_of_domain: TaskMean | None
    out_of_domain_change: TaskMean | None
    retention: TaskMean | None
    retention_change: TaskMean | None
    worst_retention: Comparison | None
    held_out_loss: TaskMean | None
    forgetting: TaskMean | None

    @property
    def kind(self) -> Kind:
        """What decides the colour: "base", "full" or the rank."""
        if self.run is None:
            return "base"
        rank = self.run.planned.rank
        return "full" if rank is None else rank

    @property
    def kind_name(self) -> str:
        """The same in words: base, full, rank 8, or rank pattern (mean 6.3)."""
        is_ranked = self.run is not None and self.run.planned.rank is not None
        return quantities.rank(self.run.planned) if self.run and is_ranked else str(self.kind)


def summarise(
    results: TrainTaskResults, recommendation: Recommendation
) -> tuple[ModelSummary, ...]:
    """The base, then every run in the order of method, rank and seed."""
    source = OptionGains(results, recommendation)
    models = {model.run.planned: model for model in results.runs if model.run is not None}
    order = ("rank", "alpha", "learning_rate", "epochs", "seed")
    planned = sorted(
        models, key=lambda run: (run.rank is None, *(getattr(run, name) or 0 for name in order))
    )
    labels = seeded_labels(planned)
    worst: dict[str, Comparison] = {}
    for row in recommendation.comparisons:
        if (row.relation, row.unit) == ("retention", "points"):
            worst[row.run] = min(
                worst.get(row.run, row), row, key=lambda each: each.difference.estimate
            )
    shown = [
        (results.base, results.study.base_label),
        *((models[plan], labels[plan.name]) for plan in planned),
    ]
    return tuple(
        _summary(source, recommendation, model, label, worst.get(model.name))
        for model, label in shown
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


def task_score(evaluation: TaskEvaluation, items: TaskItems, confidence: float) -> TaskMean:
    """The deciding score of one model on one task.

    The interval is Wilson's where every item is right or wrong, else Student's; of items in
    clusters it is the cluster-robust one.
    """
    size = evaluation.decision.num_examples
    scale = POINTS if items.unit == "points" else 1.0
    share = float(np.mean(items.values))
    part = Items(np.asarray(items.values), 1.0 if items.unit == "points" else 0.0)
    if items.clusters is not None:
        part = part._replace(clusters=np.asarray(items.clusters))
    if items.scored is not None:
        part = part._replace(scored=np.isin(items.doc_ids, items.scored.doc_ids))
    clusters = num_clusters([part])
    if clusters is not None or part.scored is not None:
        lower, upper = mean_over_tasks([part]).interval(confidence)
    elif items.unit == "points" and all(value in (0.0, 1.0) for value in items.values):
        lower, upper = wilson_interval(share * size, size, confidence)
    else:
        lower, upper = student_interval(share, items.values, confidence)
    return TaskMean(
        estimate=scale * share,
        lower=scale * lower,
        upper=scale * upper,
        unit=items.unit,
        num_examples=size,
        num_tasks=1,
        num_seeds=1,
        num_clusters=clusters,
    )


def _summary(
    source: OptionGains,
    recommendation: Recommendation,
    model: ModelResults,
    label: str,
    worst: Comparison | None,
) -> ModelSummary:
    is_adapted = model.run is not None and model.run.status == "trained"

    def changed(relation: Relation, unit: Unit) -> TaskMean | None:
        tasks = source.tasks(relation, unit)
        return source.change((model,), tasks) if tasks and is_adapted else None

    def scored(relation: Relation, unit: Unit) -> TaskMean | None:
        tasks = source.tasks(relation, unit)
        if not tasks or any(task not in model.items for task in tasks):
            return None
        if len(tasks) == 1:
            return task_score(model.evaluations[tasks[0]], model.items[tasks[0]], source.confidence)
        return source.score(model, tasks)

    chosen = next((v.runs for v in recommendation.verdicts if v.qualifies), ())
    prose = changed("held_out_text", "nats")
    return ModelSummary(
        name=model.name,
        label=label,
        option=source.labels.get(model.name, label),
        run=model.run,
        is_recommended=recommendation.rank is not None and model.name in chosen,
        in_domain=scored("in_domain", recommendation.unit),
        gain=changed("in_domain", recommendation.unit),
        out_of_domain=scored("out_of_domain", "points"),
        out_of_domain_change=changed("out_of_domain", "points"),
        retention=scored("retention", "points"),
        retention_change=changed("retention", "points"),
        worst_retention=worst,
        held_out_loss=scored("held_out_text", "nats"),
        forgetting=None if prose is None else prose.negated(),
    )


ModelKind = Literal["run", "fewer_rows", "checkpoint", "mitigated", "variant"]


class ModelGroup(NamedTuple):
    """Models that differ by seed alone; ``label`` tells them from the others of the study."""

    label: str
    kind: ModelKind
    runs: Runs

    @property
    def rank(self) -> int | None:
        """The rank; for a variant that of LoRA beside it. None for full fine-tuning."""
        planned = run_record(self.runs[0]).planned
        return planned.beside_ranks[0] if planned.beside_ranks else planned.rank


def model_groups(
    source: OptionGains, is_measured: Callable[[ModelResults], bool]
) -> Iterator[ModelGroup]:
    """The models that something was measured of, runs first, in the order of the study."""
    kinds: tuple[ModelKind, ...] = get_args(ModelKind)
    for kind in kinds:
        roles: tuple[Role, ...] = COMPARED if kind == "run" else (kind,)
        of_label: dict[str, list[ModelResults]] = {}
        for model in trained(source.results.of_role(*roles)):
            if is_measured(model):
                label = source.label_of(run_record(model).planned)
                of_label.setdefault(label, []).append(model)
        for label, group in of_label.items():
            yield ModelGroup(label, kind, tuple(group))
