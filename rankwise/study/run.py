"""Run a plan: order the stages, skip what is finished, write each record when its stage is done."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator
from typing import NamedTuple

from rankwise.engine.models.devices import is_out_of_memory
from rankwise.errors import OutOfMemoryError
from rankwise.findings.recommendation import recommend
from rankwise.findings.study import StudyFindings, study_findings
from rankwise.records.folder import StudyFolder
from rankwise.records.results import StudyResults
from rankwise.records.study import StudyRecommendation
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.stages import Observer, Stage, is_finished, stages
from rankwise.study.work.stages import Worker


class StudyOutcome(NamedTuple):
    """A finished study."""

    results: StudyResults
    recommendation: StudyRecommendation
    findings: StudyFindings


def run_study(plan: StudyPlan, folder: StudyFolder, observer: Observer) -> StudyOutcome:
    """Do what is not done yet, then recommend. Safe to stop at any moment and call again.

    Args:
        plan: from :func:`rankwise.study.planning.plan.plan_study`.
        folder: the study's folder; is created.
        observer: is told of progress.

    Returns:
        The results and the recommendation, also written into the folder.

    Raises:
        StudyLockedError: another process works on the folder.
        RecordError: a record of the folder cannot be read.
        StorageError: the folder cannot be written.
        UnchangedOutputsError: an adapter did not change what the model says.
    """
    with folder.lock():
        folder.write(folder.study_file, plan.record)
        todo = stages(plan)
        finished = [is_finished(plan, folder, stage) for stage in todo]
        observer.study_started(
            sum(stage.work for stage in todo),
            sum(stage.work for stage, done in zip(todo, finished, strict=True) if done),
        )
        worker = Worker(plan, folder, observer)
        try:
            left = [stage for stage, done in zip(todo, finished, strict=True) if not done]
            for model, of_model in itertools.groupby(left, key=lambda stage: stage.model):
                its_stages = list(of_model)
                observer.model_started(model, sum(stage.work for stage in its_stages))
                for stage in its_stages:
                    with _enough_memory(stage):
                        worker.do(stage)
        finally:
            worker.release()
        results = folder.read_results()
        recommendation = recommend(results)
        folder.write(folder.recommendation_file, recommendation)
        findings = study_findings(results, recommendation)
        folder.write(folder.findings_file, findings)
    return StudyOutcome(results, recommendation, findings)


@contextlib.contextmanager
def _enough_memory(stage: Stage) -> Generator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        what = stage.kind if stage.task is None else f"scoring {stage.name}"
        raise OutOfMemoryError(
            f"{stage.model}: {what} does not fit into memory ({str(error).splitlines()[0]}). "
            "Lower train.max_length or evaluation.max_batch_tokens, choose "
            "train.base_precision=4bit or methods.full.weights=bfloat16, or leave full fine-tuning "
            "out with methods.full=null; then run again: what is finished is kept."
        ) from error
