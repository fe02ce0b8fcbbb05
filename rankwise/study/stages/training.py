"""Training: runs together in one pass over the base, or adapters that are truncated first.

Imported models are taken over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedPass, PlannedRun, RunRecord
from rankwise.study.stages.stage import Model, Stage, model_name
from rankwise.study.times import furthest, training_work

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext


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
        return sum(model.num_tokens for model in furthest(self.runs))

    @property
    def unit_kind(self) -> str:
        if self.planned_pass is None:
            return "imported"
        return "full" if self.runs[0].method == "full" else "pass"

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return folder.run_file(model_name(model))

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        from rankwise.study.work.training import train

        # one model at a time: full fine-tuning trains a copy of the base
        context.models.release(base=any(run.method == "full" for run in self.runs))
        runs = [model for model in models if model is not None]
        context.tell.skipped(self.work - training_work(runs))
        train(context, self.planned_pass, runs)

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """All of them: training needs no weights but the base's."""
        return tuple(models)

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
