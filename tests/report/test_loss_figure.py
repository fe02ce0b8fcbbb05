"""The course of the training loss: means of neighbours, read as far as it was written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rankwise.findings.recommendation import recommend
from rankwise.findings.study import study_findings
from rankwise.records.folder import StudyFolder
from rankwise.report.charts.losses import averaged, loss_chart
from rankwise.report.page import write_report
from tests.planted.results import planted_study
from tests.support.pages import Page


def test_every_run_has_a_line(tmp_path: Path) -> None:
    results = planted_study()
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    losses = {run.name: [(step, 4.0 / step) for step in range(1, 31)] for run in results.study.runs}
    page = write_report(tmp_path, results, recommendation, findings, None, losses)
    html = page.read_text("utf-8")
    labels = ["rank 4", "rank 16", "rank 64", "full fine-tuning"]
    (rows,) = Page(html).charts["loss"]["datasets"].values()
    assert list(dict.fromkeys(row["run"] for row in rows)) == labels
    assert len(rows) == 4 * 30
    assert html.count("4 to 0.133") >= len(labels)
    write_report(tmp_path, results, recommendation, findings)
    assert "loss" not in Page(page.read_text("utf-8")).charts


def test_what_is_no_number_is_not_drawn() -> None:
    drawing = loss_chart({"rank 4": (4, [(1, 3.0), (2, math.nan), (3, math.inf), (4, 2.0)])})
    assert [row["loss"] for row in drawing.chart["layer"][0]["data"]["values"]] == [3.0, 2.0]


def test_many_steps_become_means_of_as_many_neighbours() -> None:
    course = [(step, float(step)) for step in range(1, 601)]
    points = averaged(course)
    assert len(points) == 60
    assert points[0] == (5.5, 5.5)
    assert points[-1] == (595.5, 595.5)
    assert averaged([(1, 2.0)]) == [(1.0, 2.0)]


def test_losses_are_read_up_to_a_line_that_was_cut(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    assert folder.read_losses("a") == []
    folder.metrics_file("a").parent.mkdir(parents=True)
    folder.append_metrics("a", {"step": 1, "loss_nats": 3.5})
    folder.append_metrics("a", {"step": 2, "loss_nats": 2.5})
    with folder.metrics_file("a").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "loss_na')
    assert folder.read_losses("a") == [(1, 3.5), (2, pytest.approx(2.5))]
