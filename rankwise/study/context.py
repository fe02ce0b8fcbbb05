"""What the stages of one study work with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rankwise.records.folder import StudyFolder
from rankwise.records.study import StudyRecord
from rankwise.study.models import ResidentModels
from rankwise.study.observer import Observer
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.stopping import StopSignals


@dataclass(frozen=True)
class StudyContext:
    """A plan, the folder that it is written into, who follows it, and the models in memory."""

    plan: StudyPlan
    folder: StudyFolder
    observer: Observer
    models: ResidentModels
    signals: StopSignals

    @classmethod
    def of(cls, plan: StudyPlan, folder: StudyFolder, observer: Observer) -> StudyContext:
        """A context with no model in memory yet."""
        models = ResidentModels(plan, folder, observer)
        return cls(plan, folder, observer, models, StopSignals())

    def replanned(self, plan: StudyPlan) -> StudyContext:
        """The same under another plan of the study, which its models follow."""
        self.models.follow(plan)
        return replace(self, plan=plan)

    @property
    def study(self) -> StudyRecord:
        """The plan's record."""
        return self.plan.record
