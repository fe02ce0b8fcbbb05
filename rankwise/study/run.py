"""Leads a study: plans, has its units done, and concludes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace as changed
from typing import NamedTuple

from rankwise.engine.models.base_folder import refuse_without_weights
from rankwise.engine.models.devices import quick_collections
from rankwise.errors import RankwiseError, RecordError, StageFailedError
from rankwise.records import quantities
from rankwise.records.files import writing
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun, Role, StageFailure, StageRecord, StudyRecord
from rankwise.study.able import with_able_tasks
from rankwise.study.acceptance import replaced_scores, require_disk
from rankwise.study.agenda import Agenda
from rankwise.study.canary import check_stack
from rankwise.study.conclusion import StudyOutcome, conclude, keep, with_deployed
from rankwise.study.context import StudyContext
from rankwise.study.damage import find_damage, models_of, set_damaged_aside
from rankwise.study.executors.local import work_here
from rankwise.study.observer import Observer
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.quarantine import set_aside
from rankwise.study.reading import read_results
from rankwise.study.references import with_settled_references, with_whole_tasks
from rankwise.study.searching import Search
from rankwise.study.stages.graph import stages
from rankwise.study.stages.stage import Stage
from rankwise.study.stages.training import Train
from rankwise.tasks.row_files import flat_row

Executor = Callable[[StudyContext, Agenda], None]
"""Has all units done that are left, and says what came of them. A signal stops it."""


class RunTerms(NamedTuple):
    """The terms on which a study is run.

    Attributes:
        replace: finished scores under other settings are set aside; otherwise they are an error.
        accept_new_stack: put scores beside those of another stack of versions and device, also if
            the base's scores have moved; otherwise that is an error.
        executor: does the units; None: this process, one after the other.
    """

    replace: bool = False
    accept_new_stack: bool = False
    executor: Executor | None = None


def run_study(
    plan: StudyPlan,
    folder: StudyFolder,
    observer: Observer,
    *,
    replace: bool = False,
    accept_new_stack: bool = False,
    executor: Executor | None = None,
) -> StudyOutcome:
    """Do what is not done yet, then conclude. Safe to stop at any moment and to call again.

    What is damaged is set aside and made again. A stage that fails is recorded; what does not need
    it goes on. Calling again tries it again. A plan of which nothing could be done leaves the
    folder's ``study.json`` as it was.

    This process holds the folder from here to the verdict, and only it writes there.

    Args:
        plan: from :func:`rankwise.study.planning.plan.plan_study`.
        folder: the study's folder; is created.
        observer: is told the progress.
        replace: see ``RunTerms``, as for the others.
        accept_new_stack: put scores beside those of another stack.
        executor: does the units.

    Returns:
        Results, recommendation and findings, also written into the folder. A run of which a stage
        failed takes no part in them and is named.

    Raises:
        ModelError: the base has no weights yet.
        StageFailedError: stages failed without which nothing can be concluded.
        StudyChangedError: finished scores would be replaced, or joined by those of another stack.
        StudyLockedError: another process leads the study.
        NewerRecordError: a newer version of rankwise made the folder.
        StorageError: the folder cannot be written, or has no room for what is left.
        Stopped: a signal asked for it; what was trained is saved.
    """
    with folder.lock():
        return lead(plan, folder, observer, RunTerms(replace, accept_new_stack, executor))


def lead(
    plan: StudyPlan,
    folder: StudyFolder,
    observer: Observer,
    terms: RunTerms,
    *,
    share: float = 1.0,
    is_last: bool = True,
) -> StudyOutcome:
    """Run a study whose folder is held; see ``run_study``.

    Args:
        plan: see ``run_study``, as for the others.
        folder: of the study.
        observer: is told the progress.
        terms: on which it is run.
        share: of each task's planned items that is scored, see ``StudyPlan.in_part``.
        is_last: whether the runs that the verdict names are checked in their deployed forms.
    """
    refuse_without_weights(plan.base)
    context = StudyContext.of(plan, folder, observer)
    with quick_collections(), context.signals.listening():
        leader = _Leader(context, terms, share, is_last=is_last)
        try:
            return leader.to_verdict()
        finally:
            with contextlib.suppress(RankwiseError):
                leader.take_back()
            context.models.release()
            folder.checked.save()


class _Leader:
    """Takes one study from plan to verdict; see ``run_study``."""

    def __init__(
        self, context: StudyContext, terms: RunTerms, share: float, *, is_last: bool
    ) -> None:
        self._context, self._terms, self._is_last = context, terms, is_last
        self._share = share
        self._folder = context.folder
        self._search: Search | None = None
        self._earlier: StudyRecord | None = None
        self._found: StudyRecord | None = None
        self._has_begun = False
        self._num_before = 0

    def to_verdict(self) -> StudyOutcome:
        """Plan, have units done, and conclude; more than once where what is found plans more."""
        plan, folder = self._context.plan, self._folder
        damages = find_damage(folder, models_of(plan.record, folder))
        set_damaged_aside(folder, damages, self._context.tell)
        record = with_settled_references(plan.record, folder)
        plan = changed(plan, record=record).in_part(self._share)
        failures: Sequence[StageFailure] = ()
        if with_able_tasks(plan.record, folder) is None:
            failures = self._do(plan, is_of_base=True)
        following = None if failures else self._first_plan(plan)
        while following is not None:
            failures = self._do(following)
            following = None if failures else self._next_plan()
        self.take_back()
        failed = StageFailedError(
            [f"{each.model}: {each.what} failed: {each.error}: {each.message}" for each in failures]
        )
        try:
            outcome = conclude(folder)
        except RecordError as error:
            if not failures:
                raise
            raise failed from error  # what is missing is needed by everything
        if failures and not outcome.results.runs:
            raise failed
        keep(folder, outcome)
        return outcome

    def _do(self, plan: StudyPlan, *, is_of_base: bool = False) -> Sequence[StageFailure]:
        """Have the units of a plan done, or only the base scored; and what failed."""
        self._begin(plan)
        agenda = Agenda(self._context)
        if is_of_base:
            agenda.units = tuple(unit for unit in agenda.units if unit.kind == "base")
        agenda.announce()
        (self._terms.executor or work_here)(self._context, agenda)
        return agenda.failures

    def _first_plan(self, plan: StudyPlan) -> StudyPlan:
        """What a search begins with, or the whole study, on tasks that the base can do."""
        plan = self._on_able_tasks(plan)
        if plan.record.config.is_searched:
            self._search = Search(plan, self._folder)
            plan = self._wanted(self._search)
        return self._to_deploy(plan)

    def _wanted(self, search: Search) -> StudyPlan:
        """What a search wants by now."""
        return self._on_able_tasks(search.plan().in_part(self._share))

    def _on_able_tasks(self, plan: StudyPlan) -> StudyPlan:
        return changed(plan, record=with_able_tasks(plan.record, self._folder) or plan.record)

    def _begin(self, plan: StudyPlan) -> None:
        """Write a plan, once it is sure that it may be done."""
        folder, terms = self._folder, self._terms
        self._context = self._context.replanned(plan)
        earlier = folder.read_if_there(folder.study_file, StudyRecord)
        graph = stages(plan.record)
        files, refused = replaced_scores(plan, folder, graph, earlier)
        if refused is not None and not terms.replace:
            raise refused
        require_disk(folder, graph, plan.num_workers)
        if terms.executor is None:  # whoever scores elsewhere checks the stack there
            check_stack(self._context, graph, is_accepted=terms.accept_new_stack)
        if files:
            set_aside(folder, files, str(refused))
        if not self._has_begun:
            self._found, self._has_begun = earlier, True
        self._earlier, self._num_before = earlier, _num_finished(graph, folder)
        if self._search is None:
            self._note_left_out(plan.record, plan.record.models)
        folder.write(folder.study_file, plan.record)
        left = [(stage, models) for stage in graph if (models := stage.left(folder))]
        folder.keep_failures({stage.id for stage, _ in left})  # of what is planned and not done
        for stage, models in left:
            for model in () if isinstance(stage, Train) else models:
                path = stage.path_of(folder, model)
                assert issubclass(stage.record, StageRecord)
                # a record of weights that are gone counts for nothing once there are new ones
                if folder.is_finished(path, stage.record, stage.fingerprint_of(model)):
                    with writing(path):
                        path.unlink()

    def _note_left_out(self, now: StudyRecord, compared: Sequence[PlannedRun]) -> None:
        """Say which finished runs a plan leaves out, as that of a file before an extension does.

        A search leaves some out too, where it decides otherwise with other settings.
        """
        earlier, self._found = self._found, None
        if earlier is None:
            return
        kept = {run.name for run in compared}
        lost = [
            run.name
            for run in earlier.runs
            if run.name not in kept and self._folder.finished_run(run) is not None
        ]
        if lost:
            names = quantities.listed(lost[:3])
            before, after = (flat_row(of.config.model_dump(mode="json")) for of in (earlier, now))
            keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
            others = quantities.listed(keys[:3] or ["a file that the study reads"])
            self._context.tell.noted(
                f"{quantities.counted(len(lost), 'finished run')} of this folder "
                f"({names}{', ...' if len(lost) > 3 else ''}) would not be in this plan "
                f"(changed: {others}): the verdict leaves them out. Their files "
                "stay; to have them back, undo that. What `rankwise extend` added must be in the "
                "study file"
            )

    def _next_plan(self) -> StudyPlan | None:
        """What a search goes on with, whole tasks, or the forms of the runs that are named."""
        study = self._context.study
        if self._search is not None:
            plan = self._wanted(self._search)
            if _names(plan.record) != _names(study):
                return plan
            self._search.tidy(plan)
            self._note_left_out(plan.record, plan.record.runs)
        if study.references.parts:
            models = read_results(self._folder, study).models
            whole = with_whole_tasks(study, models)
            if whole != study:
                return changed(self._context.plan, record=whole)
        plan = self._to_deploy(self._context.plan)
        return plan if plan.record.deployed != study.deployed else None

    def _to_deploy(self, plan: StudyPlan) -> StudyPlan:
        """The plan with the runs that the verdict names, once there is one."""
        if not self._is_last:
            return plan
        return changed(plan, record=with_deployed(plan.record, self._folder))

    def take_back(self) -> None:
        """Where nothing has come of a plan, ``study.json`` is again what it was before.

        A training that was stopped and saved is something: the folder goes on with it.
        """
        earlier, self._earlier = self._earlier, None
        if earlier is None:
            return
        graph = stages(self._context.study)
        is_done = all(stage.is_finished(self._folder) for stage in graph)
        known = {model.name for model in earlier.models}
        if any(
            run.name not in known and self._folder.training_state_file(run).exists()
            for stage in graph
            if isinstance(stage, Train)
            for run in stage.runs
        ):
            return
        if not is_done and _num_finished(graph, self._folder) == self._num_before:
            self._folder.write(self._folder.study_file, earlier)


def _names(study: StudyRecord) -> list[tuple[str, Role]]:
    """What a study trains, and as what."""
    return [(model.name, model.role) for model in study.models]


def _num_finished(graph: Sequence[Stage], folder: StudyFolder) -> int:
    return sum(len(stage.models) - len(stage.left(folder)) for stage in graph)
