"""Every section of the page that is about the whole study."""

from __future__ import annotations

from rankwise.findings import StudyFindings
from rankwise.records import StudyRecommendation
from rankwise.report.axis_section import axis_section
from rankwise.report.claims_section import claims_section
from rankwise.report.head_section import head_section
from rankwise.report.mechanism_section import mechanism_section
from rankwise.report.retention_section import retention_section
from rankwise.report.section import Section
from rankwise.report.signature_section import signature_section
from rankwise.report.transfer_section import transfer_section
from rankwise.report.weight_section import weight_section
from rankwise.results import StudyResults
from rankwise.signatures import not_looked_for


def study_sections(
    results: StudyResults, recommendation: StudyRecommendation, findings: StudyFindings
) -> tuple[Section, ...]:
    """The sections of the page that are about the whole study, in their order."""
    confidence = results.study.config.recommendation.confidence
    sections = [signature_section(findings.signatures, not_looked_for(results), confidence)]
    if findings.transfer is not None:
        sections.append(transfer_section(findings.transfer))
    if findings.retention:
        sections.append(retention_section(findings.retention))
    if findings.axes:
        sections.append(axis_section(findings.axes))
    if findings.mechanisms:
        sections.append(mechanism_section(findings.mechanisms))
    if findings.weights:
        sections.append(weight_section(findings.weights, results))
    if findings.heads:
        sections.append(head_section(findings.heads, results))
    sections.append(claims_section(findings.claims))
    return tuple(sections)
