"""Does the training stages of a study: passes over the base, full fine-tunings, imports."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from rankwise.engine.models import peft_adapters as adapters
from rankwise.engine.models.devices import provenance_on
from rankwise.engine.models.files import not_finite, weights_files
from rankwise.engine.models.loading import answers_finitely, load_frozen
from rankwise.engine.models.peft_adapters import variant_on
from rankwise.engine.models.placed import layer_devices
from rankwise.engine.models.start import fetch_weights
from rankwise.engine.models.structure import adaptable_shapes, target_shapes
from rankwise.engine.models.trained_adapters import AdapterBank, adapted
from rankwise.engine.models.variants import VARIANTS, Initialisation, VariantSetting
from rankwise.engine.training import loop as training
from rankwise.engine.training.loop import TrainingResult
from rankwise.engine.training.micro_batches import base_readings, training_lanes
from rankwise.engine.training.states import StateWriter
from rankwise.engine.training.trainees import (
    AdapterTrainee,
    FullTrainee,
    StepMetrics,
    Trainee,
    VariantTrainee,
    effective_batches,
    lora_adapter,
)
from rankwise.errors import DivergedError, ModelError, RecordError
from rankwise.records.axes import SETTING
from rankwise.records.fields import seconds_of
from rankwise.records.files import require_room, writing
from rankwise.records.grouping import grouped
from rankwise.records.study import PlannedPass, PlannedRun, RunRecord, is_rslora
from rankwise.study.context import StudyContext
from rankwise.study.observer import TrainingStep
from rankwise.study.planning.imports import import_adapter, weights_bytes
from rankwise.study.planning.passes import shares_a_pass
from rankwise.study.quarantine import set_aside
from rankwise.study.times import TRAINING_WORK
from rankwise.study.work.derived import rows_beside
from rankwise.tasks.training_rows import Example

# An imported model reads so many of a text that is trained on before it is believed.
_PROBE_TOKENS = 256
# On which what PEFT loads is compared with what is trained.
_FEW_TOKENS = 16


Trainings = Mapping[PlannedRun, Sequence[PlannedRun]]
"""Whole trainings -> the runs and checkpoints that come from each."""

Save = Callable[[Trainee, PlannedRun], dict[str, Any]]
"""Writes a trainee's weights as those of a run or a checkpoint of it; what ``RunRecord`` says of
them."""


def train(
    context: StudyContext, planned_pass: PlannedPass | None, runs: Sequence[PlannedRun]
) -> None:
    """Train some runs of a pass, each from where it was last saved, or import models.

    Each run's record is written as soon as the run is done.

    Raises:
        ModelError: weights cannot be read.
        StorageError: the folder cannot be written.
    """
    if planned_pass is None:
        for run in runs:
            _import(context, run)
        return
    by_name = grouped((run.training.name, run) for run in runs)
    trainings = {models_of[0].whole: models_of for models_of in by_name.values()}
    if runs[0].method == "full":
        _train_full(context, trainings, planned_pass)
    elif shares_a_pass(runs[0]):
        _train_adapters(context, trainings, planned_pass)
    else:
        _train_variant(context, trainings, planned_pass)


def _import(context: StudyContext, run: PlannedRun) -> None:
    """An imported model is there already; an adapter is copied into the study.

    One whose weights or answers are not finite diverged where it was trained: it is not scored.
    """
    assert run.imported is not None
    folder = context.folder
    folder.start_run(run)
    weights = folder.weights_folder(run)
    if run.method == "lora":
        size, is_zero = import_adapter(run.imported.folder, weights)
    else:
        size, is_zero = weights_bytes(weights), False
    measured: dict[str, Any] = {"weights_bytes": size, "update_is_zero": is_zero}
    source, bad = run.imported.folder, not_finite(weights_files(weights))
    if bad is not None:
        message = f"{bad} in {source} holds NaN or infinite weights"
        measured = {"status": "diverged", "message": message}
    else:
        tokens = context.plan.examples_of(run)[0].tokens[:_PROBE_TOKENS]
        with context.models.reading(run) as model:
            if not answers_finitely(model, tokens):
                message = f"the weights in {source} are so large that its answers are not finite"
                measured = {"status": "diverged", "message": message}
    _finish(context, run, **measured)


def _train_adapters(context: StudyContext, trainings: Trainings, planned: PlannedPass) -> None:
    """Train adapters on the base."""
    base = context.models.base()
    _refuse_misloaded(context, base, list(trainings))
    examples = _examples(context, trainings, base, planned.max_tokens)
    trainees, unsettled = _adapter_trainees(context, base, trainings, examples)

    def save(trainee: Trainee, run: PlannedRun) -> dict[str, Any]:
        assert isinstance(trainee, AdapterTrainee)
        assert run.alpha is not None
        size = adapters.save_adapter(
            trainee.adapter,
            context.folder.weights_folder(run),
            alpha=run.alpha,
            use_rslora=is_rslora(run),
            target_modules=run.target_modules,
            base_model_name=context.plan.base.recorded_name,
        )
        return {
            "weights_bytes": size,
            "update_is_zero": trainee.adapter.is_zero_update,
            "unsettled_share": unsettled.get(trainee.run.name),
        }

    layers = dict.fromkeys(name for trainee in trainees for name in trainee.adapter.factors)
    with adapted(base, list(layers)) as bank:
        _Pass(context, trainees, trainings, save).train(base, planned, bank)


def _adapter_trainees(
    context: StudyContext,
    base: nn.Module,
    trainings: Trainings,
    examples: Mapping[PlannedRun, Sequence[Example]],
) -> tuple[list[AdapterTrainee], dict[str, float | None]]:
    """The adapters of a pass as they begin, and ``unsettled_share`` by the name of the run.

    What variants begin at is found once for those that differ by their rate alone, which follow
    each other in a pass. It is released here, before anything is trained: OLoRA's factors are views
    of whole matrices.
    """
    plan, config = context.plan, context.study.config
    shapes = adaptable_shapes(base)
    devices = layer_devices(base, shapes)
    trainees: list[AdapterTrainee] = []
    unsettled: dict[str, float | None] = {}
    fields = {"variant", "train_task", "seed", *SETTING} - {"learning_rate"}
    last: tuple[dict[str, Any], Initialisation] | None = None
    for run, models_of in trainings.items():
        adapter = lora_adapter(shapes, run, config, plan.device, plan.record.precision, devices)
        variant = None if run.variant is None else VARIANTS[run.variant]
        if variant is not None and variant.initialise is not None:
            settings = run.model_dump(include=fields)
            if last is None or last[0] != settings:
                last = settings, variant.initialise(base, adapter, _first_epoch(context, run))
            initial = last[1]
            adapter.start_from(initial.factors, is_in_base=variant.is_in_base)
            unsettled[run.name] = initial.unsettled_share
        trainees.append(
            AdapterTrainee(
                run,
                examples[run],
                config.train,
                adapter,
                [model.num_steps for model in models_of],
                rows_beside(context, run),
                None if variant is None else variant.optimizer,
            )
        )
    return trainees, unsettled


def _refuse_misloaded(context: StudyContext, base: nn.Module, runs: Sequence[PlannedRun]) -> None:
    """Refuse targets of which PEFT would load something else than is trained, each set once."""
    shapes = adaptable_shapes(base)
    for run in {(run.target_modules, is_rslora(run)): run for run in runs}.values():
        bad = adapters.misloaded(
            base,
            target_shapes(shapes, run.target_modules),
            run.target_modules,
            use_rslora=is_rslora(run),
            tokens=context.plan.examples_of(run)[0].tokens[:_FEW_TOKENS],
        )
        if bad:
            raise ModelError(
                f"PEFT would load something else for {bad[0]} than is trained and saved by "
                f"target_modules {', '.join(run.target_modules)}. Choose other ones."
            )


def _examples(
    context: StudyContext,
    runs: Iterable[PlannedRun],
    base: nn.Module,
    max_tokens: int,
    *,
    autocast: bool = False,
) -> dict[PlannedRun, Sequence[Example]]:
    """What each run is trained on; pairs of answers with what the base says of them.

    ``base`` is without any adapter or training: a saved state is not loaded yet.
    """
    of_runs: dict[PlannedRun, Sequence[Example]] = {
        run: context.plan.examples_of(run) for run in runs
    }
    if context.study.config.train.dpo is None:
        return of_runs
    pairs = itertools.chain(*of_runs.values())
    read = base_readings(base, pairs, max_tokens=max_tokens, autocast=autocast)
    return {run: [read[pair] for pair in own] for run, own in of_runs.items()}


def _first_epoch(context: StudyContext, run: PlannedRun) -> list[Example]:
    """What a run reads of its rows, once each, in the order in which it does."""
    examples = context.plan.examples_of(run)
    steps = effective_batches(examples, run, context.study.config.train)
    in_order = itertools.islice(itertools.chain(*steps), len(examples))
    return [sequence for example in in_order for sequence in example.sequences]


def _train_full(context: StudyContext, trainings: Trainings, planned: PlannedPass) -> None:
    """Train a copy of the base, whatever precision the base itself is held in."""
    plan, config = context.plan, context.study.config
    ((whole, models_of),) = trainings.items()
    full = whole.full
    assert full is not None
    model: Any = load_frozen(fetch_weights(plan.base), full.weights, plan.device)
    marks = [model.num_steps for model in models_of]
    autocast = context.study.precision == "bfloat16"
    examples = _examples(context, [whole], model, planned.max_tokens, autocast=autocast)[whole]
    trainee = FullTrainee(whole, examples, config.train, model, full.optimizer, marks)

    def save(_: Trainee, run: PlannedRun) -> dict[str, Any]:
        weights = context.folder.weights_folder(run)
        require_room(weights, run.weights_bytes)
        with writing(weights):
            model.save_pretrained(str(weights))
            plan.tokenizer.save_pretrained(str(weights))
        return {"weights_bytes": weights_bytes(weights), "update_is_zero": trainee.is_zero_update}

    _Pass(context, [trainee], trainings, save).train(model, planned)


def _train_variant(context: StudyContext, trainings: Trainings, planned: PlannedPass) -> None:
    """Train a variant through PEFT on the base itself, which is as it was when that is done."""
    config, base = context.study.config, context.models.base()
    ((run, models_of),) = trainings.items()
    assert run.variant is not None
    assert run.seed is not None
    setting = VariantSetting(
        run.rank or 1, run.scaling or 1.0, run.target_modules, run.seed, run.num_steps
    )
    examples = _examples(context, [run], base, planned.max_tokens)[run]
    with variant_on(base, VARIANTS[run.variant], setting) as model:
        marks = [each.num_steps for each in models_of]
        trainee = VariantTrainee(run, examples, config.train, model, marks)

        def save(_: Trainee, run: PlannedRun) -> dict[str, Any]:
            size = model.save(context.folder.weights_folder(run), context.plan.base.recorded_name)
            return {"weights_bytes": size, "update_is_zero": model.is_zero_update}

        _Pass(context, [trainee], trainings, save).train(base, planned)


class _Pass:
    """Trains a pass, and writes what comes of it into the study's folder."""

    def __init__(
        self, context: StudyContext, trainees: Sequence[Trainee], trainings: Trainings, save: Save
    ) -> None:
        self._context, self._folder, self._signals = context, context.folder, context.signals
        self._trainees = trainees
        self._models = {run.name: models_of for run, models_of in trainings.items()}
        # the steps of a finished run are written down; only checkpoints on its way are missing
        self._finished = {
            run.name for run in trainings if self._folder.finished_run(run) is not None
        }
        self._tell, self._save = context.tell, save
        every = context.study.config.train.save_every
        self._save_every = None if every is None else seconds_of(every)
        self._last_save = time.monotonic()
        self.states = StateWriter()

    def train(
        self, model: nn.Module, planned: PlannedPass, bank: AdapterBank | None = None
    ) -> None:
        """Train the pass as it is planned; adapters go through a bank."""
        context, trained = self._context, self._context.study.config.train
        precision = context.study.precision
        if isinstance(self._trainees[0], VariantTrainee):
            # PEFT multiplies its float32 weights in float32, the base's in the base's precision
            precision = "float32"
        for trainee in self._trainees:
            self.resume(trainee)
        with context.signals.deferred():
            try:
                training.train_pass(
                    model,
                    self._trainees,
                    bank=bank,
                    max_tokens=planned.max_tokens,
                    precision=precision,
                    gradient_checkpointing=planned.gradient_checkpointing,
                    observer=self,
                    max_lanes=training_lanes(trained, context.plan.device),
                )
            finally:
                self.states.finish()  # however the pass ended

    def resume(self, trainee: Trainee) -> None:
        """Go on where the training was saved last, or begin.

        A saved state that is damaged is set aside: the training begins anew, and so it does for a
        checkpoint that the saved state has gone past.
        """
        run = trainee.run
        if run.name in self._finished:
            return
        self._folder.start_run(run)
        state = self._folder.training_state_file(run)
        if state.exists():
            try:
                trainee.load_state(state, until=trainee.marks[0])
            except RecordError as error:
                place = set_aside(self._folder, [state], str(error))
                self._tell.noted(f"{error} It is moved to {place}, and {run.name} starts again.")
        for metrics in trainee.metrics:
            self._folder.append_metrics(run.name, metrics.model_dump())
        if trainee.metrics:
            self._tell.skipped(_work(trainee, trainee.metrics[-1].num_tokens))

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None:
        if trainee.run.name not in self._finished:
            self._folder.append_metrics(trainee.run.name, metrics.model_dump())
        before = trainee.metrics[-2].num_tokens if len(trainee.metrics) > 1 else 0
        self._tell.advanced(_work(trainee, metrics.num_tokens - before))
        self._tell.stepped(
            TrainingStep(
                run=trainee.run.name,
                step=metrics.step,
                num_steps=len(trainee.batches),
                num_tokens=metrics.num_tokens,
                loss_nats=metrics.loss_nats,
                learning_rate=metrics.learning_rate,
            )
        )
        stops, saves = self._signals.is_pending, self._save_every
        if saves is not None and (stops or time.monotonic() - self._last_save >= saves):
            # all have taken the step; weights of those at their end are saved after this, if at all
            for each in self._trainees:
                if each.step and (stops or not each.is_finished):
                    self._save_state(each)
            if self._context.state_saved is not None:
                self.states.finish()
                for each in self._trainees:
                    self._context.state_saved(self._folder.training_state_file(each.run))
            self._last_save = time.monotonic()
        if stops:
            self.states.finish()
            self._signals.stop_if_asked()

    def _save_state(self, trainee: Trainee) -> None:
        if trainee.run.name in self._finished:
            return
        path = self._folder.training_state_file(trainee.run)
        require_room(path, trainee.run.state_bytes)
        trainee.save_state(path, self.states.write)

    def reached(self, trainee: Trainee, result: TrainingResult) -> None:
        """Save the weights; of a training that is to go on later, its state first."""
        if trainee.step < len(trainee.batches):
            self._save_state(trainee)
        self.states.finish()  # the record of a run takes its state away
        for model in self._models[trainee.run.name]:
            if model.num_steps == trainee.step:
                if model.is_part:
                    self._folder.start_run(model)
                    for metrics in trainee.metrics:
                        self._folder.append_metrics(model.name, metrics.model_dump())
                _finish(self._context, model, **self._save(trainee, model), **result._asdict())
        if trainee.is_finished:
            self._finished.add(trainee.run.name)

    def diverged(self, trainee: Trainee, error: DivergedError) -> None:
        self._finished.add(trainee.run.name)
        planned = max(model.num_tokens for model in self._models[trainee.run.name])
        num_read = trainee.metrics[-1].num_tokens if trainee.metrics else 0
        self._tell.skipped(_work(trainee, planned - num_read))
        self.states.finish()
        for model in self._models[trainee.run.name]:
            if model.num_steps > trainee.step:
                _finish(
                    self._context,
                    model,
                    status="diverged",
                    message=str(error),
                    num_steps=trainee.step,
                    train_seconds=trainee.seconds,
                )

    def shrunk(self, max_tokens: int) -> None:
        self._tell.noted(
            f"memory ran out: going on for now with micro-batches of {max_tokens} tokens at most"
        )


def _work(trainee: Trainee, num_tokens: int) -> float:
    return num_tokens * TRAINING_WORK[trainee.run.method]


def _finish(context: StudyContext, run: PlannedRun, **measured: Any) -> None:
    """Write the record of a run: its weights, if it has any, are there."""
    cut = sum(example.is_truncated for example in context.plan.examples_of(run))
    made_by = provenance_on(context.plan.device)
    context.folder.finish_run(RunRecord.of(run, made_by, num_truncated=cut, **measured))
