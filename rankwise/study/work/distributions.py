"""Compares next-token distributions with a reference's, and writes a record for each model.

The reference is a full fine-tuning, or the base.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rankwise.engine.scoring.divergence import divergences, log_probabilities
from rankwise.records.folder import BASE
from rankwise.records.results import Divergence
from rankwise.records.study import PlannedRun
from rankwise.study.context import StudyContext
from rankwise.study.stages import CompareDistributions, CompareWithBase, Model, Stage, model_name
from rankwise.tasks.questions import RightAnswer


class DistributionWorker:
    """Reads a full fine-tuning once, and compares every other model with it."""

    def __init__(self, context: StudyContext) -> None:
        self._context = context
        self._expected: Sequence[Tensor] = ()
        self._expected_of: str | None = None

    def compare(self, stage: CompareDistributions, models: Sequence[Model]) -> None:
        """Compare the stage's one model with its full fine-tuning.

        Raises:
            ModelError: weights cannot be read.
            StorageError: the record cannot be written.
        """
        context, reference = self._context, stage.reference
        answers = context.plan.answers[reference.train_task]
        self._read(stage)
        (model,) = models
        reads = reference.name, reference.train_task
        _write_divergence(context, stage, model, reads, answers, self._expected)

    def _read(self, stage: CompareDistributions) -> None:
        """What the full fine-tuning expects; half of the stage's work if it is not known yet."""
        reference: PlannedRun = stage.reference
        if self._expected_of == reference.name:
            self._context.tell.skipped(stage.work / 2)
            return
        self._expected, self._expected_of = (), None  # released before the next is made
        answers = self._context.plan.answers[reference.train_task]
        with self._context.models.reading(reference) as module:
            self._expected = log_probabilities(module, answers, **_settings(self._context))
        self._expected_of = reference.name


def compare_with_base(
    context: StudyContext, stage: CompareWithBase, runs: Sequence[PlannedRun]
) -> None:
    """Compare some models of a trained task with the base, which reads once for all.

    The models read one after the other, in the steps of the base: so an update of zero is at
    exactly zero, which other steps would round away. With thousands of tokens in a step,
    reading several adapters at once would multiply as much.

    Raises:
        ModelError: weights cannot be read.
        StorageError: a record cannot be written.
    """
    answers = context.plan.gauged[stage.train_task]
    context.tell.skipped(stage.work * (len(stage.models) - len(runs)) / (len(stage.models) + 1))
    with context.models.reading(None) as base:
        expected = log_probabilities(base, answers, **_settings(context))
    # whole models last: each takes the place of the adapters
    for run in sorted(runs, key=lambda run: run.method == "full"):
        _write_divergence(context, stage, run, (BASE, stage.train_task), answers, expected)


def _write_divergence(
    context: StudyContext,
    stage: Stage,
    model: Model,
    reads: tuple[str, str],
    answers: Sequence[RightAnswer],
    expected: Sequence[Tensor],
) -> None:
    """``reads``: the name of the reference, and the trained task."""
    reference, train_task = reads
    with context.models.reading(model) as module:
        started = time.perf_counter()
        items = divergences(module, answers, expected, **_settings(context))
    lengths = tuple(len(answer.continuation) for answer in answers)
    record = Divergence(
        model=model_name(model),
        reference=reference,
        train_task=train_task,
        fingerprint=stage.fingerprint_of(model),
        num_items=len(answers),
        num_tokens=sum(lengths),
        tasks=tuple(answer.task for answer in answers),
        doc_ids=tuple(answer.doc_id for answer in answers),
        kl_nats=tuple(item.kl_nats for item in items),
        top1_agreement=tuple(item.top1_agreement for item in items),
        rise_nats=tuple(item.rise_nats for item in items),
        item_tokens=lengths,
        score_seconds=time.perf_counter() - started,
    )
    context.folder.write(stage.path_of(context.folder, model), record)


def _settings(context: StudyContext) -> dict[str, Any]:
    return {
        "max_batch_tokens": context.plan.step_tokens,
        "advance": context.tell.advanced,
    }
