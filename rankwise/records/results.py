"""A study as read back from its folder: what recommendations and the report are made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

from rankwise.records.heads import HeadChanges, HeadRepair, TaskHeadEffects
from rankwise.records.spectra import SpectraRecord
from rankwise.records.study import (
    PlannedRun,
    Record,
    Relation,
    RunRecord,
    StageFailure,
    StageRecord,
    StudyRecord,
    TaskEvaluation,
    Unit,
)

LOSS_METRIC = "loss_nats"

Line = Mapping[str, Any]
"""A line of a samples file."""


class TaskItems(Record):
    """The deciding metric of one model on one task, item by item.

    ``values`` has one number per item in the order of ``doc_ids``. With unit ``points`` it is a
    share (0 or 1 for accuracy). With ``nats`` it is the item's mean loss per token; in prose
    longer items weigh more, so that the mean over the items is the loss per token of them all.
    ``choices`` is the option of each item with the highest log-likelihood, where there are
    options. ``clusters`` numbers the cluster of each item, by a field of its document; None where
    the study sets none for the task. Else ``candidates`` has fields that may cluster the items
    (``clusters.candidate_fields``); only the base's items do.
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


class Divergence(StageRecord):
    """``divergence.json``: how far a model's next words are from full fine-tuning's.

    Both read the same right answers, at most the first tokens of each. ``kl_nats`` is of each item
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
    score_seconds: float


class ModelResults(Record):
    """Everything measured on one model; ``run`` is None for the untouched base.

    ``divergences`` are from full fine-tuning: of a run at most one, of the base one for each full
    fine-tuning that LoRA is compared with. ``spectra`` are of runs whose weights were analysed,
    ``head_changes``, ``head_effects`` and ``head_repair`` of those whose heads were.
    """

    name: str
    run: RunRecord | None
    evaluations: dict[str, TaskEvaluation]
    items: dict[str, TaskItems]
    divergences: tuple[Divergence, ...] = ()
    spectra: SpectraRecord | None = None
    head_changes: HeadChanges | None = None
    head_effects: tuple[TaskHeadEffects, ...] = ()
    head_repair: HeadRepair | None = None

    def limited_to(self, tasks: Collection[str]) -> Self:
        """The same with the scores of these tasks only."""
        evaluations = {task: each for task, each in self.evaluations.items() if task in tasks}
        items = {task: each for task, each in self.items.items() if task in tasks}
        return self.model_copy(update={"evaluations": evaluations, "items": items})


class StudyResults(Record):
    """A study as read back: what recommendations and the report are made from."""

    study: StudyRecord
    base: ModelResults
    runs: tuple[ModelResults, ...]
    failures: tuple[StageFailure, ...] = ()
    """The stages that failed when they were last tried."""

    @property
    def by_train_task(self) -> tuple[TrainTaskResults, ...]:
        """The results of every trained task, in the study's order."""
        return tuple(self.of(train_task) for train_task in self.study.tasks)

    def of(self, train_task: str) -> TrainTaskResults:
        """The runs trained on one task, and the base on the tasks that these are scored on."""
        divergences = [each for each in self.base.divergences if each.train_task == train_task]
        base = self.base.limited_to(self.study.scored_tasks(train_task))
        return TrainTaskResults(
            study=self.study,
            train_task=train_task,
            base=base.model_copy(update={"divergences": tuple(divergences)}),
            runs=tuple(
                model
                for model in self.runs
                if model.run is not None and model.run.planned.train_task == train_task
            ),
        )


class TrainTaskResults(Record):
    """The part of a study's results whose runs were trained on one task."""

    study: StudyRecord
    train_task: str
    base: ModelResults
    runs: tuple[ModelResults, ...]

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
        return tuple(run for run in self.study.runs if run.train_task == self.train_task)


def task_items(record: TaskEvaluation, lines: Sequence[Line]) -> TaskItems:
    """The items of a scoring, from its samples under the filter that decides, in order."""
    values = [float(line[record.decision_metric]) for line in lines]
    if record.decision_metric == LOSS_METRIC and record.output_type == "loglikelihood_rolling":
        values = weighted_by_tokens(values, [int(line["num_loss_tokens"]) for line in lines])
    has_options = record.output_type == "multiple_choice"
    return TaskItems(
        task=record.task,
        metric=record.decision_metric,
        unit="nats" if record.decision_metric == LOSS_METRIC else "points",
        higher_is_better=record.decision.higher_is_better,
        doc_ids=tuple(int(line["doc_id"]) for line in lines),
        values=tuple(values),
        choices=tuple(_choice(line) for line in lines) if has_options else None,
    )


def weighted_by_tokens(losses: Sequence[float], num_tokens: Sequence[int]) -> list[float]:
    """Weight texts' losses per token, so that their mean is the loss per token over all texts."""
    mean = sum(num_tokens) / len(num_tokens)
    return [loss * count / mean for loss, count in zip(losses, num_tokens, strict=True)]


def _choice(line: Line) -> int:
    """The first option with the highest log-likelihood.

    For ``acc_mutual_info``, every option is scored again without its context; those come last.
    """
    scores = [float(response[0][0]) for response in line["resps"]]
    if "acc_mutual_info" in line["metrics"]:
        scores = scores[: len(scores) // 2]
    return scores.index(max(scores))
