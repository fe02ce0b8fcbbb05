"""Does the stages of a study one after the other, and writes their records."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from rankwise import adapters, models
from rankwise.devices import give_back_memory
from rankwise.divergence import divergences, log_probabilities
from rankwise.errors import UnchangedOutputsError
from rankwise.evaluation import Known, evaluate
from rankwise.pass_worker import train
from rankwise.planning import StudyPlan, metric_of
from rankwise.records import PlannedRun, RunRecord
from rankwise.results import Divergence
from rankwise.stages import Observer, Stage
from rankwise.store import BASE, StudyFolder, divergence_fingerprint
from rankwise.tasks import PreparedTask


class Worker:
    """Holds the resident base model and the model that is being scored.

    While models are compared with a full fine-tuning, it holds that one's log-probabilities too.
    """

    def __init__(self, plan: StudyPlan, folder: StudyFolder, observer: Observer) -> None:
        self._plan, self._folder, self._observer = plan, folder, observer
        self._base: nn.Module | None = None
        self._scored: nn.Module | None = None
        self._scored_name: str | None = None
        self._expected: Sequence[Tensor] = ()
        self._expected_of: str | None = None

    def do(self, stage: Stage) -> None:
        """Do one stage, and tell the observer."""
        self._observer.stage_started(stage.model, stage.name, stage.work)
        if stage.reference is not None:
            self._diverge(stage, stage.reference)
        elif stage.task is not None:
            self._score(stage, stage.task)
        else:
            if any(run.method == "full" for run in stage.trained):
                self._base = None  # one model at a time
            self.release()
            train(self._plan, self._folder, self._observer, self._base_model, stage)
        self._observer.stage_finished()

    def release(self) -> None:
        """Let go of the scored model; an adapter is taken off the base."""
        if isinstance(self._scored, adapters.peft.PeftModel):
            adapters.detach(self._scored)
        self._scored = self._scored_name = None
        give_back_memory(self._plan.device)

    def _base_model(self) -> nn.Module:
        if self._base is None:
            plan = self._plan
            # planning needed the small files only; now the weights
            folder = models.fetch_weights(plan.base)
            self._base = models.load_frozen(
                folder,
                plan.record.precision,
                plan.device,
                plan.record.config.train.base_precision,
            )
        return self._base

    def _score(self, stage: Stage, task: PreparedTask) -> None:
        run = self._record_of(stage.run)
        if run is not None and run.status == "diverged":
            return
        evaluation = self._plan.record.config.evaluation
        known = self._known(stage, task)
        scoring = evaluate(
            self._model_of(stage.model, stage.run),
            self._plan.tokenizer,
            task,
            model_name=stage.model,
            fingerprint=self._plan.scoring_fingerprint(stage.fingerprint, task),
            metric=metric_of(self._plan.record.config, task.name),
            max_batch_tokens=evaluation.max_batch_tokens,
            known=known,
            advance=self._observer.advanced,
        )
        # a full update may lie below the resolution of the scoring precision; an adapter does not
        if run is not None and run.planned.method == "lora" and not run.update_is_zero:
            self._check_outputs_changed(stage.model, task, scoring.samples)
        self._folder.write_evaluation(scoring.record, scoring.samples)

    def _known(self, stage: Stage, task: PreparedTask) -> Known:
        """What a scoring of the task's first items found, where the study was extended."""
        earlier = self._folder.earlier_evaluation(stage.model, task.name)
        if earlier is None or not self._plan.begins_with(earlier, stage.fingerprint, task):
            return Known()
        samples = self._folder.read_samples(stage.model, task.name)
        lines = [line for line in samples if line["filter"] == samples[0]["filter"]]
        return Known(
            responses=tuple(
                tuple(response) if isinstance(response, list) else response
                for line in lines
                for (response, *_) in line["resps"]
            ),
            num_unfinished=earlier.num_unfinished or 0,
            score_seconds=earlier.score_seconds,
        )

    def _record_of(self, run: PlannedRun | None) -> RunRecord | None:
        return None if run is None else self._folder.finished_run(run)

    def _diverge(self, stage: Stage, reference: PlannedRun) -> None:
        """Compare a model with full fine-tuning, which is read once for all of them."""
        records = [self._record_of(run) for run in (stage.run, reference)]
        if any(record is not None and record.status == "diverged" for record in records):
            return
        plan, answers = self._plan, stage.answers
        settings: dict[str, Any] = {
            "pad_id": plan.tokenizer.pad_token_id,
            "max_batch_tokens": plan.record.config.evaluation.max_batch_tokens,
            "advance": self._observer.advanced,
        }
        if self._expected_of != reference.name:
            self._expected, self._expected_of = (), None  # let go before the next is made
            self._expected = log_probabilities(
                self._model_of(reference.name, reference), answers, **settings
            )
            self._expected_of = reference.name
        else:
            self._observer.advanced(stage.work / 2)
        model = self._model_of(stage.model, stage.run)
        started = time.perf_counter()
        found = divergences(model, answers, self._expected, **settings)
        record = Divergence(
            model=stage.model,
            reference=reference.name,
            train_task=reference.train_task,
            fingerprint=divergence_fingerprint(plan.record, stage.fingerprint, reference),
            num_items=len(answers),
            num_tokens=sum(len(answer.continuation) for answer in answers),
            tasks=tuple(answer.task for answer in answers),
            doc_ids=tuple(answer.doc_id for answer in answers),
            kl_nats=tuple(item.kl_nats for item in found),
            top1_agreement=tuple(item.top1_agreement for item in found),
            score_seconds=time.perf_counter() - started,
        )
        self._folder.write(self._folder.divergence_file(stage.model, reference.name), record)

    def _model_of(self, name: str, run: PlannedRun | None) -> nn.Module:
        """The base, the base with a run's adapter, or a run's checkpoint, read from disk."""
        if self._scored is None or self._scored_name != name:
            self.release()
            if run is None:
                self._scored = self._base_model()
            else:
                weights = self._folder.weights_folder(run)
                if run.method == "lora":
                    self._scored = adapters.load_adapter(self._base_model(), weights)
                else:
                    plan = self._plan
                    self._scored = models.load_frozen(weights, plan.record.precision, plan.device)
            self._scored_name = name
        return self._scored.eval()

    def _check_outputs_changed(
        self, model: str, task: PreparedTask, samples: list[dict[str, Any]]
    ) -> None:
        """A base that is scored by mistake would look like a model that forgets nothing."""
        if task.loaded.output_type == "generate_until":
            return  # texts may well be equal
        before = [_log_likelihoods(line) for line in self._folder.read_samples(BASE, task.name)]
        if before == [_log_likelihoods(line) for line in samples]:
            raise UnchangedOutputsError(
                f"{model} has a non-zero update and gives every one of the {len(samples)} items of "
                f"{task.name!r} exactly the base model's log-likelihoods: the update was not "
                "applied. Please report this with the base model's name and target_modules."
            )


def _log_likelihoods(line: Mapping[str, Any]) -> list[float]:
    """The numbers of one sample line, the same from memory and from disk."""
    flat: list[float] = []
    for responses in line["resps"]:
        for response in responses:
            value = response[0] if isinstance(response, list | tuple) else response
            flat.append(float(value))
    return flat
