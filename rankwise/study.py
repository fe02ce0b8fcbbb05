"""Run a plan: order the stages, skip what is finished, write each record when its stage is done."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from rankwise import adapters, models, training
from rankwise.devices import device_name
from rankwise.errors import DivergedError, OutOfMemoryError, UnchangedOutputsError
from rankwise.evaluation import Known, evaluate
from rankwise.findings import StudyFindings, study_findings
from rankwise.imported_runs import import_adapter, weights_bytes
from rankwise.planning import StudyPlan
from rankwise.provenance import collect_provenance
from rankwise.recommendation import recommend
from rankwise.records import PlannedRun, RunRecord, StudyRecommendation
from rankwise.results import StudyResults
from rankwise.store import BASE, StudyFolder
from rankwise.tasks import PreparedTask

# What a trained token costs beside a scored one: a backward pass, and for full fine-tuning the
# gradients of all weights. Only the time left is estimated with it.
_TRAINING_WORK = {"lora": 2.5, "full": 4.0}


class Observer(Protocol):
    """Is told how a study goes on; the terminal's progress bars are one."""

    def study_started(self, total_work: float, finished_work: float) -> None:
        """Work is counted in scored tokens; some of it may be finished from an earlier call."""
        ...

    def model_started(self, model: str, work: float) -> None:
        """What is left to do for one model: its training and its scoring."""
        ...

    def stage_started(self, model: str, stage: str, work: float) -> None: ...

    def advanced(self, work: float) -> None: ...

    def stage_finished(self) -> None: ...


class StudyOutcome(NamedTuple):
    """A finished study."""

    results: StudyResults
    recommendation: StudyRecommendation
    findings: StudyFindings


class Stage(NamedTuple):
    """One thing to do: train a run (``task`` None), or score a model on a task."""

    model: str
    fingerprint: str
    run: PlannedRun | None
    task: PreparedTask | None

    @property
    def work(self) -> float:
        if self.task is not None:
            return self.task.num_tokens
        assert self.run is not None
        return self.run.num_tokens * _TRAINING_WORK[self.run.method]


def stages(plan: StudyPlan) -> list[Stage]:
    """All stages of a plan in order: score the base, then train and score run by run."""
    base = [
        Stage(BASE, plan.base.fingerprint, None, plan.tasks[task])
        for task in plan.record.scored_tasks()
    ]
    runs = [
        Stage(run.name, run.fingerprint, run, None if task is None else plan.tasks[task])
        for run in plan.record.runs
        for task in (None, *plan.record.scored_tasks(run.train_task))
    ]
    return base + runs


def is_finished(plan: StudyPlan, folder: StudyFolder, stage: Stage) -> bool:
    """Whether a stage's record is there. A run that diverged has nothing left to score.

    Raises:
        RecordError: a record is there and cannot be read.
    """
    run = folder.finished_run(stage.run) if stage.run is not None else None
    if stage.task is None:
        return run is not None
    if stage.run is not None and run is None:
        return False  # scores of weights that are gone
    if run is not None and run.status == "diverged":
        return True
    wanted = plan.scoring_fingerprint(stage.fingerprint, stage.task)
    return folder.finished_evaluation(stage.model, stage.task.name, wanted) is not None


def run_study(plan: StudyPlan, folder: StudyFolder, observer: Observer) -> StudyOutcome:
    """Do what is not done yet, then recommend. Safe to stop at any moment and call again.

    Args:
        plan: from :func:`rankwise.planning.plan_study`.
        folder: the study's folder; is created.
        observer: is told of progress.

    Returns:
        The results and the recommendation, also written into the folder.

    Raises:
        StudyLockedError: another process works on the folder.
        RecordError: a record of the folder cannot be read.
        StorageError: the folder cannot be written.
        UnchangedOutputsError: an adapter did not change what the model says.
    """
    with folder.lock():
        folder.write(folder.study_file, plan.record)
        todo = stages(plan)
        finished = [is_finished(plan, folder, stage) for stage in todo]
        observer.study_started(
            sum(stage.work for stage in todo),
            sum(stage.work for stage, done in zip(todo, finished, strict=True) if done),
        )
        worker = _Worker(plan, folder, observer)
        try:
            left = [stage for stage, done in zip(todo, finished, strict=True) if not done]
            for model, of_model in itertools.groupby(left, key=lambda stage: stage.model):
                its_stages = list(of_model)
                observer.model_started(model, sum(stage.work for stage in its_stages))
                for stage in its_stages:
                    with _enough_memory(stage):
                        worker.do(stage)
        finally:
            worker.release()
        results = folder.read_results()
        recommendation = recommend(results)
        folder.write(folder.recommendation_file, recommendation)
        findings = study_findings(results, recommendation)
        folder.write(folder.findings_file, findings)
    return StudyOutcome(results, recommendation, findings)


@contextlib.contextmanager
def _enough_memory(stage: Stage) -> Generator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        what = "training" if stage.task is None else f"scoring {stage.task.name}"
        raise OutOfMemoryError(
            f"{stage.model}: {what} does not fit into memory ({str(error).splitlines()[0]}). "
            "Lower train.batch_size or train.max_length, evaluation.max_batch_tokens, or leave "
            "full fine-tuning out with methods.full=null; then run again: what is finished is kept."
        ) from error


