"""From the records of a study to its recommendation and findings; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rankwise.errors import RecordError
from rankwise.findings.recommendation import looks_of, recommend
from rankwise.findings.study import StudyFindings, study_findings
from rankwise.records.config.study import StudyConfig
from rankwise.records.files import unless_damaged
from rankwise.records.folder import StudyFolder
from rankwise.records.judgement import StudyLooks
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.results import StudyResults
from rankwise.records.study import StageFailure, StudyRecord
from rankwise.study.reading import read_results, without_collections
from rankwise.study.stages.graph import stages


class StudyOutcome(NamedTuple):
    """A study as far as it could be done."""

    results: StudyResults
    recommendation: StudyRecommendation
    findings: StudyFindings

    @property
    def failures(self) -> tuple[StageFailure, ...]:
        """The stages that failed when they were last tried."""
        return self.results.failures


class OtherMargins(NamedTuple):
    """Margins in place of a study's own; None keeps it. ``delta`` is in the unit of the gains."""

    delta: float | None = None
    epsilon: float | None = None
    worst_task: float | None = None


def conclude(
    folder: StudyFolder,
    clusters: Mapping[str, str] | None = None,
    margins: OtherMargins | None = None,
) -> StudyOutcome:
    """Recommendation and findings from the finished records of a study; nothing is written.

    Args:
        folder: of a study.
        clusters: task or group -> field of its documents, on top of ``evaluation.clusters`` of
            ``study.json``; an empty field takes the setting away. No score depends on it.
        margins: to judge by.

    Raises:
        RecordError: the base is not scored or no run is finished, or a record cannot be read.
        TaskError: no such task or group is scored, or its documents have no such field.
    """
    study = folder.read_study()
    with without_collections():
        if clusters:
            merged = {**study.config.evaluation.clusters, **clusters}
            study = _with(study, "evaluation", {"clusters": {t: f for t, f in merged.items() if f}})
        results = read_results(folder, study)
        if margins is not None:
            first = results.by_train_task[0]
            given = {
                f"delta_{first.base.items[first.tasks['in_domain'][0]].unit}": margins.delta,
                "epsilon_points": margins.epsilon,
                "worst_task_points": margins.worst_task,
            }
            update = {name: value for name, value in given.items() if value is not None}
            study = _with(results.study, "recommendation", update)
            results = results.model_copy(update={"study": study})
        return concluded(results, folder.read_looks())


def concluded(results: StudyResults, looks: StudyLooks | None = None) -> StudyOutcome:
    """The same from results, and from how the study was judged before; None: it was not.

    Raises:
        RecordError: models were scored on different items, or a score is missing.
    """
    recommendation = recommend(results, looks)
    return StudyOutcome(results, recommendation, study_findings(results, recommendation))


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


def judged_again(folder: StudyFolder, config: StudyConfig) -> StudyOutcome | None:
    """A finished study whose file has other margins alone, judged by these; it is written.

    None where anything else differs, where margins may ask for more work, or where a record is
    damaged: then a study is planned.

    Raises:
        StudyLockedError: another process is working on the study.
        NewerRecordError: a newer version of rankwise made the folder.
    """
    with unless_damaged():
        return _judged_again(folder, config)
    return None


def _judged_again(folder: StudyFolder, config: StudyConfig) -> StudyOutcome | None:
    earlier = folder.read_if_there(folder.study_file, StudyRecord)
    if earlier is None or config.is_open or config.deploy:
        return None
    before = earlier.config
    if (
        before == config
        or before.model_copy(update={"recommendation": config.recommendation}) != config
    ):
        return None
    if not all(stage.is_finished(folder) for stage in stages(earlier)):
        return None
    with folder.lock():
        folder.write(folder.study_file, earlier.model_copy(update={"config": config}))
        outcome = conclude(folder)
        keep(folder, outcome)
    return outcome


def keep(folder: StudyFolder, outcome: StudyOutcome, *, settings: bool = False) -> None:
    """Write what was concluded into the study's folder, and that the study was judged.

    The next judgement of other data counts as another look.

    Args:
        folder: of the study.
        outcome: from ``conclude``.
        settings: write the study's settings too, with the clusters that were added to them.

    Raises:
        StudyLockedError: another process is working on the study whose settings are to change.
        StorageError: the folder cannot be written.
    """
    if settings:
        with folder.lock():
            config = outcome.results.study.config
            study = folder.read_study().model_copy(update={"config": config})
            folder.write(folder.study_file, study)
    looks = looks_of(outcome.recommendation).with_others(folder.read_looks())
    folder.write(folder.looks_file, looks)
    folder.write(folder.recommendation_file, outcome.recommendation)
    folder.write(folder.findings_file, outcome.findings)


def _with(study: StudyRecord, section: str, update: Mapping[str, Any]) -> StudyRecord:
    """A study with other settings in a section of its file."""
    changed = getattr(study.config, section).model_copy(update=update)
    config = study.config.model_copy(update={section: changed})
    return study.model_copy(update={"config": config})
