"""What fits into memory: how full fine-tuning is kept, and what to change where a run does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from rankwise.engine.models.devices import DTYPES, Machine
from rankwise.engine.models.streamed import placement, room_for_weights
from rankwise.engine.training.memory import PassMemory
from rankwise.engine.training.optimizers import has_8bit_adamw
from rankwise.engine.training.sharded import can_shard
from rankwise.errors import ModelError, RecordError
from rankwise.records.config.methods import FullConfig
from rankwise.records.config.study import StudyConfig
from rankwise.records.config.training import BasePrecision
from rankwise.records.files import in_words
from rankwise.records.folder import StudyFolder
from rankwise.records.study import FullTraining, PlannedRun, StudyRecord
from rankwise.study.planning.issues import Issues
from rankwise.study.planning.model import StudyModel
from rankwise.study.planning.passes import least_bytes, size_of, usable

FULL_TRAININGS = (
    FullTraining(weights="float32", optimizer="adamw"),
    FullTraining(weights="bfloat16", optimizer="adamw"),
    FullTraining(weights="bfloat16", optimizer="adamw_8bit"),
)
"""From the most exact to the smallest."""

_QUANTISED: tuple[BasePrecision, ...] = ("8bit", "4bit")


def full_training(
    config: StudyConfig, memory: PassMemory, machine: Machine, earlier: FullTraining | None
) -> FullTraining | None:
    """What full fine-tuning takes: what the study took before, else the most exact that fits.

    What the study file names is kept. Where nothing fits it is the smallest. None: the study has
    no full fine-tuning.

    Args:
        config: of the study.
        memory: of its passes, however full fine-tuning is kept in it.
        machine: that trains.
        earlier: what the study took when it was planned before.
    """
    full = config.methods.full
    if full is None:
        return None
    named = {key: value for key, value in full.model_dump().items() if value != "auto"}
    if earlier is not None and earlier == earlier.model_copy(update=named):
        return earlier
    *larger, smallest = (choice.model_copy(update=named) for choice in FULL_TRAININGS)
    limit = usable(machine.available_bytes())
    for choice in dict.fromkeys(larger):
        if least_bytes(memory.changed(full=choice), config.train, None) <= limit:
            return choice
        if full_devices(config, memory.changed(full=choice), machine) > 1:
            return choice
    if full.optimizer == "auto" and not has_8bit_adamw(machine.device):
        return larger[-1]
    return smallest


def full_devices(config: StudyConfig, memory: PassMemory, machine: Machine) -> int:
    """Over how many devices full fine-tuning is dealt out: over all, where that makes it fit.

    Only what is kept as exactly as can be is dealt out. What fits on one device stays there.
    """
    count, limit = machine.num_devices, usable(machine.available_bytes())
    if count == 1 or memory.full != FULL_TRAININGS[0] or not can_shard():
        return 1
    if least_bytes(memory, config.train, None) <= limit:
        return 1
    dealt_out = memory.changed(num_devices=count)
    return count if least_bytes(dealt_out, config.train, None) <= limit else 1


def with_full(config: StudyConfig, full: FullTraining) -> StudyConfig:
    """The config that names this for full fine-tuning."""
    named = FullConfig.model_validate(full.model_dump())
    methods = config.methods.model_copy(update={"full": named})
    return config.model_copy(update={"methods": methods})


def earlier_full(folder: StudyFolder | None, base_model: str) -> FullTraining | None:
    """What the study in a folder took for full fine-tuning, if it is on this base.

    Where the study's record is damaged, what a finished run of it took. ``base_model`` is the
    base's fingerprint.
    """
    if folder is None:
        return None
    try:
        earlier = folder.read_if_there(folder.study_file, StudyRecord)
    except RecordError:
        return next((run.planned.full for run in folder.readable_runs() if run.planned.full), None)
    if earlier is None or earlier.base_model_fingerprint != base_model:
        return None
    full = earlier.config.methods.full
    return None if full is None else FullTraining.model_validate(full.model_dump())


def most_weights_bytes(
    model: StudyModel,
    config: StudyConfig,
    trained_here: Iterable[PlannedRun],
    issues: Issues,
    folder: StudyFolder | None,
) -> int | None:
    """Bytes of weights in memory at once while a model is scored; None: models are held whole.

    They are where they fit, and where LoRA is still to be trained on the base in memory.

    Args:
        model: the base of the study.
        config: of the study.
        trained_here: the runs that are trained in the process that scores.
        issues: gets a warning that says what is read layer by layer, or that not even that fits.
        folder: of the study; what is trained there needs no base.
    """
    available, dtype = model.machine.available_bytes(), DTYPES[model.precision]
    num_bytes = model.num_parameters * dtype.itemsize
    most_bytes = room_for_weights(num_bytes, available)
    needs_base = config.train.base_precision == "auto" and any(
        run.method == "lora" and not _is_trained(run, folder) for run in trained_here
    )
    if most_bytes is None or needs_base:
        return None
    what = f"scoring: models take {in_words(num_bytes)} and there are {in_words(available)}"
    try:
        placed = placement(model.skeleton, dtype, model.machine.device, most_bytes)
    except ModelError as error:
        issues.warnings.append(f"{what}: {str(error).rstrip('.')}")
        return None
    issues.warnings.append(
        f"{what}: {placed.num_read} of {placed.num_layers} layers are read from their files in "
        f"every forward pass, {in_words(placed.read_bytes)}. That is slow for texts, which take a "
        "pass for each token"
    )
    return most_bytes


def check_memory(
    runs: Sequence[PlannedRun],
    config: StudyConfig,
    memory: PassMemory,
    machine: Machine,
    issues: Issues,
    folder: StudyFolder | None = None,
) -> None:
    """Whether every run can be trained, at least alone and in the smallest way.

    What takes more than there is is a problem, what takes more than is planned for a warning.

    Args:
        runs: that the study trains.
        config: of the study; names what full fine-tuning takes.
        memory: of its passes.
        machine: that trains.
        issues: gets one entry for each method.
        folder: of the study; what is trained there already takes nothing.
    """
    available = machine.available_bytes()
    peaks: dict[str, list[tuple[int, PlannedRun]]] = {}
    for run in runs:
        size = None if run.method == "full" else size_of(run)
        peak = least_bytes(memory, config.train, size)
        if peak > usable(available) and not _is_trained(run, folder):
            peaks.setdefault(run.method, []).append((peak, run))
    for method, too_large in peaks.items():
        peak, run = max(too_large, key=lambda each: each[0])
        more = len(too_large) - 1
        text = (
            f"methods.{method}: training {run.name}{f' (or {more} more)' if more else ''} takes "
            f"{in_words(peak)} at least and there are {in_words(available)}, of which "
            f"{in_words(usable(available))} are planned for; "
            + _remedy(run, config, memory, usable(available))
        )
        (issues.problems if peak > available else issues.warnings).append(text)


def _is_trained(run: PlannedRun, folder: StudyFolder | None) -> bool:
    """Whether its training is done in a folder; a damaged record says nothing."""
    with contextlib.suppress(RecordError):
        return folder is not None and folder.is_trained(run)
    return False


def _remedy(run: PlannedRun, config: StudyConfig, memory: PassMemory, limit: int) -> str:
    """The first setting under which a run would fit, or what else to do."""
    size, train = None if run.method == "full" else size_of(run), config.train
    free = {"max_micro_batch_tokens": None, "gradient_checkpointing": None}
    if least_bytes(memory, train.model_copy(update=free), size) <= limit:
        return "set train.max_micro_batch_tokens and train.gradient_checkpointing to null"
    if size is None:
        for full in FULL_TRAININGS:
            peak = least_bytes(memory.changed(full=full), train, None)
            if peak <= limit:
                extra = "" if full.optimizer == "adamw" else " (pip install 'rankwise[torchao]')"
                return (
                    f"methods.full={{weights: {full.weights}, optimizer: {full.optimizer}}}{extra} "
                    f"takes {in_words(peak)}"
                )
        return "leave full fine-tuning out with methods.full=null, or lower train.max_length"
    for precision in _QUANTISED:
        peak = least_bytes(memory.changed(base_precision=precision), train, size)
        if peak <= limit:
            return f"train.base_precision={precision} takes {in_words(peak)}"
    return "lower the ranks or train.max_length"
