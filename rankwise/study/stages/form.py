"""Form: a run that the verdict names, scored in a form in which it is deployed."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.errors import ModelError
from rankwise.records.base import FileRecord
from rankwise.records.deployment import FormRecord, Served
from rankwise.records.fingerprints import fingerprint, scoring_fingerprint
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.forms import AS_TRAINED, is_served, model_in_form
from rankwise.records.reading import read_judged
from rankwise.records.results import FormResults, ModelResults
from rankwise.records.study import PlannedRun, Provenance, StudyRecord, TaskEvaluation
from rankwise.study.stages.scoring import Score, score_task
from rankwise.study.stages.stage import TOKEN_BYTES, Graph, Model, Stage, Written, model_name

if TYPE_CHECKING:
    from rankwise.engine.models.adapter_folder import AdapterFolder
    from rankwise.findings.deployment import FormWeights
    from rankwise.study.context import StudyContext
    from rankwise.tasks.evaluation import Scoring
    from rankwise.tasks.judgement import Responses
    from rankwise.tasks.questions import Scorer
    from rankwise.weights.lowrank import LowRankUpdate
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
            needs = (*graph.trainings([run]), *own)
            # what a server is held against: the base, the run, and the run in float32
            held = (*needs, *(graph.base_scoring_of[task] for task in tasks))
            for form in study.forms:
                stage = cls(
                    run.name,
                    (run,),
                    (cls.wanted(study, run, form),),
                    needs=held if is_served(form) else needs,
                    work=float(num_tokens),
                    # its own weights wait meanwhile; a server has its own memory
                    memory_bytes=0 if is_served(form) else 2 * 4 * study.num_parameters,
                    disk_bytes=TOKEN_BYTES * num_tokens,
                    form=form,
                    tasks=tasks,
                )
                if form == AS_TRAINED:
                    held = (*held, stage.id)
                yield stage

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
                form, or what the form needs is not here; a server does not answer.
            StorageError: a record cannot be written.
        """
        from rankwise.engine.models.adapter_folder import AdapterFolder
        from rankwise.weights.lowrank import read_updates

        (run,) = self.runs
        folder = context.folder
        adapter = AdapterFolder(folder.weights(run))
        updates = read_updates(adapter)
        if all(update.frobenius_norm == 0 for update in updates.values()):
            raise ModelError(f"the update of {run.name} is zero: there is nothing to deploy.")
        record = (
            self._ask_server(context, run, updates)
            if is_served(self.form)
            else self._put_into(context, run, adapter, updates)
        )
        folder.write(self.path_of(folder, run), record)

    def _put_into(
        self,
        context: StudyContext,
        run: PlannedRun,
        adapter: AdapterFolder,
        updates: Mapping[str, LowRankUpdate],
    ) -> FormRecord:
        """Score the base's weights with the run in them, or beside them."""
        from rankwise.engine.models.loading import load_frozen
        from rankwise.engine.models.start import fetch_weights
        from rankwise.findings.deployment import FormWeights
        from rankwise.tasks.update_guard import probes, refuse_unapplied
        from rankwise.weights.deployment import ADAPTER, instead_warnings
        from rankwise.weights.forms import find_forms
        from rankwise.weights.merging import merged_as
        from rankwise.weights.session import ScoringSession

        plan = context.plan
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
        return self._record(run, seconds, session.provenance, weights, warnings=tuple(warnings))

    def _ask_server(
        self, context: StudyContext, run: PlannedRun, updates: Mapping[str, LowRankUpdate]
    ) -> FormRecord:
        """Hold the server's answers against those of base and run."""
        from rankwise.engine.models.devices import provenance_on
        from rankwise.engine.models.start import fetch_weights
        from rankwise.engine.scoring.served import ServedModel
        from rankwise.findings.deployment import FormWeights, ignored_adapter
        from rankwise.tasks.evaluation import responses_of
        from rankwise.tasks.update_guard import probes
        from rankwise.weights.deployment import need_likelihoods, served_beside

        plan, folder, study = context.plan, context.folder, context.study
        tasks = [plan.task_of(run, task) for task in self.tasks]
        ours = model_in_form(run.name, AS_TRAINED) if AS_TRAINED in study.forms else run.name
        if ours != run.name:
            path = self.path(folder, run.name, AS_TRAINED)
            if folder.finished(path, FormRecord, self.wanted(study, run, AS_TRAINED)) is None:
                raise ModelError(
                    f"{run.name} is not scored {AS_TRAINED} yet: there is nothing to hold the "
                    "server against. Run the study again."
                )
        try:
            server = ServedModel(self.form, plan.tokenizer, run.name)
            probed = probes([request for task in tasks for request in task.requests])
            server.probe(probed, needs_likelihoods=need_likelihoods(tasks))
        except ModelError as error:
            command = vllm_command(fetch_weights(plan.base), run.name, folder.weights(run), updates)
            raise ModelError(
                f"{error} Then run the study again, and this alone is done. By vLLM: {command}"
            ) from error
        # nothing is written before all is answered: it may be no server of this run
        provenance = provenance_on(plan.device)
        scorings = {
            task: self._scored(context, run, task, server, provenance) for task in self.tasks
        }

        def answers(task: str) -> list[Mapping[int, Sequence[Responses]]]:
            base, trained, same = (
                folder.read_samples(each, task) for each in (BASE, ours, run.name)
            )
            return [responses_of(each) for each in (base, trained, scorings[task].samples, same)]

        served = served_beside(self.tasks, answers)
        if served.ignores_adapter:
            server.finish()
            raise ModelError(f"{self.form}: {ignored_adapter(served)} Then run the study again.")
        for scoring in scorings.values():
            folder.write_evaluation(*scoring)
        server.finish()
        seconds = sum(scoring.record.score_seconds for scoring in scorings.values())
        return self._record(run, seconds, provenance, FormWeights(0), served=served)

    def _record(
        self,
        run: PlannedRun,
        seconds: float,
        provenance: Provenance,
        weights: FormWeights,
        *,
        warnings: tuple[str, ...] = (),
        served: Served | None = None,
    ) -> FormRecord:
        return FormRecord(
            fingerprint=self.fingerprint_of(run),
            model=run.name,
            form=self.form,
            num_bytes=weights.num_bytes,
            delta=weights.delta,
            modules=weights.modules,
            warnings=warnings,
            score_seconds=seconds,
            provenance=provenance,
            served=served,
        )

    def _score(
        self, context: StudyContext, run: PlannedRun, session: ScoringSession, adapter: str | None
    ) -> float:
        """Score what is not scored yet; the seconds of all tasks."""
        folder, study, seconds = context.folder, context.study, 0.0
        for task in self.tasks:
            path = folder.evaluation_file(model_in_form(run.name, self.form), task)
            record = folder.finished(path, TaskEvaluation, self._scored_as(study, run, task))
            if record is None:
                scoring = self._scored(
                    context, run, task, session.scorer, session.provenance, adapter
                )
                record = scoring.record
                folder.write_evaluation(*scoring)
            else:
                context.tell.skipped(float(study.tokens_of(run, [task])))
            seconds += record.score_seconds
        return seconds

    def _scored(
        self,
        context: StudyContext,
        run: PlannedRun,
        task: str,
        scorer: Scorer,
        provenance: Provenance,
        adapter: str | None = None,
    ) -> Scoring:
        """The run in the form on a task, by a scorer that has it."""
        from rankwise.tasks.evaluation import ScoredModel

        name, wanted = model_in_form(run.name, self.form), self._scored_as(context.study, run, task)
        (scoring,) = score_task(
            context,
            scorer,
            provenance,
            [ScoredModel(name, wanted, adapter)],
            context.plan.task_of(run, task),
            work=float(context.study.tokens_of(run, [task])),
        )
        return scoring

    def _scored_as(self, study: StudyRecord, run: PlannedRun, task: str) -> str:
        """The fingerprint of the run's scores on a task in the form."""
        weights = self.weights_in_form(study, run, self.form)
        return scoring_fingerprint(study, run, task, weights)

    def _is_done(self, folder: StudyFolder, model: Model) -> bool:
        files = [path for path, _ in self.records_of(folder, model)]
        return super()._is_done(folder, model) and all(map(folder.has, files))


def vllm_command(base: Path, name: str, adapter: Path, updates: Mapping[str, LowRankUpdate]) -> str:
    """The command that serves a base with an adapter, for a shell.

    The layers are named, as vLLM would also wrap the head, and then may give no log-likelihoods.
    """
    rank = max(len(update.lora_A) for update in updates.values())
    layers = dict.fromkeys(layer.rpartition(".")[2] for layer in updates)
    most = next((each for each in _VLLM_RANKS if each >= rank), rank)
    command = ["vllm", "serve", str(base), "--enable-lora", "--max-lora-rank", str(most)]
    command += ["--lora-target-modules", *layers, "--lora-modules", f"{name}={adapter}"]
    return shlex.join(command)


_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""


def work_after_verdict(study: StudyRecord) -> float:
    """Scored tokens of the forms of runs that no verdict names yet: one for each trained task."""
    if study.deployed:
        return 0.0
    tasks = [task for source in study.tasks for task in study.compared_tasks(source)]
    return float(len(study.forms) * sum(study.scored_tokens.get(task, 0) for task in tasks))


def work_of_forms(graph: Sequence[Stage]) -> float:
    """Scored tokens of the stages that check forms."""
    return sum(stage.work for stage in graph if isinstance(stage, CheckForm))
