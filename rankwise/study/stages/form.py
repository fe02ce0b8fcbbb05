"""Form: a run that the verdict names, scored in a form in which it is deployed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.errors import ModelError
from rankwise.records.base import FileRecord
from rankwise.records.deployment import FormRecord
from rankwise.records.fingerprints import fingerprint, scoring_fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.records.forms import AS_TRAINED, model_in_form
from rankwise.records.reading import read_judged
from rankwise.records.results import FormResults, ModelResults
from rankwise.records.study import PlannedRun, StudyRecord, TaskEvaluation
from rankwise.study.stages.scoring import Score, score_task
from rankwise.study.stages.stage import TOKEN_BYTES, Graph, Model, Stage, Written, model_name

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext
    from rankwise.weights.session import ScoringSession

DEPLOYMENT_REVISION = 2
"""A revision, as those in ``records.fingerprints``."""


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
        yield Written(path, FormRecord, f"checking the form {model}")

    @classmethod
    def results(cls, folder: StudyFolder, study: StudyRecord, model: Model) -> Mapping[str, Any]:
        if model is None:
            return {"forms": ()}
        found: list[FormResults] = []
        for form in study.forms:
            path = cls.path(folder, model.name, form)
            record = folder.finished(path, FormRecord, cls.wanted(study, model, form))
            name, metric_of = model_in_form(model.name, form), study.config.evaluation.metric_of
            tasks = study.compared_tasks(model.train_task)
            files = {task: folder.evaluation_file(name, task) for task in tasks}
            if record is None or not all(map(folder.has, files.values())):
                continue
            judged = {
                task: read_judged(folder, folder.read(file, TaskEvaluation), metric_of(task))
                for task, file in files.items()
            }
            scores = ModelResults.of(form, None, judged)
            found.append(FormResults(record=record, scores=scores))
        return {"forms": tuple(found)}

    @property
    def name(self) -> str:
        return self.form

    def path_of(self, folder: StudyFolder, model: Model) -> Path:
        return self.path(folder, model_name(model), self.form)

    def records_of(
        self, folder: StudyFolder, model: Model
    ) -> Iterator[tuple[Path, type[FileRecord]]]:
        yield from super().records_of(folder, model)
        scored = model_in_form(model_name(model), self.form)
        for task in self.tasks:
            yield folder.evaluation_file(scored, task), TaskEvaluation

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        """Put a run into the form, and score that in float32; tasks that are scored stay so.

        Raises:
            ModelError: the adapter is more than plain LoRA, its update is zero or does not fit the
                form, or what the form needs is not here.
            StorageError: a record cannot be written.
        """
        from rankwise.engine.models.adapter_folder import AdapterFolder
        from rankwise.engine.models.loading import load_frozen
        from rankwise.engine.models.start import fetch_weights
        from rankwise.findings.deployment import FormWeights
        from rankwise.tasks.update_guard import probes, refuse_unapplied
        from rankwise.weights.deployment import ADAPTER, instead_warnings
        from rankwise.weights.forms import find_forms
        from rankwise.weights.lowrank import read_updates
        from rankwise.weights.merging import merged_as
        from rankwise.weights.session import ScoringSession

        (run,) = self.runs
        plan, folder = context.plan, context.folder
        adapter = AdapterFolder(folder.weights(run))
        updates = read_updates(adapter)
        if all(update.frobenius_norm == 0 for update in updates.values()):
            raise ModelError(f"the update of {run.name} is zero: there is nothing to deploy.")
        # weights of the base are changed below, and put back
        if plan.record.precision == "float32":
            context.models.release()
            base = context.models.base()
        else:
            context.models.release(base=True)
            base = load_frozen(fetch_weights(plan.base), "float32", plan.device)
        weights, warnings = FormWeights(0), list[str]()
        session = ScoringSession(base, plan.tokenizer, step_tokens=plan.step_tokens)
        form = None if self.form == AS_TRAINED else find_forms([self.form])[0]
        with contextlib.nullcontext() if form is None else merged_as(base, form, updates) as merged:
            if merged is not None:
                session = session.reopened()
                weights, warnings = merged.weights, instead_warnings(self.form, merged)
            beside = ADAPTER if form is None or form.is_beside else None
            if beside is not None:
                session.scorer.put_on(beside, adapter)
                probed = probes(plan.tasks[self.tasks[0]].requests)
                refuse_unapplied(session.scorer, [beside], probed)
            seconds = self._score(context, run, session, beside)
        record = FormRecord(
            fingerprint=self.fingerprint_of(run),
            model=run.name,
            form=self.form,
            num_bytes=weights.num_bytes,
            delta=weights.delta,
            modules=weights.modules,
            warnings=tuple(warnings),
            score_seconds=seconds,
            provenance=session.provenance,
        )
        folder.write(self.path_of(folder, run), record)

    def _score(
        self, context: StudyContext, run: PlannedRun, session: ScoringSession, adapter: str | None
    ) -> float:
        """Score what is not scored yet; the seconds of all tasks."""
        from rankwise.tasks.evaluation import ScoredModel

        plan, folder, study = context.plan, context.folder, context.study
        name = model_in_form(run.name, self.form)
        own, seconds = self.weights_in_form(study, run, self.form), 0.0
        for task in self.tasks:
            prepared, wanted = plan.task_of(run, task), scoring_fingerprint(study, run, task, own)
            work = float(study.tokens_of(run, [task]))
            record = folder.finished(folder.evaluation_file(name, task), TaskEvaluation, wanted)
            if record is None:
                scored = [ScoredModel(name, wanted, adapter)]
                (scoring,) = score_task(context, session, scored, prepared, work=work)
                record = scoring.record
                folder.write_evaluation(*scoring)
            else:
                context.tell.skipped(work)
            seconds += record.score_seconds
        return seconds

    def _is_done(self, folder: StudyFolder, model: Model) -> bool:
        files = [path for path, _ in self.records_of(folder, model)]
        return super()._is_done(folder, model) and all(map(folder.has, files))


def work_after_verdict(study: StudyRecord) -> float:
    """Scored tokens of the forms of runs that no verdict names yet: one for each trained task."""
    if study.deployed:
        return 0.0
    tasks = [task for source in study.tasks for task in study.compared_tasks(source)]
    return float(len(study.forms) * sum(study.scored_tokens.get(task, 0) for task in tasks))


def work_of_forms(graph: Sequence[Stage]) -> float:
    """Scored tokens of the stages that check forms."""
    return sum(stage.work for stage in graph if isinstance(stage, CheckForm))
