"""The options of a trained task, and what each gains over the base.

An option is a rank (or full fine-tuning, or an imported model) with all its other settings; its
runs differ by seed alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from rankwise.findings.pairs import (
    Pair,
    PairedTest,
    clusters_of,
    pair_items,
    paired_test,
    run_record,
    scored_by_all,
    size_of,
    trained,
)
from rankwise.findings.stats.estimates import Estimate, mean_over_tasks
from rankwise.findings.stats.items import Clusters, Floats, Items, Mask, item_size, num_clusters
from rankwise.records import quantities
from rankwise.records.axes import BesideRank, Kind, beside_rank, run_labels
from rankwise.records.base import Record
from rankwise.records.grouping import grouped
from rankwise.records.recommendation import RankVerdict, Recommendation, StudyRecommendation
from rankwise.records.results import ModelResults, StudyResults, TrainTaskResults
from rankwise.records.study import Interval, PlannedRun, Relation, Role, RunRecord, Unit, exact_rank

Runs = tuple[ModelResults, ...]


class OptionName(Record):
    """What an option is called in records: its label, and the rank; None for full fine-tuning.

    ``mean_rank`` is that of a rank pattern, else None; ``rank`` is rounded then.
    """

    label: str
    rank: int | None
    mean_rank: float | None = None

    @property
    def kind(self) -> Kind:
        """What decides the colour: "full" or the rank."""
        return "full" if self.rank is None else self.rank


class OfOption(Protocol):
    """What is known of one run."""

    @property
    def option(self) -> OptionName: ...


R = TypeVar("R", bound=OfOption)


def first_of_options(runs: Sequence[R]) -> list[R]:
    """The first run of each option, ranks from small to large and then full."""
    first: dict[str, R] = {}
    for run in runs:
        first.setdefault(run.option.label, run)
    return sorted(first.values(), key=lambda run: run.option.rank or float("inf"))


class TrainTaskFinding(Record):
    """What is found of one trained task. Exploratory: its verdict does not rest on it.

    Every interval is at ``confidence``, two-sided. ``statements`` say in words what is shown, and
    ``left_out`` names the models that take no part: a seed of them diverged or is missing.
    """

    train_task: str
    confidence: float
    statements: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


F = TypeVar("F", bound=TrainTaskFinding)


class TaskMean(Interval):
    """A score, or a difference of scores, averaged over tasks, with its own interval.

    A difference is positive where it is better. The bounds are two-sided, at the study's
    confidence. ``num_examples`` are the items of all its tasks together, ``num_clusters`` the
    clusters that they are in, None where every item is independent.
    """

    unit: Unit
    num_examples: int
    num_tasks: int
    num_seeds: int
    num_clusters: int | None = None

    @classmethod
    def over(
        cls, parts: Sequence[Items], unit: Unit, estimate: float, lower: float, upper: float
    ) -> TaskMean:
        """An estimate from (seeds, items) of each task."""
        return cls(
            estimate=estimate,
            lower=lower,
            upper=upper,
            unit=unit,
            num_examples=sum(part.num_items for part in parts),
            num_tasks=len(parts),
            num_seeds=len(parts[0].values),
            num_clusters=num_clusters(parts),
        )


class Option(NamedTuple):
    """An option with the runs that it has, trained or diverged, in seed order.

    ``label`` tells it from the other options, the seed left out; ``rank`` is None for full
    fine-tuning; ``plan`` has the settings, as planned for its first run.
    """

    label: str
    rank: int | None
    plan: PlannedRun
    runs: Runs
    num_planned: int

    @property
    def name(self) -> OptionName:
        """The option's name in records."""
        return OptionName(label=self.label, rank=self.rank, mean_rank=self.plan.mean_rank)

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """The record of each of its runs."""
        return tuple(run_record(run) for run in self.runs)

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The seed of each of its runs."""
        return tuple(record.planned.seed for record in self.records)

    @property
    def trained(self) -> Runs:
        """Its runs that did not diverge."""
        return trained(self.runs)

    @property
    def diverged_seeds(self) -> tuple[int, ...]:
        """The seeds with which its training diverged."""
        records = self.records
        return tuple(r.planned.seed or 0 for r in records if r.status == "diverged")

    @property
    def reward_failed_seeds(self) -> tuple[int, ...]:
        """Those of them whose reward failed."""
        return tuple(r.planned.seed or 0 for r in self.records if r.is_reward_failure)

    @property
    def share_finished(self) -> float:
        """How probably its next run does not diverge: 1 unless one has."""
        if not self.diverged_seeds:
            return 1.0
        return (len(self.trained) + 1) / (len(self.runs) + 2)

    @property
    def is_repeatable(self) -> bool:
        """Whether another run of it may be trained: it has a rank, and is no imported adapter."""
        return self.rank is not None and self.plan.imported is None

    @property
    def is_complete(self) -> bool:
        """Whether every planned seed was trained, so that it can be compared on all seeds."""
        is_trained = all(record.status == "trained" for record in self.records)
        return is_trained and len(self.runs) == self.num_planned


class DecidingTasks(NamedTuple):
    """The tasks that decide: in-domain ones scored in ``unit``, retention ones in points."""

    in_domain: tuple[str, ...]
    retention: tuple[str, ...]
    unit: Unit

    @property
    def all(self) -> tuple[str, ...]:
        """The tasks of both relations."""
        return *self.in_domain, *self.retention


Decided = Mapping[tuple[tuple[str, ...], tuple[str, ...]], Interval]
"""By runs and tasks how much better than the base these runs are there, as a verdict bounds it."""


def decided_by(verdicts: Sequence[RankVerdict], tasks: DecidingTasks) -> Decided:
    """The gains and the changes in retention of verdicts, positive where they are better."""
    gains = {(verdict.runs, tasks.in_domain): verdict.gain for verdict in verdicts}
    return gains | {
        (verdict.runs, tasks.retention): verdict.retention_loss.negated()
        for verdict in verdicts
        if verdict.retention_loss is not None
    }


class OptionGains:
    """The options of one trained task, and their gains item by item.

    What an option gains and keeps has the bounds of its verdict, where it has one: there is one
    interval of a number.

    Attributes:
        labels: of every planned run, by name.
        planned: all options: LoRA by rank and then by the other settings, full fine-tuning,
            imported models.
        options: the complete ones.
        left_out: the labels of options with a missing or diverged seed.
    """

    def __init__(
        self,
        results: TrainTaskResults,
        recommendation: Recommendation | None = None,
        *,
        in_accuracy: bool = False,
    ) -> None:
        self.results = results
        self._in_accuracy = in_accuracy
        self.confidence = results.study.config.recommendation.confidence
        self.labels = run_labels(results.planned)
        self.planned = _options(results, self.labels)
        self.options = tuple(option for option in self.planned if option.is_complete)
        complete = {option.label for option in self.options}
        self.left_out = tuple(
            label for label in dict.fromkeys(self.labels.values()) if label not in complete
        )
        self._pairs: dict[tuple[str, str], Pair] = {}
        self._item_sizes: dict[str, float] = {}
        self._scored: dict[str, Mask | None] = {}
        self._decided: Decided = {}
        if recommendation is not None:
            tasks = self.deciding_tasks(recommendation.unit)
            self._decided = decided_by(recommendation.verdicts, tasks)

    @cached_property
    def by_accuracy(self) -> OptionGains:
        """These options with every task judged by its own metric, also where p(right) decides.

        Both take each other's options and runs.
        """
        source = OptionGains(self.results.by_accuracy, in_accuracy=True)
        items = self.results.base.items
        # a verdict on p(right) bounds nothing of accuracy
        source._decided = {
            (runs, tasks): its
            for (runs, tasks), its in self._decided.items()
            if all(items[task].accuracy is None for task in tasks)
        }
        return source

    def found(self, kind: type[F], **own: Any) -> F:
        """The record of what was found of the trained task."""
        return kind(train_task=self.results.train_task, confidence=self.confidence, **own)

    def in_study_order(self, options: Sequence[Option]) -> tuple[Option, ...]:
        """The same options in the order in which the study plans them."""
        order = list(self.labels.values())
        return tuple(sorted(options, key=lambda option: order.index(option.label)))

    def name_of(self, run: ModelResults) -> OptionName:
        """The option that a run belongs to."""
        plan = run_record(run).planned
        return OptionName(label=self.labels[run.name], rank=plan.rank, mean_rank=plan.mean_rank)

    def label_of(self, plan: PlannedRun) -> str:
        """What tells a model of the study from the others, whatever its role; the seed left out."""
        if plan.role == "variant":
            return self._variant_labels[plan.name]
        whole = self.label_of_whole(plan)
        if plan.of is None:
            return whole
        if plan.role == "fewer_rows":
            return f"{whole}, {quantities.counted(plan.num_examples, 'row')}"
        if plan.mitigation is not None:
            return f"{whole}, {plan.mitigation.label}"
        return f"{whole}, step {quantities.count(plan.num_steps)}"

    def label_of_whole(self, plan: PlannedRun) -> str:
        """The label of the option that a model was made from, or that it is."""
        name = plan.name if plan.of is None else plan.of.name
        return self.labels.get(name) or run_labels([plan])[plan.name]

    @cached_property
    def _variant_labels(self) -> Mapping[str, str]:
        return run_labels(self.results.planned_of("variant"))

    def of_role(self, role: Role) -> tuple[list[Option], tuple[str, ...]]:
        """The complete models of a role, seeds together, and the labels of the others."""
        planned = self.results.planned_of(role)
        labels = {plan.name: self.label_of(plan) for plan in planned}
        options = _over_seeds(labels, planned, self.results.of_role(role))
        others = (option.label for option in options if not option.is_complete)
        return [option for option in options if option.is_complete], tuple(others)

    def tasks(self, relation: Relation, unit: Unit = "points") -> tuple[str, ...]:
        """The tasks of a relation that are scored in this unit."""
        items = self.results.base.items
        return tuple(
            task
            for task in self.results.tasks.get(relation, ())
            if task in items and items[task].unit == unit
        )

    def shown(self, relation: Relation) -> tuple[str, ...]:
        """The tasks of a relation in points; where there is none, those in nats."""
        return self.tasks(relation) or self.tasks(relation, "nats")

    def deciding_tasks(self, unit: Unit) -> DecidingTasks:
        """The tasks in-domain of this unit, and those of retention."""
        return DecidingTasks(self.tasks("in_domain", unit), self.tasks("retention"), unit)

    def pair(self, model: ModelResults, task: str) -> Pair:
        """The base and a model on one task, item by item."""
        key = model.name, task
        if key not in self._pairs:
            self._pairs[key] = pair_items(
                self.results.base, model, task, by_accuracy=self._in_accuracy
            )
        return self._pairs[key]

    def gains(self, runs: Runs, task: str) -> Floats:
        """(runs, items): adapted - base, positive where the adapted model is better."""
        return np.stack([self.pair(run, task).gain for run in runs])

    def test(self, model: ModelResults, task: str, confidence: float | None = None) -> PairedTest:
        """The base and a model on one task; None: at the study's confidence, two-sided."""
        pair, level = self.pair(model, task), self.confidence if confidence is None else confidence
        return paired_test(pair, level, *self.items([pair.gain], [task]))

    def item_size(self, task: str) -> float:
        """What one whole item of a task counts, by the gains of all trained runs together."""
        if task not in self._item_sizes:
            pairs = self._trained_pairs(task)
            if not self.results.study.has_base:
                # from a mean of the models no difference is a whole item; between them it may be
                pairs = [pair.over(pairs[0]) for pair in pairs]
            nothing = item_size([0.0], in_points=self.in_points(task))
            self._item_sizes[task] = size_of(pairs) if pairs else nothing
        return self._item_sizes[task]

    def scored(self, task: str) -> Mask | None:
        """Which items of a task every trained run answered, in the order of the gains."""
        if task not in self._scored:
            self._scored[task] = scored_by_all(self._trained_pairs(task))
        return self._scored[task]

    def num_scored(self, task: str) -> int:
        """How many items of a task every trained run answered."""
        scored = self.scored(task)
        return len(self.results.base.items[task].doc_ids) if scored is None else int(scored.sum())

    def _trained_pairs(self, task: str) -> list[Pair]:
        return [self.pair(run, task) for run in trained(self.results.runs)]

    def in_points(self, task: str) -> bool:
        """Whether a task is scored in points; else it is a loss in nats."""
        return self.results.base.items[task].unit == "points"

    def clusters(self, task: str) -> Clusters | None:
        """The cluster of each item of a task, in the order of the gains; None without any."""
        return clusters_of(self.results.base.items[task])

    def items(
        self, values: Sequence[Floats], tasks: Sequence[str], *, by_items: bool = False
    ) -> list[Items]:
        """Values (..., items) of these tasks, each task counting the same, or each item."""
        return [
            Items(
                array,
                self.item_size(task),
                array.shape[-1] if by_items else 1.0,
                self.clusters(task),
                scored=self.scored(task),
            )
            for array, task in zip(values, tasks, strict=True)
        ]

    def gap_parts(self, runs: Runs, trained_items: Mapping[str, str]) -> list[Items]:
        """(seeds, items) whose mean over all parts is the gain on trained less on test items.

        Each is twice its gain, since half of the parts are the tests'. Trained and test items are
        different ones, so the variances of both add; an item counts double.
        ``trained_items`` says under which name the trained rows of each task were scored.
        """
        twice = dict.fromkeys(trained_items.values(), 2.0) | dict.fromkeys(trained_items, -2.0)
        values = [times * self.gains(runs, task) for task, times in twice.items()]
        parts = self.items(values, tuple(twice))
        return [part._replace(item_size=2.0 * part.item_size) for part in parts]

    def change(self, runs: Runs, tasks: Sequence[str], *, by_items: bool = False) -> TaskMean:
        """Adapted - base over tasks of one unit, each counting the same, or each item the same."""
        mean = self.mean([self.gains(runs, task) for task in tasks], tasks, by_items=by_items)
        if runs[0] is self.results.base:  # it is what it is, whatever the items are
            return mean.model_copy(update={"lower": 0.0, "upper": 0.0})
        decided = self._decided.get((tuple(run.name for run in runs), tuple(tasks)))
        return mean if by_items else mean.bounded_by(decided)

    def leads(self, runs: Runs, others: Runs, tasks: Sequence[str]) -> list[Floats]:
        """(seeds, items) of each task: some models less others, paired by seed and item.

        One model is set against each seed of the others; of other numbers of models their means are
        compared, (1, items).
        """
        is_paired = len(runs) == len(others) or min(len(runs), len(others)) == 1

        def gains(models: Runs, task: str) -> Floats:
            values = self.gains(models, task)
            return values if is_paired else values.mean(axis=0, keepdims=True)

        return [gains(runs, task) - gains(others, task) for task in tasks]

    def difference(self, runs: Runs, others: Runs, tasks: Sequence[str]) -> TaskMean:
        """How much some models score above others, positive where they are better."""
        leads = self.leads(runs, others, tasks)
        count = max(len(runs), len(others))
        matched = [(runs[i % len(runs)], others[i % len(others)]) for i in range(count)]

        def size(task: str, values: Floats) -> float:
            pairs = [(self.pair(one, task), self.pair(other, task)) for one, other in matched]
            every = [pair for both in pairs for pair in both]
            if all(pair.scored is pair.num_labelled is None for pair in every):  # as nearly always
                return item_size(values, in_points=self.in_points(task))
            return size_of([pair.over(other) for pair, other in pairs])

        # leads are smaller than gains, and so are those that were not seen
        parts = [
            part._replace(item_size=size(task, part.values))
            for part, task in zip(self.items(leads, tasks), tasks, strict=True)
        ]
        return self.mean_of(parts, self.results.base.items[tasks[0]].unit)

    def lead_over(self, runs: Runs, others: Runs | None, tasks: Sequence[str]) -> TaskMean | None:
        """The difference; None without others to compare with, or without a task."""
        return self.difference(runs, others, tasks) if others and tasks else None

    def score(
        self, model: ModelResults, tasks: Sequence[str], *, by_items: bool = False
    ) -> TaskMean:
        """A model's own score over tasks of one unit."""
        values = [self.pair(model, task).adapted[None, :] for task in tasks]
        return self.mean(values, tasks, by_items=by_items)

    def base_score(self, tasks: Sequence[str], *, by_items: bool = False) -> TaskMean:
        """The base's own score over tasks of one unit."""
        return self.score(self.results.base, tasks, by_items=by_items)

    def estimate(self, values: Sequence[Floats], tasks: Sequence[str]) -> Estimate:
        """The mean of (seeds, items) of these tasks, in their order."""
        return mean_over_tasks(self.items(values, tasks))

    def mean(
        self, values: Sequence[Floats], tasks: Sequence[str], *, by_items: bool = False
    ) -> TaskMean:
        """The mean of these tasks with its interval."""
        parts = self.items(values, tasks, by_items=by_items)
        return self.mean_of(parts, self.results.base.items[tasks[0]].unit)

    def mean_of(self, parts: Sequence[Items], unit: Unit) -> TaskMean:
        """The mean of parts with its interval; the parts may be other than a task's gains."""
        estimate = mean_over_tasks(parts)
        return TaskMean.over(parts, unit, estimate.value, *estimate.interval(self.confidence))


