"""The repair of a run's adapter without training: what each candidate scores, and which to use.

Scores are kept task by task, so that another limit, or a command that was stopped, scores nothing
again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from rankwise.engine.models.devices import provenance_on
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.engine.scoring.tree.prefixes import PrefixTree
from rankwise.errors import ConfigError
from rankwise.findings.repairs import RepairTasks, choose_repair
from rankwise.records.axes import run_labels
from rankwise.records.clusters import cluster_fields
from rankwise.records.fingerprints import (
    repair_divergences_fingerprint,
    repair_fingerprint,
    repair_scores_fingerprint,
)
from rankwise.records.folder import StudyFolder
from rankwise.records.repair_scores import RepairDivergences, RepairScores
from rankwise.records.repairs import AdapterRepair, Repair, RepairFamily
from rankwise.records.study import PlannedRun, StudyRecord
from rankwise.study.context import StudyContext
from rankwise.study.damage import find_damage
from rankwise.study.observer import StageOutline
from rankwise.study.quarantine import set_aside
from rankwise.tasks.questions import RightAnswer
from rankwise.weights.lowrank import read_updates
from rankwise.weights.repair_scores import (
    AskedTask,
    RepairScorer,
    in_domain_answers,
    refuse_unjudgeable,
    write_repaired,
)
from rankwise.weights.repairs import RepairSources, Updates, derived_updates, reverted_heads

_FROM_BASE = "divergence from the base"


def repair_tasks(study: StudyRecord, run: PlannedRun) -> RepairTasks:
    """The tasks of a study by which a run's repair is chosen and judged.

    Raises:
        ConfigError: the run has no adapter, or the study no retention task.
    """
    tasks = study.tasks[run.train_task]
    problems: list[str] = []
    if run.method != "lora":
        problems.append(f"--run: {run.name} is a full fine-tuning; choose a LoRA run")
    if not tasks.get("retention"):
        problems.append(
            f"{study.config.name} scores no retention task; add one to evaluation.retention of "
            "the study file and run it again"
        )
    if problems:
        raise ConfigError("repair", problems)
    return RepairTasks(tasks.get("in_domain", ()), tasks["retention"])


class AdapterRepairer:
    """Scores the repairs of a run's adapter, chooses one, and writes it."""

    def __init__(
        self, context: StudyContext, run: PlannedRun, kinds: Sequence[RepairFamily | Repair]
    ) -> None:
        """Prepare to repair a run of a study whose folder is locked.

        Args:
            context: its plan has every task of ``repair_tasks``.
            run: a LoRA run that is trained.
            kinds: of repair that are tried, as in ``repairs.derived_updates``.
        """
        self._plan, self._folder, self._run = context.plan, context.folder, run
        self._models, self._tell = context.models, context.tell
        self._kinds = tuple(kinds)
        self._partners = _other_seeds(context.study, context.folder, run)
        if "average" not in kinds:
            self._partners = ()
        self._refined = _refined(context.study, context.folder, run) if "refine" in kinds else ()

    def repair(self, tasks: RepairTasks, max_loss_points: float) -> AdapterRepair:
        """The repair that gains most within a limit of retention loss; see ``choose_repair``.

        Raises:
            ModelError: an adapter is more than plain LoRA, or its update is zero.
            TaskError: a task has too few items, or none is of retention in points.
            RecordError: the same, seen after the scoring.
            StorageError: the folder cannot be written.
            UnchangedOutputsError: the adapter answers as the base does.
        """
        own, kept = (
            [self._plan.tasks[name] for name in names]
            for names in (tasks.in_domain, tasks.retention)
        )
        refuse_unjudgeable(own, kept)
        self._set_damaged_aside()
        answers = in_domain_answers(own, self._plan.tokenizer, self._plan.base.folder)
        gauge_work = float(_num_tokens(answers))
        of_tasks = [self._outline(task.name, "scoring", task.num_tokens) for task in (*own, *kept)]
        of_answers = self._outline(_FROM_BASE, "divergence", gauge_work)
        self._tell.planned([*of_tasks, *([of_answers] if gauge_work else [])])
        scores = self._scores((*tasks.in_domain, *tasks.retention))
        divergences = self._divergences(answers, gauge_work)
        study = self._plan.record
        confidence = study.config.recommendation.confidence
        shown = [*scores, *([] if divergences is None else [divergences])]
        wanted = repair_fingerprint(
            [each.fingerprint for each in shown], max_loss_points, confidence
        )
        path = self._folder.adapter_repair_file(self._run.name)
        earlier = self._folder.finished(path, AdapterRepair, wanted)
        fingerprints = {task.task: study.task_fingerprints[task.task] for task in scores}
        if earlier is not None:
            return earlier
        choice = choose_repair(
            scores,
            tasks,
            max_loss_points=max_loss_points,
            confidence=confidence,
            divergences=divergences,
        )
        self._folder.clear_adapter_repair(self._run.name)
        sources = self._sources
        target = self._folder.repaired_adapter_folder(self._run.name)
        record = AdapterRepair(
            fingerprint=wanted,
            model=self._run.name,
            model_fingerprint=self._run.fingerprint,
            task_fingerprints=fingerprints,
            base_model=self._plan.base.name,
            averaged_with=tuple(partner.name for partner in self._partners),
            choice=choice,
            reverted=tuple(reverted_heads(sources, choice.repair)),
            folder=None if choice.repair is None else str(target.relative_to(self._folder.root)),
            warnings=sources.warnings_of(self._kinds),
            provenance=provenance_on(self._plan.device),
        )
        if choice.repair is not None:
            updates = self._derived[choice.repair]
            write_repaired(target, updates, self._folder.weights(self._run), record)
        return self._folder.write_adapter_repair(record)

    @functools.cached_property
    def _sources(self) -> RepairSources:
        adapter, *others = (
            read_updates(self._folder.weights(run)) for run in (self._run, *self._partners)
        )
        refined = {
            model.rank: read_updates(self._folder.weights(model))
            for model in self._refined
            if model.rank is not None
        }
        return RepairSources.of(self._plan.base.folder, adapter, others, refined)

    @functools.cached_property
    def _derived(self) -> Mapping[Repair, Updates]:
        return derived_updates(self._sources, self._kinds)

    @functools.cached_property
    def _scorer(self) -> RepairScorer:
        derived = self._derived  # before the base is in memory: intruders read its weights too
        base, most = self._models.base(), self._plan.step_tokens
        resident = ResidentScorer(base, self._plan.tokenizer, max_batch_tokens=most)
        return RepairScorer(resident, base, self._folder.weights(self._run), derived)

    @property
    def _tried(self) -> list[Any]:
        """What tells the repairs from others: their kinds, and the fingerprints of other models."""
        tried: list[Any] = [self._kinds, [each.fingerprint for each in self._partners]]
        if self._refined:  # scores of other kinds are as old as they are
            tried.append([each.fingerprint for each in self._refined])
        return tried

    def _scores(self, names: Sequence[str]) -> list[RepairScores]:
        """Of each task, from the folder where they are there."""
        study = self._plan.record
        fields = cluster_fields(study.config.evaluation.clusters, study)
        found: list[RepairScores] = []
        for name in names:
            prepared, field = self._plan.tasks[name], fields.get(name)
            wanted = repair_scores_fingerprint(study, self._run, name, self._tried, field)
            path = self._folder.repair_scores_file(self._run.name, name)
            self._tell.stage_started(name)
            scores = self._folder.finished(path, RepairScores, wanted)
            if scores is None:
                scorer = self._scorer
                per_token = 1.0 / (1 + len(scorer.repairs))
                asked = AskedTask(prepared, study.config.evaluation.metric_of(name), field)
                scores = scorer.scores(
                    asked,
                    model=self._run.name,
                    fingerprint=wanted,
                    advance=lambda num, share=per_token: self._tell.advanced(num * share),
                )
                self._folder.write(path, scores)
            else:
                self._tell.skipped(float(prepared.num_tokens))
            self._tell.stage_finished()
            found.append(scores)
        return found

    def _outline(self, name: str, kind: str, work: float) -> StageOutline:
        return StageOutline(
            id=name,
            kind=kind,
            name=name,
            model=self._run.name,
            work=float(work),
            num_tokens=None,
            models=self._run.method,
            work_left=float(work),
        )

    def _divergences(self, answers: Sequence[RightAnswer], work: float) -> RepairDivergences | None:
        """From the base, on these right answers; from the folder where it is there."""
        if not answers:
            return None
        study, name = self._plan.record, self._run.name
        wanted = repair_divergences_fingerprint(study, self._run, self._tried, answers)
        path = self._folder.repair_divergences_file(name)
        self._tell.stage_started(_FROM_BASE)
        found = self._folder.finished(path, RepairDivergences, wanted)
        if found is None:
            scorer = self._scorer
            per_token = work / (_num_tokens(answers) * (1 + len(scorer.repairs)))
            found = scorer.divergences(
                answers,
                model=name,
                fingerprint=wanted,
                max_batch_tokens=self._plan.step_tokens,
                advance=lambda num: self._tell.advanced(num * per_token),
            )
            self._folder.write(path, found)
        else:
            self._tell.skipped(work)
        self._tell.stage_finished()
        return found

    def _set_damaged_aside(self) -> None:
        """Move what is damaged of an earlier repair into quarantine: it is made again."""
        name = self._run.name
        place = self._folder.adapter_repair_file(name).parent
        for damage in find_damage(self._folder, [name]):
            if damage.path.is_relative_to(place):
                aside = set_aside(self._folder, damage.spoils, str(damage))
                self._tell.noted(f"{damage}: set aside in {aside}")


