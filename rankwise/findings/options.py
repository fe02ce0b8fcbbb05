"""What each option of a trained task gains over the base, averaged over seeds and tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from rankwise.findings.contrasts import Runs, gains, labelled_runs
from rankwise.findings.pairs import POINTS, pair_items, run_record
from rankwise.findings.stats.estimates import Estimate, Floats, crossed_difference, mean_over_tasks
from rankwise.records.axes import run_labels
from rankwise.records.results import TrainTaskResults
from rankwise.records.study import PlannedRun, Record, Relation, Unit


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
