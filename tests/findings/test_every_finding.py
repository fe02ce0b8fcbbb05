"""What holds of every finding: it is recorded, shown on the page, and its tables have rows."""

from __future__ import annotations

from rankwise.findings.recommendation import recommend
from rankwise.findings.study import (
    FINDINGS,
    StudyFindings,
    finding_tables,
    study_findings,
    study_tables,
)
from rankwise.report.page import csv_files, study_sections
from tests.planted.results import planted_study


def test_every_row_is_a_field_of_the_record() -> None:
    assert [*FINDINGS] == [name for name in StudyFindings.model_fields if name != "schema_version"]


def test_no_two_findings_have_a_table_of_one_name() -> None:
    names = [table for finding in FINDINGS.values() for table in finding.tables]
    assert len(names) == len({*names})
    assert not {*names} & {"runs", "differences", "formats", "ranks", "scores"}


def test_what_is_made_is_in_every_form() -> None:
    results = planted_study(diverged=[(64, 0)])
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    assert findings.transfer is not None
    tables = finding_tables(findings, results)
    assert {"signatures", "transfer", "retention", "mechanism-agreement"} <= {*tables}
    assert {*tables} < {*study_tables(results, recommendation, findings)}
    assert {f"{name}.csv" for name in tables} < {*csv_files(results, recommendation, findings)}
    names = {section.name for section in study_sections(results, findings)}
    assert {"failure-signatures", "transfer", "retention-by-subject", "mechanisms"} <= names
    lines = [*findings.lines("kinship")]
    assert lines[0].startswith("Diverged: Rank 64 diverged")
    assert len(lines) == len(findings.signatures)
    told = {"signatures", "slices", "deployed", "prompting"}
    assert {*findings.with_lines} == told
    assert [*findings.lines("another task")] == []


def test_a_loss_that_decides_has_no_measure_of_agreement_to_draw() -> None:
    results = planted_study({4: 1.5, 16: 1.2, "full": 1.1}, in_domain_unit="nats")
    findings = study_findings(results, recommend(results))
    assert findings.mechanisms[0].agreement == ()
    sections = {section.name: section for section in study_sections(results, findings)}
    assert "mechanism-agreement" not in {each.name for each in sections["mechanisms"].figures}
