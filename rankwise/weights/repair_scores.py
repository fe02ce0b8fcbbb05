"""Scores of the repairs of one adapter, all of them and the base in one pass, and what is written.

The base and every repair answer a task together: a prompt is read once for all of them where they
agree, and the base's matrix products are shared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.engine.models.devices import provenance_on
from rankwise.engine.models.frozen_adapters import load_frozen_adapter
from rankwise.engine.scoring.divergence import divergences, log_probabilities
from rankwise.errors import TaskError
from rankwise.records import p_right, quantities
from rankwise.records.clusters import cluster_numbers, linked_clusters, ties_of
from rankwise.records.folder import BASE
from rankwise.records.repair_scores import (
    RepairDivergences,
    RepairedDivergence,
    RepairedItems,
    RepairScores,
)
from rankwise.records.repairs import AS_IT_IS, Repair
from rankwise.records.results import MIN_ITEMS, TaskItems, judged_items
from rankwise.tasks.evaluation import ScoredModel, Scoring, evaluate
from rankwise.tasks.questions import Advance, RightAnswer
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.update_guard import probes, refuse_unapplied
from rankwise.weights.repairs import Updates, as_frozen
from rankwise.weights.session import ScoringSession


class AskedTask(NamedTuple):
    """A task that repairs are scored on.

    Attributes:
        prepared: the task.
        metric: the configured one that decides; None: p(right), or the task's own.
        cluster_field: of its documents; None: items that ask the same are clusters.
    """

    prepared: PreparedTask
    metric: str | None = None
    cluster_field: str | None = None


class RepairScorer:
    """The base and the repairs of one adapter, attached to a resident scorer."""

    def __init__(
        self, session: ScoringSession, model: str, folder: Path, derived: Mapping[Repair, Updates]
    ) -> None:
        """Attach the adapter from its folder, and its repairs as they would be written.

        Args:
            session: of the base model.
            model: name of the adapter in records.
            folder: of the adapter.
            derived: from ``repairs.derived_updates``.
        """
        self._scorer, self._base_model = session.scorer, session.model
        self._step_tokens, self._model = session.step_tokens, model
        weight = next(session.model.parameters())
        self._device = weight.device
        self.repairs = tuple(derived)
        self._is_applied = False
        self._adapters = {
            repair: load_frozen_adapter(session.model, folder, weight.dtype)
            if repair == AS_IT_IS
            else as_frozen(updates, session.model)
            for repair, updates in derived.items()
        }
        for repair, adapter in self._adapters.items():
            self._scorer.hold(repair.label, adapter)

    def scores(
        self, task: AskedTask, *, fingerprint: str, advance: Advance = lambda _: None
    ) -> RepairScores:
        """Score the base and every repair on a task, item by item.

        Args:
            task: what is asked.
            fingerprint: of the record.
            advance: receives the number of tokens read or written, ``num_tokens`` per model.

        Raises:
            UnchangedOutputsError: the adapter answers as the base does.
            TaskError: its answers cannot be judged, or its documents have no such field.
        """
        if not self._is_applied:
            refuse_unapplied(self._scorer, [AS_IT_IS.label], probes(task.prepared.requests))
            self._is_applied = True
        started = time.perf_counter()
        scored = [ScoredModel(BASE, fingerprint)]
        scored += [ScoredModel(each.label, fingerprint, each.label) for each in self.repairs]
        wanted = None if p_right.is_wanted(task.metric) else task.metric
        base, *repaired = evaluate(
            self._scorer, scored, task.prepared, metric=wanted, advance=advance
        )
        return RepairScores(
            fingerprint=fingerprint,
            model=self._model,
            task=task.prepared.name,
            base=_items(base, task),
            repaired=tuple(
                RepairedItems(repair=repair, items=_items(scoring, task))
                for repair, scoring in zip(self.repairs, repaired, strict=True)
            ),
            score_seconds=time.perf_counter() - started,
            provenance=provenance_on(self._device),
        )

    def divergences(
        self,
        answers: Sequence[RightAnswer],
        *,
        fingerprint: str,
        advance: Advance = lambda _: None,
    ) -> RepairDivergences:
        """How far from the base every repair is, item by item.

        The base reads once. The repairs read one after the other in its steps, so that rounding is
        the same for all.

        Args:
            answers: right answers; at least one.
            fingerprint: of the record.
            advance: receives the number of tokens read, each distinct one once per model.
        """
        started = time.perf_counter()
        settings: dict[str, Any] = {"max_batch_tokens": self._step_tokens, "advance": advance}
        expected = log_probabilities(self._base_model, answers, **settings)
        repaired: list[RepairedDivergence] = []
        for repair, adapter in self._adapters.items():
            items = divergences(self._base_model, answers, expected, adapter=adapter, **settings)
            kl_nats = tuple(item.kl_nats for item in items)
            repaired.append(RepairedDivergence(repair=repair, kl_nats=kl_nats))
        return RepairDivergences(
            fingerprint=fingerprint,
            model=self._model,
            tasks=tuple(answer.task for answer in answers),
            doc_ids=tuple(answer.doc_id for answer in answers),
            item_tokens=tuple(len(answer.continuation) for answer in answers),
            repaired=tuple(repaired),
            score_seconds=time.perf_counter() - started,
        )


def refuse_unjudgeable(
    in_domain: Sequence[PreparedTask], retention: Sequence[PreparedTask]
) -> None:
    """Refuse tasks by which no repair can be judged, before anything is scored.

    Raises:
        TaskError: a task has fewer than two items, or no retention task is scored in points.
    """
    for task in (*in_domain, *retention):
        if task.num_items < MIN_ITEMS:
            raise TaskError(
                f"task {task.name!r} has {quantities.counted(task.num_items, 'item')}, and a "
                f"difference needs {MIN_ITEMS}. Score more, or leave the task out."
            )
    if all(task.loaded.output_type == "loglikelihood_rolling" for task in retention):
        raise TaskError(
            "every retention task is scored by its loss, and the limit is in points. Name one that "
            "asks questions."
        )


def _items(scoring: Scoring, task: AskedTask) -> TaskItems:
    """By the metric that decides; choices and other metrics are not kept."""
    lines = [s for s in scoring.samples if s["filter"] == scoring.record.decision_filter]
    items = judged_items(scoring.record, lines, task.metric).items
    clusters: tuple[int, ...] | None = None
    if scoring.record.model == BASE:
        name, field = task.prepared.name, task.cluster_field
        documents = {int(line["doc_id"]): line.get("doc") for line in lines}
        setting = f"evaluation.clusters.{name.partition('@')[0]}"
        named = {} if field is None else {name: cluster_numbers(documents, field, setting, name)}
        clusters = linked_clusters({name: ties_of(lines)}, named)[name]
    return items.model_copy(update={"choices": None, "accuracy": None, "clusters": clusters})
