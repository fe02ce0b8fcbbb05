"""Divergence: a model's next-token distributions against those of a full fine-tuning."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.records.fingerprints import fingerprint
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.results import Divergence
from rankwise.records.study import PlannedRun, StudyRecord
from rankwise.study.stages.stage import (
    Graph,
    Model,
    Stage,
    Written,
    fingerprint_in,
    is_usable,
    model_name,
)

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext


@dataclass(frozen=True)
class CompareDistributions(Stage):
    """Compare a model's next-token distributions with those of a full fine-tuning."""

    reference: PlannedRun
    """The full fine-tuning."""

    kind = "divergence"
    record = Divergence

    @classmethod
    def planned(cls, graph: Graph) -> Iterator[Stage]:
        study = graph.study
        references = {run.name: study.full_run_of(run) for run in study.runs}
        for full in study.full_runs_compared:
            if full.train_task not in study.answers_fingerprints:
                continue
            compared = [run for run in study.runs if references[run.name] == full]
            work = 2.0 * study.num_tokens.answers.get(full.train_task, 0)  # both models read them
            for model in (None, *compared):
                yield cls(
                    model_name(model),
                    (model,),
                    (cls.wanted(study, model, full),),
                    needs=graph.trainings([model, full]),
                    work=work,
                    memory_bytes=2 * study.weights_bytes,
                    disk_bytes=0,
                    reference=full,
                )

    @classmethod
    def wanted(cls, study: StudyRecord, model: Model, reference: PlannedRun) -> str:
        """The fingerprint of everything that a model's divergence from a reference depends on."""
        answers = study.answers_fingerprints.get(reference.train_task)
        return fingerprint([fingerprint_in(study, model), reference.fingerprint, answers])

    @classmethod
    def path(cls, folder: StudyFolder, model: str, reference: str) -> Path:
        """Where a record is; the base is compared with several."""
        name = f"divergence/{reference}.json" if model == BASE else "divergence.json"
        return folder.model_folder(model) / name

    @classmethod
    def written(cls, folder: StudyFolder, model: str) -> Iterator[Written]:
        place = folder.model_folder(model)
        for path in (*sorted((place / "divergence").glob("*.json")), place / "divergence.json"):
            yield Written(path, f"comparing with full fine-tuning {model}", (path,))

    @classmethod
    def results(cls, folder: StudyFolder, study: StudyRecord, model: Model) -> Mapping[str, Any]:
        full_runs = study.full_runs_compared if model is None else (study.full_run_of(model),)
        found = [
            folder.finished(
                cls.path(folder, model_name(model), full.name),
                Divergence,
                cls.wanted(study, model, full),
            )
            for full in full_runs
            if full is not None
        ]
        return {"divergences": tuple(each for each in found if each is not None)}

    @property
    def together(self) -> Hashable:
        """With all comparisons with one full fine-tuning."""
        return self.kind, self.reference.name

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return self.path(folder, model_name(model), self.reference.name)

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        from rankwise.study.work.distributions import FullDistributions, write_divergence

        answers = context.plan.answers[self.reference.train_task]
        expected = context.kept(FullDistributions).of(self.reference, answers, self.work / 2)
        (model,) = models
        reads = self.reference.name, self.reference.train_task
        write_divergence(context, self, model, reads, answers, expected)

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """The model, where the full fine-tuning is usable too."""
        return super().ready(folder, models) if is_usable(folder, self.reference) else ()

    def _is_done(self, folder: StudyFolder, model: Model, wanted: str) -> bool:
        reference = folder.finished_run(self.reference)
        if reference is not None and reference.status == "diverged":
            return model is None or folder.finished_run(model) is not None
        return reference is not None and super()._is_done(folder, model, wanted)
