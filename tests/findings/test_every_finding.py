"""What holds of every finding: it is recorded, shown on the page, and its tables have rows."""

from __future__ import annotations

from rankwise.findings.recommendation import recommend
from rankwise.findings.study import FINDINGS, StudyFindings, study_findings
from rankwise.report.page import study_sections, study_tables
from rankwise.report.parts import SECTIONS
from tests.planted.results import planted_study


def test_every_field_of_the_record_is_a_finding() -> None:
    assert [*FINDINGS] == [name for name in StudyFindings.model_fields if name != "schema_version"]


def test_every_finding_has_a_section_but_the_card_which_is_shown_first() -> None:
    assert {*FINDINGS} - {*SECTIONS} == {"cards"}
    assert {*SECTIONS} < {*FINDINGS}


def test_what_is_made_is_in_every_form() -> None:
    results = planted_study(diverged=[(64, 0)])
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    assert findings.transfer is not None
    tables = study_tables(results, recommendation, findings)
    assert {"signatures", "transfer", "retention", "mechanism-agreement"} <= {*tables}
    assert {"runs", "differences", "ranks", "scores"} <= {*tables}
    assert all(row["train_task"] == "kinship" for rows in tables.values() for row in rows)
    names = {section.name for section in study_sections(results, findings)}
    assert {"failure-signatures", "transfer", "retention-by-subject", "mechanisms"} <= names
    lines = [*findings.lines("kinship")]
    assert lines[0].startswith("Diverged: Rank 64 diverged")
    assert len(lines) == len(findings.signatures)
    told = {"signatures", "slices", "deployed", "prompting", "sequences"}
    assert {*findings.with_lines} == told
    assert [*findings.lines("another task")] == []


def test_a_loss_that_decides_has_no_measure_of_agreement_to_draw() -> None:
    results = planted_study({4: 1.5, 16: 1.2, "full": 1.1}, in_domain_unit="nats")
    findings = study_findings(results, recommend(results))
    assert findings.mechanisms[0].agreement == ()
    sections = {section.name: section for section in study_sections(results, findings)}
    assert "mechanism-agreement" not in {each.name for each in sections["mechanisms"].figures}