class _Worker:
    """Holds the resident base model and the model that is being scored."""

    def __init__(self, plan: StudyPlan, folder: StudyFolder, observer: Observer) -> None:
        self._plan, self._folder, self._observer = plan, folder, observer
        self._base: nn.Module | None = None
        self._scored: nn.Module | None = None
        self._scored_name: str | None = None

    def do(self, stage: Stage) -> None:
        if stage.task is None:
            assert stage.run is not None
            self._observer.stage_started(stage.model, "training", stage.work)
            self._train(stage.run)
        else:
            self._observer.stage_started(stage.model, stage.task.name, stage.work)
            self._score(stage, stage.task)
        self._observer.stage_finished()

    def release(self) -> None:
        """Let go of the scored model; an adapter is taken off the base."""
        if isinstance(self._scored, adapters.peft.PeftModel):
            adapters.detach(self._scored)
        self._scored = self._scored_name = None
        gc.collect()

    def _base_model(self) -> nn.Module:
        if self._base is None:
            plan = self._plan
            # planning needed the small files only; now the weights
            folder = models.fetch_weights(plan.base)
            self._base = models.load_frozen(folder, plan.record.precision, plan.device)
        return self._base

    def _train(self, run: PlannedRun) -> None:
        self.release()
        self._folder.start_run(run)
        if run.imported_from is not None:
            self._write_run(run, self._imported(run), None)
            return
        try:
            result = self._trained(run)
        except DivergedError as error:
            self._write_run(run, None, str(error))
        else:
            self._write_run(run, result, None)

    def _imported(self, run: PlannedRun) -> training.TrainingResult:
        """An imported model is there already; an adapter is copied into the study."""
        assert run.imported_from is not None
        folder = self._folder.weights_folder(run)
        if run.method == "lora":
            size, is_zero = import_adapter(run.imported_from, folder)
        else:
            size, is_zero = weights_bytes(folder), False
        return training.TrainingResult(
            num_steps=0,
            num_tokens=0,
            num_loss_tokens=0,
            first_loss_nats=None,
            final_loss_nats=None,
            update_is_zero=is_zero,
            weights_bytes=size,
            train_seconds=0.0,
            peak_memory_bytes=0,
        )

    def _trained(self, run: PlannedRun) -> training.TrainingResult:
        plan, config = self._plan, self._plan.record.config
        factor = _TRAINING_WORK[run.method]
        common: dict[str, Any] = {
            "folder": self._folder.weights_folder(run),
            "pad_id": plan.tokenizer.pad_token_id,
            "precision": plan.record.precision,
            "on_step": lambda step: self._folder.append_metrics(run.name, step.model_dump()),
            "advance": lambda tokens: self._observer.advanced(tokens * factor),
        }
        if run.method == "lora":
            assert run.scaling is not None
            assert run.rank is not None
            assert run.alpha is not None
            return training.train_lora(
                self._base_model(),
                plan.examples[run.train_task],
                run,
                config.train,
                base_model_name=config.base_model.name,
                use_rslora=not math.isclose(run.scaling, run.alpha / run.rank),
                **common,
            )
        model = models.load_frozen(models.fetch_weights(plan.base), "float32", plan.device)
        return training.train_full(
            model, plan.tokenizer, plan.examples[run.train_task], run, config.train, **common
        )

    def _write_run(
        self, run: PlannedRun, result: training.TrainingResult | None, message: str | None
    ) -> None:
        steps = result.num_steps if result else 0
        record = RunRecord(
            status="trained" if result else "diverged",
            message=message,
            planned=run,
            num_steps=steps,
            num_tokens=result.num_tokens if result else 0,
            num_loss_tokens=result.num_loss_tokens if result else 0,
            num_truncated=sum(e.is_truncated for e in self._plan.examples[run.train_task]),
            first_loss_nats=result.first_loss_nats if result else None,
            final_loss_nats=result.final_loss_nats if result else None,
            update_is_zero=result.update_is_zero if result else True,
            weights_bytes=result.weights_bytes if result else 0,
            train_seconds=result.train_seconds if result else 0.0,
            peak_memory_bytes=result.peak_memory_bytes if result else 0,
            provenance=collect_provenance(device_name(self._plan.device)),
        )
        self._folder.finish_run(record)

    def _score(self, stage: Stage, task: PreparedTask) -> None:
        run = self._folder.finished_run(stage.run) if stage.run is not None else None
        if run is not None and run.status == "diverged":
            return
        evaluation = self._plan.record.config.evaluation
        known = self._known(stage, task)
        scoring = evaluate(
            self._model_of(stage),
            self._plan.tokenizer,
            task,
            model_name=stage.model,
            fingerprint=self._plan.scoring_fingerprint(stage.fingerprint, task),
            metric=evaluation.metric.get(task.name),
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
            score_seconds=earlier.score_seconds,
        )

    def _model_of(self, stage: Stage) -> nn.Module:
        """The base, the base with a run's adapter, or a run's checkpoint, read from disk."""
        if self._scored is None or self._scored_name != stage.model:
            self.release()
            if stage.run is None:
                self._scored = self._base_model()
            else:
                weights = self._folder.weights_folder(stage.run)
                if stage.run.method == "lora":
                    self._scored = adapters.load_adapter(self._base_model(), weights)
                else:
                    plan = self._plan
                    self._scored = models.load_frozen(weights, plan.record.precision, plan.device)
            self._scored_name = stage.model
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
