"""What the stages of one study work with: its base model and adapters, loaded once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from rankwise.engine.models import peft_adapters as adapters
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.devices import DTYPES, PeakMemory, give_back_memory
from rankwise.engine.models.frozen_adapters import (
    FrozenAdapter,
    load_frozen_adapter,
    wearing,
)
from rankwise.engine.models.lanes import lanes_of
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.placed import load_over_cards
from rankwise.engine.models.start import fetch_weights
from rankwise.engine.models.variants import shares_a_pass
from rankwise.errors import ModelError
from rankwise.records.config.training import BasePrecision
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun, StageRecord, StudyRecord
from rankwise.study.observer import Observer, Teller
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.stopping import StopSignals
from rankwise.weights.session import ScoringSession


@dataclass
class _Alone:
    """A run's model that is loaded by itself."""

    name: str
    model: nn.Module
    session: ScoringSession | None = None


class ResidentModels:
    """Loads models when they are asked for, and lets go of one before it loads another.

    The base stays; adapters are put on it. A full fine-tuning, or an adapter that only PEFT can
    apply, is a model by itself.
    """

    def __init__(self, plan: StudyPlan, folder: StudyFolder, tell: Teller) -> None:
        self._plan, self._folder, self._tell = plan, folder, tell
        self._base: nn.Module | None = None
        self._session: ScoringSession | None = None  # of the base; has the adapters that are on it
        self._alone: _Alone | None = None
        self._adapter: tuple[str, FrozenAdapter] | None = None  # of ``adapted``, read once
        self._noted: set[str] = set()

    def follow(self, plan: StudyPlan) -> None:
        """Go on under another plan of the study; what is in memory stays there.

        All is let go of where models are held in another way from now on.
        """
        if self._plan.cards != plan.cards:
            self.release(base=True)
        self._plan = plan

    def go_to(self, folder: StudyFolder, tell: Teller) -> None:
        """Go on with another unit, whose files are in another folder; the base stays."""
        self.release()
        self._folder, self._tell = folder, tell

    def base(self) -> nn.Module:
        """The base model, with nothing on it that PEFT has put there."""
        self._let_go_of_alone()
        if self._base is None:
            self.release()
            plan = self._plan
            # planning needed the small files only; now the weights
            base_precision = plan.record.config.train.base_precision
            self._base = self._load(fetch_weights(plan.base), base_precision)
        return self._base

    def _load(self, folder: Path, base_precision: BasePrecision = "auto") -> nn.Module:
        plan, precision = self._plan, self._plan.record.precision
        if plan.cards and base_precision == "auto":
            return load_over_cards(folder, precision, plan.cards)
        return load_frozen(folder, precision, plan.device, base_precision)

    def release(self, *, base: bool = False) -> None:
        """Give back the memory of everything but the base; ``base``: of that too."""
        self._let_go_of_alone()
        self._keep(set())
        self._session = self._adapter = None
        if base:
            self._base = None
        give_back_memory(self._plan.device)

    def session(self) -> ScoringSession:
        """What asks the base and the adapters that were put on it."""
        if self._alone is not None or self._session is None:
            self.release()
            self._session = self._open(self.base())
        return self._session

    def put_on(self, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Put the adapters of some runs on the base for scoring, and take all others off.

        Returns:
            The runs that ``session`` answers for now. Each other one needs ``session_alone``: it is
            a full fine-tuning or, as is noted once, what the scorer cannot apply.

        Raises:
            ModelError: the base cannot be scored.
        """
        self._keep({run.name for run in runs})
        together: list[PlannedRun] = []
        for run in runs:
            if not shares_a_pass(run):
                continue
            scorer = self.session().scorer
            try:
                if run.name not in scorer.attached:
                    scorer.put_on(run.name, AdapterFolder(self._folder.weights(run)))
            except ModelError as error:
                if run.name not in self._noted:
                    self._tell.noted(f"{run.name} is scored alone: {error}")
                    self._noted.add(run.name)
            else:
                together.append(run)
        return together

    def _keep(self, names: set[str]) -> None:
        """Take all other adapters off the base."""
        if self._session is not None:
            for name in sorted(self._session.scorer.attached - names):
                self._session.scorer.take_off(name)

    def session_alone(self, run: PlannedRun) -> ScoringSession:
        """What asks a run's model, which is loaded by itself."""
        model = self._load_alone(run)
        assert self._alone is not None
        if self._alone.session is None:
            self._alone.session = self._open(model)
        return self._alone.session

    @contextlib.contextmanager
    def reading(self, run: PlannedRun | None) -> Generator[nn.Module]:
        """Within the block, the base model (None) or a run's model, to be called itself."""
        if self._session is not None:
            self.release()
        if run is None:
            yield self.base().eval()
        elif run.method == "full":
            yield self._load_alone(run)
        else:
            base = self.base()
            try:
                adapter = self._frozen(run, base)
            except ModelError:
                yield self._load_alone(run)
                return
            with wearing(base, adapter):
                yield base.eval()

    def adapted(self, run: PlannedRun) -> tuple[nn.Module, FrozenAdapter | None]:
        """A run's model in two parts: the base and an adapter, or a full fine-tuning and None.

        Raises:
            ModelError: an adapter that is more than plain LoRA, weights that cannot be read, or a
                model that is too large: what looks at two parts also asks for gradients.
        """
        if self._plan.cards:
            raise ModelError(
                f"{run.name} does not fit into {self._plan.device}, and is laid over several "
                "cards: heads cannot be switched off in it. Use a device with more memory."
            )
        if run.method == "full":
            if self._alone is None or self._alone.name != run.name:
                self.release(base=True)  # one whole model at a time
            return self._load_alone(run), None
        base = self.base()
        if self._adapter is None or self._adapter[0] != run.name:
            self._adapter = run.name, self._frozen(run, base)
        return base, self._adapter[1]

    def _frozen(self, run: PlannedRun, base: nn.Module) -> FrozenAdapter:
        adapter = AdapterFolder(self._folder.weights(run))
        return load_frozen_adapter(base, adapter, DTYPES[self._plan.record.precision])

    def _load_alone(self, run: PlannedRun) -> nn.Module:
        """A run's checkpoint, or the base with its adapter put on by PEFT."""
        alone = self._alone
        if alone is None or alone.name != run.name:
            # two that are larger than a card may not fit on all cards
            self.release(base=bool(self._plan.cards) and run.method == "full")
            weights = self._folder.weights(run)
            is_full = run.method == "full"
            model = self._load(weights) if is_full else adapters.load_adapter(self.base(), weights)
            self._alone = alone = _Alone(run.name, model)
        return alone.model.eval()

    def _let_go_of_alone(self) -> None:
        alone, self._alone = self._alone, None
        if alone is not None and isinstance(alone.model, adapters.peft.PeftModel):
            alone.model.unload()  # pyright: ignore[reportCallIssue]

    def _open(self, model: nn.Module) -> ScoringSession:
        plan, lanes = self._plan, lanes_of(model)
        return ScoringSession(model, plan.tokenizer, step_tokens=plan.step_tokens, max_lanes=lanes)


F = TypeVar("F", bound=StageRecord)
T = TypeVar("T")


@dataclass(frozen=True)
class StudyContext:
    """A plan, the folder that it is written into, who is told of it, and the models in memory."""

    plan: StudyPlan
    folder: StudyFolder
    tell: Teller
    models: ResidentModels
    signals: StopSignals
    state_saved: Callable[[Path], None] | None = None
    """Called with the file of a training's state once it is on the disk, where the folder is not
    the study's own."""
    _kept: dict[Any, Any] = field(default_factory=dict[Any, Any])

    @classmethod
    def of(
        cls,
        plan: StudyPlan,
        folder: StudyFolder,
        observer: Observer,
        state_saved: Callable[[Path], None] | None = None,
        models: ResidentModels | None = None,
    ) -> StudyContext:
        """A context with no model in memory yet, or with what an earlier unit has left there."""
        tell = Teller(observer, PeakMemory(plan.device).so_far)
        if models is None:
            models = ResidentModels(plan, folder, tell)
        else:
            models.go_to(folder, tell)
        return cls(plan, folder, tell, models, StopSignals(), state_saved)

    def replanned(self, plan: StudyPlan) -> StudyContext:
        """The same under another plan of the study, which its models follow."""
        self.models.follow(plan)
        return replace(self, plan=plan, _kept={})

    def kept(self, make: Callable[[StudyContext], T]) -> T:
        """What stages of a kind keep for the next of it: made once, until ``forget``."""
        if make not in self._kept:
            self._kept[make] = make(self)
        return self._kept[make]

    def recorded(
        self,
        name: str,
        work: float,
        path: Path,
        kind: type[F],
        make: Callable[[], F],
        *fingerprints: str,
    ) -> F:
        """The record of what a verb asks for: one with a fingerprint, else made now and written."""
        self.tell.stage_started(name)
        record = self.folder.finished(path, kind, *fingerprints)
        if record is None:
            record = make()
            self.folder.write(path, record)
        else:
            self.tell.skipped(work)
        self.tell.stage_finished()
        return record

    def forget(self) -> None:
        """Let go of what stages have kept."""
        self._kept.clear()

    @property
    def study(self) -> StudyRecord:
        """The plan's record."""
        return self.plan.record
