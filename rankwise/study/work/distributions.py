"""Compares next-token distributions with a reference's, and writes a record for each model.

The reference is a full fine-tuning, or the base.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rankwise.engine.scoring.divergence import divergences, log_probabilities
from rankwise.records.results import Divergence
from rankwise.records.study import PlannedRun
from rankwise.study.context import StudyContext
from rankwise.study.stages.stage import Model, Stage, model_name
from rankwise.tasks.questions import RightAnswer


class FullDistributions:
    """What a full fine-tuning expects: read once, for every model that is compared with it."""

    def __init__(self, context: StudyContext) -> None:
        self._context = context
        self._expected: Sequence[Tensor] = ()
        self._of: str | None = None

    def of(
        self, reference: PlannedRun, answers: Sequence[RightAnswer], work: float
    ) -> Sequence[Tensor]:
        """Of a full fine-tuning; ``work`` is that of reading it, which may be done already."""
        if self._of == reference.name:
            self._context.tell.skipped(work)
        else:
            self._expected, self._of = (), None  # released before the next is made
            self._expected = expected_by(self._context, reference, answers)
            self._of = reference.name
        return self._expected


def expected_by(
    context: StudyContext, model: Model, answers: Sequence[RightAnswer]
) -> Sequence[Tensor]:
    """The log-probabilities of a model at every token of the answers."""
    with context.models.reading(model) as module:
        return log_probabilities(module, answers, **_settings(context))


def write_divergence(
    context: StudyContext,
    stage: Stage,
    model: Model,
    reads: tuple[str, str],
    answers: Sequence[RightAnswer],
    expected: Sequence[Tensor],
) -> None:
    """Compare a model with what is expected, and write its record.

    ``reads``: the name of the reference, and the trained task.

    Raises:
        ModelError: weights cannot be read.
        StorageError: the record cannot be written.
    """
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
