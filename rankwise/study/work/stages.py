"""Does the stages of a study one after the other, and writes their records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rankwise.engine.scoring.divergence import divergences, log_probabilities
from rankwise.records.fingerprints import divergence_fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.records.results import Divergence
from rankwise.records.study import PlannedRun
from rankwise.study.models import ResidentModels
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.stages import Observer, Stage
from rankwise.study.work.head_changes import compare_heads
from rankwise.study.work.scoring import ScoreWorker
from rankwise.study.work.training import train
from rankwise.study.work.weights import analyse


class Worker:
    """Holds the models; also what a full fine-tuning expects, while others are compared with it."""

    def __init__(self, plan: StudyPlan, folder: StudyFolder, observer: Observer) -> None:
        self._plan, self._folder, self._observer = plan, folder, observer
        self._models = ResidentModels(plan, folder)
        self._scores = ScoreWorker(plan, folder, observer, self._models)
        self._expected: Sequence[Tensor] = ()
        self._expected_of: str | None = None

    def do(self, stage: Stage) -> None:
        """Do one stage, and tell the observer."""
        self._observer.stage_started(stage.model, stage.name, stage.work)
        if stage.reference is not None:
            self._diverge(stage, stage.reference)
        elif stage.task is not None:
            self._scores.score(stage, stage.task)
        elif stage.head_prompts:
            compare_heads(self._plan, self._folder, self._models, self._observer, stage)
        elif stage.num_decompositions:
            self._models.release(base=True)
            analyse(self._plan, self._folder, self._observer, stage)
        else:
            # one model at a time
            self._models.release(base=any(run.method == "full" for run in stage.runs))
            train(self._plan, self._folder, self._observer, self._models.base, stage)
        self._observer.stage_finished()

    def release(self) -> None:
        """Let go of what is scored; the base stays."""
        self._models.release()

    def _diverge(self, stage: Stage, reference: PlannedRun) -> None:
        """Compare a model with full fine-tuning, which is read once for all of them."""
        records = [self._folder.finished_run(run) for run in (*stage.runs, reference)]
        if any(record is not None and record.status == "diverged" for record in records):
            self._observer.advanced(stage.work)
            return
        plan, answers = self._plan, stage.answers
        settings: dict[str, Any] = {
            "max_batch_tokens": plan.record.config.evaluation.max_batch_tokens,
            "advance": self._observer.advanced,
        }
        if self._expected_of != reference.name:
            self._expected, self._expected_of = (), None  # let go before the next is made
            with self._models.reading(reference) as model:
                self._expected = log_probabilities(model, answers, **settings)
            self._expected_of = reference.name
        else:
            self._observer.advanced(stage.work / 2)
        run = stage.runs[0] if stage.runs else None
        with self._models.reading(run) as model:
            started = time.perf_counter()
            found = divergences(model, answers, self._expected, **settings)
        fingerprint = plan.base.fingerprint if run is None else run.fingerprint
        record = Divergence(
            model=stage.model,
            reference=reference.name,
            train_task=reference.train_task,
            fingerprint=divergence_fingerprint(plan.record, fingerprint, reference),
            num_items=len(answers),
            num_tokens=sum(len(answer.continuation) for answer in answers),
            tasks=tuple(answer.task for answer in answers),
            doc_ids=tuple(answer.doc_id for answer in answers),
            kl_nats=tuple(item.kl_nats for item in found),
            top1_agreement=tuple(item.top1_agreement for item in found),
            score_seconds=time.perf_counter() - started,
        )
        self._folder.write(self._folder.divergence_file(stage.model, reference.name), record)
