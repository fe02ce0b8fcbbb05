"""Gauges of forgetting: what can be measured without retention tasks, and how well it orders them.

A gauge is worth having if models that it calls further from the base have forgotten more.
Exploratory: the recommendation does not rest on it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from rankwise.findings.agreement import answer_clusters
from rankwise.findings.audits import norms
from rankwise.findings.models import ModelGroup, ModelKind, model_groups
from rankwise.findings.options import OptionGains, Runs, TaskMean, TrainTaskFinding
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.findings.stats.items import Items
from rankwise.findings.trends import correlated
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.results import Divergence, weighted_by_tokens
from rankwise.records.study import Interval

MIN_MODELS = 5
"""An order of fewer says nothing: four come in a given order by chance once in 24 times."""

Gauge = Literal[
    "KL on the task's prompts",
    "KL on held-out text",
    "the rise of the loss on held-out text",
    "the norm of the update",
]


class GaugedModel(Record):
    """What the gauges say of a model, seeds averaged, and what it forgot.

    ``retention_loss`` is base - adapted over the retention tasks. ``kl_prompts`` and ``kl_prose``
    are KL(base || model), ``prose_rise`` the rise of the loss, in nats per token: on the right
    answers in-domain, and on the same tokens of held-out text. ``stderr_ratio`` is the standard
    error of the rise over that of the KL. ``update_norm`` is ‖delta‖_F. None where not measured.
    """

    label: str
    kind: ModelKind
    rank: int | None
    num_seeds: int
    retention_loss: TaskMean | None
    kl_prompts: TaskMean | None
    kl_prose: TaskMean | None
    prose_rise: TaskMean | None
    stderr_ratio: float | None
    update_norm: float | None


class GaugeOrder(Record):
    """Spearman's correlation of a gauge with the retention loss, over models.

    ``correlation`` is None with its ``reason``.
    """

    gauge: Gauge
    num_models: int
    correlation: Interval | None
    reason: str | None


class TrainTaskGauges(TrainTaskFinding):
    """The gauges of one trained task's models."""

    models: tuple[GaugedModel, ...]
    orders: tuple[GaugeOrder, ...]
    stderr_ratio: float | None
    """Median over the models; None where no held-out text was read."""


def gauges(source: OptionGains, *_: object) -> TrainTaskGauges | None:
    """The gauges of one trained task; None where no model was compared with the base.

    Raises:
        RecordError: models were scored on different items.
    """
    groups = model_groups(source, lambda model: model.from_base is not None)
    models = tuple(_gauged(source, group) for group in groups)
    if not models:
        return None
    orders: list[GaugeOrder] = []
    for gauge, value_of in _GAUGES.items():
        pairs = [
            (value, model.retention_loss.estimate)
            for model in models
            if (value := value_of(model)) is not None and model.retention_loss is not None
        ]
        if any(value_of(model) is not None for model in models):
            x, y = [one for one, _ in pairs], [other for _, other in pairs]
            found, reason = correlated(x, y, source.confidence, "model", MIN_MODELS)
            number = len(pairs)
            orders.append(
                GaugeOrder(gauge=gauge, num_models=number, correlation=found, reason=reason)
            )
    ratios = [model.stderr_ratio for model in models if model.stderr_ratio is not None]
    ratio = statistics.median(ratios) if ratios else None
    statements = [
        _order_statement(order.num_models, order.gauge, order.correlation)
        for order in orders
        if order.correlation is not None
    ]
    if ratio is not None:
        statements.append(
            "On the same tokens of held-out text the standard error of the rise of the loss is "
            f"{ratio:.1f} times that of the KL, a median over the models."
        )
    return source.found(
        TrainTaskGauges,
        models=models,
        orders=tuple(orders),
        stderr_ratio=ratio,
        statements=tuple(statements),
    )


def _gauged(source: OptionGains, group: ModelGroup) -> GaugedModel:
    runs = group.runs
    tasks = source.shown("retention")
    kl = _measured(source, runs, lambda each: each.kl_nats, on_texts=True)
    rise = _measured(source, runs, lambda each: each.rise_nats, on_texts=True)
    spectra = [run.spectra.matrices for run in runs if run.spectra and run.spectra.matrices]
    ratio: float | None = None
    if kl is not None and rise is not None:
        of_kl, of_rise = (mean_over_tasks([items]).stderr for items in (kl, rise))
        ratio = of_rise / of_kl if of_kl > 0.0 else None
    return GaugedModel(
        label=group.label,
        kind=group.kind,
        rank=group.rank,
        num_seeds=len(runs),
        retention_loss=source.change(runs, tasks).negated() if tasks else None,
        kl_prompts=kl_on_prompts(source, runs),
        kl_prose=_mean(source, kl, at_least=0.0),
        prose_rise=_mean(source, rise),
        stderr_ratio=ratio,
        update_norm=statistics.fmean(norms(each)[0] for each in spectra) if spectra else None,
    )


def kl_on_prompts(source: OptionGains, runs: Runs) -> TaskMean | None:
    """KL(base || model) on the trained task's right answers, in nats per token, seeds averaged.

    None where a seed was not compared with the base, or on fewer than two answers.
    """
    measured = _measured(source, runs, lambda each: each.kl_nats, on_texts=False)
    return _mean(source, measured, at_least=0.0)


def _measured(
    source: OptionGains,
    runs: Runs,
    values: Callable[[Divergence], Sequence[float]],
    *,
    on_texts: bool,
) -> Items | None:
    """Means over tokens of held-out texts or of right answers; None as for ``kl_on_prompts``."""
    read = [run.from_base for run in runs if run.from_base is not None]
    if len(read) < len(runs):
        return None
    texts = source.results.tasks.get("held_out_text", ())
    places = [place for place, task in enumerate(read[0].tasks) if (task in texts) == on_texts]
    own = [[(values(each)[place], each.item_tokens[place]) for place in places] for each in read]
    answers = [(read[0].tasks[place], read[0].doc_ids[place]) for place in places]
    clusters = answer_clusters(answers, source.results.base.items)
    if len(answers if clusters is None else np.unique(clusters)) < 2:
        return None  # no standard error
    weighted = [weighted_by_tokens(*zip(*of_seed, strict=True)) for of_seed in own]
    # no pseudo-items: these are no disagreements that may not have been seen
    return Items(np.array(weighted), 0.0, clusters=clusters)


def _mean(
    source: OptionGains, measured: Items | None, at_least: float = -np.inf
) -> TaskMean | None:
    """The mean with its interval, which is cut off where no value can be."""
    if measured is None:
        return None
    mean = source.mean_of([measured], "nats")
    return mean.model_copy(update={"lower": max(mean.lower, at_least)})


_GAUGES: dict[Gauge, Callable[[GaugedModel], float | None]] = {
    "KL on the task's prompts": lambda model: model.kl_prompts and model.kl_prompts.estimate,
    "KL on held-out text": lambda model: model.kl_prose and model.kl_prose.estimate,
    "the rise of the loss on held-out text": lambda model: (
        model.prose_rise and model.prose_rise.estimate
    ),
    "the norm of the update": lambda model: model.update_norm,
}


def _order_statement(num_models: int, gauge: Gauge, correlation: Interval) -> str:
    """Whether a gauge orders what models have forgotten."""
    models = quantities.counted(num_models, "model")
    verb = {1: "orders", 0: "is not shown to order", -1: "orders in reverse"}
    rho = quantities.correlation(correlation)
    return f"Over {models}, {gauge} {verb[correlation.sign()]} forgetting: Spearman's ρ {rho}."
