"""From the records of a study to its recommendation and findings; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rankwise.findings.recommendation import looks_of, recommend
from rankwise.findings.study import StudyFindings, study_findings
from rankwise.records.folder import StudyFolder
from rankwise.records.results import StudyResults
from rankwise.records.study import StageFailure, StudyRecommendation, StudyRecord


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
    """Recommendation and findings from the records of a study, written into its folder.

    That it was judged is written too: the next judgement of other data counts as another look.

    Args:
        folder: of a finished study.
        clusters: task or group -> field of its documents, added to ``evaluation.clusters`` of
            ``study.json``; an empty field takes the setting away. No score depends on it.

    Raises:
        RecordError: a record is missing or cannot be read: the study has not finished.
        TaskError: no such task or group is scored, or its documents have no such field.
        StudyLockedError: another process is working on the study whose settings are to change.
        StorageError: the folder cannot be written.
    """
    study = folder.read_study()
    if clusters:
        study = _with_clusters(study, clusters)
    results = folder.read_results(study)
    if clusters:
        with folder.lock():
            folder.write(folder.study_file, study)
    recommendation = recommend(results, folder.read_looks())
    folder.write(folder.looks_file, looks_of(recommendation))
    folder.write(folder.recommendation_file, recommendation)
    findings = study_findings(results, recommendation)
    folder.write(folder.findings_file, findings)
    return StudyOutcome(results, recommendation, findings)


def _with_clusters(study: StudyRecord, clusters: Mapping[str, str]) -> StudyRecord:
    evaluation = study.config.evaluation
    merged = {**evaluation.clusters, **clusters}
    changed = evaluation.model_copy(update={"clusters": {t: f for t, f in merged.items() if f}})
    config = study.config.model_copy(update={"evaluation": changed})
    return study.model_copy(update={"config": config})