def option_gains(
    results: StudyResults, recommendation: StudyRecommendation | None = None
) -> tuple[OptionGains, ...]:
    """The options of every trained task, in the study's order."""
    found = recommendation.by_train_task if recommendation else (None,) * len(results.by_train_task)
    return tuple(map(OptionGains, results.by_train_task, found))


def _options(results: TrainTaskResults, labels: Mapping[str, str]) -> tuple[Option, ...]:
    """Every planned option with its runs."""
    options = _over_seeds(labels, results.planned, results.runs)
    options.sort(
        key=lambda option: (
            option.plan.role == "imported",
            option.plan.rank is None,
            exact_rank(option.plan),
            option.plan.alpha or 0.0,
            option.plan.scaling or 0.0,
            option.plan.learning_rate or 0.0,
            len(option.plan.target_modules),
            option.plan.epochs or 0,
        )
    )
    return tuple(options)


def _over_seeds(
    labels: Mapping[str, str], planned: Iterable[PlannedRun], models: Iterable[ModelResults]
) -> list[Option]:
    """The planned models with one label together, and those of them that there are."""
    plans = grouped((labels[plan.name], plan) for plan in planned)
    in_order = sorted(models, key=lambda model: run_record(model).planned.seed or 0)
    runs = grouped((labels[model.name], model) for model in in_order)
    return [
        Option(label, plan.rank, plan, own, len(its))
        for label, its in plans.items()
        for own in [tuple(runs.get(label, ()))]
        for plan in [run_record(own[0]).planned if own else its[0]]
    ]


_NAMES = ("alpha ", "rate ", "on ", "epochs ")


class RankSeries(NamedTuple):
    """LoRA options that differ by rank alone, smallest first; the label says what they share.

    A rank pattern is none of them: it also differs in where the rank is.
    """

    label: str
    rungs: tuple[Option, ...]


def ladders(source: OptionGains) -> list[RankSeries]:
    """The trained ranks of every combination of the other settings, where there are several.

    Two settings that come to one run at a rank (alpha 2r and 16 at rank 8) both have it.
    """
    rungs: dict[BesideRank, dict[int, Option]] = {}
    for option in source.options:
        plan = option.plan
        if plan.rank is not None and plan.mean_rank is None and plan.role != "imported":
            for setting in beside_rank(plan):
                rungs.setdefault(setting, {})[plan.rank] = option
    varied = [place for place in range(len(_NAMES)) if len({each[place] for each in rungs}) > 1]
    return [
        RankSeries(
            ", ".join(f"{_NAMES[place]}{setting[place]}" for place in varied),
            tuple(by_rank[rank] for rank in sorted(by_rank)),
        )
        for setting, by_rank in rungs.items()
        if len(by_rank) > 1
    ]
