"""Training: runs together in one pass over the base; imported models are taken over."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.errors import ModelError
from rankwise.records.axes import SETTING
from rankwise.records.config.objectives import GrpoConfig
from rankwise.records.files import require_room, writing
from rankwise.records.folder import StudyFolder
from rankwise.records.grouping import grouped
from rankwise.records.study import PlannedPass, PlannedRun, RunRecord, is_rslora
from rankwise.study.stages.own_texts import rows_beside
from rankwise.study.stages.stage import Model, Stage, model_name
from rankwise.study.stages.training_pass import TrainingPass, Trainings, finish_run
from rankwise.study.times import furthest, training_work

if TYPE_CHECKING:
    from torch import nn

    from rankwise.engine.models.trained_adapters import Adapter
    from rankwise.engine.models.variants import Initialisation
    from rankwise.engine.training.trainees import AdapterTrainee, Trainee
    from rankwise.engine.writing import Writer
    from rankwise.study.context import StudyContext
    from rankwise.tasks.training_rows import Example

# An imported model reads so many of a text that is trained on before it is believed.
_PROBE_TOKENS = 256
# On which what PEFT loads is compared with what is trained.
_FEW_TOKENS = 16


@dataclass(frozen=True)
class Train(Stage):
    """Train runs together in one pass over the base, or take over imported models."""

    planned_pass: PlannedPass | None
    """How the pass is cut to fit into memory; None for imported models."""
    saves_states: bool
    """Whether states from which it can be resumed are saved as time goes by."""

    kind = "training"
    record = RunRecord
    is_of_pass = True

    @property
    def num_tokens(self) -> int:
        return sum(model.num_read_tokens for model in furthest(self.runs))

    @property
    def unit_kind(self) -> str:
        if self.planned_pass is None:
            return "imported"
        return "full" if self.runs[0].method == "full" else "pass"

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return folder.run_file(model_name(model))

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        # one model at a time: full fine-tuning trains a copy of the base
        context.models.release(base=any(run.method == "full" for run in self.runs))
        runs = [model for model in models if model is not None]
        context.tell.skipped(self.work - training_work(runs))
        train(context, self.planned_pass, runs)

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """Those that begin at the base's weights, or at those of a run that is finished."""
        return tuple(
            model
            for model in models
            if model is None or model.after is None or folder.start_of(model) is not None
        )

    def work_of(self, models: Sequence[Model]) -> float:
        return training_work([model for model in models if model is not None])

    def seconds(self, folder: StudyFolder) -> float | None:
        records = [folder.finished_run(run) for run in furthest(self.runs)]
        trained = [each for each in records if each is not None and each.status == "trained"]
        is_whole = len(trained) == len(records)
        return sum(each.train_seconds for each in trained) or None if is_whole else None

    def _is_done(self, folder: StudyFolder, model: Model) -> bool:
        assert model is not None
        return folder.is_trained(model)


def train(
    context: StudyContext, planned_pass: PlannedPass | None, runs: Sequence[PlannedRun]
) -> None:
    """Train some runs of a pass, each from where it was last saved, or import models.

    Each run's record is written as soon as the run is done.

    Raises:
        ModelError: weights cannot be read.
        StorageError: the folder cannot be written.
    """
    from rankwise.engine.models.variants import shares_a_pass

    if planned_pass is None:
        for run in runs:
            _import(context, run)
        return
    by_name = grouped(
        (run.training.name, run) for run in runs if not _ends_with_its_start(context, run)
    )
    if not by_name:
        return
    trainings = {models_of[0].whole: models_of for models_of in by_name.values()}
    if runs[0].method == "full":
        _train_full(context, trainings, planned_pass)
    elif shares_a_pass(runs[0]):
        _train_adapters(context, trainings, planned_pass)
    else:
        _train_variant(context, trainings, planned_pass)


def _ends_with_its_start(context: StudyContext, run: PlannedRun) -> bool:
    """Whether the run that it goes on from diverged: then it has diverged too, and says so."""
    start = context.folder.start_of(run)
    if start is None or start.status != "diverged":
        return False
    context.folder.start_run(run)
    message = f"it goes on from {start.planned.name}, which diverged"
    finish_run(context, run, status="diverged", message=message)
    context.tell.skipped(training_work([run]))
    return True


