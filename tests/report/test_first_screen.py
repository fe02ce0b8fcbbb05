"""What a reader sees without scrolling, and what opens: the card, the contents, folded sections."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from rankwise.findings.recommendation import recommend
from rankwise.findings.statements import with_folder
from rankwise.findings.study import study_findings
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.results import StudyResults
from tests.planted.grid import planted_domains
from tests.planted.items import planted_items, written
from tests.planted.results import planted_study
from tests.support.browser import PHONE, Visit

SCREEN = (1300, 900)
HIGHEST = 9000

RANKS = [2**n for n in range(12)]
STUDIES: dict[str, dict[str, Any]] = {
    "settled": {},
    "not settled": {"in_domain_accuracy": {4: 0.7, 16: 0.72, 64: 0.73, "full": 0.9}},
    "nothing gained": {"in_domain_accuracy": dict.fromkeys((4, 16, 64), 0.52)},
    "many ranks": {
        "in_domain_accuracy": {rank: 0.5 + 0.02 * n for n, rank in enumerate(RANKS)},
        "retention_accuracy": dict.fromkeys(RANKS, 0.9),
    },
}


@pytest.fixture(scope="module")
def study_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("study"), planted_items())


@pytest.fixture(scope="module")
def page_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trained tasks, 26 options, 24 retention tasks, and items."""
    return written(tmp_path_factory.mktemp("two"), planted_items(), planted_domains())


def bottoms(page: Page, *parts: str) -> dict[str, float]:
    """How far down each part of the first card reaches."""
    found: dict[str, float] = {}
    for part in parts:
        box = page.locator(f".card >> nth=0 >> {part}").first.bounding_box()
        assert box is not None, part
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= (page.viewport_size or {"width": 0})["width"]
        found[part] = box["y"] + box["height"]
    return found


def assert_first_screen(page: Page) -> None:
    wide = bottoms(page, "h2, h3", "table", ".chart", ".next", ".copy")
    assert max(wide.values()) <= SCREEN[1], wide
    assert len(page.locator(".card :is(h2, h3)").first.inner_text().split()) <= 40


@pytest.mark.parametrize("name", STUDIES)
def test_the_first_screen_has_the_card_and_the_picture(
    name: str, tmp_path: Path, visit: Visit
) -> None:
    report = written(tmp_path, planted_items(), planted_study(**STUDIES[name]))
    assert_first_screen(visit(report, SCREEN))
    narrow = bottoms(visit(report, PHONE), "h2, h3", "table", ".chart")
    assert max(narrow.values()) <= PHONE[1], narrow


def test_of_several_tasks_the_first_has_the_first_screen(page_of_two: Path, visit: Visit) -> None:
    page = visit(page_of_two, SCREEN)
    assert_first_screen(page)
    assert page.locator(".card").count() == 2
    bottoms(visit(page_of_two, PHONE), "table", ".chart")  # labels are long, and nothing is wider


def test_the_card_says_what_the_record_says(study_page: Path, visit: Visit) -> None:
    results = planted_study()
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    (card,) = findings.cards
    page = visit(study_page, SCREEN)
    shown = page.locator(".card")
    assert shown.locator("h2").inner_text() == card.headline
    rows = shown.locator("tbody tr").all()
    assert [row.locator("th").inner_text().split("\n")[0] for row in rows] == [
        row.label for row in card.rows if row.runs
    ]
    (marked,) = [row for row in rows if "marked" in (row.get_attribute("class") or "")]
    assert marked.locator("th").inner_text() == "rank 16\nuse this"
    assert shown.locator(".then p:not(.next)").all_inner_texts() == [*findings.card_lines(card)]
    command = with_folder(card.command, study_page.parent)
    assert shown.locator("code").inner_text() == command


def test_a_button_copies_the_command(study_page: Path, visit: Visit) -> None:
    page = visit(study_page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    expect(page.locator(".copy")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator(".next code").inner_text()
    assert copied.startswith("rankwise export ")


def test_where_nothing_may_be_copied_the_command_is_selected(
    study_page: Path, visit: Visit
) -> None:
    page = visit(study_page)
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error()); }")
    page.get_by_role("button", name="Copy").click()
    expect(page.locator(".copy")).to_have_text("Selected")
    assert page.evaluate("getSelection().toString()") == page.locator(".next code").inner_text()


