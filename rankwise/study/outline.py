"""What whoever follows a study knows of its stages, and what those took that are finished."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.records.folder import StudyFolder
from rankwise.study.observer import StageOutline
from rankwise.study.stages.stage import Stage, model_name


def study_outline(graph: Sequence[Stage], folder: StudyFolder) -> tuple[StageOutline, ...]:
    """The stages of a study in their order, as they are in its folder.

    Raises:
        RecordError: a record exists and cannot be read.
    """
    left = {stage.id: stage.left(folder) for stage in graph}
    kinds_left = {stage.kind for stage in graph if left[stage.id]}
    # records of weights and heads are long: they are read where others are to be estimated
    kinds_read = kinds_left | {stage.kind for stage in graph if kinds_left and stage.tells_speed}
    return tuple(
        StageOutline(
            id=stage.id,
            kind=stage.kind,
            name=stage.name,
            model=stage.model,
            work=stage.work,
            num_tokens=stage.num_tokens,
            models="base" if (last := stage.models[-1]) is None else last.variant or last.method,
            work_left=stage.work_of(left[stage.id]),
            is_finished=not left[stage.id],
            seconds=None
            if left[stage.id] or stage.kind not in kinds_read
            else stage.seconds(folder),
            records=tuple(model_name(model) for model in stage.models),
            slowness=stage.slowness,
        )
        for stage in graph
    )
