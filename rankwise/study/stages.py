"""The stages of a study: what there is to do, in order, and what of it is done."""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple, Protocol

from rankwise.records.fingerprints import (
    divergence_fingerprint,
    head_changes_fingerprint,
    spectra_fingerprint,
)
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.study import PlannedPass, PlannedRun
from rankwise.study.planning.plan import StudyPlan
from rankwise.tasks.questions import RightAnswer
from rankwise.tasks.requests import PreparedTask

ANALYSIS_WORK = 1500.0
"""What one decomposition of all adapted matrices of a run costs, in scored tokens: about that in
small models. Only the time left is estimated with it."""

HEAD_TOKENS = 128
"""Of a prompt on which heads are compared: all their attention weights are held."""

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
    """One thing to do for the base, for a run, or for several runs at once.

    ``runs`` are trained together, in one pass (imported ones are taken over), or scored together on
    a ``task``. Or the one run is compared on ``answers`` with a full fine-tuning, the
    ``reference``. Without runs it is the base that is scored or compared. ``model`` names the one
    model, or the pass. With ``num_decompositions``, that many of each matrix of the runs are made;
    with ``head_prompts``, the heads of the runs are compared with the base's on these.
    """

    model: str
    runs: tuple[PlannedRun, ...] = ()
    task: PreparedTask | None = None
    reference: PlannedRun | None = None
    answers: tuple[RightAnswer, ...] = ()
    planned_pass: PlannedPass | None = None
    num_decompositions: int = 0
    head_prompts: tuple[tuple[int, ...], ...] = ()

    @property
    def kind(self) -> Literal["training", "scoring", "divergence", "spectra", "heads"]:
        if self.task is not None:
            return "scoring"
        if self.head_prompts:
            return "heads"
        if self.num_decompositions:
            return "spectra"
        return "training" if self.reference is None else "divergence"

    @property
    def name(self) -> str:
        """What the stage does, in a word or two: the task, or its kind."""
        return self.kind if self.task is None else self.task.name

    @property
    def work(self) -> float:
        if self.task is not None:
            return self.task.num_tokens * max(len(self.runs), 1)
        if self.head_prompts:
            return float(sum(map(len, self.head_prompts)) * (len(self.runs) + 1))
        if self.num_decompositions:
            return ANALYSIS_WORK * self.num_decompositions * len(self.runs)
        if self.reference is not None:  # both models read the answers
            return 2.0 * sum(len(answer.tokens_read) for answer in self.answers)
        return sum(run.num_tokens * TRAINING_WORK[run.method] for run in self.runs)


def stages(plan: StudyPlan) -> list[Stage]:
    """All stages of a plan in order.

    The base is scored, the runs of every pass are trained together and then scored together, and
    then all that are compared with one full fine-tuning are compared with it, one full fine-tuning
    after the other. Then the heads and the weights of all runs are looked into.
    """
    found = [Stage(BASE, task=plan.tasks[task]) for task in plan.record.scored_tasks()]
    for number, (planned_pass, runs) in enumerate(_passes(plan), start=1):
        name = runs[0].name if len(runs) == 1 else f"pass {number}: {len(runs)} adapters"
        if len(runs) > 1 and planned_pass is None:
            name = f"imported: {len(runs)} adapters"
        found.append(Stage(name, runs, planned_pass=planned_pass))
        scored = {run: plan.record.scored_tasks(run.train_task) for run in runs}
        for task in plan.record.scored_tasks():
            together = tuple(run for run in runs if task in scored[run])
            if together:
                found.append(Stage(name, together, plan.tasks[task]))
    return found + _divergences(plan) + _heads(plan) + _spectra(plan)


def _heads(plan: StudyPlan) -> list[Stage]:
    """The heads of the runs of each trained task, on that task's prompts."""
    if not plan.record.config.analysis.heads:
        return []
    found: list[Stage] = []
    for source in plan.record.tasks:
        runs = tuple(run for run in plan.record.runs if run.train_task == source)
        prompts = head_prompts(plan, source)
        found += [Stage("heads", runs, head_prompts=prompts)] if runs and prompts else []
    return found


def head_prompts(plan: StudyPlan, train_task: str) -> tuple[tuple[int, ...], ...]:
    """The first in-domain prompts, of every task in turn, as they are scored.

    Of a long one its last tokens; of a text without a context, its first. None where there are
    fewer than two.
    """
    names = plan.record.tasks[train_task].get("in_domain", ())
    by_task: list[list[tuple[int, ...]]] = []
    for name in names:
        requests = plan.tasks[name].requests
        texts = [
            each.context[-HEAD_TOKENS:] if len(each.context) > 1 else each.tokens_read[:HEAD_TOKENS]
            for each in requests
        ]
        by_task.append([text for text in dict.fromkeys(texts) if len(text) > 1])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_task))
    prompts = tuple(dict.fromkeys(prompt for prompt in turns if prompt is not None))
    prompts = prompts[: plan.record.config.analysis.head_prompts]
    return prompts if len(prompts) > 1 else ()