@pytest.mark.parametrize("name", ["study_page", "page_of_two"])
def test_a_page_opens_no_higher_than_can_be_read(
    name: str, request: pytest.FixtureRequest, visit: Visit
) -> None:
    page = visit(request.getfixturevalue(name), SCREEN)
    page.wait_for_selector("section.items[data-ready]")
    folded = page.locator("main details").count()
    assert folded > 8
    assert page.locator("main details[open]").count() == 0
    assert page.evaluate("document.documentElement.scrollHeight") <= HIGHEST


def test_sections_are_in_the_order_of_questions(study_page: Path, visit: Visit) -> None:
    page = visit(study_page)
    shown = page.locator("main section:not(:has(> details)) > h2").all_inner_texts()
    assert shown[1:] == ["Why", "By rank", "Item by item", "Settings"]
    listed = page.locator(".contents a").all_inner_texts()
    titles = page.locator("main h2").all_text_contents()
    assert listed == ["Verdict", *titles[1:]]


def test_a_link_opens_what_it_leads_to(study_page: Path, visit: Visit) -> None:
    page = visit(study_page, SCREEN)
    folded = page.locator("section.methods details")
    assert folded.get_attribute("open") is None
    page.locator(".contents").get_by_role("link", name="Methods").click()
    expect(folded).to_have_attribute("open", "")
    assert page.locator("#methods").bounding_box()["y"] < SCREEN[1]  # type: ignore[index]
    folded.locator("summary").click()
    expect(folded).not_to_have_attribute("open", "")
    page.locator(".contents").get_by_role("link", name="Methods").click()  # the hash is the same
    expect(folded).to_have_attribute("open", "")


def test_an_address_opens_what_it_names(study_page: Path, visit: Visit) -> None:
    page = visit(study_page)
    page.goto(f"{page.url}#tasks")
    expect(page.locator("section.tasks details")).to_have_attribute("open", "")
    assert page.locator("main details[open]").count() == 1
    page.goto(f"{page.url}#no-such-thing")
    assert page.locator("main details[open]").count() == 1


def test_printing_opens_everything_for_as_long_as_it_lasts(study_page: Path, visit: Visit) -> None:
    page = visit(study_page)
    page.evaluate(
        """() => addEventListener("beforeprint", () => {
        window.open = [...document.querySelectorAll("main details")].map((each) => each.open); })"""
    )
    printed = page.pdf()
    seen = page.evaluate("window.open")
    assert len(seen) > 8
    assert all(seen)
    assert len(printed) > 10_000
    assert page.locator("main details[open]").count() == 0


def test_contents_stay_beside_the_page_and_are_a_menu_on_a_phone(
    study_page: Path, visit: Visit
) -> None:
    page = visit(study_page, SCREEN)
    page.evaluate("scrollTo(0, 2000)")
    links = page.locator(".contents ul")
    assert links.bounding_box()["y"] < 100  # type: ignore[index]
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    expect(links).to_be_hidden()
    menu = page.locator(".contents summary")
    assert 0 <= menu.bounding_box()["y"] < 50  # type: ignore[index]
    menu.click()
    page.get_by_role("link", name="Settings", exact=True).click()
    expect(links).to_be_hidden()
    top, bar = page.locator("#settings").bounding_box(), menu.bounding_box()
    assert top is not None
    assert bar is not None
    assert bar["y"] + bar["height"] <= top["y"] < PHONE[1]


@pytest.mark.parametrize("name", ["study_page", "page_of_two"])
def test_no_table_is_cut_off_on_a_phone(
    name: str, request: pytest.FixtureRequest, visit: Visit
) -> None:
    page = visit(request.getfixturevalue(name), PHONE)
    page.locator("main details").evaluate_all("(all) => all.forEach((each) => (each.open = true))")
    found = page.evaluate(
        """() => [...document.querySelectorAll("main table")].map((table) => {
        const box = table.closest(".scroll");
        box.scrollLeft = box.scrollWidth;
        const cells = [...table.rows[0].cells].at(-1).getBoundingClientRect();
        return {
            right: box.getBoundingClientRect().right,
            last: cells.right,
            isWider: box.scrollWidth > box.clientWidth,
            shadows: getComputedStyle(box).backgroundImage.split("linear-gradient").length - 1,
        };})"""
    )
    assert len(found) > 10
    assert sum(each["isWider"] for each in found) > 5
    for each in found:
        assert each["right"] <= PHONE[0]
        assert each["last"] <= PHONE[0] + 1
        assert each["shadows"] == 4


