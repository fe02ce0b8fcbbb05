"""Truncation: trained adapters at lower ranks, which may be trained a little further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun
from rankwise.study.stages.stage import Model
from rankwise.study.stages.training import Train


@dataclass(frozen=True)
class Truncate(Train):
    """Truncate trained adapters to lower ranks, and train the new ones a little further."""

    sources: tuple[PlannedRun, ...]
    """The runs whose adapters are truncated."""

    kind = "truncation"

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """Those whose source is done; where it diverged, that is what there is to record."""
        done = {run.name for run in self.sources if folder.finished_run(run) is not None}
        return tuple(
            model
            for model in models
            if model is not None and model.of is not None and model.of.name in done
        )
