"""Which runs of a study are checked in the forms in which they are deployed; without torch."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.errors import RecordError
from rankwise.findings.recommendation import recommend
from rankwise.records.folder import StudyFolder
from rankwise.records.study import StudyRecord
from rankwise.study.reading import read_results
from rankwise.study.stages.form import CheckForm
from rankwise.study.stages.graph import stages
from rankwise.study.stages.stage import Stage


def with_deployed(study: StudyRecord, folder: StudyFolder) -> StudyRecord:
    """A study with the runs that its verdict names, for ``deploy`` of the study file.

    They are the recommended run of each trained task, or that of the best bet where nothing is
    recommended. Until everything else is done, there are none.

    Raises:
        RecordError: a record cannot be read.
    """
    if not study.config.deploy:
        return study
    study = study.model_copy(update={"deployed": ()})
    if not all(stage.is_finished(folder) for stage in stages(study)):
        return study
    try:
        results = read_results(folder, study)
    except RecordError:  # every run diverged
        return study
    parts = recommend(results, folder.read_looks()).by_train_task
    named = (part.recommended_run or part.best_bet_run for part in parts)
    return study.model_copy(update={"deployed": tuple(run for run in named if run is not None)})


def work_after_verdict(study: StudyRecord) -> float:
    """Scored tokens of the forms of runs that no verdict names yet: one for each trained task."""
    if study.deployed:
        return 0.0
    scored = study.num_tokens.scored
    tasks = [task for source in study.tasks for task in study.compared_tasks(source)]
    return float(len(study.forms) * sum(scored.get(task, 0) for task in tasks))


def work_of_forms(graph: Sequence[Stage]) -> float:
    """Scored tokens of the stages that check forms."""
    return sum(stage.work for stage in graph if isinstance(stage, CheckForm))
