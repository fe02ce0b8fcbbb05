"""The report's section on weights: every number in tables, maps drawn, colours for dark pages."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rankwise.findings.recommendation import recommend
from rankwise.findings.study import StudyFindings, study_findings
from rankwise.records import quantities
from rankwise.records.results import StudyResults
from rankwise.records.spectra import SpectraRecord
from rankwise.records.study import PlannedRun
from rankwise.report.page import study_sections, write_report
from rankwise.report.parts import ReportSection, Table
from rankwise.report.rendering import Page, figure_files
from tests.planted.results import planted_study
from tests.planted.weights import (
    FORGET,
    KINDS,
    NUM_LAYERS,
    SAME,
    logarithmic,
    matrix,
    record,
    spectra,
    two_tasks,
    with_spectra,
)
from tests.support.pages import Page as HtmlPage
from tests.support.pages import colours, words
from tests.support.sentences import Sentences
from tests.support.tables import csv_rows

SCORES = {**SAME, "full": 0.72}
RETENTION = {**FORGET, "full": 0.75}


class Written(NamedTuple):
    folder: Path
    results: StudyResults
    findings: StudyFindings
    text: str
    charts: dict[str, Any]


def written(folder: Path, results: StudyResults) -> Written:
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    page = HtmlPage(write_report(folder, results, recommendation, findings).read_text("utf-8"))
    charts = {name: chart for name, chart in page.charts.items() if name.startswith("weights")}
    return Written(folder / "report", results, findings, page.text, charts)


def section(results: StudyResults) -> ReportSection | None:
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    found = study_sections(results, findings)
    return next((each for each in found if each.name == "weights"), None)


def shown(results: StudyResults) -> ReportSection:
    found = section(results)
    assert found is not None
    return found


def looked_into(run: PlannedRun) -> SpectraRecord:
    """Logarithmic norms; LoRA shares directions with full fine-tuning."""
    its = logarithmic(run)
    if run.rank is None:
        return its
    overlap = spectra(run, lambda _: 1.0, overlap=0.2 + 0.002 * run.rank).matrices[0].full_overlap
    return its.model_copy(
        update={
            "matrices": tuple(
                each.model_copy(update={"full_overlap": overlap}) for each in its.matrices
            )
        }
    )


@pytest.fixture(scope="module")
def planted() -> StudyResults:
    return with_spectra(planted_study(SCORES, RETENTION), looked_into)


@pytest.fixture(scope="module")
def own(planted: StudyResults) -> ReportSection:
    return shown(planted)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, planted: StudyResults) -> Written:
    return written(tmp_path_factory.mktemp("weights"), planted)


def rows_of(found: ReportSection, title: str) -> list[list[str]]:
    """The cells of a table, each with its small print."""
    (table,) = (each.table for each in found.tables if each.title == title)
    assert isinstance(table, Table)
    return [
        [" ".join(part for part in cell[:3] if part) for cell in row]
        for group in table.groups
        for row in group.rows
    ]


def test_tables_have_every_number(own: ReportSection, report: Written) -> None:
    found = own
    (part,) = report.findings.weights
    rows = rows_of(found, "Updates of the runs")
    assert [row[0] for row in rows] == [f"rank {rank}" for rank in SAME] + ["full fine-tuning"]
    for row, run in zip(rows, part.runs, strict=True):
        assert row[1] == f"{run.frobenius_norm:.3g}"
        assert row[2] == f"{100 * run.relative_norm:.2g}"
        assert row[3:5] == ["4.5", "5"]
        assert row[5].startswith(f"{run.intruders.observed:.3g} ")
        assert f"{run.intruders.gaussian:.3g}, {run.intruders.haar:.3g}" in row[5]
        assert row[6] == "0.800 0.600, 0.600"
    assert rows[0][7] == f"0.208 {(4 / 64 + 4 / 48) / 2:.3f}"
    assert rows[-1][7] == "—"  # with itself
    rows = rows_of(found, "Norm against rank")
    assert [row[0] for row in rows] == ["all modules", *KINDS]
    slope = 0.5 * math.sqrt(NUM_LAYERS)
    assert rows[1][1].startswith(f"{slope:.3g} ")
    assert rows[2][3].startswith("0.5 ")
    rows = rows_of(found, "Weights and forgetting")
    assert len(rows) == 6
    for row, each in zip(rows, part.associations, strict=True):
        assert row[:3] == [each.measure, each.forgetting, "6"]
        rho = each.correlation
        assert row[3] == (
            f"— {each.reason}"
            if rho is None
            else quantities.correlation(rho).replace("(", "").replace(")", "")
        )
    rows = [row for each in found.tables for row in rows_of(found, each.title)]
    assert len(rows) == 6 + 3 + 6
    assert all(text in report.text for row in rows for text in row)


def test_remarks_say_what_was_found_and_how_far_it_goes(
    report: Written, sentence: Sentences
) -> None:
    (part,) = report.findings.weights
    assert len(part.statements) >= 2
    assert all(statement in report.text for statement in part.statements)
    (own,) = [
        each for each in study_sections(report.results, report.findings) if each.name == "weights"
    ]
    sentence(own.remarks)
    assert all(remark in report.text for remark in own.remarks)


FIGURES = {"norm", "overlap", "forgetting", "map-norm", "map-turned", "map-intruders"}


def test_every_figure_is_drawn(report: Written) -> None:
    assert {*report.charts} == {f"weights-{name}" for name in FIGURES}
    drawn = {*words(report.charts["weights-map-norm"])}
    assert {*map(str, range(NUM_LAYERS)), "q", "up"} <= drawn
    run = report.results.runs[0].spectra
    assert run is not None
    share = 100 * (run.matrices[0].update.relative_norm or 0)
    assert f"{share:.2g}" in drawn
    turned = {*words(report.charts["weights-map-turned"])}
    assert {"trained", "Gaussian", "Haar"} <= turned
    assert {"20", "40"} <= turned  # 1 - 0.8 of the trained, 1 - 0.6 of random ones


def test_every_colour_has_a_partner_for_dark_pages(report: Written) -> None:
    for chart in report.charts.values():
        paired, alone = colours(chart)
        assert paired
        assert alone == []


def test_the_csv_has_a_row_for_each_run_and_matrix(
    planted: StudyResults, own: ReportSection
) -> None:
    rows = csv_rows("weights", planted)
    wanted = [
        (model.name, each)
        for model in planted.runs
        if model.spectra is not None
        for each in model.spectra.matrices
    ]
    assert len(rows) == len(wanted) == 6 * NUM_LAYERS * len(KINDS)
    for row, (run, each) in zip(rows, wanted, strict=True):
        assert (row["run"], row["module"]) == (run, each.module)
        assert (row["layer"], row["kind"]) == (str(each.layer), each.kind)
        assert float(row["frobenius_norm"]) == pytest.approx(each.update.frobenius_norm)
        assert row["rank"] == ("" if each.update.rank is None else str(each.update.rank))
        assert float(row["trained_left_index"]) == pytest.approx(each.change.left.index_matched[-1])
        assert float(row["trained_intruders"]) == each.change.intruders[0][2]
        assert each.haar_null is not None
        assert float(row["haar_intruders"]) == each.haar_null.intruders[0][2]
        overlap = each.full_overlap
        assert row["full_overlap_left"] == ("" if overlap is None else str(overlap.left))


def test_the_csv_is_written_beside_the_figures(report: Written, own: ReportSection) -> None:
    text = (report.folder / "weights.csv").read_text("utf-8")
    assert list(csv.DictReader(io.StringIO(text))) == csv_rows("weights", report.results)


def test_without_spectra_there_is_no_section() -> None:
    assert section(planted_study(SCORES)) is None


def test_several_trained_tasks_have_files_of_their_own(tmp_path: Path) -> None:
    report = written(tmp_path, two_tasks((4, 16, 64)))
    names = {*report.charts}
    wanted = FIGURES - {"overlap", "forgetting"}  # three runs are too few for a correlation
    assert names == {f"weights-{task}-{name}" for task in ("sums", "organs") for name in wanted}
    for task in ("sums", "organs"):
        for title in ("Updates of the runs", "Norm against rank"):
            assert f"{title}, trained on {task}" in report.text
    assert len(csv_rows("weights", report.results)) == 6 * NUM_LAYERS * len(KINDS)


# what is not there


CASES: dict[str, tuple[Callable[[PlannedRun], SpectraRecord | None], set[str]]] = {
    "nothing turned, no nulls": (
        lambda run: spectra(run, lambda _: 1.0, similarity=1.0, nulls=False),
        FIGURES - {"overlap", "map-intruders"},
    ),
    "zero updates": (
        lambda run: spectra(run, lambda _: 0.0, similarity=1.0, nulls=False),
        FIGURES - {"overlap", "map-intruders"},
    ),
    "no layers": (
        lambda run: record(run, (matrix("lm_head", None, rank=run.rank, norm=1.0, intruders=1),)),
        FIGURES - {"overlap", "map-norm", "map-turned", "map-intruders"},
    ),
    "full fine-tuning alone": (
        lambda run: logarithmic(run) if run.rank is None else record(run, (), "it is DoRA"),
        FIGURES - {"overlap", "norm", "forgetting"},  # one run is too few for a correlation
    ),
    "nothing but adapters that cannot be read": (lambda run: record(run, (), "it is DoRA"), set()),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_there_is_not_drawn(case: str) -> None:
    of, figures = CASES[case]
    found = shown(with_spectra(planted_study(SCORES, RETENTION), of))
    page = Page("", "", "", (), [found])  # its other sections are the same as ever
    assert figure_files(page).keys() == {f"weights-{name}" for name in figures}
    is_left_out = case.endswith(("be read", "alone"))
    assert ("it is DoRA" in " ".join(found.remarks)) == is_left_out


def test_of_many_ranks_four_are_shown_from_the_smallest_to_full(own: ReportSection) -> None:
    (figure,) = (each for each in own.figures if each.name == "weights-map-norm")
    names = [" ".join(each.split(" ")[:2]) for each in figure.drawing.words.split("; ")]
    assert names == ["rank 4", "rank 16", "rank 32", "full fine-tuning"]


def test_three_ranks_are_needed_for_a_law(sentence: Sentences) -> None:
    results = planted_study({4: 0.7, 64: 0.7})
    found = shown(with_spectra(results, logarithmic))
    (figure,) = (each for each in found.figures if each.name == "weights-norm")
    sentence(figure.caption)
    titles = [each.title for each in found.tables]
    assert titles == ["Updates of the runs"]
