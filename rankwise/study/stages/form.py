"""Form: a run that the verdict names, scored in a form in which it is deployed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.records.base import Record
from rankwise.records.deployment import FormRecord
from rankwise.records.fingerprints import fingerprint, scoring_fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.records.forms import model_in_form
from rankwise.records.reading import read_judged
from rankwise.records.results import FormResults, ModelResults
from rankwise.records.study import PlannedRun, StudyRecord, TaskEvaluation
from rankwise.study.stages.scoring import Score
from rankwise.study.stages.stage import (
    TOKEN_BYTES,
    Graph,
    Model,
    Stage,
    Written,
    model_name,
)

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext

DEPLOYMENT_REVISION = 2
"""As the revisions in ``records.fingerprints``."""


@dataclass(frozen=True)
class CheckForm(Stage):
    """Score a run that the verdict names in a form in which it is deployed."""

    form: str
    tasks: tuple[str, ...]

    kind = "form"
    record = FormRecord
    scores_tasks = True

    @classmethod
    def planned(cls, graph: Graph) -> Iterator[Stage]:
        study = graph.study
        for run in (run for run in study.runs if run.name in study.deployed):
            own = [s.id for s in graph.stages if isinstance(s, Score) and run in s.models]
            tasks = study.compared_tasks(run.train_task)
            num_tokens = study.tokens_of(run, tasks)
            for form in study.forms:
                yield cls(
                    run.name,
                    (run,),
                    (cls.wanted(study, run, form),),
                    needs=(*graph.trainings([run]), *own),
                    work=float(num_tokens),
                    memory_bytes=2 * 4 * study.num_parameters,  # its own weights wait meanwhile
                    disk_bytes=TOKEN_BYTES * num_tokens,
                    form=form,
                    tasks=tasks,
                )

    @classmethod
    def weights_in_form(cls, study: StudyRecord, run: PlannedRun, form: str) -> str:
        """The fingerprint of what its scores depend on, besides the tasks."""
        base = study.base_model_fingerprint
        return fingerprint([DEPLOYMENT_REVISION, base, run.fingerprint, form])

    @classmethod
    def wanted(cls, study: StudyRecord, run: PlannedRun, form: str) -> str:
        """The fingerprint of everything that is measured on a run in a form."""
        weights = cls.weights_in_form(study, run, form)
        tasks = study.compared_tasks(run.train_task)
        return fingerprint([scoring_fingerprint(study, run, task, weights) for task in tasks])

    @classmethod
    def path(cls, folder: StudyFolder, model: str, form: str) -> Path:
        """What a form makes of a run; its scores are those of ``model_in_form``."""
        return folder.model_folder(model_in_form(model, form)) / "form.json"

    @classmethod
    def written(cls, folder: StudyFolder, model: str) -> Iterator[Written]:
        """``model`` is one in a form: it has a folder of its own, with its scores."""
        path = folder.model_folder(model) / "form.json"
        yield Written(path, f"checking the form {model}", (path,))

    @classmethod
    def results(cls, folder: StudyFolder, study: StudyRecord, model: Model) -> Mapping[str, Any]:
        return {"forms": () if model is None else tuple(_forms(folder, study, model))}

    @property
    def name(self) -> str:
        return self.form

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return self.path(folder, model_name(model), self.form)

    def records_of(self, folder: StudyFolder, model: Model) -> Iterator[tuple[Path, type[Record]]]:
        yield from super().records_of(folder, model)
        scored = model_in_form(model_name(model), self.form)
        for task in self.tasks:
            yield folder.evaluation_file(scored, task), TaskEvaluation

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        from rankwise.study.work.forms import check_form

        for run in models:
            assert run is not None
            check_form(context, self, run)

    def _is_done(self, folder: StudyFolder, model: Model, wanted: str) -> bool:
        files = [path for path, _ in self.records_of(folder, model)]
        return super()._is_done(folder, model, wanted) and all(map(folder.has, files))


def _forms(folder: StudyFolder, study: StudyRecord, run: PlannedRun) -> Iterator[FormResults]:
    """A run in the forms in which it was checked, under the study's present settings."""
    for form in study.forms:
        path = CheckForm.path(folder, run.name, form)
        record = folder.finished(path, FormRecord, CheckForm.wanted(study, run, form))
        name, metric_of = model_in_form(run.name, form), study.config.evaluation.metric_of
        files = {
            task: folder.evaluation_file(name, task)
            for task in study.compared_tasks(run.train_task)
        }
        if record is None or not all(map(folder.has, files.values())):
            continue
        judged = {
            task: read_judged(folder, folder.read(file, TaskEvaluation), metric_of(task))
            for task, file in files.items()
        }
        scores = ModelResults(
            name=form,
            run=None,
            evaluations={task: each.record for task, each in judged.items()},
            items={task: each.items for task, each in judged.items()},
        )
        yield FormResults(record=record, scores=scores)
