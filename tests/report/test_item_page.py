"""The items on the page, in a real browser: filters, search, keys, hostile texts, many items."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from rankwise.findings.item_table import ShownModel, ShownTask
from rankwise.report import items as encoding
from tests.planted.items import MODELS, OUTCOMES, planted_items, written
from tests.support.browser import Visit, drawn
from tests.support.pages import Page as ReadPage
from tests.support.pages import words

RUN = "window.pwned = true"
HOSTILE = f'</pre></script><script>{RUN}</script><img src=x onerror="{RUN}"><b>\u202e'
MANY = 20_000


@pytest.fixture(scope="module")
def small_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("small"), planted_items())


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outcomes = [OUTCOMES[number % len(OUTCOMES)] for number in range(MANY)]
    return written(tmp_path_factory.mktemp("large"), planted_items(outcomes))


def ready(page: Page) -> Page:
    page.wait_for_selector("section.items[data-ready]")
    return page


def field(page: Page, label: str) -> Locator:
    return page.locator(".filters").get_by_label(label)


def num_found(page: Page) -> str:
    return page.locator(".found").inner_text()


def click_mark(page: Page, figure: str, said: str) -> None:
    """Click on the first mark of a chart that says this to the pointer."""
    drawn(page, figure).locator(".mark-symbol path").evaluate_all(
        """(all, said) => all
        .find((each) => each.__data__.tooltip?.includes(said))
        .dispatchEvent(new MouseEvent("click", { bubbles: true }))""",
        said,
    )


def is_inside(row: Locator, box: Locator) -> bool:
    """Whether all of a row can be seen in a box, below the box's head."""
    # by the page and not by Locator.bounding_box: rows are made anew when the box has scrolled,
    # and one can go between being found and being measured
    selected = row.evaluate("(row) => '#' + row.id")
    return box.evaluate(
        """(box, selected) => {
            const own = box.querySelector(selected).getBoundingClientRect();
            const outer = box.getBoundingClientRect();
            const top = box.querySelector(".head").getBoundingClientRect().bottom;
            return top <= own.top + 1 && own.bottom <= outer.bottom + 1;
        }""",
        selected,
    )


def test_filters_filter(small_page: Path, visit: Visit) -> None:
    page = ready(visit(small_page))
    assert num_found(page) == "8 of 8 items"
    found: dict[str, str] = {}
    for which in field(page, "Which").locator("option").all_inner_texts():
        field(page, "Which").select_option(which)
        found[which] = num_found(page)
    assert found == {
        "all items": "8 of 8 items",
        "forgotten by any": "3 of 8 items",
        "forgotten by all": "1 of 8 items",
        "forgotten only by full": "1 of 8 items",
        "learnt by any": "3 of 8 items",
        "learnt by all": "1 of 8 items",
        "learnt from rank 64 on": "1 of 8 items",
        "learnt from rank 4 on": "1 of 8 items",
        "comes back as trained": "1 of 8 items",
        "changed by rank 4": "4 of 8 items",
        "changed by rank 64": "3 of 8 items",
        "changed by full fine-tuning": "5 of 8 items",
    }
    field(page, "Which").select_option("comes back as trained")
    field(page, "Task").select_option("kinship (in-domain)")
    assert num_found(page) == "1 of 8 items"  # planted: the last comes back


def test_items_are_in_the_chosen_order(small_page: Path, visit: Visit) -> None:
    page = ready(visit(small_page))
    names = page.locator(".list .row .name")
    field(page, "Sort").select_option("as asked")
    assert names.all_inner_texts() == [f"question {number}" for number in range(8)]
    field(page, "Sort").select_option("by when they flip")
    # right by most of the first models first; what comes back counts as wrong
    assert [int(name.split()[1]) for name in names.all_inner_texts()] == [2, 1, 7, 0, 4, 5, 3, 6]


def test_search_looks_into_prompts_and_options_and_opens_an_item(
    small_page: Path, visit: Visit
) -> None:
    page = ready(visit(small_page))
    field(page, "Search").fill("QUESTION 3")
    assert num_found(page) == "1 of 8 items"
    page.locator(".list .row").click()
    detail = page.locator(".detail")
    assert detail.locator("h3").inner_text() == "capitals, item 3 (retention)"
    assert "Right: yes" in detail.inner_text()
    rows = [row.split("\t") for row in detail.locator("tbody tr").all_inner_texts()]
    assert [row[:3] for row in rows] == [
        ["base", "wrong", "no"],
        ["rank 4", "wrong", "no"],
        ["rank 64", "right", "yes"],
        ["full fine-tuning", "right", "yes"],
    ]
    field(page, "Search").fill("question none")
    assert num_found(page) == "0 of 8 items"


