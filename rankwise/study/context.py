"""What the stages of one study work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rankwise.engine.models.devices import PeakMemory
from rankwise.records.folder import StudyFolder
from rankwise.records.study import StudyRecord
from rankwise.study.models import ResidentModels
from rankwise.study.observer import Observer, Teller
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.stopping import StopSignals

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
    ) -> StudyContext:
        """A context with no model in memory yet."""
        tell = Teller(observer, PeakMemory(plan.device).so_far)
        models = ResidentModels(plan, folder, tell)
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

    def forget(self) -> None:
        """Let go of what stages have kept."""
        self._kept.clear()

    @property
    def study(self) -> StudyRecord:
        """The plan's record."""
        return self.plan.record