def _num_tokens(answers: Sequence[RightAnswer]) -> int:
    """Of one model: what answers begin with in common is read once."""
    return len(PrefixTree([answer.tokens_read for answer in answers])) if answers else 0


def _other_seeds(
    study: StudyRecord, folder: StudyFolder, run: PlannedRun
) -> tuple[PlannedRun, ...]:
    """Trained runs that differ from a run by their seed alone."""
    if run.role == "imported":
        return ()
    labels = run_labels([each for each in study.runs if each.train_task == run.train_task])
    alike = [each for each in study.runs if labels.get(each.name) == labels[run.name]]
    return _trained(folder, [each for each in alike if each != run])


def _refined(study: StudyRecord, folder: StudyFolder, run: PlannedRun) -> tuple[PlannedRun, ...]:
    """The run's adapter truncated to lower ranks and trained on, where the study has done it."""
    return _trained(
        folder,
        [
            model
            for model in study.of_role("truncated")
            if model.num_steps and model.of is not None and model.of.name == run.name
        ],
    )


def _trained(folder: StudyFolder, models: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    """Those of some models that have weights."""
    finished = {model.name: folder.finished_run(model) for model in models}
    return tuple(
        model
        for model in models
        if (record := finished[model.name]) is not None
        and record.status == "trained"
        and not record.is_given_up
    )
