"""What each option of a trained task gains over the base, averaged over seeds and tasks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from rankwise.findings.pairs import pair_items, run_record
from rankwise.findings.stats.estimates import (
    POINTS,
    Estimate,
    Floats,
    crossed_difference,
    mean_over_tasks,
)
from rankwise.records import quantities
from rankwise.records.axes import run_labels
from rankwise.records.results import ModelResults, TrainTaskResults
from rankwise.records.study import Bound, PlannedRun, Record, Relation, Unit


class Option(Record):
    """Runs that differ by seed alone: their label, and the rank; None for full fine-tuning."""

    label: str
    rank: int | None

    @property
    def kind(self) -> str:
        """What decides the colour: "full" or the rank."""
        return "full" if self.rank is None else str(self.rank)


class OfOption(Protocol):
    """What is known of one run."""

    @property
    def option(self) -> Option: ...


R = TypeVar("R", bound=OfOption)


def first_of_options(runs: Sequence[R]) -> list[R]:
    """The first run of each option, ranks from small to large and then full."""
    first: dict[str, R] = {}
    for run in runs:
        first.setdefault(run.option.label, run)
    return sorted(first.values(), key=lambda run: run.option.rank or float("inf"))


class TaskMean(Record):
    """A score, or a difference of scores, averaged over tasks, with an interval of its own.

    A difference is positive where it is better. The bounds are two-sided, at the study's
    confidence. ``num_examples`` are the items of all its tasks together.
    """

    estimate: float
    lower: float
    upper: float
    unit: Unit
    num_examples: int
    num_tasks: int
    num_seeds: int

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.lower > 0.0 or self.upper < 0.0


class TrainedOption(NamedTuple):
    """An option with its runs in seed order, and the plan of the first of them."""

    option: Option
    runs: Runs
    plan: PlannedRun


class OptionGains:
    """The complete options of one trained task, and their gains item by item.

    Attributes:
        options: LoRA by rank and then by the other settings, full fine-tuning, imported models.
        left_out: the labels of options of which a seed is missing or diverged.
    """

    def __init__(self, results: TrainTaskResults) -> None:
        self.results = results
        self.confidence = results.study.config.recommendation.confidence
        found = [
            TrainedOption(Option(label=label, rank=plan.rank), runs, plan)
            for label, runs in labelled_runs(results).items()
            for plan in (run_record(runs[0]).planned,)
        ]
        self.options = tuple(sorted(found, key=lambda each: _order(each.plan)))
        labels = dict.fromkeys(run_labels(results.planned).values())
        complete = {each.option.label for each in found}
        self.left_out = tuple(label for label in labels if label not in complete)
        self._gains: dict[tuple[str, str], Floats] = {}

    def tasks(self, relation: Relation, unit: Unit = "points") -> tuple[str, ...]:
        """The tasks of a relation that are scored in this unit."""
        items = self.results.base.items
        return tuple(
            task
            for task in self.results.tasks.get(relation, ())
            if task in items and items[task].unit == unit
        )

    def gains(self, option: TrainedOption, task: str) -> Floats:
        """(seeds, items): adapted - base, positive where the adapted model is better.

        Raises:
            RecordError: models were scored on different items, or a score is missing.
        """
        key = option.option.label, task
        if key not in self._gains:
            self._gains[key] = gains(self.results, option.runs, task)
        return self._gains[key]

    def gap_parts(self, option: TrainedOption, trained_items: Mapping[str, str]) -> list[Floats]:
        """(seeds, items) whose mean over all parts is the gain on trained less on test items.

        Each is twice its gain, since half of the parts are the tests'. Trained and test items are
        different ones, so the variances of both add; an item counts double (``item_size``).

        Args:
            option: whose gains.
            trained_items: under which name the trained rows of each task were scored.
        """
        trained = [2.0 * self.gains(option, name) for name in trained_items.values()]
        return [*trained, *(-2.0 * self.gains(option, task) for task in trained_items)]

    def change(
        self, option: TrainedOption, tasks: Sequence[str], *, by_items: bool = False
    ) -> TaskMean:
        """Adapted - base over tasks of one unit, each counting the same, or each item the same."""
        return self.mean([self.gains(option, task) for task in tasks], tasks, by_items=by_items)

    def base_score(self, tasks: Sequence[str], *, by_items: bool = False) -> TaskMean:
        """The base's own score over tasks of one unit."""
        base = self.results.base
        values = [pair_items(base, base, task).base[None, :] for task in tasks]
        return self.mean(values, tasks, by_items=by_items)

    def estimate(
        self, values: Sequence[Floats], tasks: Sequence[str], *, by_items: bool = False
    ) -> Estimate:
        """The mean of (seeds, items) of these tasks, in their order."""
        item_size = POINTS if self.results.base.items[tasks[0]].unit == "points" else 0.0
        if len(values) == 1:
            return crossed_difference(values[0], item_size=item_size)
        sizes = [each.shape[1] for each in values]
        return mean_over_tasks(values, item_size=item_size, weights=sizes if by_items else None)

    def mean(
        self, values: Sequence[Floats], tasks: Sequence[str], *, by_items: bool = False
    ) -> TaskMean:
        """The same with its interval."""
        estimate = self.estimate(values, tasks, by_items=by_items)
        lower, upper = estimate.interval(self.confidence)
        return TaskMean(
            estimate=estimate.value,
            lower=lower,
            upper=upper,
            unit=self.results.base.items[tasks[0]].unit,
            num_examples=sum(each.shape[1] for each in values),
            num_tasks=len(tasks),
            num_seeds=values[0].shape[0],
        )


def _order(plan: PlannedRun) -> tuple[bool, bool, int, float, float, float, int, int]:
    return (
        plan.imported_as is not None,
        plan.rank is None,
        plan.rank or 0,
        plan.alpha or 0.0,
        plan.scaling or 0.0,
        plan.learning_rate or 0.0,
        len(plan.target_modules),
        plan.epochs or 0,
    )


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


_Setting = tuple[str, str, str, str]
_NAMES = ("alpha ", "rate ", "on ", "epochs ")


class Ladder(NamedTuple):
    """LoRA options that differ by rank alone, smallest first; the label says what they share."""

    label: str
    rungs: tuple[TrainedOption, ...]


def ladders(source: OptionGains) -> list[Ladder]:
    """The trained ranks of every combination of the other settings, where there are several.

    Two settings that come to one run at a rank (alpha 2r and 16 at rank 8) both have it.
    """
    rungs: dict[_Setting, dict[int, TrainedOption]] = {}
    for option in source.options:
        if option.plan.rank is not None and option.plan.imported_as is None:
            for setting in _settings(option.plan):
                rungs.setdefault(setting, {})[option.plan.rank] = option
    varied = [len({setting[place] for setting in rungs}) > 1 for place in range(len(_NAMES))]
    return [
        Ladder(_label(setting, varied), tuple(by_rank[rank] for rank in sorted(by_rank)))
        for setting, by_rank in rungs.items()
        if len(by_rank) > 1
    ]


def _settings(plan: PlannedRun) -> Iterator[_Setting]:
    modules = quantities.modules(plan.target_modules)
    for alpha, rate in itertools.product(plan.alpha_labels, plan.rate_labels):
        yield alpha, rate, modules, str(plan.epochs)


def _label(setting: _Setting, varied: Sequence[bool]) -> str:
    parts = zip(_NAMES, setting, varied, strict=True)
    return ", ".join(f"{name}{value}" for name, value, is_varied in parts if is_varied)
