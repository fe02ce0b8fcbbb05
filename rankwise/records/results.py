"""A study as read back from its folder: what recommendations and the report are made from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

from rankwise.errors import RecordError
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.clusters import Ties
from rankwise.records.deployment import FormRecord
from rankwise.records.grouping import grouped
from rankwise.records.heads import HeadChanges, TaskHeadEffects
from rankwise.records.p_right import (
    P_RIGHT,
    Line,
    highest,
    is_wanted,
    option_nats,
    p_right_of_items,
)
from rankwise.records.provenance import AcceptedStack
from rankwise.records.repairs import AdapterRepair
from rankwise.records.search import SearchRecord, TrainTaskSearch
from rankwise.records.spectra import SpectraRecord
from rankwise.records.study import (
    COMPARED,
    MetricScore,
    PlannedRun,
    Relation,
    Role,
    RunRecord,
    StageFailure,
    StageRecord,
    StudyRecord,
    TaskEvaluation,
    Unit,
)

LOSS_METRIC = "loss_nats"

TOKENS_METRIC = "tokens"
"""The length of what a model writes."""

_UNITS: Mapping[str, Unit] = {LOSS_METRIC: "nats", TOKENS_METRIC: "tokens"}
"""Units of metrics that are not shares."""

FIELD = "field."
"""Begins the metrics of the fields of an answer in JSON."""

MIN_ITEMS = 2
"""The fewest items of a scored task: a difference of one item has no standard error."""


class TaskItems(Record):
    """The deciding metric of one model on one task, item by item.

    ``values`` has one number per item in the order of ``doc_ids``. With unit ``points`` it is a
    share (0 or 1 for accuracy). With ``nats`` it is the item's mean loss per token; in prose
    longer items weigh more, so that the mean over the items is the loss per token of them all.
    ``choices`` is the option of each item with the highest log-likelihood, where there are
    options. ``clusters`` numbers the cluster of each item (``clusters.linked_clusters``); None
    where each is its own. Where the study names no field for the task, ``candidates`` has fields
    that may cluster the items (``clusters.candidate_fields``); only the base's items do. ``slices``
    are the values of ``evaluation.slice``, of the base's items too. ``fields`` says of each field
    of a right answer in JSON whether it is right, None where an item has no such field. ``missing``
    are documents that have no value, and so are none of the items. Where p(right) decides,
    ``accuracy`` has the same items by the task's own metric: what needs items that are right or
    wrong is made from it.

    Where a model answered a part of the items, ``scored`` has those answers, by the same metric,
    and ``values`` are estimates (``stats.reference``) for all items of the base. ``choices`` is
    None then, and ``r_squared`` says how well the estimates predict changes that were seen.

    Where a person labelled ``num_labelled`` of the items, ``values`` are corrected by that
    (``study.labels``), and ``plain`` has what the person or else the judge says of each item.
    """

    task: str
    metric: str
    unit: Unit
    higher_is_better: bool
    doc_ids: tuple[int, ...]
    values: tuple[float, ...]
    choices: tuple[int, ...] | None = None
    clusters: tuple[int, ...] | None = None
    candidates: Mapping[str, tuple[int, ...]] = {}
    slices: tuple[str, ...] | None = None
    fields: Mapping[str, tuple[float | None, ...]] = {}
    missing: tuple[int, ...] = ()
    accuracy: TaskItems | None = None
    scored: TaskItems | None = None
    r_squared: float | None = None
    num_labelled: int | None = None
    plain: tuple[float, ...] | None = None

    @property
    def by_accuracy(self) -> TaskItems:
        """The items by the task's own metric, which p(right) may have taken the place of."""
        if self.accuracy is None:
            return self
        grouped = {"clusters": self.clusters, "candidates": self.candidates}
        return self.accuracy.model_copy(update=grouped)

    def limited_to(self, doc_ids: Sequence[int]) -> TaskItems:
        """What was answered of these items, where they are those of ``scored`` of some model."""
        if self.scored is not None:
            return self.scored.model_copy(
                update={"accuracy": self.accuracy and self.accuracy.scored}
            )
        return self._of({*doc_ids}).model_copy(update={"candidates": {}})

    def without(self, left_out: Collection[int]) -> TaskItems:
        """The same without some items; of those that a model answered, where it answered a part."""
        return self._of({*self.doc_ids} - {*left_out})

    def _of(self, chosen: Collection[int]) -> TaskItems:
        places = [place for place, doc_id in enumerate(self.doc_ids) if doc_id in chosen]

        def of(part: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(part[place] for place in places)

        parts = {name: getattr(self, name) for name in _BY_ITEM}
        update: dict[str, Any] = {
            name: of(each) for name, each in parts.items() if each is not None
        }
        for by_name in ("candidates", "fields"):
            update[by_name] = {name: of(each) for name, each in getattr(self, by_name).items()}
        if self.accuracy is not None:
            update["accuracy"] = self.accuracy._of(chosen)
        return self.model_copy(update=update)


_BY_ITEM = ("doc_ids", "values", "choices", "clusters", "slices", "plain")
"""The fields of ``TaskItems`` with an entry for each item."""


class Divergence(StageRecord, has_texts=False):
    """``divergence.json``, ``gauges.json``: how far a model's next words are from another's.

    In ``divergence.json`` the reference is a full fine-tuning, and both read the same right
    answers, at most the first tokens of each. In ``gauges.json`` it is the base, and both read the
    end of a part of each held-out text as well. ``kl_nats`` is of each item
    the mean over its tokens of KL(reference || model) over the whole vocabulary, ``top1_agreement``
    the share of its tokens at which both would say the same. ``tasks`` and ``doc_ids`` name the
    items, in the same order.
    """

    model: str
    reference: str
    train_task: str
    num_items: int
    num_tokens: int
    tasks: tuple[str, ...]
    doc_ids: tuple[int, ...]
    kl_nats: tuple[float, ...]
    top1_agreement: tuple[float, ...]
    rise_nats: tuple[float, ...]
    """Rise of the loss of each item against the reference, a mean over its tokens."""
    item_tokens: tuple[int, ...]
    """Tokens of each item that are compared."""
    score_seconds: float


class ModelResults(Record):
    """Everything measured on one model; ``run`` is None for the untouched base.

    ``divergences`` are from full fine-tuning: of a run at most one, of the base one for each full
    fine-tuning that LoRA is compared with. ``from_base`` is the divergence from the base.
    ``spectra`` are of runs whose weights were analysed,
    ``head_changes``, ``head_effects`` and ``head_repair`` of those whose heads were, and
    ``adapter_repair`` of those that ``rankwise repair`` was asked for, and ``forms`` of those that
    were checked in the forms in which they are deployed.
    """

    name: str
    run: RunRecord | None
    evaluations: dict[str, TaskEvaluation]
    items: dict[str, TaskItems]
    divergences: tuple[Divergence, ...] = ()
    from_base: Divergence | None = None
    spectra: SpectraRecord | None = None
    head_changes: HeadChanges | None = None
    head_effects: tuple[TaskHeadEffects, ...] = ()
    adapter_repair: AdapterRepair | None = None
    forms: tuple[FormResults, ...] = ()

    @property
    def labelled_tasks(self) -> dict[str, int]:
        """The tasks whose scores a person's labels correct, with the number of labelled items."""
        return {
            task: items.num_labelled
            for task, items in self.items.items()
            if items.num_labelled is not None
        }

    def tasks_by_unit(self, tasks: Iterable[str]) -> dict[Unit, list[str]]:
        """Tasks that the model was scored on, in their order, by the unit of their values."""
        return grouped((self.items[task].unit, task) for task in tasks)

    @classmethod
    def of(
        cls, name: str, run: RunRecord | None, judged: Mapping[str, JudgedItems], **others: Any
    ) -> Self:
        """A model's scorings by task, with their items, and what else was measured."""
        evaluations = {task: each.record for task, each in judged.items()}
        items = {task: each.items for task, each in judged.items()}
        return cls(name=name, run=run, evaluations=evaluations, items=items, **others)

    def in_clusters(self, clusters: Mapping[str, Mapping[int, int]]) -> Self:
        """The same with these clusters, task -> item -> number, in its forms too."""
        items = {
            task: each.model_copy(
                update={"clusters": tuple(clusters[task][doc_id] for doc_id in each.doc_ids)}
            )
            if task in clusters and clusters[task].keys() >= {*each.doc_ids}
            else each
            for task, each in self.items.items()
        }
        forms = tuple(
            form.model_copy(update={"scores": form.scores.in_clusters(clusters)})
            for form in self.forms
        )
        return self.model_copy(update={"items": items, "forms": forms})

    def without_items(self, left_out: Mapping[str, Collection[int]]) -> Self:
        """The same without some items of tasks, in its forms too."""
        items = {
            task: each.without(left_out[task]) if task in left_out else each
            for task, each in self.items.items()
        }
        forms = tuple(
            form.model_copy(update={"scores": form.scores.without_items(left_out)})
            for form in self.forms
        )
        return self.model_copy(update={"items": items, "forms": forms})

    def limited_to(self, tasks: Collection[str]) -> Self:
        """The same with the scores of these tasks only."""
        evaluations = {task: each for task, each in self.evaluations.items() if task in tasks}
        items = {task: each for task, each in self.items.items() if task in tasks}
        return self.model_copy(update={"evaluations": evaluations, "items": items})

    @property
    def by_accuracy(self) -> Self:
        """The same with every task judged by its own metric, where p(right) decides."""
        items = {task: each.by_accuracy for task, each in self.items.items()}
        evaluations = {
            task: record.model_copy(update={"decision_metric": items[task].metric})
            for task, record in self.evaluations.items()
        }
        return self.model_copy(update={"evaluations": evaluations, "items": items})


class FormResults(Record):
    """A run in a form in which it is deployed, and what it scored in it."""

    record: FormRecord
    scores: ModelResults


class _Results(Record):
    """What was measured on the base and on the finished models, searched ones left out."""

    study: StudyRecord
    base: ModelResults
    models: tuple[ModelResults, ...]

    def of_role(self, *roles: Role) -> tuple[ModelResults, ...]:
        """The models of some roles, in the study's order."""
        return tuple(each for each in self.models if each.run and each.run.planned.role in roles)

    @property
    def runs(self) -> tuple[ModelResults, ...]:
        """The models that the verdict compares."""
        return self.of_role(*COMPARED)


class StudyResults(_Results):
    """A study as read back: what recommendations and the report are made from."""

    search: SearchRecord | None = None
    """How the runs were chosen; None where the study file lists them."""
    failures: tuple[StageFailure, ...] = ()
    """The stages that failed when they were last tried."""
    stacks: tuple[AcceptedStack, ...] = ()
    """The stacks that were accepted beside the first."""
    left_out: Mapping[str, str] = {}
    """Run or task that takes no part -> why, such as "is not trained"."""
    notes: tuple[str, ...] = ()
    """What is to be known of the scores: items that are left out, a person's labels."""

    @property
    def by_train_task(self) -> tuple[TrainTaskResults, ...]:
        """The results of every trained task, in the study's order."""
        return tuple(self.of(train_task) for train_task in self.study.tasks)

    def of(self, train_task: str) -> TrainTaskResults:
        """The runs trained on one task, and the base on the tasks that these are scored on."""
        divergences = [each for each in self.base.divergences if each.train_task == train_task]
        base = self.base.limited_to(self.study.scored_tasks(train_task))
        prompted = self.study.prompted_tasks(train_task)
        return TrainTaskResults(
            study=self.study,
            train_task=train_task,
            base=base.model_copy(update={"divergences": tuple(divergences)}),
            prompted={name: self.base.items[name] for name in prompted},
            models=tuple(
                model
                for model in self.models
                if model.run and model.run.planned.train_task == train_task
            ),
            search=None if self.search is None else self.search.of(train_task),
        )


class TrainTaskResults(_Results):
    """The part of a study's results whose models were trained on one task."""

    train_task: str
    search: TrainTaskSearch | None = None
    prompted: Mapping[str, TaskItems] = {}
    """Name of a task with rows in its prompt -> what the base answered; see ``PromptedTask``."""

    @property
    def by_accuracy(self) -> Self:
        """The same with every task judged by its own metric, where p(right) decides."""
        models = tuple(model.by_accuracy for model in self.models)
        return self.model_copy(update={"base": self.base.by_accuracy, "models": models})

    @property
    def answered(self) -> Self:
        """The same on the items that every model answered: what counts answers is made from it."""
        parts = {
            task: items.scored.doc_ids
            for model in self.models
            for task, items in model.items.items()
            if items.scored is not None
        }
        if not parts:
            return self

        def limited(model: ModelResults) -> ModelResults:
            items = {
                task: each.limited_to(parts[task]) if task in parts else each
                for task, each in model.items.items()
            }
            return model.model_copy(update={"items": items})

        models = tuple(map(limited, self.models))
        return self.model_copy(update={"base": limited(self.base), "models": models})

    @property
    def validation_items(self) -> Mapping[Relation, Mapping[str, str]]:
        """Relation -> {task: name of its validation items}, by which runs were chosen."""
        return self.study.validation_items.get(self.train_task, {})

    @property
    def tasks(self) -> dict[Relation, tuple[str, ...]]:
        """The tasks that decide, by their relation to the trained task."""
        return self.study.tasks[self.train_task]

    @property
    def trained_formats(self) -> dict[str, str]:
        """Task -> name under which it was also scored in the format of the training."""
        return self.study.trained_formats[self.train_task]

    @property
    def trained_items(self) -> dict[str, str]:
        """Task -> name under which its own training rows were scored."""
        return self.study.trained_items[self.train_task]

    @property
    def ending_items(self) -> str | None:
        """The name under which the end of training rows was scored; None if it was not."""
        return self.study.ending_items.get(self.train_task)

    @property
    def planned(self) -> tuple[PlannedRun, ...]:
        """The runs that the study plans for this task."""
        return self.planned_of(*COMPARED)

    def planned_of(self, *roles: Role) -> tuple[PlannedRun, ...]:
        """The models of some roles that the study plans for this task."""
        planned = self.study.of_role(*roles)
        return tuple(model for model in planned if model.train_task == self.train_task)


class JudgedItems(NamedTuple):
    """A scoring with its items, by the metric that decides; ``ties`` are of the base only."""

    record: TaskEvaluation
    items: TaskItems
    ties: tuple[Ties, ...] = ()

    def with_items(self, **fields: Any) -> JudgedItems:
        """The same with some fields of the items set."""
        return self._replace(items=self.items.model_copy(update=fields))


def missing_items(models: Sequence[ModelResults]) -> dict[str, set[int]]:
    """Task -> the items that one of these models, in whatever form, has no number for."""
    missing: dict[str, set[int]] = {}
    for model in (*models, *(form.scores for each in models for form in each.forms)):
        for task, items in model.items.items():
            if items.missing:
                missing.setdefault(task, set()).update(items.missing)
    return missing


def left_out_warnings(missing: Mapping[str, Collection[int]]) -> Iterator[str]:
    """What is said of ``missing_items``."""
    for task, doc_ids in missing.items():
        yield (
            f"{task}: {quantities.counted(len(doc_ids), 'item')} left out for all models, because "
            "the check gave no number for some of them"
        )


def judged_items(
    record: TaskEvaluation, lines: Sequence[Line], metric: str | None = None
) -> JudgedItems:
    """The items of a scoring by the metric that decides.

    That is p(right) where there are options, unless another metric was asked for. A record is
    written with the task's own metric, and p(right) is made from the answers.

    Args:
        record: the scoring, as it was written.
        lines: its samples under the filter that decides, in order.
        metric: the configured one; None: p(right), or the task's own where there is none.

    Raises:
        RecordError: p(right) was asked for, and the samples do not tell it.
    """
    has_options = record.output_type == "multiple_choice"
    nats = [option_nats(line) for line in lines] if has_options else None
    items = task_items(record, lines, nats)
    values = p_right_of_items(lines, nats) if nats and is_wanted(metric) else None
    if values is None:
        if metric is not None and is_wanted(metric):
            raise RecordError(
                f"task {record.task!r} has no {P_RIGHT}: its samples do not have log-likelihoods "
                "of several options and a right one that agrees with acc. Choose another metric "
                f"in evaluation.metric.{record.task}."
            )
        return JudgedItems(record, items)
    score = MetricScore.of_values(P_RIGHT, record.decision_filter, values, higher_is_better=True)
    changed = {"metric": P_RIGHT, "unit": "points", "higher_is_better": True}
    return JudgedItems(
        record.model_copy(update={"metrics": (*record.metrics, score), "decision_metric": P_RIGHT}),
        items.model_copy(update={**changed, "values": tuple(values), "accuracy": items}),
    )


def task_items(
    record: TaskEvaluation, lines: Sequence[Line], nats: Sequence[Sequence[float]] | None
) -> TaskItems:
    """The items of a scoring by its own metric, from the same lines as ``judged_items``.

    ``nats`` is ``option_nats`` of each line; None where the task has no options. A line without a
    number is of a missing item.
    """
    missing = tuple(int(line["doc_id"]) for line in lines if line[record.decision_metric] is None)
    lines = answered(record, lines)
    values = [float(line[record.decision_metric]) for line in lines]
    if record.decision_metric == LOSS_METRIC and record.output_type == "loglikelihood_rolling":
        values = weighted_by_tokens(values, [int(line["num_loss_tokens"]) for line in lines])
    has_fields = bool(lines) and "fields_correct" in lines[0]
    names = [name for name in lines[0] if name.startswith(FIELD)] if has_fields else []
    return TaskItems(
        task=record.task,
        metric=record.decision_metric,
        unit=record.unit or _UNITS.get(record.decision_metric, "points"),
        higher_is_better=record.decision.higher_is_better,
        doc_ids=tuple(int(line["doc_id"]) for line in lines),
        values=tuple(values),
        choices=None if nats is None else tuple(map(highest, nats)),
        fields={
            name.removeprefix(FIELD): tuple(line.get(name) for line in lines) for name in names
        },
        missing=missing,
    )


def answered(record: TaskEvaluation, lines: Sequence[Line]) -> list[Line]:
    """The lines with a number of the metric that decides."""
    return [line for line in lines if line[record.decision_metric] is not None]


def weighted_by_tokens(losses: Sequence[float], num_tokens: Sequence[int]) -> list[float]:
    """Weight texts' losses per token, so that their mean is the loss per token over all texts."""
    mean = sum(num_tokens) / len(num_tokens)
    return [loss * count / mean for loss, count in zip(losses, num_tokens, strict=True)]
