"""What whoever follows a study knows of its stages, and what those took that are finished."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.records.behaviour import Behaviour
from rankwise.records.deployment import FormRecord
from rankwise.records.folder import StudyFolder
from rankwise.records.heads import HeadChanges
from rankwise.records.results import Divergence
from rankwise.records.spectra import SpectraRecord
from rankwise.records.study import TaskEvaluation
from rankwise.study.observer import StageOutline
from rankwise.study.stages import Model, Score, Stage, Train, model_name
from rankwise.study.times import furthest, training_work


def study_outline(graph: Sequence[Stage], folder: StudyFolder) -> tuple[StageOutline, ...]:
    """The stages of a study in their order, as they are in its folder.

    Raises:
        RecordError: a record exists and cannot be read.
    """
    left = {stage.id: stage.left(folder) for stage in graph}
    kinds_left = {stage.kind for stage in graph if left[stage.id]}
    # records of weights and heads are long: they are read where others are to be estimated
    kinds_read = kinds_left | {Train.kind, Score.kind} if kinds_left else set[str]()
    return tuple(
        StageOutline(
            id=stage.id,
            kind=stage.kind,
            name=stage.name,
            model=stage.model,
            work=stage.work,
            num_tokens=stage.num_tokens,
            models=_method(stage.models[-1]),
            work_left=_work(stage, left[stage.id]),
            is_finished=not left[stage.id],
            seconds=None
            if left[stage.id] or stage.kind not in kinds_read
            else _seconds(stage, folder),
            records=tuple(model_name(model) for model in stage.models),
        )
        for stage in graph
    )


def _work(stage: Stage, models: Sequence[Model]) -> float:
    """Of a stage's work, that of some of its models."""
    if isinstance(stage, Train):
        return training_work([model for model in models if model is not None])
    return stage.work * len(models) / len(stage.models)


def _method(model: Model) -> str:
    return "base" if model is None else model.variant or model.method


def _seconds(stage: Stage, folder: StudyFolder) -> float | None:
    """What a finished stage took by its records; None where they do not say."""
    if isinstance(stage, Train):
        records = [folder.finished_run(run) for run in furthest(stage.runs)]
        trained = [each for each in records if each is not None and each.status == "trained"]
        is_whole = len(trained) == len(records)
        return sum(each.train_seconds for each in trained) or None if is_whole else None
    seconds = 0.0
    for model in stage.models:
        match folder.read_if_there(stage.path_of(folder, model), stage.record):
            case TaskEvaluation() | Divergence() | Behaviour() | FormRecord() as record:
                seconds += record.score_seconds
            case HeadChanges() | SpectraRecord() as record:
                seconds += record.analysis_seconds
            case _:  # nothing is due of a run that diverged
                return None
    return seconds or None
