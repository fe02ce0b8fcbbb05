"""Scoring: the base, or the runs of a pass together, on one task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.records.fingerprints import scoring_fingerprint
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.names import samples_beside
from rankwise.records.study import PlannedRun, Provenance, TaskEvaluation
from rankwise.study.stages.stage import (
    TOKEN_BYTES,
    Graph,
    Model,
    Stage,
    Written,
    fingerprint_in,
    model_name,
)

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext
    from rankwise.tasks.evaluation import Known, ScoredModel, Scoring
    from rankwise.tasks.judgement import Responses
    from rankwise.tasks.questions import Scorer
    from rankwise.tasks.requests import PreparedTask
    from rankwise.weights.session import ScoringSession


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
        context.kept(ScoreWorker).score(self, models)

    def ready(self, folder: StudyFolder, models: Sequence[Model]) -> tuple[Model, ...]:
        """The usable models, once the base is scored."""
        path = folder.evaluation_file(BASE, self.task)
        if self.runs and folder.finished(path, TaskEvaluation, self.base_fingerprint) is None:
            return ()
        return super().ready(folder, models)


class ScoreWorker:
    """Scores the models of stages, and remembers which adapters were seen to be applied."""

    def __init__(self, context: StudyContext) -> None:
        self._context, self._plan, self._folder = context, context.plan, context.folder
        self._tell, self._models = context.tell, context.models
        self._noted: set[str] = set()
        self._applied: set[str] = set()

    def score(self, stage: Stage, models: Sequence[Model]) -> None:
        """Score some models of a stage on the task of its name; those that share the base at once.

        Raises:
            UnchangedOutputsError: an adapter did not change what the model says. What the others
                of the stage scored is written all the same.
        """
        from rankwise.tasks.update_guard import probes, refuse_unapplied

        task = self._plan.task_of(models[0], stage.name)  # a stage's models answer the same items
        if task.num_truncated and task.name not in self._noted:
            self._noted.add(task.name)
            self._tell.noted(
                f"{task.num_truncated:,} of {task.num_items:,} items are longer than the model "
                "reads and lose their left end"
            )
        self._tell.skipped(stage.work * (1 - len(models) / len(stage.models)))
        if None in models:
            self._evaluate(stage, task, self._models.session(), [None])
        runs = [run for run in models if run is not None]
        together = self._models.put_on(runs)
        new = [run.name for run in together if self._has_update(run)]
        new = [name for name in new if name not in self._applied]
        if new:  # all of them are seen to be applied before any is scored
            refuse_unapplied(self._models.session().scorer, new, probes(task.requests))
            self._applied.update(new)
        if together:
            self._evaluate(stage, task, self._models.session(), together)
        for run in runs:
            if run not in together:
                self._refuse_unapplied_alone(run, task)
                session = self._models.session_alone(run)
                self._evaluate(stage, task, session, [run], alone=True)

    def _refuse_unapplied_alone(self, run: PlannedRun, task: PreparedTask) -> None:
        """An adapter that only PEFT can apply answers otherwise than the base."""
        from rankwise.tasks.update_guard import probes, refuse_equal

        if run.method == "lora" and self._has_update(run) and run.name not in self._applied:
            items = probes(task.requests)
            (base,) = self._models.session().scorer.log_likelihoods([None], items)
            (own,) = self._models.session_alone(run).scorer.log_likelihoods([None], items)
            refuse_equal(run.name, base, own)
            self._applied.add(run.name)

    def _evaluate(
        self,
        stage: Stage,
        task: PreparedTask,
        session: ScoringSession,
        models: Sequence[Model],
        *,
        alone: bool = False,
    ) -> None:
        from rankwise.tasks.evaluation import ScoredModel
        from rankwise.tasks.update_guard import not_applied

        scored = [
            ScoredModel(
                model_name(model),
                stage.fingerprint_of(model),
                None if model is None or alone else model.name,
                self._known(model, task),
            )
            for model in models
        ]
        work = stage.work / len(stage.models)
        scorings = score_task(
            self._context, session.scorer, session.provenance, scored, task, work=work
        )
        unchanged: list[Scoring] = []
        is_text = task.loaded.output_type == "generate_until"
        doc_ids, before = {*task.doc_ids}, list[list[float]]()
        for model, scoring in zip(models, scorings, strict=True):
            has_update = model is not None and model.method == "lora" and self._has_update(model)
            if has_update and not is_text:  # texts may well be those of the base
                before = before or [
                    nats_of(line["resps"])
                    for line in self._folder.read_samples(BASE, task.name)
                    if line["doc_id"] in doc_ids
                ]
                if before == [nats_of(line["resps"]) for line in scoring.samples]:
                    unchanged.append(scoring)
                    continue
            self._folder.write_evaluation(*scoring)
        for scoring in unchanged:
            items = f"every one of the {len(scoring.samples)} items of {task.name!r}"
            raise not_applied(scoring.record.model, f"gives {items} exactly")

    def _known(self, model: Model, task: PreparedTask) -> Known:
        """What a scoring of some of the task's items found, where the study was extended."""
        from rankwise.tasks.evaluation import Known, responses_of

        name, weights = model_name(model), fingerprint_in(self._plan.record, model)
        earlier = self._folder.earlier_evaluation(name, task.name)
        if earlier is None or not self._plan.begins_with(earlier, weights, task):
            return Known()
        return Known(
            responses=responses_of(self._folder.read_samples(name, task.name)),
            num_unfinished=earlier.num_unfinished or 0,
            score_seconds=earlier.score_seconds,
        )

    def _has_update(self, run: PlannedRun) -> bool:
        """Whether the trained update is not zero."""
        record = self._folder.finished_run(run)
        return record is not None and not record.update_is_zero


def score_task(
    context: StudyContext,
    scorer: Scorer,
    provenance: Provenance,
    models: Sequence[ScoredModel],
    task: PreparedTask,
    *,
    work: float,
) -> list[Scoring]:
    """Score models on a task of the study; the records say what made them.

    Args:
        context: is told of the work.
        scorer: has the models.
        provenance: what produces its answers.
        models: are scored together.
        task: with the items that they answer.
        work: of each model, in distinct tokens.

    Raises:
        ModelError: a log-likelihood is not finite.
    """
    from rankwise.tasks.evaluation import evaluate

    # the scorer tells of all tokens of all requests, the work is that of the distinct ones
    per_token = work / max(task.num_tokens, 1)
    scorings = evaluate(
        scorer,
        models,
        task,
        metric=context.study.config.evaluation.scored_by(task.name),
        advance=lambda num_tokens: context.tell.advanced(num_tokens * per_token),
        skipped=lambda num_tokens: context.tell.skipped(num_tokens * per_token),
        of_base=_base_answers(context.folder, task),
    )
    made = {"provenance": provenance}
    return [each._replace(record=each.record.model_copy(update=made)) for each in scorings]


def _base_answers(
    folder: StudyFolder, task: PreparedTask
) -> dict[int, tuple[Responses, ...]] | None:
    """The base's answers to a task that compares with them, once it is scored; None for others."""
    if not task.loaded.is_against_base or not folder.samples_file(BASE, task.name).exists():
        return None
    from rankwise.tasks.evaluation import responses_of

    return responses_of(folder.read_samples(BASE, task.name))


def nats_of(instances: Iterable[Iterable[Any]]) -> list[float]:
    """The numbers of the answers to a document's instances, the same from memory and from disk."""
    return [
        float(response[0] if isinstance(response, list | tuple) else response)
        for responses in instances
        for response in responses
    ]
