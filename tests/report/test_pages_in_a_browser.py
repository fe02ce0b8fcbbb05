"""Whole pages in a real browser: accessibility, keys, print, and the guard over them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from rankwise.report import items as encoding
from rankwise.report.page import ITEMS_FILE, write_audit
from rankwise.weights.audit import audit, find_audited
from tests.planted.items import planted_items, written
from tests.support.audited_models import plant_intruder
from tests.support.browser import PHONE, WIDE, Visit, opened

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

LOOKS = (("light", WIDE), ("dark", WIDE), ("dark", PHONE))


@pytest.fixture(scope="module")
def study_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a card, sliders, a dial and items."""
    return written(tmp_path_factory.mktemp("study"), planted_items())


@pytest.fixture(scope="module")
def items_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items beside the report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "MOST_BYTES", 10)
        report = written(tmp_path_factory.mktemp("items"), planted_items())
    return report.with_name(ITEMS_FILE)


@pytest.fixture(scope="module")
def an_audit_page(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    target = find_audited(str(tiny_model_folder), plant_intruder(tiny_model_folder, folder / "a"))
    return write_audit(folder, audit(target, 20, 1))


def faults(page: Page) -> list[str]:
    """What axe-core finds, with the places."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['impact']}: {each['id']}: {each['help']}: {node['target']}"
        for each in found
        for node in each["nodes"]
    ]


def unfold(page: Page) -> None:
    """Open all that is folded."""
    page.locator("main details").evaluate_all("(all) => all.forEach((each) => (each.open = true))")


def test_axe_sees_a_planted_fault(tmp_path: Path, visit: Visit) -> None:
    page = tmp_path / "grey.html"
    page.write_text(
        '<!DOCTYPE html><html lang="en"><title>grey</title><main><h1>Grey</h1>'
        '<p style="color: #bbb; background: #fff">Who can read this?</p></main></html>'
    )
    (fault,) = faults(visit(page))
    assert fault.startswith("serious: color-contrast")


@pytest.mark.parametrize("name", ["study_page", "items_page", "an_audit_page"])
def test_axe_finds_no_fault(name: str, request: pytest.FixtureRequest, visit: Visit) -> None:
    page = visit(request.getfixturevalue(name))
    if page.locator("section.items").count():
        page.wait_for_selector("section.items[data-ready]")
        page.locator(".list").press("Enter")  # the detail of an item is looked at too
    unfold(page)
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
        expect(chart).to_have_attribute("data-drawn", "yes")
    for colours, (width, height) in LOOKS:
        page.emulate_media(color_scheme=colours)
        page.set_viewport_size({"width": width, "height": height})
        assert faults(page) == []


def test_a_page_is_not_wider_than_a_phone(study_page: Path, visit: Visit) -> None:
    page = visit(study_page, PHONE)
    page.wait_for_selector("section.items[data-ready]")
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    beside = page.evaluate(
        """[...document.querySelectorAll("h1, h2, h3, h4, p, li, figcaption, dt, dd, label")]
        .filter((each) => !each.closest(".scroll, .chart") && each.checkVisibility())
        .filter((each) => each.getBoundingClientRect().right > innerWidth)
        .map((each) => each.textContent)"""
    )
    assert beside == []


def test_tab_reaches_all_that_can_be_used_and_all_of_it_has_a_name(
    study_page: Path, visit: Visit
) -> None:
    page = visit(study_page)
    page.wait_for_selector("section.items[data-ready]")
    unfold(page)
    number = page.evaluate(
        """() => {
        const all = document.querySelectorAll("a, input, select, button, summary, [tabindex]");
        window.left = new Set([...all].filter((each) =>
            each.tabIndex >= 0 && (each.type !== "radio" || each.checked)));
        document.addEventListener("focusin", (event) => window.left.delete(event.target));
        return window.left.size; }"""
    )
    assert number > 20
    for _ in range(number):
        page.keyboard.press("Tab")
    assert page.evaluate("[...window.left].map((each) => each.outerHTML.slice(0, 80))") == []
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    focusable = [
        node
        for node in tree
        if any(each["name"] == "focusable" for each in node.get("properties", ()))
    ]
    assert len(focusable) > number  # the page itself is one
    assert [node["role"]["value"] for node in focusable if not node["name"]["value"]] == []


def test_keys_turn_the_dial(study_page: Path, visit: Visit) -> None:
    page = visit(study_page)
    unfold(page)
    page.locator(".dial input:checked").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        place = page.evaluate(
            "[...document.querySelectorAll('.dial input')].findIndex((each) => each.checked)"
        )
        shown = page.locator(".dial .setting").evaluate_all(
            "(all) => all.map((each) => each.checkVisibility())"
        )
        assert [number for number, each in enumerate(shown) if each] == [place]


def test_print_has_every_section_in_dark_on_white(study_page: Path, visit: Visit) -> None:
    page = visit(study_page, is_dark=True)
    page.wait_for_selector("section.items[data-ready]")
    titles = page.locator("main section:not(.items) :is(h2, h3)").all_text_contents()
    assert {"Every run", "Why", "Task by task", "Provenance"} <= {*titles}
    assert page.locator("main details[open]").count() == 0
    printed = page.pdf(outline=True, tagged=True)
    outline = re.findall(rb"/Title \(((?:[^()\\]|\\.)*)\)", printed)
    said = re.sub(rb"\\(.)", rb"\1", b"\n".join(outline))  # without PDF's escapes
    missing = [title for title in titles if title.encode("latin-1", "replace") not in said]
    assert missing == []
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 32, 36)"


def test_the_guard_sees_what_a_page_does_wrong(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "wrong.html"
    page.write_text(
        "<script>console.log('said'); fetch('https://example.invalid/x'); missing();</script>"
        "<img src='https://example.invalid/y.png'>"
    )
    with opened(browser, page) as (_, amiss):
        pass
    assert "log: said" in amiss
    assert "error: missing is not defined" in amiss
    assert {"request: https://example.invalid/x", "request: https://example.invalid/y.png"} <= {
        *amiss
    }
    forbidden = tmp_path / "forbidden.html"
    forbidden.write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
        "<script>window.pwned = true</script>"
    )
    with opened(browser, forbidden) as (shown, amiss):
        assert shown.evaluate("window.pwned") is None
    (said,) = amiss
    assert "Content Security Policy" in said
