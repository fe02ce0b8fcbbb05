"""Every section of the page that is about the whole study."""

from __future__ import annotations

from rankwise.findings.signatures.found import not_looked_for
from rankwise.findings.study import StudyFindings
from rankwise.records.results import StudyResults
from rankwise.records.study import StudyRecommendation
from rankwise.report.parts import Section
from rankwise.report.sections.axes import axis_section
from rankwise.report.sections.claims import claims_section
from rankwise.report.sections.heads import head_section
from rankwise.report.sections.mechanisms import mechanism_section
from rankwise.report.sections.retention import retention_section
from rankwise.report.sections.signatures import signature_section
from rankwise.report.sections.transfer import transfer_section
from rankwise.report.sections.weights import weight_section


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
