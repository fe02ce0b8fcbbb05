"""The section about truncated adapters: complete, equal to the findings, and labelled."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import pytest

from rankwise.findings.recommendation import recommend
from rankwise.findings.study import StudyFindings, study_findings
from rankwise.findings.truncation import CurvePoint
from rankwise.records import quantities
from rankwise.report.page import study_sections, write_report
from tests.planted.results import planted_study
from tests.planted.truncated import planted_truncated
from tests.support.pages import Page, words

GAINS = {
    "trained": {4: 0.20, 16: 0.28, 64: 0.30},
    "truncated": {4: 0.10, 8: 0.2, 16: 0.27},
    "refined": {4: 0.18, 8: 0.22, 16: 0.285},
}


class Written(NamedTuple):
    folder: Path
    findings: StudyFindings
    page: Page

    @property
    def points(self) -> tuple[CurvePoint, ...]:
        return self.findings.truncation[0].curves[0].points


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Written:
    results = planted_truncated(GAINS)
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    folder = tmp_path_factory.mktemp("truncated")
    page = write_report(folder, results, recommendation, findings)
    return Written(folder / "report", findings, Page(page.read_text(encoding="utf-8")))


def test_the_section_says_that_it_is_an_estimate_after_one_run(report: Written) -> None:
    text = report.page.text.replace("\xa0", " ")
    assert "One run, every rank" in text
    assert "This is an estimate after one run" in text
    assert "The recommendation does not rest on this." in text
    for statement in report.findings.truncation[0].curves[0].statements:
        assert statement.replace("\xa0", " ") in text


def test_the_table_has_every_number(report: Written) -> None:
    text = report.page.text
    for point in report.points:
        means = (point.gain, point.retention, point.gain_less_trained, point.retention_less_trained)
        for mean in (mean for mean in means if mean is not None):
            interval = quantities.change_interval(mean.lower, mean.upper, "points")
            assert f"{quantities.change(mean.estimate, 'points')} {interval}" in text
    assert "Energy kept" in text
    assert "75 %" in text.replace("\xa0", " ")  # 1 - 0.5²
    assert "90 %" in text


def test_the_csv_equals_the_findings(report: Written) -> None:
    with (report.folder / "truncation.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, point in zip(rows, report.points, strict=True):
        assert (row["series"], int(row["rank"])) == (point.series, point.rank)
        assert float(row["gain"]) == point.gain.estimate
        share = point.share_of_gain
        assert row["share_of_gain"] == ("" if share is None else str(share.estimate))
        lead = point.gain_less_trained
        assert row["gain_less_trained_upper"] == ("" if lead is None else str(lead.upper))
    assert [row["num_steps"] for row in rows] == ["60"] * 3 + ["0"] * 3 + ["3"] * 3


@pytest.mark.parametrize("kind", ["gain", "retention"])
def test_the_three_series_are_drawn_by_rank(report: Written, kind: str) -> None:
    drawn = {*words(report.page.charts[f"truncation-{kind}"])}
    assert {"trained", "truncated", "refined", "4", "8", "16", "64"} <= drawn
    assert "n\u00a0=\u00a0200" in report.page.titles[f"truncation-{kind}"]


def test_findings_are_read_as_they_were_written(report: Written) -> None:
    text = report.findings.model_dump_json()
    assert StudyFindings.model_validate_json(text) == report.findings


def test_a_source_that_diverged_leaves_a_sentence_and_no_table() -> None:
    results = planted_truncated(GAINS, diverged=[64])
    recommendation = recommend(results)
    sections = study_sections(results, study_findings(results, recommendation))
    (section,) = [section for section in sections if section.name == "truncation"]
    assert section.remarks[-1].startswith("rank 64 takes no part here")
    assert not section.tables
    assert not section.figures


def test_a_study_that_truncates_nothing_has_no_such_section() -> None:
    results = planted_study()
    recommendation = recommend(results)
    sections = study_sections(results, study_findings(results, recommendation))
    assert "truncation" not in [section.name for section in sections]
