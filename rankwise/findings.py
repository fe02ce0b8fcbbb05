"""What a study shows beside its recommendations, put together from its records."""

from __future__ import annotations

from rankwise.records import SCHEMA_VERSION, Record, SchemaVersion, StudyRecommendation
from rankwise.results import StudyResults


class StudyFindings(Record):
    """``findings.json``."""

    schema_version: SchemaVersion = SCHEMA_VERSION


def study_findings(results: StudyResults, recommendation: StudyRecommendation) -> StudyFindings:
    """Everything that follows from a finished study and is no recommendation.

    Raises:
        RecordError: models were scored on different items, or a score is missing.
    """
    return StudyFindings()
