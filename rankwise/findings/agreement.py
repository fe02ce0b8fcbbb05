"""How alike a model and full fine-tuning are: item by item, and token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rankwise.findings.models import BASE_LABEL
from rankwise.findings.options import OptionGains, OptionName, Runs, TaskMean
from rankwise.findings.pairs import pair_items, trained
from rankwise.findings.stats.estimates import mean_over_tasks, wilson_interval
from rankwise.findings.stats.items import POINTS, Clusters, Floats, Items, item_size, num_clusters
from rankwise.findings.trends import Measured, RankTrend, TrendOf, rank_trend
from rankwise.records.base import Record
from rankwise.records.results import Divergence, TaskItems
from rankwise.records.study import Interval, Unit


class AgreementWithFull(Record):
    """A model compared with the full fine-tuning of the same seed, on the in-domain items.

    ``option`` is a LoRA option, None for the base (an update of zero), or full fine-tuning itself:
    then it is compared with its own next seed, as alike as anything can be expected to be.
    ``same_outcome`` is the share of items on which both are right or both are wrong, ``kappa`` the
    same beyond chance, ``same_option`` the share on which
    both choose the same option, in points; items of all tasks count the same. ``kl`` is
    KL(full || model) in nats per token, ``same_next_token`` the share of tokens that both find
    the most probable. None where it has no meaning or was not measured.
    """

    option: OptionName | None
    reference: OptionName
    num_seeds: int
    same_outcome: TaskMean | None
    kappa: Interval | None
    same_option: TaskMean | None
    kl: TaskMean | None
    same_next_token: TaskMean | None

    @property
    def label(self) -> str:
        """What it is called."""
        return BASE_LABEL if self.option is None else self.option.label


class _ComparedAnswers(NamedTuple):
    """An option with its models, and the full fine-tuning that each is compared with, by seed."""

    option: OptionName | None
    reference: OptionName
    models: Runs
    full: Runs


_Values = dict[TrendOf, list[Items]]
"""Measure -> for each task (seeds, items) in points or nats, every item counting the same;
empty if not measured."""

_UNITS: dict[TrendOf, Unit] = {
    "same outcome": "points",
    "same option": "points",
    "same next token": "points",
    "KL": "nats",
}


def agreement_with_full(
    source: OptionGains,
) -> tuple[tuple[AgreementWithFull, ...], tuple[RankTrend, ...]]:
    """Every option against full fine-tuning, and whether more rank brings it nearer.

    An option takes part if each of its seeds has a full fine-tuning; imported models have none.
    Where nothing was measured, as of a loss without divergences, there is nothing.
    """
    lora = _lora(source)
    references = {each.reference.label: (each.reference, each.full) for each in lora}.values()
    base = source.results.base
    everyone = [
        *(_ComparedAnswers(None, option, (base,) * len(full), full) for option, full in references),
        *lora,
        *(
            _ComparedAnswers(option, option, f[1:], f[:-1])
            for option, f in references
            if len(f) > 1
        ),
    ]
    models = [model for each in everyone for model in (*each.models, *each.full)]
    tasks = [
        task
        for task in source.tasks("in_domain")
        if all(value in (0.0, 1.0) for model in models for value in model.items[task].values)
    ]
    values = [_values(compared, tasks, source) for compared in everyone]
    if not any(any(its.values()) for its in values):
        return (), ()
    confidence = source.confidence
    agreement = [
        AgreementWithFull(
            option=each.option,
            reference=each.reference,
            num_seeds=len(each.models),
            same_outcome=_mean_agreement(its, "same outcome", confidence),
            kappa=_kappa(_outcomes(each, tasks), its["same outcome"], confidence)
            if tasks
            else None,
            same_option=_mean_agreement(its, "same option", confidence),
            same_next_token=_mean_agreement(its, "same next token", confidence),
            kl=_mean_agreement(its, "KL", confidence),
        )
        for each, its in zip(everyone, values, strict=True)
    ]
    first = len(references)
    of_lora = values[first : first + len(lora)]
    trends: list[RankTrend] = []
    for of, unit in _UNITS.items():
        if lora and all(its[of] for its in of_lora):  # all of the options have it
            measured = [
                Measured(each.option, its[of])
                for each, its in zip(lora, of_lora, strict=True)
                if each.option is not None
            ]
            trend = rank_trend(of, measured, unit=unit, confidence=confidence)
            trends += [] if trend is None else [trend]
    return tuple(agreement), tuple(trends)


def _lora(source: OptionGains) -> list[_ComparedAnswers]:
    study = source.results.study
    done = {model.name: model for model in trained(source.results.runs)}
    compared: list[_ComparedAnswers] = []
    for option in source.options:
        plans = [study.full_run_of(record.planned) for record in option.records]
        full = [done[plan.name] for plan in plans if plan is not None and plan.name in done]
        if option.plan.role != "imported" and len(full) == len(option.runs):
            reference = source.name_of(full[0])
            compared.append(_ComparedAnswers(option.name, reference, option.runs, tuple(full)))
    return compared


def _values(compared: _ComparedAnswers, tasks: Sequence[str], source: OptionGains) -> _Values:
    clusters = [source.clusters(task) for task in tasks]
    same = [POINTS * (full == model) for full, model in _outcomes(compared, tasks)]
    found = [each for model in compared.models for each in model.divergences][:1]
    read = [place for each in found for place in zip(each.tasks, each.doc_ids, strict=True)]
    answers = answer_clusters(read, source.results.base.items)
    next_token = _divergences(compared, lambda each: POINTS * np.asarray(each.top1_agreement))
    of_items: dict[TrendOf, Iterable[tuple[Floats | None, Clusters | None]]] = {
        "same outcome": zip(same, clusters, strict=True),
        "same option": zip((_choices(compared, task) for task in tasks), clusters, strict=True),
        "same next token": [(next_token, answers)],
        "KL": [(_divergences(compared, lambda each: each.kl_nats), answers)],
    }
    return {
        of: [
            Items(
                values,
                item_size(values, in_points=_UNITS[of] == "points"),
                values.shape[1],
                its_clusters,
            )
            for values, its_clusters in parts
            if values is not None
        ]
        for of, parts in of_items.items()
    }


def _outcomes(compared: _ComparedAnswers, tasks: Sequence[str]) -> list[tuple[Floats, Floats]]:
    """The values of full fine-tuning and of the model on each task, (seeds, items) each."""
    both = list(zip(compared.full, compared.models, strict=True))
    by_task = [[pair_items(full, model, task) for full, model in both] for task in tasks]
    return [
        (np.stack([pair.base for pair in pairs]), np.stack([pair.adapted for pair in pairs]))
        for pairs in by_task
    ]


def _choices(compared: _ComparedAnswers, task: str) -> Floats | None:
    """100 where both choose the same option; None for a task without options."""
    of_both = [[model.items[task] for model in its] for its in (compared.full, compared.models)]
    if any(items.choices is None for of_one in of_both for items in of_one):
        return None
    full, models = (
        np.stack([np.asarray(items.choices)[np.argsort(items.doc_ids)] for items in of_one])
        for of_one in of_both
    )
    return POINTS * (full == models)


def _divergences(
    compared: _ComparedAnswers, values: Callable[[Divergence], ArrayLike]
) -> Floats | None:
    """(seeds, items); None where a seed has none."""
    rows = [
        np.asarray(values(divergence), dtype=np.float64)
        for full, model in zip(compared.full, compared.models, strict=True)
        for divergence in model.divergences
        if divergence.reference == full.name
    ]
    return np.stack(rows) if len(rows) == len(compared.models) and len(rows[0]) > 1 else None


def answer_clusters(
    answers: Sequence[tuple[str, int]], base: Mapping[str, TaskItems]
) -> Clusters | None:
    """The cluster of each right answer on which distributions are compared; None without any.

    An answer to an item without a cluster is in one of its own, below zero.

    Args:
        answers: task and number of the item of each.
        base: the base's items by task, which hold their clusters.
    """
    known = {
        (task, doc_id): cluster
        for task, items in base.items()
        for doc_id, cluster in zip(items.doc_ids, items.clusters or (), strict=False)
    }
    if not answers or not known:
        return None
    return np.array([known.get(answer, ~place) for place, answer in enumerate(answers)])


def _mean_agreement(values: _Values, of: TrendOf, confidence: float) -> TaskMean | None:
    """The mean agreement over all items.

    With one seed Wilson's interval, where every item agrees or does not.

    The bounds are cut off where no value can be. Wilson's interval is not for clusters. None where
    it was not measured.
    """
    parts, unit = values[of], _UNITS[of]
    if not parts:
        return None
    estimate = mean_over_tasks(parts)
    most = POINTS if unit == "points" else np.inf
    pooled = np.concatenate([part.values for part in parts], axis=1)
    num_seeds, num_items = pooled.shape
    yes_or_no = unit == "points" and np.isin(pooled, (0.0, POINTS)).all()
    if num_seeds == 1 and yes_or_no and num_clusters(parts) is None:
        share = wilson_interval(float(pooled.sum()) / POINTS, num_items, confidence)
        lower, upper = POINTS * share[0], POINTS * share[1]
    else:
        lower, upper = estimate.interval(confidence)
    return TaskMean.over(parts, unit, estimate.value, max(lower, 0.0), min(upper, most))


def _kappa(
    outcomes: Sequence[tuple[Floats, Floats]], parts: Sequence[Items], confidence: float
) -> Interval | None:
    """Cohen's, averaged over seeds; None where a model of a seed is always or never right.

    Its interval comes from what each item contributes, to first order (the infinitesimal
    jackknife, for one seed the variance of Fleiss, Cohen and Everitt 1969). ``parts`` are the
    same items by task, with their clusters.
    """
    full, model = (np.concatenate(parts, axis=1) / POINTS for parts in zip(*outcomes, strict=True))
    p, q = full.mean(axis=1, keepdims=True), model.mean(axis=1, keepdims=True)
    same = (full == model).astype(np.float64)
    observed, expected = same.mean(axis=1, keepdims=True), p * q + (1 - p) * (1 - q)
    if (expected >= 1.0).any():
        return None
    kappa = (observed - expected) / (1 - expected)
    of_expected = (full - p) * (2 * q - 1) + (model - q) * (2 * p - 1)
    moved = ((same - observed) - (1 - kappa) * of_expected) / (1 - expected)
    size = float(np.mean(1 / (1 - expected)))
    # the clusters of all tasks' items, one after another; an item without one has its own,
    # below zero, where no cluster is
    start, pooled = 0, list[Clusters]()
    for part in parts:
        own = ~np.arange(start, start + part.num_items)
        pooled.append(own if part.clusters is None else part.clusters)
        start += part.num_items
    clusters = None if num_clusters(parts) is None else np.concatenate(pooled)
    estimate = mean_over_tasks([Items(kappa + moved, size, clusters=clusters)])
    lower, upper = estimate.interval(confidence)
    return Interval(estimate=estimate.value, lower=max(lower, -1.0), upper=min(upper, 1.0))
