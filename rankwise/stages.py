"""The stages of a study: what there is to do, in order, and what of it is done."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from rankwise.planning import StudyPlan
from rankwise.records import PlannedPass, PlannedRun
from rankwise.store import BASE, StudyFolder, divergence_fingerprint
from rankwise.tasks import PreparedTask
from rankwise.tasks.right_answers import RightAnswer

TRAINING_WORK = {"lora": 2.5, "full": 4.0}
"""What a trained token costs beside a scored one: a backward pass, and for full fine-tuning the
gradients of all weights. Only the time left is estimated with it."""


class Observer(Protocol):
    """Is told how a study goes on; the terminal's progress bars are one."""

    def study_started(self, total_work: float, finished_work: float) -> None:
        """Work is counted in scored tokens; some of it may be finished from an earlier call."""
        ...

    def model_started(self, model: str, work: float) -> None:
        """What is left to do for one model: its training and its scoring, or its divergence."""
        ...

    def stage_started(self, model: str, stage: str, work: float) -> None: ...

    def advanced(self, work: float) -> None: ...

    def stage_finished(self) -> None: ...

    def noted(self, text: str) -> None:
        """Something that whoever waits should know."""
        ...


class Stage(NamedTuple):
    """One thing to do for a model; ``run`` is None for the base.

    It is scored on a task, or compared on ``answers`` with a full fine-tuning, the ``reference``.
    Or ``trained`` are trained together, in one pass (an imported one is taken over); then ``model``
    names the pass.
    """

    model: str
    fingerprint: str
    run: PlannedRun | None
    task: PreparedTask | None
    reference: PlannedRun | None = None
    answers: tuple[RightAnswer, ...] = ()
    trained: tuple[PlannedRun, ...] = ()
    planned_pass: PlannedPass | None = None

    @property
    def kind(self) -> Literal["training", "scoring", "divergence"]:
        if self.task is not None:
            return "scoring"
        return "training" if self.reference is None else "divergence"

    @property
    def name(self) -> str:
        """What the stage does, in a word or two: the task, or its kind."""
        return self.kind if self.task is None else self.task.name

    @property
    def work(self) -> float:
        if self.task is not None:
            return self.task.num_tokens
        if self.reference is not None:  # both models read the answers
            return 2.0 * sum(len(answer.tokens_read) for answer in self.answers)
        return sum(run.num_tokens * TRAINING_WORK[run.method] for run in self.trained)


def stages(plan: StudyPlan) -> list[Stage]:
    """All stages of a plan in order.

    The base is scored, the runs of every pass are trained together and then scored, and then all
    that are compared with one full fine-tuning are compared with it, one full fine-tuning after the
    other.
    """
    base = [
        Stage(BASE, plan.base.fingerprint, None, plan.tasks[task])
        for task in plan.record.scored_tasks()
    ]
    found = base
    for number, (planned_pass, runs) in enumerate(_passes(plan), start=1):
        name = runs[0].name if len(runs) == 1 else f"pass {number}: {len(runs)} adapters"
        found.append(Stage(name, "", None, None, trained=runs, planned_pass=planned_pass))
        found += [
            Stage(run.name, run.fingerprint, run, plan.tasks[task])
            for run in runs
            for task in plan.record.scored_tasks(run.train_task)
        ]
    return found + _divergences(plan)


def _passes(plan: StudyPlan) -> list[tuple[PlannedPass | None, tuple[PlannedRun, ...]]]:
    """What is trained together, in the study's order; imported models are each for itself."""
    by_name = {run.name: run for run in plan.record.runs}
    in_pass = {name for planned in plan.record.passes for name in planned.runs}
    passes: list[tuple[PlannedPass | None, tuple[PlannedRun, ...]]] = [
        (planned, tuple(by_name[name] for name in planned.runs)) for planned in plan.record.passes
    ]
    return passes + [(None, (run,)) for run in plan.record.runs if run.name not in in_pass]


def _divergences(plan: StudyPlan) -> list[Stage]:
    found: list[Stage] = []
    for full in plan.record.full_runs_compared:
        answers = plan.answers.get(full.train_task, ())
        compared = [run for run in plan.record.runs if plan.record.full_run_of(run) == full]
        if answers:
            found.append(Stage(BASE, plan.base.fingerprint, None, None, full, answers))
            found += [Stage(r.name, r.fingerprint, r, None, full, answers) for r in compared]
    return found


def is_finished(plan: StudyPlan, folder: StudyFolder, stage: Stage) -> bool:
    """Whether a stage's record is there. A run that diverged has nothing left to score.

    Raises:
        RecordError: a record is there and cannot be read.
    """
    if stage.kind == "training":
        return all(folder.finished_run(run) is not None for run in stage.trained)
    for run in (stage.run, stage.reference):
        record = None if run is None else folder.finished_run(run)
        if run is not None and record is None:
            return False  # scores of weights that are gone
        if record is not None and record.status == "diverged":
            return True
    if stage.reference is not None:
        wanted = divergence_fingerprint(plan.record, stage.fingerprint, stage.reference)
        return folder.finished_divergence(stage.model, stage.reference.name, wanted) is not None
    assert stage.task is not None
    wanted = plan.scoring_fingerprint(stage.fingerprint, stage.task)
    return folder.finished_evaluation(stage.model, stage.task.name, wanted) is not None
