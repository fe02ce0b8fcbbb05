"""Differences between any two options of a trained task, over tasks and seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankwise.findings.pairs import POINTS, pair_items, run_record
from rankwise.findings.stats.estimates import Estimate, Floats, mean_over_tasks
from rankwise.records.axes import run_labels
from rankwise.records.results import ModelResults, TrainTaskResults
from rankwise.records.study import Bound

Runs = tuple[ModelResults, ...]


def labelled_runs(results: TrainTaskResults) -> dict[str, Runs]:
    """The trained runs of every option, full fine-tuning included, by label and in seed order.

    Options of which a seed is missing or diverged are left out: the others are compared on all
    seeds.
    """
    labels = run_labels(results.planned)
    planned: dict[str, int] = {}
    for plan in results.planned:
        planned[labels[plan.name]] = planned.get(labels[plan.name], 0) + 1
    runs: dict[str, list[ModelResults]] = {label: [] for label in planned}
    for model in results.runs:
        if run_record(model).status == "trained":
            runs[labels[model.name]].append(model)
    return {
        label: tuple(sorted(found, key=lambda model: run_record(model).planned.seed or 0))
        for label, found in runs.items()
        if len(found) == planned[label]
    }


def gains(results: TrainTaskResults, runs: Sequence[ModelResults], task: str) -> Floats:
    """(seeds, items): adapted - base on a task, positive where the adapted model is better."""
    return np.stack([pair_items(results.base, run, task).gain for run in runs])


def contrast(
    results: TrainTaskResults,
    runs: Sequence[ModelResults],
    others: Sequence[ModelResults] | None,
    tasks: Sequence[str],
) -> Estimate:
    """The macro-mean gain of one option, less that of another of the same seeds.

    Args:
        results: of the trained task.
        runs: of the option.
        others: of the one that it is compared with; None compares with the base.
        tasks: at least one, all of one unit.
    """
    differences = [
        gains(results, runs, task) - (0.0 if others is None else gains(results, others, task))
        for task in tasks
    ]
    unit = results.base.items[tasks[0]].unit
    return mean_over_tasks(differences, item_size=POINTS if unit == "points" else 0.0)


def bound_of(estimate: Estimate, confidence: float) -> Bound:
    """An estimate with its own two-sided interval."""
    lower, upper = estimate.interval(confidence)
    return Bound(estimate=estimate.value, lower=lower, upper=upper)
