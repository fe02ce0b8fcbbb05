"""From the records of a study to its recommendation and findings; without torch."""

from __future__ import annotations

from typing import NamedTuple

from rankwise.findings.recommendation import looks_of, recommend
from rankwise.findings.study import StudyFindings, study_findings
from rankwise.records.folder import StudyFolder
from rankwise.records.results import StudyResults
from rankwise.records.study import StageFailure, StudyRecommendation


class StudyOutcome(NamedTuple):
    """A study as far as it could be done."""

    results: StudyResults
    recommendation: StudyRecommendation
    findings: StudyFindings

    @property
    def failures(self) -> tuple[StageFailure, ...]:
        """The stages that failed when they were last tried."""
        return self.results.failures


def conclude(folder: StudyFolder) -> StudyOutcome:
    """Recommendation and findings from the records of a study, written into its folder.

    That it was judged is written too: the next judgement of other data counts as another look.

    Raises:
        RecordError: a record is missing or cannot be read: the study has not finished.
        StorageError: the folder cannot be written.
    """
    results = folder.read_results()
    recommendation = recommend(results, folder.read_looks())
    folder.write(folder.looks_file, looks_of(recommendation))
    folder.write(folder.recommendation_file, recommendation)
    findings = study_findings(results, recommendation)
    folder.write(folder.findings_file, findings)
    return StudyOutcome(results, recommendation, findings)