def _import(context: StudyContext, run: PlannedRun) -> None:
    """An imported model is there already; an adapter is copied into the study.

    One whose weights or answers are not finite diverged where it was trained: it is not scored.

    Raises:
        ModelError: the model is gone or cannot be read.
        StorageError: the folder cannot be written.
    """
    from rankwise.engine.models.adapter_folder import AdapterFolder
    from rankwise.engine.models.files import not_finite, weights_bytes, weights_files
    from rankwise.engine.models.loading import answers_finitely

    assert run.imported is not None
    folder = context.folder
    folder.start_run(run)
    source, weights = run.imported.folder, folder.weights_folder(run)
    is_zero = False
    if run.method == "lora":
        files = AdapterFolder(source).files
        with writing(weights):
            weights.mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copyfile(file, weights / file.name)
        is_zero = not AdapterFolder(weights).has_update
    size, bad = weights_bytes(weights), not_finite(weights_files(weights))
    measured: dict[str, Any] = {"weights_bytes": size, "update_is_zero": is_zero}
    if bad is not None:
        message = f"{bad} in {source} holds NaN or infinite weights"
        measured = {"status": "diverged", "message": message}
    else:
        tokens = context.plan.examples_of(run)[0].tokens[:_PROBE_TOKENS]
        with context.models.reading(run) as model:
            if not answers_finitely(model, tokens):
                message = f"the weights in {source} are so large that its answers are not finite"
                measured = {"status": "diverged", "message": message}
    finish_run(context, run, **measured)


def _train_adapters(context: StudyContext, trainings: Trainings, planned: PlannedPass) -> None:
    """Train adapters on the base."""
    from rankwise.engine.models.peft_adapters import save_adapter
    from rankwise.engine.models.trained_adapters import adapted
    from rankwise.engine.training.trainees import AdapterTrainee

    base = context.models.base()
    _refuse_misloaded(context, base, list(trainings))
    examples = _examples(context, trainings, base, planned.max_tokens)
    trainees, unsettled = _adapter_trainees(context, base, trainings, examples)

    def save(trainee: Trainee, run: PlannedRun) -> dict[str, Any]:
        assert isinstance(trainee, AdapterTrainee)
        assert run.alpha is not None
        size = save_adapter(
            trainee.adapter,
            context.folder.weights_folder(run),
            alpha=None if run.layer_ranks else run.alpha,
            use_rslora=is_rslora(run),
            target_modules=run.saved_targets,
            base_model_name=context.plan.base.recorded_name,
        )
        return {
            "weights_bytes": size,
            "update_is_zero": trainee.adapter.is_zero_update,
            "unsettled_share": unsettled.get(trainee.run.name),
        }

    layers = dict.fromkeys(name for trainee in trainees for name in trainee.adapter.factors)
    with adapted(base, list(layers)) as bank:
        training = TrainingPass(context, trainees, trainings, save)
        training.train(base, planned, bank, _writer(context, trainings, base, planned))


def _writer(
    context: StudyContext, trainings: Trainings, model: Any, planned: PlannedPass
) -> Writer | None:
    """Writes what the runs of a pass learn from; None where that is given."""
    from rankwise.engine.models.loading import load_frozen
    from rankwise.engine.models.start import fetch_weights
    from rankwise.engine.writing import Writer

    plan, config = context.plan, context.study.config
    written, (run, *_) = config.train.written, trainings
    if written is None:
        return None
    other, is_base = plan.teacher, run.method != "full"
    is_held = written.is_distilled or (isinstance(written, GrpoConfig) and written.beta > 0)
    if other is None and is_held and not is_base:
        other = plan.base
    if other is not None:
        other = load_frozen(fetch_weights(other), context.study.precision, plan.device)
    judge = None
    if isinstance(written, GrpoConfig):
        rewards, size = plan.rewards[run.train_task], written.num_generations
        judge = partial(rewards.judged, group_size=size, scale=written.scale_rewards)
    return Writer(
        model,
        plan.tokenizer,
        config.train,
        judge,
        other=other,
        is_base=is_base,
        max_tokens=planned.max_tokens,
    )


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
    from rankwise.engine.models.placed import layer_devices
    from rankwise.engine.models.structure import adaptable_shapes
    from rankwise.engine.models.variants import VARIANTS
    from rankwise.engine.training.trainees import AdapterTrainee, lora_adapter

    plan, config = context.plan, context.study.config
    shapes = adaptable_shapes(base)
    devices = layer_devices(base, shapes)
    trainees: list[AdapterTrainee] = []
    unsettled: dict[str, float | None] = {}
    fields = {"variant", "train_task", "seed", *SETTING} - {"learning_rate"}
    last: tuple[dict[str, Any], Initialisation] | None = None
    for run, models_of in trainings.items():
        adapter = lora_adapter(shapes, run, config, plan.device, plan.record.precision, devices)
        if run.after is not None:
            _go_on_from(context, run, adapter)
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


