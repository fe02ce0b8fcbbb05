"""Charts on a page, in a real browser: that they are drawn, say their numbers and hide runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect

from rankwise.report.parts import Figure, ReportSection
from rankwise.report.rendering import Page as ShownPage
from rankwise.report.rendering import rendered
from tests.planted.charts import CHARTS
from tests.planted.items import planted_items, written
from tests.support.browser import PHONE, WIDE, Visit, drawn, opened
from tests.support.pages import Page as ReadPage

LEAST_LETTERS = 11


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("study"), planted_items())


def mark(chart: Locator, said: str) -> Locator:
    """The mark whose tooltip begins so."""
    place = chart.locator(".mark-symbol path").evaluate_all(
        "(all, said) => all.findIndex((each) => each.__data__.tooltip?.startsWith(said))", said
    )
    assert place >= 0
    return chart.locator(".mark-symbol path").nth(place)


@pytest.mark.parametrize(("size", "is_dark"), [(WIDE, False), (WIDE, True), (PHONE, False)])
def test_every_chart_is_drawn_in_letters_that_can_be_read(
    report: Path, visit: Visit, size: tuple[int, int], is_dark: bool
) -> None:
    page = visit(report, size, is_dark=is_dark)
    names = ReadPage(report.read_text("utf-8")).charts
    assert len(names) > 5
    for name in names:
        chart = drawn(page, name)
        scale, letters = chart.evaluate(
            """(chart) => {
            const svg = chart.querySelector("svg");
            const texts = [...svg.querySelectorAll("text")].filter((each) => each.textContent);
            return [svg.getBoundingClientRect().width / svg.viewBox.baseVal.width,
                texts.map((each) => parseFloat(getComputedStyle(each).fontSize))]; }"""
        )
        assert len(letters) > 3
        assert min(letters) * scale > LEAST_LETTERS - 0.1, name


def test_charts_of_every_kind_are_drawn(tmp_path: Path, visit: Visit) -> None:
    figures = [Figure(name, name, "", drawing) for name, drawing in CHARTS.items()]
    html = rendered(ShownPage("", "", "", (), [ReportSection("all", "All", figures=figures)]))
    (tmp_path / "all.html").write_text(html, "utf-8")
    page = visit(tmp_path / "all.html")
    for name in CHARTS:
        assert drawn(page, name).locator("svg :is(path, text)").count() > 5, name


def test_what_cannot_be_drawn_says_so(report: Path, tmp_path: Path, browser: Browser) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(report.read_text("utf-8").replace('"datasets":', '"datasets":NaN,"x":', 1))
    with opened(browser, broken) as (page, _):
        chart = page.locator(".chart").first
        chart.scroll_into_view_if_needed()
        expect(chart).to_contain_text("This chart cannot be drawn: ")
        assert drawn(page, "score-by-rank").locator("svg").count() == 1


def test_colours_suit_the_page(report: Path, visit: Visit) -> None:
    page = visit(report)
    label = drawn(page, "score-by-rank").locator(".role-axis-label text").first
    fill = "(each) => getComputedStyle(each).fill"
    assert label.evaluate(fill) == "rgb(28, 32, 36)"
    page.emulate_media(color_scheme="dark")
    assert label.evaluate(fill) == "rgb(228, 231, 234)"
    page.emulate_media(media="print")
    assert label.evaluate(fill) == "rgb(28, 32, 36)"


def test_a_chart_is_drawn_when_it_is_seen(report: Path, tmp_path: Path, visit: Visit) -> None:
    folded = tmp_path / "folded.html"
    folded.write_text(
        report.read_text("utf-8")
        .replace("<figure", "<details><summary>more</summary><figure")
        .replace("</figure>", "</figure></details>"),
        "utf-8",
    )
    page = visit(folded)
    page.wait_for_timeout(300)
    assert page.locator(".chart svg").count() == 0
    page.locator("details:has(> #figure-gain-and-retention) > summary").click()
    drawn(page, "gain-and-retention")
    assert page.locator(".chart svg").count() == 1


def test_all_charts_are_drawn_for_print(report: Path, visit: Visit) -> None:
    page = visit(report)
    num_charts = page.locator(".chart").count()
    assert page.locator(".chart svg").count() < num_charts
    page.pdf()
    assert page.locator(".chart svg").count() == num_charts


def test_the_pointer_shows_the_numbers(report: Path, visit: Visit) -> None:
    page = visit(report)
    mark(drawn(page, "gain-and-retention"), "rank 64").hover()
    shown = page.locator("#vg-tooltip-element")
    expect(shown).to_be_visible()
    assert shown.inner_text().startswith("rank 64")
    assert "to +" in shown.inner_text()
    page.mouse.move(0, 0)
    expect(shown).not_to_be_visible()


def test_a_click_on_a_key_hides_a_run_and_another_brings_it_back(
    report: Path, visit: Visit
) -> None:
    page = visit(report)
    chart = drawn(page, "difference-by-task")
    marks = chart.locator(".mark-symbol:not(.role-legend-symbol) path")
    entry = chart.locator(".role-legend-label text", has_text="rank 16")
    before = marks.count()
    num_panels = chart.locator(".mark-symbol:not(.role-legend-symbol)").count()
    assert num_panels > 1
    entry.click()
    expect(entry).to_have_attribute("fill-opacity", "0.35")
    assert marks.count() == before - before // 4  # of four options, in every panel
    entry.click()
    expect(marks).to_have_count(before)
    expect(entry).to_have_attribute("fill-opacity", "1")


def test_a_click_on_a_name_hides_what_it_names(report: Path, visit: Visit) -> None:
    page = visit(report)
    chart = drawn(page, "gain-and-retention")
    marks = chart.locator(".mark-symbol path")
    before = marks.count()
    name = chart.locator(".mark-text text", has_text="rank 64").last
    name.click()
    expect(marks).to_have_count(before - 1)
    name.click()
    expect(marks).to_have_count(before)


def test_without_scripts_it_is_said_what_is_missing(report: Path) -> None:
    page = ReadPage(report.read_text("utf-8"))
    assert [tag for tag, _ in page.tags].count("noscript") == 1
    assert "The charts need a browser that runs scripts" in page.text