def test_a_shadow_shows_that_a_table_goes_on(study_page: Path, visit: Visit) -> None:
    """The pixels at the right edge differ until the end of the table is reached."""
    page = visit(study_page, PHONE)
    page.goto(f"{page.url}#comparison")
    box = page.locator("section.comparison .scroll")
    box.scroll_into_view_if_needed()
    place = box.bounding_box()
    assert place is not None
    clip = {"x": place["x"] + place["width"] - 4, "y": place["y"] + place["height"] - 6}
    at = {**clip, "width": 3, "height": 3}
    before = page.screenshot(clip=at)  # type: ignore[arg-type]
    box.evaluate("(each) => { each.scrollLeft = each.scrollWidth; }")
    page.wait_for_timeout(100)
    assert page.screenshot(clip=at) != before  # type: ignore[arg-type]


def judged(results: StudyResults, **margins: float) -> tuple[str, str | None]:
    """The headline of the terminal's card, and the rank that is recommended."""
    recommendation = recommend(_with(results, margins))
    (part,) = recommendation.by_train_task
    (card,) = study_findings(_with(results, margins), recommendation).cards
    return card.headline, None if part.rank is None else f"rank {part.rank}"


def _with(results: StudyResults, margins: dict[str, float]) -> StudyResults:
    config = results.study.config
    recommendation = config.recommendation.model_copy(update=margins)
    config = config.model_copy(update={"recommendation": recommendation})
    return results.model_copy(update={"study": results.study.model_copy(update={"config": config})})


@pytest.mark.parametrize("name", ["settled", "not settled"])
def test_slider_dial_and_terminal_agree_on_a_grid_of_margins(
    name: str, tmp_path: Path, visit: Visit
) -> None:
    """Each shows the same option under the same margins, or all say that nothing is settled."""
    own = RecommendationConfig(delta_points=3.0, epsilon_points=3.0, worst_task_points=9.0)
    results = planted_study(
        **{"retention_accuracy": {4: 0.88, 16: 0.86, 64: 0.82, "full": 0.80}, **STUDIES[name]},
        recommendation=own,
    )
    page = visit(written(tmp_path, results=results))
    page.goto(f"{page.url}#margins")
    dial = {float(label.inner_text()): label for label in page.locator(".dial label").all()}
    seen: set[str] = set()
    for delta, epsilon, ceiling in itertools.product((1.0, 3.0, 8.0), dial, (9.0, 15.0)):
        if epsilon > 10:  # beyond the slider
            continue
        for label, value in (("δ", delta), ("ε", epsilon), ("any task", ceiling)):
            page.get_by_role("slider", name=label, exact=True).fill(str(value))
        answer = page.locator(".sliders .answer").inner_text()
        headline, rank = judged(
            results, delta_points=delta, epsilon_points=epsilon, worst_task_points=ceiling
        )
        place = f"δ {delta}, ε {epsilon}, any task {ceiling}: {answer}; {headline}"
        if rank is None:
            assert not answer.startswith("Recommended"), place
        else:
            assert answer == f"Recommended: {rank}.", place
            assert headline.startswith(f"Use {rank}."), place
        seen.add(answer)
        if (delta, ceiling) != (own.delta_points, own.worst_task_points):
            continue
        dial[epsilon].click()
        (turned,) = [
            each.inner_text()
            for each in page.locator(".dial .setting .remark").all()
            if each.is_visible()
        ]
        bet = re.search(r"Best bet: (.+?)(?: \(.*\))?\.$", headline)
        said = rank or (bet and bet[1])
        assert turned == f"With ε = {epsilon:g} points the best bet is {said}.", place
    assert len(seen) > 1