def _go_on_from(context: StudyContext, run: PlannedRun, adapter: Adapter) -> None:
    """Begin at the adapter of the task before: train that, or a new one beside it."""
    from rankwise.engine.models.adapter_folder import AdapterFolder

    start = context.folder.start_of(run)
    assert start is not None
    assert run.after is not None
    saved = AdapterFolder(context.folder.weights(start.planned)).factors
    factors = {
        name: (lora_A, lora_B * (scaling / adapter.scaling))  # an arm may have another scaling
        for name, (lora_A, lora_B, scaling) in saved.items()
    }
    if run.after.is_beside:
        adapter.start_beside(factors)
    else:
        adapter.start_from(factors)


def _refuse_misloaded(context: StudyContext, base: nn.Module, runs: Sequence[PlannedRun]) -> None:
    """Refuse targets of which PEFT would load something else than is trained, each set once."""
    from rankwise.engine.models.peft_adapters import misloaded
    from rankwise.engine.models.structure import adaptable_shapes, target_shapes

    shapes = adaptable_shapes(base)
    kinds = {(run.target_modules, run.layer_ranks, is_rslora(run)): run for run in runs}
    for run in kinds.values():
        bad = misloaded(
            base,
            target_shapes(shapes, run.saved_targets),
            run.saved_targets,
            ranks=dict(run.layer_ranks) or None,
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
    from rankwise.engine.training.micro_batches import base_readings

    of_runs: dict[PlannedRun, Sequence[Example]] = {
        run: context.plan.examples_of(run) for run in runs
    }
    if context.study.config.train.dpo is None:
        return of_runs
    pairs = itertools.chain(*of_runs.values())
    read = base_readings(base, pairs, max_tokens=max_tokens, autocast=autocast)
    return {run: [read[pair] for pair in own] for run, own in of_runs.items()}


def _first_epoch(context: StudyContext, run: PlannedRun) -> list[Example]:
    """What a run reads of its rows, once each, in the order in which it does.

    Of rows that it answers itself that is their prompts: no answer is written yet.
    """
    from rankwise.engine.training.trainees import effective_batches

    examples, train = context.plan.examples_of(run), context.study.config.train
    steps = effective_batches(examples, run, train)[:: train.num_iterations]
    in_order = itertools.islice(itertools.chain(*steps), len(examples))
    return [part._replace(asks=None) for example in in_order for part in example.sequences]


def _train_full(context: StudyContext, trainings: Trainings, planned: PlannedPass) -> None:
    """Train a copy of the base, whatever precision the base itself is held in."""
    from rankwise.engine.models.files import weights_bytes
    from rankwise.engine.models.loading import load_frozen
    from rankwise.engine.models.start import fetch_weights
    from rankwise.engine.training.trainees import FullTrainee

    plan, config = context.plan, context.study.config
    ((whole, models_of),) = trainings.items()
    full = whole.full
    assert full is not None
    start = context.folder.start_of(whole)
    begin = fetch_weights(plan.base) if start is None else context.folder.weights(start.planned)
    model: Any = load_frozen(begin, full.weights, plan.device)
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
        is_zero = start is None and trainee.is_zero_update
        return {"weights_bytes": weights_bytes(weights), "update_is_zero": is_zero}

    writer = _writer(context, trainings, model, planned)
    TrainingPass(context, [trainee], trainings, save).train(model, planned, writer=writer)


def _train_variant(context: StudyContext, trainings: Trainings, planned: PlannedPass) -> None:
    """Train a variant through PEFT on the base itself, which is as it was when that is done."""
    from rankwise.engine.models.peft_adapters import variant_on
    from rankwise.engine.models.variants import VARIANTS, VariantSetting
    from rankwise.engine.training.trainees import VariantTrainee

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

        TrainingPass(context, [trainee], trainings, save).train(base, planned)
