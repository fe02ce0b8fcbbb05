"""What fits into memory: how full fine-tuning is kept, and what to change where a run does not.

Where a frozen base does not fit, it is dealt out over several devices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from rankwise.engine.models.devices import DTYPES, Machine
from rankwise.engine.models.streamed import placement, room_for_weights
from rankwise.engine.models.variants import VARIANTS
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
from rankwise.study.planning.mitigations import has_own_texts
from rankwise.study.planning.model import StudyModel
from rankwise.study.planning.passes import least_bytes, shares_a_pass, size_of, usable

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


class Room:
    """Where the adapters of a study have room: on one device, or on all of them together.

    Attributes:
        memory: of passes over a base that is whole.
        dealt_out: of passes over a base that all devices hold together.
        num_devices: that can do so; 1: it cannot be dealt out.
        available: bytes of a device.
    """

    def __init__(self, config: StudyConfig, memory: PassMemory, machine: Machine) -> None:
        self._train, self.memory = config.train, memory
        # a quantised base lies in bytes that are no weights
        can_be_dealt_out = config.train.base_precision == "auto" and can_shard()
        self.num_devices = machine.num_devices if can_be_dealt_out else 1
        self.dealt_out = memory.changed(num_base_devices=self.num_devices)
        self.available = machine.available_bytes()

    @property
    def limit(self) -> int:
        """The bytes of a device that are planned for."""
        return usable(self.available)

    @property
    def scoring_devices(self) -> int:
        """Over how many devices the base is dealt out where it is scored."""
        return 1 if self.memory.base_bytes <= self.limit else self.num_devices

    def devices_of(self, run: PlannedRun) -> int:
        """Over how many devices the base of a run is dealt out: over all, where that makes it fit.

        What fits on one device stays there.
        """
        if self.num_devices == 1 or run.method == "full" or needs_whole_base(run) is not None:
            return 1
        if least_bytes(self.memory, self._train, size_of(run)) <= self.limit:
            return 1
        dealt_out = least_bytes(self.dealt_out, self._train, size_of(run))
        return self.num_devices if dealt_out <= self.limit else 1

    def least(self, run: PlannedRun) -> int:
        """The peak of a device that trains a run alone in the smallest way."""
        memory = self.memory if self.devices_of(run) == 1 else self.dealt_out
        return least_bytes(memory, self._train, None if run.method == "full" else size_of(run))

    def besides(self, run: PlannedRun) -> str:
        """What several devices would change for a run that fits in no way, in brackets."""
        if self.num_devices == 1 or run.method == "full":
            return ""
        if reason := needs_whole_base(run):
            return f" (the base is not dealt out over {self.num_devices} devices: {reason})"
        peak = least_bytes(self.dealt_out, self._train, size_of(run))
        return f" ({in_words(peak)} on each of {self.num_devices} devices together)"


def needs_whole_base(run: PlannedRun) -> str | None:
    """Why an adapter cannot be trained on a base that is dealt out; None where it can."""
    variant, arm = None if run.variant is None else VARIANTS[run.variant], run.mitigation
    if not shares_a_pass(run):
        return f"PEFT trains {run.variant} on the whole base"
    if variant is not None and variant.initialise is not None:
        return f"{run.variant} begins at what the whole base has"
    if arm is not None and (has_own_texts(arm)):
        return "the arm reads texts that the whole base wrote"
    return None


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


def check_whole_base(config: StudyConfig, room: Room, issues: Issues) -> None:
    """Whether a study whose base is dealt out asks for what needs the whole base on one device."""
    if room.scoring_devices == 1:
        return
    asked = {
        "methods.full=null": config.methods.full is not None,
        "methods.imported=[]": bool(config.methods.imported),
        "analysis.gauges=false": config.analysis.gauges,
        "analysis.heads=false": config.analysis.heads,
        "deploy=[]": bool(config.deploy),
        "evaluation.engine.generate_until=resident": (
            config.evaluation.engine.generate_until == "vllm"
        ),
    }
    unset = [setting for setting, is_asked in asked.items() if is_asked]
    text = (
        f"base_model: its weights take {in_words(room.memory.base_bytes)} and "
        f"{in_words(room.limit)} of a device are planned for. {room.num_devices} devices hold them "
        "together for LoRA and its scores"
    )
    if not unset:
        issues.warnings.append(text)
        return
    quantised = room.memory.changed(base_precision="4bit").base_bytes
    smaller = f", or train.base_precision=4bit ({in_words(quantised)})"
    issues.problems.append(
        f"{text}, and nothing else; set {', '.join(unset)}"
        f"{smaller if quantised <= room.limit else ''}"
    )


def most_weights_bytes(
    model: StudyModel,
    config: StudyConfig,
    scoring_devices: int,
    runs: Sequence[PlannedRun],
    issues: Issues,
    folder: StudyFolder | None,
) -> int | None:
    """Bytes of weights in memory at once while a model is scored; None: models are held whole.

    They are where they fit, where LoRA is still to be trained on the base in memory, where several
    devices hold the base together, and where nothing but a quantised base is scored.

    Args:
        model: the base of the study.
        config: of the study.
        scoring_devices: that hold the base together where it is scored.
        runs: of the study, imported ones too.
        issues: gets a warning that says what is read layer by layer, or that not even that fits.
        folder: of the study; what is trained there needs no base.
    """
    available, dtype = model.machine.available_bytes(), DTYPES[model.precision]
    num_bytes = model.num_parameters * dtype.itemsize
    most_bytes = room_for_weights(num_bytes, available)
    if config.train.base_precision == "auto":
        is_whole = any(_trains_on_base(run, folder) for run in runs)
    else:
        is_whole = all(run.method == "lora" for run in runs)
    if most_bytes is None or is_whole or scoring_devices > 1:
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


def with_whole_base(study: StudyRecord, folder: StudyFolder) -> StudyRecord:
    """The study as it is where adapters turn out to be trained anew: models are held whole."""
    if any(_trains_on_base(run, folder) for run in study.models):
        return study.model_copy(update={"most_weights_bytes": None})
    return study


def _trains_on_base(run: PlannedRun, folder: StudyFolder | None) -> bool:
    is_trained_here = run.method == "lora" and run.imported_from is None
    return is_trained_here and not _is_trained(run, folder)


def check_memory(
    runs: Sequence[PlannedRun],
    config: StudyConfig,
    room: Room,
    issues: Issues,
    folder: StudyFolder | None = None,
) -> None:
    """Whether every run can be trained, at least alone and in the smallest way.

    What takes more than there is is a problem, what takes more than is planned for a warning.

    Args:
        runs: that the study trains.
        config: of the study; names what full fine-tuning takes.
        room: that they have.
        issues: gets one entry for each method.
        folder: of the study; what is trained there already takes nothing.
    """
    peaks: dict[str, list[tuple[int, PlannedRun]]] = {}
    for run in runs:
        peak = room.least(run)
        if peak > room.limit and not _is_trained(run, folder):
            peaks.setdefault(run.method, []).append((peak, run))
    for method, too_large in peaks.items():
        peak, run = max(too_large, key=lambda each: each[0])
        more = len(too_large) - 1
        text = (
            f"methods.{method}: training {run.name}{f' (or {more} more)' if more else ''} takes "
            f"{in_words(peak)} at least{room.besides(run)} and there are "
            f"{in_words(room.available)}, of which {in_words(room.limit)} are planned for; "
            + _remedy(run, config, room.memory, room.limit)
        )
        (issues.problems if peak > room.available else issues.warnings).append(text)


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
