"""Divergence: a model's next-token distributions against those of a full fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.records.fingerprints import fingerprint
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.results import Divergence
from rankwise.records.study import PlannedRun, StageInputs, StudyRecord
from rankwise.study.stages.stage import (
    Graph,
    Model,
    PlannedTasks,
    Stage,
    Written,
    fingerprint_in,
    is_usable,
    model_name,
)

if TYPE_CHECKING:
    from torch import Tensor

    from rankwise.study.context import StudyContext
    from rankwise.tasks.questions import RightAnswer

DIVERGENCE_REVISION = 2
"""A revision, as those in ``records.fingerprints``."""


@dataclass(frozen=True)
class CompareDistributions(Stage):
    """Compare a model's next-token distributions with those of a full fine-tuning."""

    reference: PlannedRun
    """The full fine-tuning."""

    kind = "divergence"
    record = Divergence

    @classmethod
    def inputs(cls, planned: PlannedTasks) -> Mapping[str, tuple[Any, StageInputs]]:
        """The right answers in-domain."""
        is_compared = planned.config.analysis.divergence and planned.has_full
        answers = planned.answers if is_compared else {}
        return {source: (of, answers_read(planned, of)) for source, of in answers.items()}

    @classmethod
    def planned(cls, graph: Graph) -> Iterator[Stage]:
        study = graph.study
        inputs = study.inputs.get(cls.kind, {})
        references = {run.name: study.full_run_of(run) for run in study.runs}
        for full in study.full_runs_compared:
            if full.train_task not in inputs:
                continue
            compared = [run for run in study.runs if references[run.name] == full]
            work = 2.0 * inputs[full.train_task].num_tokens  # both models read them
            for model in (None, *compared):
                yield cls(
                    model_name(model),
                    (model,),
                    (cls.wanted(study, model, full),),
                    needs=graph.trainings([model, full]),
                    work=work,
                    memory_bytes=2 * study.weights_bytes,
                    disk_bytes=0,
                    reference=full,
                )

    @classmethod
    def wanted(cls, study: StudyRecord, model: Model, reference: PlannedRun) -> str:
        """The fingerprint of everything that a model's divergence from a reference depends on."""
        read = study.inputs.get(cls.kind, {}).get(reference.train_task)
        answers = None if read is None else read.fingerprint
        return fingerprint([fingerprint_in(study, model), reference.fingerprint, answers])

    @classmethod
    def path(cls, folder: StudyFolder, model: str, reference: str) -> Path:
        """Where a record is; the base is compared with several."""
        name = f"divergence/{reference}.json" if model == BASE else "divergence.json"
        return folder.model_folder(model) / name

    @classmethod
    def written(cls, folder: StudyFolder, model: str) -> Iterator[Written]:
        place = folder.model_folder(model)
        for path in (*sorted((place / "divergence").glob("*.json")), place / "divergence.json"):
            yield Written(path, Divergence, f"comparing with full fine-tuning {model}")

    @classmethod
    def results(cls, folder: StudyFolder, study: StudyRecord, model: Model) -> Mapping[str, Any]:
        full_runs = study.full_runs_compared if model is None else (study.full_run_of(model),)
        found = [
            folder.finished(
                cls.path(folder, model_name(model), full.name),
                Divergence,
                cls.wanted(study, model, full),
            )
            for full in full_runs
            if full is not None
        ]
        return {"divergences": tuple(each for each in found if each is not None)}

    @property
    def together(self) -> Hashable:
        """The stages that go together: all comparisons with one full fine-tuning."""
        return self.kind, self.reference.name

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return self.path(folder, model_name(model), self.reference.name)

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        (model,) = models
        task = self.reference.train_task
        answers = context.plan.inputs[self.kind][task]
        reference, kept = self.reference.name, context.kept(_read_last)
        if reference in kept:
            context.tell.skipped(self.work / 2)
        else:
            kept.clear()  # released before the next is made
            kept[reference] = expected_by(context, self.reference, answers)
        write_divergence(
            context, self, model, answers, kept[reference], reference=reference, train_task=task
        )

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """The model, where the full fine-tuning is usable too."""
        return super().ready(folder, models) if is_usable(folder, self.reference) else ()

    def _is_done(self, folder: StudyFolder, model: Model) -> bool:
        reference = folder.finished_run(self.reference)
        if reference is not None and reference.status == "diverged":
            return model is None or folder.finished_run(model) is not None
        return reference is not None and super()._is_done(folder, model)


def answers_read(planned: PlannedTasks, answers: Sequence[RightAnswer]) -> StageInputs:
    """What is recorded of answers or texts on which models are compared token by token."""
    from rankwise.engine.scoring.tree.prefixes import PrefixTree

    return StageInputs(
        fingerprint=fingerprint([DIVERGENCE_REVISION, planned.precision, answers]),
        num_tokens=len(PrefixTree([answer.tokens_read for answer in answers])),
    )


def _read_last(_: StudyContext) -> dict[str, Sequence[Tensor]]:
    """What a full fine-tuning expects, for every model that is compared with it; none yet."""
    return {}


def expected_by(
    context: StudyContext, model: Model, answers: Sequence[RightAnswer]
) -> Sequence[Tensor]:
    """The log-probabilities of a model at every token of the answers."""
    from rankwise.engine.scoring.divergence import log_probabilities

    most, advance = context.plan.step_tokens, context.tell.advanced
    with context.models.reading(model) as module:
        return log_probabilities(module, answers, max_batch_tokens=most, advance=advance)


def write_divergence(
    context: StudyContext,
    stage: Stage,
    model: Model,
    answers: Sequence[RightAnswer],
    expected: Sequence[Tensor],
    *,
    reference: str,
    train_task: str,
) -> None:
    """Compare a model with what a reference expects, and write its record.

    Raises:
        ModelError: weights cannot be read.
        StorageError: the record cannot be written.
    """
    from rankwise.engine.scoring.divergence import divergences

    most, advance = context.plan.step_tokens, context.tell.advanced
    with context.models.reading(model) as module:
        started = time.perf_counter()
        items = divergences(module, answers, expected, max_batch_tokens=most, advance=advance)
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
