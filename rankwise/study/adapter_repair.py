"""The repair of a run's adapter without training: what each candidate scores, and which to use.

Scores are kept task by task, so that another limit, or a command that was stopped, scores nothing
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.start import fetch_weights
from rankwise.errors import ConfigError
from rankwise.findings.repairs import RepairTasks
from rankwise.records.axes import run_labels
from rankwise.records.clusters import cluster_fields
from rankwise.records.fingerprints import repair_fingerprint, repair_scores_fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.records.repair_scores import RepairScores
from rankwise.records.repairs import AdapterRepair, Repair, RepairFamily
from rankwise.records.study import PlannedRun, StudyRecord
from rankwise.study.context import StudyContext
from rankwise.study.damage import find_damage, set_damaged_aside
from rankwise.study.observer import StageOutline
from rankwise.weights.adapter_repair import AdapterRepairer, AskedTask


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


class RunRepairer:
    """Repairs the adapter of a study's run, and keeps what is scored in the study's folder."""

    def __init__(
        self,
        context: StudyContext,
        run: PlannedRun,
        tasks: RepairTasks,
        kinds: Sequence[RepairFamily | Repair],
    ) -> None:
        """Prepare to repair a run of a study whose folder is locked.

        Args:
            context: its plan has every task of ``repair_tasks``.
            run: a LoRA run that is trained.
            tasks: from ``repair_tasks``.
            kinds: of repair that are tried, as in ``repairs.derived_updates``.
        """
        plan, folder, study = context.plan, context.folder, context.study
        self._context, self._tell, self._run = context, context.tell, run
        self._plan, self._folder = plan, folder
        partners: tuple[PlannedRun, ...] = ()
        families = {kind.family if isinstance(kind, Repair) else kind for kind in kinds}
        if "average" in families and run.role != "imported":  # of runs that differ by seed alone
            labels = run_labels([each for each in study.runs if each.train_task == run.train_task])
            alike = [each for each in study.runs if labels.get(each.name) == labels[run.name]]
            partners = _trained(folder, [each for each in alike if each != run])
        # what tells the repairs from others: their kinds, and the fingerprints of other models
        self._tried: list[Any] = [tuple(kinds), [each.fingerprint for each in partners]]
        fields = cluster_fields(study.config.evaluation.clusters, study)
        own, kept = (
            [
                AskedTask(
                    plan.tasks[name], study.config.evaluation.metric_of(name), fields.get(name)
                )
                for name in names
            ]
            for names in (tasks.in_domain, tasks.retention)
        )
        self._repairer = AdapterRepairer(
            model=run.name,
            adapter=AdapterFolder(folder.weights(run)),
            base=plan.base._replace(folder=fetch_weights(plan.base)),
            in_domain=own,
            retention=kept,
            kinds=kinds,
            open_session=context.models.session,
            others=[(each.name, AdapterFolder(folder.weights(each))) for each in partners],
            confidence=study.config.recommendation.confidence,
        )

    def repair(self, max_loss_points: float) -> AdapterRepair:
        """The repair that gains most within a limit of retention loss; see ``choose_repair``.

        Raises:
            ModelError: an adapter is more than plain LoRA, or its update is zero.
            TaskError: a task has too few items, or none is of retention in points.
            RecordError: the same, seen after the scoring.
            StorageError: the folder cannot be written.
            UnchangedOutputsError: the adapter answers as the base does.
        """
        repairer, folder, run = self._repairer, self._folder, self._run
        repairer.refuse_unjudgeable()
        place = folder.adapter_repair_file(run.name).parent
        damages = [d for d in find_damage(folder, [run.name]) if d.path.is_relative_to(place)]
        set_damaged_aside(folder, damages, self._tell)
        outlines = [
            StageOutline.of_run(task.prepared.name, "scoring", run, float(task.prepared.num_tokens))
            for task in repairer.tasks
        ]
        self._tell.planned(outlines)
        scores = [self._scores(task) for task in repairer.tasks]
        wanted = repair_fingerprint(
            [each.fingerprint for each in scores], max_loss_points, repairer.confidence
        )
        earlier = folder.finished(folder.adapter_repair_file(run.name), AdapterRepair, wanted)
        if earlier is not None:
            return earlier
        target = folder.repaired_adapter_folder(run.name)
        record = repairer.chosen(
            scores,
            wanted,
            max_loss_points=max_loss_points,
            output=str(target.relative_to(folder.root)),
        )
        asked = self._plan.record.task_fingerprints
        record = record.model_copy(
            update={
                "model_fingerprint": run.fingerprint,
                "task_fingerprints": {task.task: asked[task.task] for task in scores},
            }
        )
        folder.clear_adapter_repair(run.name)
        if record.choice.repair is not None:
            repairer.write(target, record)
        return folder.write_adapter_repair(record)

    def _scores(self, task: AskedTask) -> RepairScores:
        """The scores of a task, from the folder where they are there."""
        name = task.prepared.name
        wanted = repair_scores_fingerprint(
            self._plan.record, self._run, name, self._tried, task.cluster_field
        )
        return self._context.recorded(
            name,
            float(task.prepared.num_tokens),
            self._folder.repair_scores_file(self._run.name, name),
            RepairScores,
            lambda: self._repairer.scores(task, fingerprint=wanted, advance=self._advance),
            wanted,
        )

    def _advance(self, num_tokens: int) -> None:
        """Advance by one of the models, which all read the same."""
        self._tell.advanced(num_tokens / (1 + len(self._repairer.derived)))


def _trained(folder: StudyFolder, models: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    """Those of some models that have weights."""
    records = ((model, folder.finished_run(model)) for model in models)
    return tuple(
        model
        for model, record in records
        if record is not None and record.status == "trained" and not record.is_given_up
    )
