"""Compares next-token distributions with full fine-tuning's, and writes a record for each model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rankwise.engine.scoring.divergence import divergences, log_probabilities
from rankwise.records.results import Divergence
from rankwise.records.study import PlannedRun
from rankwise.study.context import StudyContext
from rankwise.study.stages import CompareDistributions, Model


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
        settings: dict[str, Any] = {
            "max_batch_tokens": context.study.config.evaluation.max_batch_tokens,
            "advance": context.observer.advanced,
        }
        self._read(stage, settings)
        (model,) = models
        with context.models.reading(model) as module:
            started = time.perf_counter()
            items = divergences(module, answers, self._expected, **settings)
        record = Divergence(
            model=stage.model,
            reference=reference.name,
            train_task=reference.train_task,
            fingerprint=stage.fingerprints[0],
            num_items=len(answers),
            num_tokens=sum(len(answer.continuation) for answer in answers),
            tasks=tuple(answer.task for answer in answers),
            doc_ids=tuple(answer.doc_id for answer in answers),
            kl_nats=tuple(item.kl_nats for item in items),
            top1_agreement=tuple(item.top1_agreement for item in items),
            score_seconds=time.perf_counter() - started,
        )
        context.folder.write(stage.path_of(context.folder, model), record)

    def _read(self, stage: CompareDistributions, settings: dict[str, Any]) -> None:
        """What the full fine-tuning expects; half of the stage's work if it is not known yet."""
        reference: PlannedRun = stage.reference
        if self._expected_of == reference.name:
            self._context.observer.skipped(stage.work / 2)
            return
        self._expected, self._expected_of = (), None  # released before the next is made
        answers = self._context.plan.answers[reference.train_task]
        with self._context.models.reading(reference) as module:
            self._expected = log_probabilities(module, answers, **settings)
        self._expected_of = reference.name
