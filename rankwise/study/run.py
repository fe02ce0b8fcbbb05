"""Run a plan: go through its stages, skip what is finished, and conclude."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Generator, Sequence
from datetime import UTC, datetime

from rankwise.engine.models.devices import is_out_of_memory, quick_collections
from rankwise.errors import (
    OutOfMemoryError,
    RankwiseError,
    RecordError,
    StageFailedError,
    StorageError,
)
from rankwise.records.files import read_if_there
from rankwise.records.folder import StudyFolder
from rankwise.records.study import StageFailure, StudyRecord
from rankwise.study.acceptance import replaced_scores, require_disk
from rankwise.study.conclusion import StudyOutcome, conclude, keep
from rankwise.study.context import StudyContext
from rankwise.study.damage import find_damage, models_of, set_aside
from rankwise.study.deploying import with_deployed
from rankwise.study.observer import Observer
from rankwise.study.outline import study_outline
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.searching import Search
from rankwise.study.stages import Score, Stage, stages
from rankwise.study.work.canary import check_stack
from rankwise.study.work.worker import Worker


def run_study(
    plan: StudyPlan,
    folder: StudyFolder,
    observer: Observer,
    *,
    replace: bool = False,
    accept_new_stack: bool = False,
    is_last: bool = True,
) -> StudyOutcome:
    """Do what is not done yet, then conclude. Safe to stop at any moment and to call again.

    What is damaged is set aside and made again. A stage that fails is recorded; what does not need
    it goes on. Calling again tries it again. A plan of which nothing could be done leaves the
    folder's ``study.json`` as it was.

    Args:
        plan: from :func:`rankwise.study.planning.plan.plan_study`.
        folder: the study's folder; is created.
        observer: receives progress.
        replace: finished scores under other settings are set aside; otherwise they are an error.
        accept_new_stack: put scores beside those of another stack of versions and device, also if
            the base's scores have moved; otherwise that is an error.
        is_last: whether the runs that the verdict names are checked in their deployed forms.

    Returns:
        Results, recommendation and findings, also written into the folder. A run of which a stage
        failed takes no part in them and is named.

    Raises:
        StageFailedError: stages failed without which nothing can be concluded.
        StudyChangedError: finished scores would be replaced, or joined by those of another stack.
        StudyLockedError: another process works on the folder.
        NewerRecordError: a newer version of rankwise made the folder.
        StorageError: the folder cannot be written, or has no room for what is left.
        Stopped: a signal asked for it; what was trained is saved.
    """
    context = StudyContext.of(plan, folder, observer)
    with folder.lock(), quick_collections(), context.signals.listening():
        _set_damaged_aside(plan, folder, observer)
        search = Search(plan, folder) if plan.record.config.is_searched else None
        try:
            if search is not None:
                context = context.replanned(search.plan())
            context = _to_deploy(context) if is_last else context
            failures = _do(context, replace, accept_new_stack)
            while search is not None and not failures:
                plan = search.plan()
                if _names(plan.record) == _names(context.study):
                    search.tidy(plan)
                    break
                context = context.replanned(plan)
                failures = _do(context, replace, accept_new_stack)
            deployed = _to_deploy(context) if is_last and not failures else context
            if deployed.study.deployed != context.study.deployed:
                failures = _do(deployed, replace, accept_new_stack)
        finally:
            context.models.release()
            folder.checked.save()
        return _concluded(folder, failures)


def _to_deploy(context: StudyContext) -> StudyContext:
    """With the runs that the verdict names, once there is one."""
    record = with_deployed(context.study, context.folder)
    return context.replanned(dataclasses.replace(context.plan, record=record))


def _names(study: StudyRecord) -> list[tuple[str, bool]]:
    """What a study trains, and what of it is only searched."""
    return [(model.name, model.is_searched) for model in study.models]


def _do(context: StudyContext, replace: bool, accept_new_stack: bool) -> list[StageFailure]:
    """Everything that a plan has left to do, once it is sure that it may be done."""
    plan, folder = context.plan, context.folder
    graph = stages(plan.record)
    earlier = read_if_there(folder.study_file, StudyRecord)
    files, changed = replaced_scores(plan, folder, graph, earlier)
    if changed is not None and not replace:
        raise changed
    require_disk(folder, graph)
    check_stack(context, graph, is_accepted=accept_new_stack)
    if files:
        set_aside(folder, files, str(changed))
    return _carry_out(graph, context, earlier)


def _set_damaged_aside(plan: StudyPlan, folder: StudyFolder, observer: Observer) -> None:
    damages = find_damage(folder, models_of(plan.record, folder))
    if not damages:
        return
    spoils = dict.fromkeys(path for damage in damages for path in damage.spoils)
    place = set_aside(folder, list(spoils), "\n".join(map(str, damages)))
    for damage in damages:
        observer.noted(f"{damage}: set aside in {place}")


def _carry_out(
    graph: Sequence[Stage], context: StudyContext, earlier: StudyRecord | None
) -> list[StageFailure]:
    """Go through the stages under the new plan; one of which nothing comes is taken back."""
    folder, plan = context.folder, context.plan

    def finished() -> int:
        return sum(len(stage.models) - len(stage.left(folder)) for stage in graph)

    before = finished()
    folder.write(folder.study_file, plan.record)
    failures: list[StageFailure] = []
    try:
        failures = _go_through(graph, context)
    finally:
        is_done = not failures and all(stage.is_finished(folder) for stage in graph)
        if earlier is not None and not is_done and finished() == before:
            folder.write(folder.study_file, earlier)
    return failures


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


def _go_through(graph: Sequence[Stage], context: StudyContext) -> list[StageFailure]:
    """Do every stage that is not finished; what fails is recorded, and returned."""
    folder, observer = context.folder, context.observer
    models = {stage.id: stage.left(folder) for stage in graph}
    left = [stage for stage in graph if models[stage.id]]
    folder.keep_failures({stage.id for stage in left})
    observer.study_started(study_outline(graph, folder))
    worker = Worker(context)
    failures: list[StageFailure] = []
    for _, of_model in itertools.groupby(left, key=lambda stage: stage.model):
        for stage in sorted(of_model, key=lambda stage: _is_by_vllm(stage, context.plan)):
            ready = stage.ready(folder, models[stage.id])
            if not ready:  # what it needs has diverged, and nothing is due, or has failed
                observer.stage_left_out(stage.id)
                continue
            try:
                with _enough_memory():
                    worker.do(stage, ready)
            except StorageError:
                raise  # a full disk fails every stage
            except RankwiseError as error:
                failures.append(_failure(stage, folder, error))
                folder.write_failure(failures[-1])
                observer.stage_failed(failures[-1])
            else:
                folder.remove_failure(stage.id)
                continue
            context.models.release(base=True)  # only now: the error held on to its frames
    return failures


def _is_by_vllm(stage: Stage, plan: StudyPlan) -> bool:
    """Whether vLLM does a stage; these come last of a model's, since it takes minutes to open."""
    if not isinstance(stage, Score):
        return False
    engines = plan.record.config.evaluation.engine
    return engines.of(plan.tasks[stage.task].loaded.output_type) == "vllm"


def _failure(stage: Stage, folder: StudyFolder, error: RankwiseError) -> StageFailure:
    return StageFailure(
        stage=stage.id,
        kind=stage.kind,
        name=stage.name,
        model=stage.model,
        runs=tuple(run.name for run in stage.left(folder) if run is not None),
        error=type(error).__name__,
        message=str(error),
        failed_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _in_words(failure: StageFailure) -> str:
    return f"{failure.model}: {failure.what} failed: {failure.error}: {failure.message}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextlib.contextmanager
def _enough_memory() -> Generator[None]:
    """Within the block, an error that says that memory ran out says what to do about it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"it does not fit into memory ({_first_line(error)}). "
            "Lower train.max_length or evaluation.max_batch_tokens, choose "
            "train.base_precision=4bit or methods.full.weights=bfloat16, or leave full fine-tuning "
            "out with methods.full=null; then run again: finished work is kept."
        ) from error