def _spectra(plan: StudyPlan) -> list[Stage]:
    """The weights of all runs, matrix by matrix, so that each of the base is decomposed once."""
    settings, runs = plan.record.config.analysis, plan.record.runs
    if not (settings.spectra and runs):
        return []
    return [Stage("weights", runs, num_decompositions=1 + 2 * settings.null_draws)]


def _passes(plan: StudyPlan) -> list[tuple[PlannedPass | None, tuple[PlannedRun, ...]]]:
    """What is trained and scored together, in the study's order; what is imported comes last.

    Imported adapters are scored together too, imported checkpoints each for itself.
    """
    by_name = {run.name: run for run in plan.record.runs}
    in_pass = {name for planned in plan.record.passes for name in planned.runs}
    passes: list[tuple[PlannedPass | None, tuple[PlannedRun, ...]]] = [
        (planned, tuple(by_name[name] for name in planned.runs)) for planned in plan.record.passes
    ]
    imported = [run for run in plan.record.runs if run.name not in in_pass]
    adapters = tuple(run for run in imported if run.method == "lora")
    passes += [(None, adapters)] if adapters else []
    return passes + [(None, (run,)) for run in imported if run.method == "full"]


def _divergences(plan: StudyPlan) -> list[Stage]:
    found: list[Stage] = []
    for full in plan.record.full_runs_compared:
        answers = plan.answers.get(full.train_task, ())
        compared = [run for run in plan.record.runs if plan.record.full_run_of(run) == full]
        if answers:
            found.append(Stage(BASE, reference=full, answers=answers))
            found += [Stage(r.name, (r,), reference=full, answers=answers) for r in compared]
    return found


def is_finished(plan: StudyPlan, folder: StudyFolder, stage: Stage) -> bool:
    """Whether a stage's record is there. A run that diverged has nothing left to score.

    Raises:
        RecordError: a record is there and cannot be read.
    """
    if stage.task is not None:
        models = stage.runs or (None,)
        return all(is_scored(plan, folder, run, stage.task) for run in models)
    if stage.head_prompts:
        return all(has_head_changes(plan, folder, run) for run in stage.runs)
    if stage.num_decompositions:
        return all(is_analysed(plan, folder, run) for run in stage.runs)
    if stage.reference is None:
        return all(folder.finished_run(run) is not None for run in stage.runs)
    for run in (*stage.runs, stage.reference):
        record = folder.finished_run(run)
        if record is None:
            return False
        if record.status == "diverged":
            return True
    model = stage.runs[0].fingerprint if stage.runs else plan.base.fingerprint
    wanted = divergence_fingerprint(plan.record, model, stage.reference)
    return folder.finished_divergence(stage.model, stage.reference.name, wanted) is not None


def is_analysed(plan: StudyPlan, folder: StudyFolder, run: PlannedRun) -> bool:
    """Whether what is in a run's weights was looked for; diverged: nothing is due.

    Raises:
        RecordError: a record is there and cannot be read.
    """
    record = folder.finished_run(run)
    if record is None:
        return False
    wanted = spectra_fingerprint(plan.record, run)
    return record.status == "diverged" or folder.finished_spectra(run.name, wanted) is not None


def has_head_changes(plan: StudyPlan, folder: StudyFolder, run: PlannedRun) -> bool:
    """Whether a run's heads were compared with the base's; diverged: nothing is due.

    Raises:
        RecordError: a record is there and cannot be read.
    """
    record = folder.finished_run(run)
    if record is None:
        return False
    wanted = head_changes_fingerprint(plan.record, run)
    changes = folder.finished_head_changes(run.name, wanted)
    return record.status == "diverged" or changes is not None


def is_scored(
    plan: StudyPlan, folder: StudyFolder, run: PlannedRun | None, task: PreparedTask
) -> bool:
    """Whether a run's scores on a task are there, or the base's (None); diverged: none are due.

    Raises:
        RecordError: a record is there and cannot be read.
    """
    name, model = BASE, plan.base.fingerprint
    if run is not None:
        record = folder.finished_run(run)
        if record is None:
            return False  # scores of weights that are gone
        if record.status == "diverged":
            return True
        name, model = run.name, run.fingerprint
    wanted = plan.scoring_fingerprint(model, task)
    return folder.finished_evaluation(name, task.name, wanted) is not None