def test_hostile_texts_are_shown_and_never_run(tmp_path: Path, visit: Visit) -> None:
    prompts = [HOSTILE, "x" * 1_000_000, *["plain"] * 6]
    models = [*MODELS[:-1], ShownModel(HOSTILE, "full")]
    tasks = [ShownTask(HOSTILE, "retention"), ShownTask("kinship", "in_domain")]
    items = planted_items(OUTCOMES, prompts, models=models, tasks=tasks)
    page = ready(visit(written(tmp_path, items)))
    field(page, "Sort").select_option("as asked")
    page.locator(".list .row").first.click()
    assert page.locator(".detail blockquote").text_content() == HOSTILE
    assert page.locator(".detail tbody th").last.text_content() == HOSTILE
    assert page.locator(".list .head .cell").last.text_content() == HOSTILE
    assert page.locator(".detail h3").text_content() == f"{HOSTILE}, item 0 (retention)"
    assert page.locator("section.items :is(img, b, script)").count() == 0
    assert page.evaluate("window.pwned") is None


def test_of_twenty_thousand_items_a_screenful_is_in_the_page(
    large_page: Path, visit: Visit
) -> None:
    assert large_page.stat().st_size < 15_000_000
    page = ready(visit(large_page))
    assert num_found(page) == "20,000 of 20,000 items"
    box, rows = page.locator(".list"), page.locator(".list .row")
    field(page, "Sort").select_option("as asked")
    seen: list[str] = []
    for share in (0.0, 0.25, 0.5, 1.0):
        box.evaluate("(list, share) => { list.scrollTop = share * list.scrollHeight; }", share)
        page.evaluate("new Promise(requestAnimationFrame)")  # scrolling is told with a frame
        assert 0 < rows.count() < 60
        seen += rows.locator(".name").all_inner_texts()
    assert {"question 0", "question 5000", "question 10000", f"question {MANY - 1}"} <= {*seen}
    assert is_inside(rows.last, box)


def test_keys_go_through_twenty_thousand_items(large_page: Path, visit: Visit) -> None:
    page = ready(visit(large_page))
    field(page, "Sort").select_option("as asked")
    field(page, "Sort").focus()
    page.keyboard.press("Tab")
    box = page.locator(".list")
    assert box.evaluate("(list) => list === document.activeElement")

    def opened_by(*keys: str) -> int:
        for key in keys:
            page.keyboard.press(key)
        active = page.locator(f"#{box.get_attribute('aria-activedescendant')}")
        assert active.get_attribute("aria-selected") == "true"
        assert is_inside(active, box)
        title = page.locator(".detail h3").inner_text()
        return int(title.split("item ")[1].split(" ")[0])

    assert opened_by("Enter") == 0
    assert opened_by("ArrowDown", "ArrowDown") == 2
    assert opened_by("ArrowUp") == 1
    assert opened_by("PageDown", "PageDown") == 21
    assert opened_by("PageUp") == 11
    assert opened_by("End") == MANY - 1
    assert opened_by("ArrowDown") == MANY - 1
    assert opened_by("PageUp") == MANY - 11
    assert opened_by("Home") == 0
    assert opened_by("ArrowUp") == 0


def test_a_link_in_a_chart_shows_the_items_of_its_task(small_page: Path, visit: Visit) -> None:
    page = ready(visit(small_page))
    click_mark(page, "difference-by-task", "capitals")
    expect(page.locator(".found")).to_have_text("3 of 8 items")  # the address is read afterwards
    assert field(page, "Which").locator("option:checked").inner_text() == "changed by rank 4"
    chosen = field(page, "Task").locator("option:checked")
    assert chosen.inner_text() == "capitals (retention)"
    box = page.locator("section.items").bounding_box()
    assert box is not None
    assert abs(box["y"]) < 100  # it is what is looked at


def test_a_mark_shows_what_its_model_changed(small_page: Path, visit: Visit) -> None:
    page = ready(visit(small_page))
    click_mark(page, "gain-and-retention", "rank 64")
    expect(page.locator(".found")).to_have_text("3 of 8 items")  # the address is read afterwards
    assert field(page, "Task").locator("option:checked").inner_text() == "all tasks"


def test_marks_link_to_items_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def links() -> set[str]:
        texts = words(ReadPage(written(tmp_path, items).read_text("utf-8")).charts)
        return {text for text in texts if "#items" in text}

    items = None
    assert links() == set()
    items = planted_items()
    assert "#items?model=rank%2064" in links()
    monkeypatch.setattr(encoding, "MOST_BYTES", 10)
    assert "items.html#items?model=rank%2064" in links()


def test_too_many_items_are_a_page_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visit: Visit
) -> None:
    monkeypatch.setattr(encoding, "MOST_BYTES", 10)
    page = written(tmp_path, planted_items())
    beside = tmp_path / "items.html"
    assert "items.html" in page.read_text("utf-8")
    shown = visit(page)
    click_mark(shown, "gain-and-retention", "rank 64")
    expect(ready(shown).locator(".found")).to_have_text("3 of 8 items")
    assert shown.url.endswith("/items.html#items?model=rank%2064")
    assert '<section class="items"' in beside.read_text("utf-8")
    monkeypatch.undo()
    written(tmp_path, planted_items())
    assert not beside.exists()
