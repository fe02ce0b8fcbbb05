"""The page of a comparison: what stands on it, and that it is safe, offline and well-ordered."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from rankwise.findings.comparison import STACK_SHIFT, StudySource, compare_studies
from rankwise.records import quantities
from rankwise.report.comparison_page import comparison_page
from tests.planted.compared import compared, compared_results, judged
from tests.support.pages import Page, colours, without_scripts, words

HOSTILE = "</script><script>alert('x')</script>\"&"


def page_of(*studies: StudySource) -> str:
    return comparison_page(compare_studies(studies), studies)


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
    assert {"first", "second"} <= {*words(Page(paired).charts["plane-1"])}
    assert "stack 2" not in text


def test_two_stacks_stand_in_charts_of_their_own_and_no_number_is_made_from_both() -> None:
    html = page_of(compared("first"), compared("second", 0.85, torch="2.9.0"))
    text = text_of(html)
    assert "Not to be pooled" in text
    assert text.count(STACK_SHIFT) == 2  # in the answer, and beside the stacks
    assert "first and second: they used different software stacks." in text
    charts = {name: "\n".join(words(chart)) for name, chart in Page(html).charts.items()}
    assert "plane-1" not in charts
    first, second = charts.values()
    assert "first" in first
    assert "second" not in first
    assert "second" in second
    assert "+5.0" not in text  # what the second gains more
    for row in ("torch 2.13.0 2.9.0", "Device cpu cpu"):
        assert row in " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_it_is_offline(paired: str) -> None:
    page = Page(paired)
    assert "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-" in paired
    assert not {"link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert re.findall(r"https?://[^\s\"'<]+", without_scripts(paired)) == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_it_is_well_ordered_for_those_who_hear_it(paired: str) -> None:
    page = Page(paired)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") == 4
    images = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(images) == tags.count("figcaption") == 2
    assert all(attributes["aria-label"] for attributes in images)


def test_every_colour_has_a_partner_on_a_dark_page(paired: str) -> None:
    paired_colours, alone = colours(Page(paired).charts)
    assert paired_colours > 3
    assert alone == []


def test_hostile_names_are_text() -> None:
    studies = [
        judged(compared_results(name, in_domain_tasks=(HOSTILE,)))._replace(name=name)
        for name in (HOSTILE, "<b>")
    ]
    html = page_of(*studies)
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == len(page.charts) + 3  # their look, their runtime, and ours
    assert tags.count("b") == html.count("<b>Figure ")
    assert HOSTILE not in html
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
