"""The sections about axes, other domains and subjects: complete, legible, equal to the records."""

from __future__ import annotations

import csv
import itertools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

import pytest
from vl_convert import vegalite_to_svg

from rankwise.findings.options import OptionName, TaskMean
from rankwise.findings.recommendation import recommend
from rankwise.findings.study import StudyFindings, study_findings
from rankwise.findings.transfer import DomainMean
from rankwise.records import quantities
from rankwise.records.results import StudyResults
from rankwise.report.cells import drawn_options
from rankwise.report.charts.heatmap import HeatPanel, heat_map
from rankwise.report.charts.marks import MarkStyle
from rankwise.report.charts.theme import GAIN_STEPS, LOSS_STEPS, UNSHOWN
from rankwise.report.page import study_sections, write_report
from rankwise.report.parts import Figure
from rankwise.report.rendering import figure_svg
from rankwise.report.sections.transfer import SCALE, heat_cell, transfer_section
from tests.planted.grid import planted_domains
from tests.planted.results import planted_study
from tests.support.pages import Page, colours, words
from tests.support.sentences import Sentences


class Written(NamedTuple):
    folder: Path
    results: StudyResults
    findings: StudyFindings
    html: str


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Written:
    results = planted_domains()
    folder = tmp_path_factory.mktemp("grid")
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    page = write_report(folder, results, recommendation, findings)
    return Written(folder, results, findings, page.read_text(encoding="utf-8"))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_page_of_several_parts_is_well_ordered(report: Written) -> None:
    page = Page(report.html)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "href"):
            for target in (attributes.get(name) or "").split():
                assert target.removeprefix("#") in ids
    for name in ("sums", "organs"):
        assert f"Trained on {name}" in page.text
    numbers = [int(number) for number in re.findall(r"<b>Figure (\d+)\.</b>", report.html)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_every_colour_of_a_chart_has_a_partner_for_dark_pages(report: Written) -> None:
    charts = Page(report.html).charts
    assert len(charts) > 15
    paired, alone = colours(charts)
    assert paired > 20
    assert alone == []


def test_figures_say_how_many_items(report: Written) -> None:
    page = Page(report.html)
    names = {*page.charts}
    for kind, axis, train in itertools.product(
        ("gain", "retention"), ("alpha", "target-modules"), ("sums", "organs")
    ):
        assert f"axis-{train}-{axis}-{kind}" in names
    assert {"retention-by-subject-sums", "retention-by-subject-organs"} <= names
    # of 13 options one is drawn for each rank, and full fine-tuning
    assert len([name for name in names if name.startswith("transfer-")]) == 4
    for name, chart in page.charts.items():
        assert "n\u00a0=\u00a0" in page.titles[name] + " ".join(words(chart)), name


def test_tables_have_every_number_of_the_findings(report: Written) -> None:
    text, findings = Page(report.html).text, report.findings
    assert findings.transfer is not None
    means: list[TaskMean] = [cell.change for cell in findings.transfer.cells]
    means += [mean.change for mean in findings.transfer.domain_means]
    for each in findings.retention:
        for line in (*each.groups, *each.subjects):
            means += [change.change for change in line.changes]
            means += [change.by_items for change in line.changes if change.by_items]
    for each in findings.axes:
        effects = [effect for axis in each.axes for effect in axis.effects]
        means += [effect.lead for effect in effects if effect.lead]
        means += [effect.retention_lead for effect in effects if effect.retention_lead]
    assert len(means) > 500
    for mean in means:
        interval = quantities.change_interval(mean.lower, mean.upper, "points")
        assert f"{quantities.change(mean.estimate, 'points')} {interval}" in text


def test_csv_numbers_equal_the_findings(report: Written) -> None:
    findings, folder = report.findings, report.folder / "report"
    assert findings.transfer is not None
    rows = read_csv(folder / "transfer.csv")
    records = (*findings.transfer.cells, *findings.transfer.domain_means)
    assert len(rows) == len(records)
    listed = {(row["train_task"], row["label"], row["tasks"]): row for row in rows}
    for record in records:
        row = listed[record.train_task, record.label, " ".join(record.tasks)]
        assert float(row["change"]) == record.change.estimate
        assert float(row["change_upper"]) == record.change.upper
    rows = read_csv(folder / "retention.csv")
    lines = [line for each in findings.retention for line in (*each.groups, *each.subjects)]
    changes = [change for line in lines for change in line.changes]
    assert [float(row["change"]) for row in rows] == [each.change.estimate for each in changes]
    rows = read_csv(folder / "axes.csv")
    effects = [effect for each in findings.axes for axis in each.axes for effect in axis.effects]
    with_axis = [row for row in rows if row["value"]]
    assert [row["value"] for row in with_axis] == [effect.value for effect in effects]
    assert len(rows) - len(with_axis) == sum(len(each.points) for each in findings.axes)


def test_the_page_says_what_matters_and_that_it_is_exploratory(
    report: Written, sentence: Sentences
) -> None:
    sections = {each.name: each for each in study_sections(report.results, report.findings)}
    for name in ("axes", "transfer", "retention-by-subject"):
        sentence(sections[name].remarks, name)
    assert "4 more" in sections["retention-by-subject"].figures[0].caption  # of 24 subjects


def test_alarms_are_named_and_marked(report: Written) -> None:
    assert report.findings.transfer is not None
    alarms = [cell for cell in report.findings.transfer.cells if cell.is_alarm]
    assert alarms
    text = Page(report.html).text
    assert text.count("negative transfer") >= len(alarms)
    chart = Page(report.html).charts["transfer-full-fine-tuning"]
    texts = [row.get("text", "") for rows in chart["datasets"].values() for row in rows]
    drawn = [cell for cell in alarms if cell.label == "full fine-tuning"]
    assert sum("▼" in text for text in {*texts}) == len(drawn)


def test_a_study_of_ranks_has_no_section_of_axes() -> None:
    results = planted_study()
    recommendation = recommend(results)
    sections = study_sections(results, study_findings(results, recommendation))
    names = [section.name for section in sections]
    assert "axes" not in names
    assert {"transfer", "retention-by-subject"} <= set(names)


def test_without_other_tasks_the_sections_are_not_there() -> None:
    results = planted_study(out_of_domain_tasks=(), retention_tasks=("capitals",))
    findings = study_findings(results, recommend(results))
    assert findings.transfer is None
    assert findings.retention == ()
    assert findings.axes == ()


def test_findings_are_read_as_they_were_written(report: Written) -> None:
    text = report.findings.model_dump_json()
    assert StudyFindings.model_validate_json(text) == report.findings


def test_a_study_whose_runs_all_diverged_has_nothing_to_show(tmp_path: Path) -> None:
    results = planted_study(diverged=[(4, 0), (16, 0), (64, 0), ("full", 0)])
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    assert findings.transfer is None
    assert findings.retention == ()
    assert write_report(tmp_path, results, recommendation, findings).exists()


def mean(estimate: float, lower: float, upper: float) -> TaskMean:
    return TaskMean(
        estimate=estimate,
        lower=lower,
        upper=upper,
        unit="points",
        num_examples=100,
        num_tasks=1,
        num_seeds=1,
    )


def test_a_cell_is_coloured_by_size_and_muted_where_nothing_is_shown() -> None:
    sizes = (1.0, 2.0, 5.0, 10.0, 20.0)
    changes = {f"gain {size:g}": mean(size, 0.1, 40.0) for size in sizes}
    changes |= {f"loss {size:g}": mean(-size, -40.0, -0.1) for size in sizes}
    changes["nothing"] = mean(9.0, -1.0, 19.0)
    cells = {("row", name): heat_cell(DomainMean(
        train_task="sums", label="rank 8", domain="d", tasks=("t",), change=change
    )) for name, change in changes.items()}  # fmt: skip
    shown = {place: cell for place, cell in cells.items() if cell is not None}
    assert not shown["row", "nothing"].is_shown
    panel = HeatPanel("", list(changes), ["row"], shown, SCALE)
    figure = Figure("map", "A map", "", heat_map([panel], (80.0, 37.0)))
    drawn = figure_svg(figure)
    used = set(re.findall(r'fill="(#[0-9a-f]{6})"', drawn))
    steps = {colour.light for colour in (*GAIN_STEPS, *LOSS_STEPS, UNSHOWN)}
    assert len(steps) == 11
    assert steps <= used


def test_a_matrix_takes_long_names_and_empty_cells() -> None:
    long_task = "a_very_long_task_name_with_many_parts_and_more"
    label = "rank 128, alpha 2r, rate 2e-4 × (r/32)^-1/2, on q/k/v/o"
    results = planted_study(out_of_domain_tasks=(long_task,))
    found = study_findings(results, recommend(results)).transfer
    assert found is not None
    names = {"rank 64": label}
    cells = [
        cell.model_copy(update={"label": names.get(cell.label, cell.label)})
        for cell in found.cells
        if not (cell.label == "rank 64" and cell.relation == "out_of_domain")
    ]
    options = [
        option.model_copy(update={"label": names.get(option.label, option.label)})
        for option in found.options
    ]
    changed = found.model_copy(update={"cells": tuple(cells), "options": tuple(options)})
    (figure,) = transfer_section(changed).figures
    assert figure.drawing is not None
    drawn = ElementTree.fromstring(vegalite_to_svg(figure.drawing.chart))
    texts = [element.text for element in drawn.iter()]
    lines = [text for text in texts if text and text.strip()]
    assert {"rank 128, alpha 2r, rate 2e-4", quantities.NOT_MEASURED} <= set(lines)
    assert all(len(line) <= 36 for line in lines)


def test_of_too_many_options_one_of_each_rank_is_drawn() -> None:
    options = [
        OptionName(label=f"rank {rank}, alpha {alpha}", rank=rank)
        for rank in (8, 16, 32)
        for alpha in ("2r", "4r", "8r")
    ]
    options.append(OptionName(label="full fine-tuning", rank=None))
    assert [option.label for option in drawn_options(options)] == [
        "rank 8, alpha 2r", "rank 16, alpha 2r", "rank 32, alpha 2r", "full fine-tuning",
    ]  # fmt: skip
    few = options[:3]
    assert drawn_options(few) == tuple(few)
    looks = MarkStyle.of_each({option.label: option.kind for option in few})
    assert len({look.colour for look in looks.values()}) == 1
    assert len({look.shape for look in looks.values()}) == 3
