"""Run a plan: go through its stages, skip what is finished, and conclude."""

from __future__ import annotations

import contextlib
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
from rankwise.records.folder import StudyFolder
from rankwise.records.study import StageFailure
from rankwise.study.conclusion import StudyOutcome, conclude
from rankwise.study.context import StudyContext
from rankwise.study.observer import Observer
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.stages import Stage, stages
from rankwise.study.work.worker import Worker


def run_study(plan: StudyPlan, folder: StudyFolder, observer: Observer) -> StudyOutcome:
    """Do what is not done yet, then conclude. Safe to stop at any moment and to call again.

    A stage that fails is recorded; what does not need it goes on. Calling again tries it again.

    Args:
        plan: from :func:`rankwise.study.planning.plan.plan_study`.
        folder: the study's folder; is created.
        observer: receives progress.

    Returns:
        Results, recommendation and findings, also written into the folder. A run of which a stage
        failed takes no part in them and is named.

    Raises:
        StageFailedError: stages failed without which nothing can be concluded.
        StudyLockedError: another process works on the folder.
        RecordError: a record of the folder cannot be read.
        StorageError: the folder cannot be written.
    """
    with folder.lock(), quick_collections():
        folder.write(folder.study_file, plan.record)
        context = StudyContext.of(plan, folder, observer)
        try:
            failures = _go_through(stages(plan.record), context)
        finally:
            context.models.release()
        if not failures:
            return conclude(folder)
        failed = StageFailedError([_in_words(failure) for failure in failures])
        try:
            outcome = conclude(folder)
        except RecordError as error:  # what is missing is needed by everything
            raise failed from error
        if not outcome.results.runs:
            raise failed
        return outcome


def _go_through(graph: Sequence[Stage], context: StudyContext) -> list[StageFailure]:
    """Do every stage that is not finished; what fails is recorded, and returned."""
    folder, observer = context.folder, context.observer
    models = {stage.id: stage.left(folder) for stage in graph}
    left = [stage for stage in graph if models[stage.id]]
    folder.keep_failures({stage.id for stage in left})
    total = sum(stage.work for stage in graph)
    observer.study_started(total, total - sum(stage.work for stage in left))
    worker = Worker(context)
    failures: list[StageFailure] = []
    for name, of_model in itertools.groupby(left, key=lambda stage: stage.model):
        stages_of_model = list(of_model)
        observer.model_started(name, sum(stage.work for stage in stages_of_model))
        for stage in stages_of_model:
            ready = stage.ready(folder, models[stage.id])
            if not ready:  # what it needs has diverged, and nothing is due, or has failed
                observer.skipped(stage.work if stage.is_finished(folder) else 0.0)
                continue
            try:
                with _enough_memory():
                    worker.do(stage, ready)
            except StorageError:
                raise  # a full disk fails every stage
            except RankwiseError as error:
                failures.append(_failure(stage, folder, error))
                folder.write_failure(failures[-1])
                observer.noted(f"failed: {error}")
            else:
                folder.remove_failure(stage.id)
                continue
            context.models.release(base=True)  # only now: the error held on to its frames
    return failures


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


@contextlib.contextmanager
def _enough_memory() -> Generator[None]:
    """Within the block, an error that says that memory ran out says what to do about it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"it does not fit into memory ({str(error).splitlines()[0]}). "
            "Lower train.max_length or evaluation.max_batch_tokens, choose "
            "train.base_precision=4bit or methods.full.weights=bfloat16, or leave full fine-tuning "
            "out with methods.full=null; then run again: finished work is kept."
        ) from error
