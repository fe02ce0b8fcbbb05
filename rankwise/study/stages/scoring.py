"""Scoring: the base, or the runs of a pass together, on one task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.records.fingerprints import scoring_fingerprint
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.names import samples_beside
from rankwise.records.study import TaskEvaluation
from rankwise.study.stages.stage import TOKEN_BYTES, Graph, Model, Stage, Written, model_name

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext


@dataclass(frozen=True)
class Score(Stage):
    """Score the base, or the runs of a pass together, on one task."""

    task: str
    base_fingerprint: str
    """The fingerprint of the base's record on the task: the scores of runs are checked against its
    samples."""

    kind = "scoring"
    record = TaskEvaluation
    is_of_pass = True
    scores_tasks = True

    @classmethod
    def of(cls, graph: Graph, model: str, models: tuple[Model, ...], task: str) -> Score:
        """The scoring of some models, which are called ``model``, on a task."""
        study = graph.study
        num_tokens = sum(study.tokens_of(one, [task]) for one in models)
        needs = graph.trainings(models)
        return cls(
            model,
            models,
            tuple(scoring_fingerprint(study, one, task) for one in models),
            needs=(*needs, graph.base_scoring_of[task]) if needs else (),
            work=float(num_tokens),
            memory_bytes=study.weights_bytes,
            disk_bytes=round(TOKEN_BYTES * num_tokens),
            task=task,
            base_fingerprint=scoring_fingerprint(study, None, task),
        )

    @classmethod
    def written(cls, folder: StudyFolder, model: str) -> Iterator[Written]:
        for path in sorted((folder.model_folder(model) / "eval").glob("*.json")):
            spoils = path, samples_beside(path)
            yield Written(path, TaskEvaluation, f"scoring {model} on {path.stem}", spoils)

    @property
    def name(self) -> str:
        return self.task

    @property
    def unit_kind(self) -> str:
        return "base"

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return folder.evaluation_file(model_name(model), self.task)

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        from rankwise.study.work.scoring import ScoreWorker

        context.kept(ScoreWorker).score(self, models)

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """The usable models, once the base is scored."""
        path = folder.evaluation_file(BASE, self.task)
        if self.runs and folder.finished(path, TaskEvaluation, self.base_fingerprint) is None:
            return ()
        return super().ready(folder, models)
