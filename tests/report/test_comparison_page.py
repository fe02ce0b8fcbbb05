"""The page of a comparison: what stands on it, and that it is safe, offline and well-ordered."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from rankwise.findings.comparison import STACK_SHIFT, StudySource, compare_studies
from rankwise.records import quantities
from rankwise.report.charts.theme import page_colours
from rankwise.report.comparison_page import comparison_page
from tests.planted.compared import compared, compared_results, judged
from tests.support.pages import Page

HOSTILE = "</script><script>alert('x')</script>\"&"


def page_of(*studies: StudySource) -> str:
    return comparison_page(compare_studies(studies), studies)


def charts(html: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", html, re.DOTALL)


def text_of(html: str) -> str:
    return Page(html).text.replace("\u00a0", " ")


@pytest.fixture(scope="module")
def paired() -> str:
    settings = {"train": {"epochs": (1,)}}
    return page_of(compared("first"), compared("second", 0.85, 0.88, settings=settings))


def test_choices_on_one_stack_are_paired_and_drawn_together(paired: str) -> None:
    text = text_of(paired)
    (pair,) = compare_studies([compared("first"), compared("second", 0.85, 0.88)]).pairs
    assert pair.gain is not None
    assert "Compared item by item" in text
    assert pair.statement in text
    assert quantities.change_interval(pair.gain.lower, pair.gain.upper, "points") in text
    assert "0 of 700" in text
    assert "train.epochs" in text
    assert "first and second have the same settings but for the epochs." in text
    plane = next(chart for chart in charts(paired) if 'id="plane-1-title"' in chart)
    assert ">first</text>" in plane
    assert ">second</text>" in plane
    assert "stack 2" not in text


def test_two_stacks_stand_in_charts_of_their_own_and_no_number_is_made_from_both() -> None:
    html = page_of(compared("first"), compared("second", 0.85, torch="2.9.0"))
    text = text_of(html)
    assert "Not to be pooled" in text
    assert text.count(STACK_SHIFT) == 2  # in the answer, and beside the stacks
    assert "first and second: they were made on different software stacks." in text
    assert 'id="plane-1-title"' not in html
    first, second = charts(html)
    assert "first" in first
    assert "second" not in first
    assert "second" in second
    assert "+5.0" not in text  # what the second gains more
    for row in ("torch 2.13.0 2.9.0", "Device cpu cpu"):
        assert row in " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_it_is_offline_and_has_no_script(paired: str) -> None:
    page = Page(paired)
    assert "default-src 'none'; style-src 'unsafe-inline'\"" in paired
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    addresses = set(re.findall(r"https?://[^\s\"'<]+", paired))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_it_is_well_ordered_for_those_who_hear_it(paired: str) -> None:
    page = Page(paired)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") == 4
    assert tags.count("svg") == tags.count("figcaption") == tags.count("desc") == 2


def test_every_colour_has_a_partner_on_a_dark_page(paired: str) -> None:
    used = set(re.findall(r'(?:fill|stroke)="(#[0-9a-fA-F]{6})"', "".join(charts(paired))))
    assert len(used) > 3
    assert used <= {colour.light for colour in page_colours(["full", "base", 16])}


def test_hostile_names_are_text() -> None:
    studies = [
        judged(compared_results(name, in_domain_tasks=(HOSTILE,)))._replace(name=name)
        for name in (HOSTILE, "<b>")
    ]
    html = page_of(*studies)
    page = Page(html)
    assert "script" not in [tag for tag, _ in page.tags]
    assert [tag for tag, _ in page.tags].count("b") == html.count("<b>Figure ")
    assert f"{HOSTILE} and <b> have the same settings" in page.text


def other(**planted: Any) -> StudySource:
    return compared("second", **planted)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (other(retention_tasks=()), "second"),
        (other(in_domain_accuracy={16: 0.3}), "do not fine-tune"),
        (other(in_domain_accuracy={"full": 0.8}), "nothing could be judged"),
        (other(in_domain_accuracy={16: 0.8}, diverged=[(16, 0)]), "diverged and takes no part"),
        (other(weights="c" * 64), "the fingerprints of their base models differ"),
        (
            other(in_domain_unit="nats", in_domain_accuracy={16: 2.0}, base={"kinship": 2.4}),
            "nats, n = 300",
        ),
        (
            other(recommendation=compared_results().study.config.recommendation.model_copy(
                update={"confidence": 0.9}
            )),
            "intervals at each study's own confidence (90 % to 95 %)",
        ),
    ],
    ids=["no-retention", "no-gain", "only-full", "diverged", "base", "nats", "confidence"],
)  # fmt: skip
def test_other_studies_render(second: StudySource, said: str) -> None:
    text = text_of(page_of(compared("first"), second))
    assert said in text
    assert not {"None", "nan"} & set(re.findall(r"\b\w+\b", text))


def test_what_is_left_out_is_named() -> None:
    results = compared_results("second")
    left_out = {"kinship-lora-r064": "is not scored on capitals"}
    partial = judged(results.model_copy(update={"left_out": left_out}))
    text = text_of(page_of(compared("first"), partial))
    assert "second: Left out: kinship-lora-r064 is not scored on capitals." in text
