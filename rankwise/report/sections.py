"""Every section of the page that is about the whole study."""

from __future__ import annotations

from rankwise.findings import StudyFindings
from rankwise.records import StudyRecommendation
from rankwise.report.section import Section
from rankwise.results import StudyResults


def study_sections(
    results: StudyResults, recommendation: StudyRecommendation, findings: StudyFindings
) -> tuple[Section, ...]:
    """The sections of the page that are about the whole study, in their order."""
    return ()
