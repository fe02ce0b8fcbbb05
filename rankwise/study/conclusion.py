"""From the records of a study to its recommendation and findings; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rankwise.findings.recommendation import looks_of, recommend
from rankwise.findings.study import StudyFindings, study_findings
from rankwise.records.folder import StudyFolder
from rankwise.records.reading import read_results
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.results import StudyResults
from rankwise.records.study import StageFailure, StudyRecord


class StudyOutcome(NamedTuple):
    """A study as far as it could be done."""

    results: StudyResults
    recommendation: StudyRecommendation
    findings: StudyFindings

    @property
    def failures(self) -> tuple[StageFailure, ...]:
        """The stages that failed when they were last tried."""
        return self.results.failures


def conclude(folder: StudyFolder, clusters: Mapping[str, str] | None = None) -> StudyOutcome:
    """Recommendation and findings from the finished records of a study; nothing is written.

    Args:
        folder: of a study.
        clusters: task or group -> field of its documents, on top of ``evaluation.clusters`` of
            ``study.json``; an empty field takes the setting away. No score depends on it.

    Raises:
        RecordError: the base is not scored or no run is finished, or a record cannot be read.
        TaskError: no such task or group is scored, or its documents have no such field.
    """
    study = folder.read_study()
    results = read_results(folder, _with_clusters(study, clusters) if clusters else study)
    recommendation = recommend(results, folder.read_looks())
    return StudyOutcome(results, recommendation, study_findings(results, recommendation))


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


def _with_clusters(study: StudyRecord, clusters: Mapping[str, str]) -> StudyRecord:
    evaluation = study.config.evaluation
    merged = {**evaluation.clusters, **clusters}
    changed = evaluation.model_copy(update={"clusters": {t: f for t, f in merged.items() if f}})
    config = study.config.model_copy(update={"evaluation": changed})
    return study.model_copy(update={"config": config})
