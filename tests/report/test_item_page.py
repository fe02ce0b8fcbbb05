"""The items on the page, in a real browser: filters, search, hostile texts, and many items."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rankwise.findings.item_table import (
    Answers,
    ItemTable,
    ShownItem,
    ShownModel,
    ShownTask,
)
from rankwise.findings.recommendation import recommend
from rankwise.findings.study import study_findings
from rankwise.report import items as encoding
from rankwise.report.page import write_report
from tests.planted.results import planted_study
from tests.support.browser import dumped, needs_browser

MODELS = [ShownModel("base", "base"), ShownModel("rank 4", 4), ShownModel("rank 64", 64),
          ShownModel("full fine-tuning", "full")]  # fmt: skip
RUN = "document.title='run'"
HOSTILE = f'</pre><script>{RUN}</script><img src=x onerror="{RUN}">\u202e'


def table(outcomes: list[str], prompts: list[str] | None = None) -> ItemTable:
    """Items by the outcome of each model, such as 1011; c is right as trained."""
    asked = prompts or [f"question {number}" for number in range(len(outcomes))]
    items = [ShownItem(0, n, text, "yes", ("no", "yes")) for n, text in enumerate(asked)]
    answers = [
        Answers(
            [each[model] == "1" for each in outcomes],
            [1.0 if each[model] == "1" else -1.0 for each in outcomes],
            [1 if each[model] == "1" else 0 for each in outcomes],
            [each[model] == "c" for each in outcomes],
        )
        for model in range(len(MODELS))
    ]
    return ItemTable(MODELS, [ShownTask("capitals", "retention")], items, answers)


def page_with(folder: Path, shown: ItemTable) -> Path:
    results = planted_study()
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    return write_report(folder, results, recommendation, findings, shown)


def driven(page: Path, script: str) -> str:
    """The page after a script of the test's own has run behind the page's; no policy, so it may."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    after = (
        "<script>const wait = setInterval(() => {"
        "if (!document.querySelector('section.items[data-ready]')) return; clearInterval(wait);"
        f"{script}}}, 20);</script>"
    )
    copy = page.parent / "driven.html"
    copy.write_text(text.replace("</main>", f"</main>{after}", 1), encoding="utf-8")
    dom, said = dumped(copy)
    assert said == ""
    return dom


def choose(**values: Any) -> str:
    """Sets fields of the form and says so."""
    sets = "".join(f"form.{name}.value = {value!r};" for name, value in values.items())
    return (
        f"const form = document.querySelector('.filters'); {sets}"
        "form.dispatchEvent(new Event('input'));"
    )


def num_found(dom: str) -> str:
    found = re.search(r'class="found"[^>]*>([^<]*)<', dom)
    assert found is not None
    return found[1]


# base, rank 4, rank 64, full
OUTCOMES = ["1000", "1110", "1111", "0011", "0111", "0101", "0000", "1c11"]


@needs_browser
@pytest.mark.parametrize(
    ("which", "number"),
    [
        ("all items", 8),
        ("forgotten by any", 3),
        ("forgotten by all", 1),
        ("forgotten only by full", 1),
        ("learnt by any", 3),
        ("learnt by all", 1),
        ("learnt from rank 64 on", 1),
        ("learnt from rank 4 on", 1),
        ("comes back as trained", 1),
    ],
)
def test_filters_filter(tmp_path: Path, which: str, number: int) -> None:
    page = page_with(tmp_path, table(OUTCOMES))
    assert num_found(driven(page, choose(which=which))) == f"{number} of 8 items"


@needs_browser
def test_search_looks_into_prompts_and_options_and_opens_an_item(tmp_path: Path) -> None:
    page = page_with(tmp_path, table(OUTCOMES))
    assert num_found(driven(page, choose(text="QUESTION 3"))) == "1 of 8 items"
    script = f"{choose(text='question 3')} document.querySelector('.list .row').click();"
    dom = driven(page, script)
    detail = dom[dom.index('class="detail"') :].split("</table>")[0]
    assert "capitals, item 3 (retention)" in detail
    assert "Right: yes" in detail
    assert detail.count("<tr>") == 1 + len(MODELS)


@needs_browser
def test_hostile_texts_are_shown_and_never_run(tmp_path: Path) -> None:
    prompts = [HOSTILE, "x" * 1_000_000, *["plain"] * 6]
    page = page_with(tmp_path, table(OUTCOMES, prompts))
    script = f"{choose(sort='order')} document.querySelector('.list .row').click();"
    dom = driven(page, script)
    assert "<title>run</title>" not in dom
    assert "&lt;script&gt;document.title='run'" in dom
    assert "<img" not in dom


@needs_browser
def test_of_twenty_thousand_items_a_screenful_is_in_the_page(tmp_path: Path) -> None:
    outcomes = [OUTCOMES[number % 8] for number in range(20_000)]
    page = page_with(tmp_path, table(outcomes))
    assert page.stat().st_size < 15_000_000
    dom = driven(page, "document.querySelector('.list').scrollTop = 300000;")
    assert num_found(dom) == "20,000 of 20,000 items"
    assert 0 < dom.count('role="option"') < 60


@needs_browser
def test_the_policy_of_the_page_lets_its_own_script_show_the_items(tmp_path: Path) -> None:
    dom, said = dumped(page_with(tmp_path, table(OUTCOMES)))
    assert said == ""
    assert num_found(dom) == "8 of 8 items"


def test_too_many_items_are_a_page_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "MOST_BYTES", 10)
    page = page_with(tmp_path, table(OUTCOMES))
    beside = tmp_path / "items.html"
    assert "8 items are too many for this page; see items.html." in page.read_text("utf-8")
    assert '<section class="items"' in beside.read_text("utf-8")
    monkeypatch.undo()
    page_with(tmp_path, table(OUTCOMES))
    assert not beside.exists()
