"""What fits into memory: how full fine-tuning is kept, and what to change where a run does not.

Where a frozen base does not fit on one card, its layers are laid over all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rankwise.engine.models.devices import DTYPES, Machine
from rankwise.engine.models.placed import WEIGHTS_SHARE
from rankwise.engine.models.variants import shares_a_pass
from rankwise.engine.training.memory import AdapterSize, PassMemory
from rankwise.engine.training.optimizers import has_8bit_adamw
from rankwise.errors import RecordError, to_install
from rankwise.records.config.study import StudyConfig
from rankwise.records.config.training import BasePrecision
from rankwise.records.files import in_words
from rankwise.records.folder import StudyFolder
from rankwise.records.study import FullTraining, PlannedRun, StudyRecord
from rankwise.study.planning.issues import Issues
from rankwise.study.planning.model import StudyModel
from rankwise.study.planning.passes import fits, least_bytes, size_of, usable
from rankwise.study.planning.runs import Trainable

FULL_TRAININGS = (
    FullTraining(weights="float32", optimizer="adamw"),
    FullTraining(weights="bfloat16", optimizer="adamw"),
    FullTraining(weights="bfloat16", optimizer="adamw_8bit"),
)
"""The ways to keep full fine-tuning, from the most exact to the smallest."""

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
        if fits(memory.changed(full=choice), config.train, None, limit):
            return choice
    if full.optimizer == "auto" and not has_8bit_adamw(machine.device):
        return larger[-1]
    return smallest


@dataclass(frozen=True)
class Room:
    """The room that the models of a study have."""

    config: StudyConfig
    model: StudyModel
    """The base of the study."""
    folder: StudyFolder | None
    """The study's folder; what is trained there already takes nothing."""
    memory: PassMemory
    """The memory of its passes there."""
    available: int
    """Bytes of a card."""
    cards: tuple[torch.device, ...]
    """The cards over which the layers of the base lie; one: it is whole there."""

    @classmethod
    def of(
        cls,
        base: Trainable,
        config: StudyConfig,
        folder: StudyFolder | None,
        runs: Sequence[PlannedRun],
    ) -> Room:
        """The device where the base fits there with each adapter of the study; else all cards.

        If the base does not fit on all of them either, it is the device.
        """
        machine, memory = base.model.machine, base.memory
        whole = cls(
            config, base.model, folder, memory, machine.available_bytes(), (machine.device,)
        )
        if machine.num_cards == 1 or config.train.base_precision != "auto":
            return whole  # a quantised base is on one card
        over = memory.changed(num_cards=machine.num_cards)
        laid = replace(
            whole, memory=over, available=machine.available_on_each(), cards=machine.cards
        )
        adapters = [run for run in runs if run.method == "lora" and not _is_trained(run, folder)]
        has_room = memory.base_bytes <= whole.limit and all(map(whole.fits, adapters))
        return whole if has_room or over.base_bytes > laid.limit else laid

    @property
    def limit(self) -> int:
        """The bytes of a card that are planned for."""
        return usable(self.available)

    @property
    def is_over_cards(self) -> bool:
        """Whether the layers of the base lie on several cards."""
        return len(self.cards) > 1

    def fits(self, run: PlannedRun) -> bool:
        """Whether a run can be trained, at least alone and in the smallest way."""
        return fits(self.memory, self.config.train, _adapter_of(run), self.limit)

    def check_over_cards(self, runs: Sequence[PlannedRun], issues: Issues) -> None:
        """Say that the layers of the base are laid over several cards; refuse what cannot be so."""
        if not self.is_over_cards:
            return
        text = (
            "base_model: one card has no room for it and its adapters, so its layers are split "
            f"over {len(self.cards)} cards, {in_words(self.memory.base_bytes)} of weights on the "
            "fullest. The cards compute one after the other"
        )
        by_peft = sorted({run.variant for run in runs if run.variant and not shares_a_pass(run)})
        asked = {
            "analysis.heads=false": self.config.analysis.heads,
            "deploy=[]": bool(self.config.deploy),
            f"methods.variants without {', '.join(by_peft)}": bool(by_peft),
        }
        unset = [setting for setting, is_asked in asked.items() if is_asked]
        if not unset:
            issues.warnings.append(text)
            return
        quantised = self.memory.changed(base_precision="4bit", num_cards=1).base_bytes
        smaller = f", or train.base_precision=4bit ({in_words(quantised)}, on one card)"
        issues.problems.append(
            f"{text}. Settings that need it on one card are refused: set {', '.join(unset)}"
            f"{smaller if quantised <= self.limit else ''}"
        )

    def check_scoring(self, runs: Sequence[PlannedRun], issues: Issues) -> None:
        """Warn where a model that is scored does not fit, on one card or over several.

        Training on the base in memory takes more than scoring it, and is checked by
        ``check_memory``.

        Args:
            runs: of the study, imported ones too.
            issues: gets the warning.
        """
        num_bytes = self.model.num_parameters * DTYPES[self.model.precision].itemsize
        if self.config.train.base_precision == "auto":
            is_trained_on = any(_trains_on_base(run, self.folder) for run in runs)
        else:
            is_trained_on = all(run.method == "lora" for run in runs)
        fits = num_bytes <= WEIGHTS_SHARE * self.model.machine.available_bytes()
        if not (fits or is_trained_on or self.is_over_cards):
            issues.warnings.append(
                f"scoring: a model's weights take {in_words(num_bytes)} and there are "
                f"{in_words(self.model.machine.available_bytes())}. Use a device with more memory, "
                "or several cards"
            )

    def check_memory(self, runs: Sequence[PlannedRun], issues: Issues) -> None:
        """Whether every run can be trained, at least alone and in the smallest way.

        What takes more than there is is a problem, what takes more than is planned for a warning.
        There is one entry for each method.
        """
        peaks: dict[str, list[tuple[int, PlannedRun]]] = {}
        for run in runs:
            if not (self.fits(run) or _is_trained(run, self.folder)):
                peak = least_bytes(self.memory, self.config.train, _adapter_of(run))
                peaks.setdefault(run.method, []).append((peak, run))
        for method, too_large in peaks.items():
            peak, run = max(too_large, key=lambda each: each[0])
            more = len(too_large) - 1
            is_over = self.is_over_cards and method == "lora"
            where = f" on the fullest of {len(self.cards)} cards" if is_over else ""
            text = (
                f"methods.{method}: training {run.name}{f' (or {more} more)' if more else ''} "
                f"takes {in_words(peak)} at least{where} and there are "
                f"{in_words(self.available)}, of which {in_words(self.limit)} are planned for; "
                + self._remedy(run)
            )
            (issues.problems if peak > self.available else issues.warnings).append(text)

    def _remedy(self, run: PlannedRun) -> str:
        """The first setting under which a run would fit, or what else to do."""
        memory, limit = self.memory, self.limit
        size, train = _adapter_of(run), self.config.train
        free = {"max_micro_batch_tokens": None, "gradient_checkpointing": None}
        if fits(memory, train.model_copy(update=free), size, limit):
            return "set train.max_micro_batch_tokens and train.gradient_checkpointing to null"
        if size is None:
            for full in FULL_TRAININGS:
                peak = least_bytes(memory.changed(full=full), train, None)
                if peak <= limit:
                    is_8bit = full.optimizer != "adamw"
                    needs = f" ({to_install('torchao')})" if is_8bit else ""
                    way = f"{{weights: {full.weights}, optimizer: {full.optimizer}}}"
                    return f"methods.full={way}{needs} takes {in_words(peak)}"
            return (
                "lower train.max_length, or set methods.full=null, train all weights with another "
                "trainer and import the checkpoint (methods.imported)"
            )
        for precision in _QUANTISED:
            peak = least_bytes(memory.changed(base_precision=precision, num_cards=1), train, size)
            if peak <= limit:
                return f"train.base_precision={precision} takes {in_words(peak)}"
        return "lower the ranks or train.max_length"


def _adapter_of(run: PlannedRun) -> AdapterSize | None:
    """What a run trains; None: every weight."""
    return None if run.method == "full" else size_of(run)


def earlier_full(
    folder: StudyFolder | None, earlier: StudyRecord | None, base_model: str
) -> FullTraining | None:
    """What the study in a folder took for full fine-tuning, if it is on this base.

    Where the study's record is damaged (None), what a finished run of it took. ``base_model`` is
    the base's fingerprint.
    """
    if folder is None or not folder.has(folder.study_file):
        return None
    if earlier is None:
        return next((run.planned.full for run in folder.readable_runs() if run.planned.full), None)
    full = earlier.config.methods.full
    if full is None or earlier.base_model_fingerprint != base_model:
        return None
    return FullTraining.model_validate(full.model_dump())


def _trains_on_base(run: PlannedRun, folder: StudyFolder | None) -> bool:
    is_trained_here = run.method == "lora" and run.role != "imported"
    return is_trained_here and not _is_trained(run, folder)


def _is_trained(run: PlannedRun, folder: StudyFolder | None) -> bool:
    """Whether its training is done in a folder; a damaged record says nothing."""
    with contextlib.suppress(RecordError):
        return folder is not None and folder.is_trained(run)
    return False
