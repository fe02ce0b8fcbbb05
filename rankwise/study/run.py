"""Run a plan: share its units with other workers, skip what is finished, and conclude."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import replace as changed
from typing import NamedTuple, TypeVar

from rankwise.engine.models.devices import count_devices, quick_collections
from rankwise.errors import (
    LeaseLostError,
    PlanError,
    RankwiseError,
    RecordError,
    StageFailedError,
    StudyLockedError,
    StudyMovedError,
    did_you_mean,
)
from rankwise.records import quantities
from rankwise.records.files import read_if_there, writing
from rankwise.records.folder import StudyFolder
from rankwise.records.leases import Crew
from rankwise.records.study import RunRecord, StageFailure, StageRecord, StudyRecord
from rankwise.study.acceptance import replaced_scores, require_disk
from rankwise.study.conclusion import StudyOutcome, conclude, keep
from rankwise.study.context import StudyContext
from rankwise.study.damage import find_damage, models_of, set_aside
from rankwise.study.deploying import with_deployed
from rankwise.study.observer import Observer
from rankwise.study.planning.fitting import with_whole_base
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.searching import Search
from rankwise.study.shift import Shift
from rankwise.study.stages import Stage, Train, stages
from rankwise.study.stopping import StopSignals
from rankwise.study.units import Unit, units
from rankwise.study.work.canary import check_stack

_Done = TypeVar("_Done")

Executor = Callable[[Shift, StopSignals], None]
"""Has the units of a shift done by others until none is left; a signal stops it."""


def run_study(
    plan: StudyPlan,
    folder: StudyFolder,
    observer: Observer,
    *,
    replace: bool = False,
    accept_new_stack: bool = False,
    is_last: bool = True,
    shares: bool = False,
    executor: Executor | None = None,
) -> StudyOutcome:
    """Do what is not done yet, then conclude. Safe to stop at any moment and to call again.

    What is damaged is set aside and made again. A stage that fails is recorded; what does not need
    it goes on. Calling again tries it again. A plan of which nothing could be done leaves the
    folder's ``study.json`` as it was.

    Other processes may share the work. The folder's lock is held while it is planned and while it
    is concluded, and each unit is done by the worker that has its lease. Whoever finds that all
    are done concludes; several of them conclude the same.

    Args:
        plan: from :func:`rankwise.study.planning.plan.plan_study`.
        folder: the study's folder; is created.
        observer: receives progress.
        replace: finished scores under other settings are set aside; otherwise they are an error.
        accept_new_stack: put scores beside those of another stack of versions and device, also if
            the base's scores have moved; otherwise that is an error.
        is_last: whether the runs that the verdict names are checked in their deployed forms.
        shares: where others work on the folder, work with them; otherwise that is an error.
        executor: has the units done; None: this process does them.

    Returns:
        Results, recommendation and findings, also written into the folder. A run of which a stage
        failed takes no part in them and is named.

    Raises:
        StageFailedError: stages failed without which nothing can be concluded.
        StudyChangedError: finished scores would be replaced, or joined by those of another stack.
        StudyLockedError: another process works on the folder, or under another plan.
        StudyMovedError: while this worker did its share, the study was planned in another way.
        NewerRecordError: a newer version of rankwise made the folder.
        StorageError: the folder cannot be written, or has no room for what is left.
        Stopped: a signal asked for it; what was trained is saved.
    """
    terms = _Terms(shares, replace, accept_new_stack, is_last=is_last, executor=executor)
    return _shared(plan, folder, observer, terms, _Part.done)


def do_unit(
    plan: StudyPlan,
    folder: StudyFolder,
    observer: Observer,
    unit: str,
    *,
    replace: bool = False,
    accept_new_stack: bool = False,
    is_led: bool = False,
    failed: Collection[str] = (),
) -> list[StageFailure]:
    """Do one unit of a study, by its id, and conclude nothing; see ``run_study``.

    Args:
        plan: see ``run_study``, as for the others.
        folder: of the study.
        observer: receives progress.
        unit: its id.
        replace: see ``run_study``.
        accept_new_stack: see ``run_study``.
        is_led: another process leads: its plan holds, and it asks again for what cannot be done
            of the unit by now.
        failed: the ids of stages that others have failed at, on whatever machine.

    Returns:
        What of the unit was tried and failed.

    Raises:
        PlanError: the study has no such unit, or what it needs is not done and nobody leads.
        StudyMovedError: the process that leads has gone, or has another plan.
    """
    terms = _Terms(True, replace, accept_new_stack, is_led=is_led)
    return _shared(plan, folder, observer, terms, lambda part: part.done_only(unit, failed))


class _Terms(NamedTuple):
    """On what terms a worker takes part in a study; see ``run_study`` and ``do_unit``."""

    shares: bool
    replace: bool
    accept_new_stack: bool
    is_last: bool = True
    is_led: bool = False
    executor: Executor | None = None


def _shared(
    plan: StudyPlan,
    folder: StudyFolder,
    observer: Observer,
    terms: _Terms,
    do: Callable[[_Part], _Done],
) -> _Done:
    """Take part in a study to its end; again, where a lease was lost on the way."""
    context = StudyContext.of(plan, folder, observer)
    with folder.held(), quick_collections(), context.signals.listening():
        try:
            while True:
                try:
                    return do(_Part(context, terms))
                except LeaseLostError as error:
                    observer.noted(f"{error} It goes on as a new worker.")
                    context.models.release(base=True)
                    terms = terms._replace(shares=True)
        finally:
            context.models.release()
            folder.checked.save()


class _Part:
    """What one worker does of a study, from its joining to its leaving."""

    def __init__(self, context: StudyContext, terms: _Terms) -> None:
        self._context, self._terms, self._folder = context, terms, context.folder
        self._crew = Crew(self._folder.root, num_devices=count_devices(context.plan.device))
        self._search: Search | None = None
        self._earlier: StudyRecord | None = None
        self._num_before, self._has_joined = 0, False

    def done(self) -> StudyOutcome:
        """Plan, do units, conclude."""
        with self._there():
            while True:
                executor = self._terms.executor
                shift = Shift(self._context, self._crew, leads=executor is not None)
                if executor is None:
                    shift.work()
                else:
                    executor(shift, self._context.signals)
                with self._folder.lock(shares=True):
                    self._crew.require()
                    outcome = self._conclude(shift)
                if outcome is not None:
                    return outcome

    def done_only(self, unit: str, failed: Collection[str]) -> list[StageFailure]:
        """Plan, and do one unit; what of it failed is told before ``study.json`` may change."""
        with self._there():
            shift = Shift(self._context, self._crew)
            shift.hear_of(failed)
            found = _do_only(shift, self._context.study, unit, self._terms.is_led)
            ids = {stage.id for stage in found.stages}
            return [failure for failure in shift.failures() if failure.stage in ids]

    @contextlib.contextmanager
    def _there(self) -> Generator[None]:
        """Within the block it is a worker of the folder."""
        try:
            with self._folder.lock(shares=self._terms.shares):
                self._join()
            yield
        finally:
            self._leave()

    def _join(self) -> None:
        plan, folder = self._context.plan, self._folder
        self._crew.join()
        self._has_joined = True
        folder.guard, folder.progress_file = self._crew.require, self._crew.progress_file
        if self._terms.is_led:
            self._follow()
            return
        if self._crew.is_first:
            _set_damaged_aside(plan, folder, self._context.observer)
            plan = changed(plan, record=with_whole_base(plan.record, folder))
        if plan.record.config.is_searched:
            self._search = Search(plan, folder)
            plan = self._search.plan()
        self._begin(self._to_deploy(plan))

    def _follow(self) -> None:
        """Take the plan of the process that leads."""
        # of a mirror, it was asked at the URL
        is_left = self._crew.is_first and not self._folder.is_mirror
        study = None if is_left else self._folder.read_study()
        if study is None or not _has_same_settings(study, self._context.study):
            raise StudyMovedError(
                f"whoever had a unit of {self._folder.address} begun has gone, or has planned it "
                "in another way. Run the study again: finished work is kept."
            )
        self._go_on_under(study)

    def _go_on_under(self, study: StudyRecord) -> None:
        """Take a plan that is there already, with its passes."""
        self._context = self._context.replanned(changed(self._context.plan, record=study))
        self._check_stack()

    def _check_stack(self) -> None:
        """See ``check_stack``; who leads scores nothing, and those that do check theirs."""
        if self._terms.executor is None:
            graph = stages(self._context.study)
            check_stack(self._context, graph, is_accepted=self._terms.accept_new_stack)

    def _begin(self, plan: StudyPlan) -> None:
        """Write a plan, once it is sure that it may be done; or go on under that of others."""
        folder, terms = self._folder, self._terms
        earlier, others = read_if_there(folder.study_file, StudyRecord), self._crew.others()
        num_workers = max(plan.num_workers, len(others) + 1)
        if earlier is not None and others:
            deploys_more = plan.record.deployed not in ((), earlier.deployed)
            is_left = not all(stage.is_finished(folder) for stage in stages(earlier))
            # a search may know what comes next of one task while it is at work on another
            are_same = _has_same_settings if is_left and self._search is not None else _is_same
            if are_same(earlier, plan.record) and not deploys_more:
                require_disk(folder, stages(earlier), num_workers)
                self._context = self._context.replanned(plan)
                self._go_on_under(earlier)
                return
            if is_left:
                raise StudyLockedError(
                    f"others are working on {folder.address} under another plan. Wait for them, "
                    "give the study file that they were given, or choose another --study-dir."
                )
        self._context = self._context.replanned(plan)
        graph = stages(plan.record)
        files, refused = replaced_scores(plan, folder, graph, earlier)
        if refused is not None and not terms.replace:
            raise refused
        require_disk(folder, graph, num_workers)
        self._check_stack()
        if files:
            set_aside(folder, files, str(refused))
        self._earlier, self._num_before = earlier, _num_finished(graph, folder)
        if earlier is not None and self._search is None:
            self._note_left_out(earlier, plan.record)
        folder.write(folder.study_file, plan.record)
        folder.keep_failures({stage.id for stage in graph if not stage.is_finished(folder)})
        _forget_outdated(graph, folder)

    def _note_left_out(self, earlier: StudyRecord, now: StudyRecord) -> None:
        """Say which finished runs a plan leaves out, as that of a file before an extension does."""
        kept = {run.name for run in now.models}
        lost = [
            run.name
            for run in earlier.runs
            if run.name not in kept and self._folder.finished_run(run) is not None
        ]
        if lost:
            names = quantities.listed(lost[:3])
            self._context.observer.noted(
                f"{quantities.counted(len(lost), 'finished run')} of this folder "
                f"({names}{', ...' if len(lost) > 3 else ''}) would not be in this plan: the "
                "verdict leaves them out. Their files stay; to have them back, write what "
                "`rankwise extend` added into the study file"
            )

    def _conclude(self, shift: Shift) -> StudyOutcome | None:
        """The study's outcome, when all units are done; None where more is planned.

        That is what a search goes on with, or the forms of the runs that the verdict names.
        """
        study, failures = self._context.study, shift.failures()
        now, search = self._folder.read_study(), self._search
        is_ours = _is_same(now, study) if search is None else _has_same_settings(now, study)
        if not is_ours:
            raise StudyMovedError(
                f"{self._folder.address} is worked on under another plan by now. Run it again with "
                "the study file that the others were given."
            )
        if search is not None and not failures:
            plan = search.plan()
            if _names(plan.record) != _names(study):
                self._begin(plan)
                return None
            search.tidy(plan)
        if not failures:
            plan = self._to_deploy(self._context.plan)
            if plan.record.deployed != study.deployed:
                self._begin(plan)
                return None
        self._take_back()
        return _concluded(self._folder, failures)

    def _to_deploy(self, plan: StudyPlan) -> StudyPlan:
        """With the runs that the verdict names, once there is one."""
        if not self._terms.is_last:
            return plan
        return changed(plan, record=with_deployed(plan.record, self._folder))

    def _take_back(self) -> None:
        """Where nothing has come of a plan, ``study.json`` is again what it was before.

        A training that was stopped and saved is something: the folder goes on with it.
        """
        earlier, self._earlier = self._earlier, None
        if earlier is None or self._crew.others():
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

    def _leave(self) -> None:
        folder = self._folder
        with contextlib.suppress(RankwiseError):
            self._take_back()
        is_last = self._has_joined and not self._crew.others()
        self._crew.leave()
        folder.guard, folder.progress_file = lambda: None, None
        if is_last:
            with contextlib.suppress(RankwiseError), folder.lock():
                pass  # which tidies up


def _do_only(shift: Shift, study: StudyRecord, unit_id: str, is_led: bool) -> Unit:
    by_id = {unit.id: unit for unit in units(stages(study))}
    if unit_id not in by_id:
        problem = f"--only: there is no unit {unit_id!r}; {did_you_mean(unit_id, by_id)}"
    elif not shift.work(only=unit_id) and not is_led:
        problem = f"--only: what {unit_id} needs is not done"
    else:
        return by_id[unit_id]
    again = "rankwise plan --json lists the units and what they need"
    raise PlanError(study.config.name, study.config.base_model.name, [f"{problem}; {again}"])


def _names(study: StudyRecord) -> list[tuple[str, bool]]:
    """What a study trains, and what of it is only searched."""
    return [(model.name, model.is_searched) for model in study.models]


def _has_same_settings(one: StudyRecord, other: StudyRecord) -> bool:
    """Whether two plans are of one study, however far a search of it has come."""
    fields = {name for name in StudyRecord.model_fields if "fingerprint" in name} | {"precision"}
    return one.model_dump(include=fields) == other.model_dump(include=fields)


def _is_same(one: StudyRecord, other: StudyRecord) -> bool:
    """Whether two plans differ by their passes at most, which depend on the machine."""
    return _has_same_settings(one, other) and _names(one) == _names(other)


def _num_finished(graph: Sequence[Stage], folder: StudyFolder) -> int:
    return sum(len(stage.models) - len(stage.left(folder)) for stage in graph)


def _forget_outdated(graph: Sequence[Stage], folder: StudyFolder) -> None:
    """Remove records of weights that are gone: they count for nothing once there are new ones."""
    for stage in graph:
        if isinstance(stage, Train):
            continue
        for model in stage.left(folder):
            path = stage.path_of(folder, model)
            assert issubclass(stage.record, StageRecord)
            if folder.is_finished(path, stage.record, stage.fingerprint_of(model)):
                with writing(path):
                    path.unlink()


def _set_damaged_aside(plan: StudyPlan, folder: StudyFolder, observer: Observer) -> None:
    damages = find_damage(folder, models_of(plan.record, folder))
    if not damages:
        return
    spoils = dict.fromkeys(path for damage in damages for path in damage.spoils)
    place = set_aside(folder, list(spoils), "\n".join(map(str, damages)))
    for damage in damages:
        run = damage.path.parent.name
        if damage.path == folder.metrics_file(run):  # the weights stay, without losses
            record = folder.read(folder.run_file(run), RunRecord)
            folder.write(folder.run_file(run), record.model_copy(update={"metrics": None}))
        observer.noted(f"{damage}: set aside in {place}")


def _concluded(folder: StudyFolder, failures: Sequence[StageFailure]) -> StudyOutcome:
    failed = StageFailedError([_in_words(failure) for failure in failures])
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


def _in_words(failure: StageFailure) -> str:
    return f"{failure.model}: {failure.what} failed: {failure.error}: {failure.message}"
