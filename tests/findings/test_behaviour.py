"""Behaviour on short prompts: each trait by hand, and planted answers of a base and its models."""

from __future__ import annotations

import pytest

from rankwise.findings.behaviour import (
    TrainTaskBehaviour,
    behaviour,
    keeps_format,
    language_of,
    refuses,
    repetition,
)
from rankwise.findings.options import option_gains
from rankwise.records.behaviour import PROMPTS, Behaviour, BehaviourPrompt
from rankwise.records.results import ModelResults
from rankwise.report.sections.gauges import behaviour_section
from tests.planted.results import planted_study
from tests.support.tables import csv_rows

JSON = BehaviourPrompt("", "json")
WORD = BehaviourPrompt("", "one word")
LIST = BehaviourPrompt("", "list of three")


def test_what_is_shipped_is_short_and_of_every_kind() -> None:
    assert 20 <= len(PROMPTS) <= 40
    assert len({prompt.text for prompt in PROMPTS}) == len(PROMPTS)
    assert max(len(prompt.text) for prompt in PROMPTS) < 120
    assert {prompt.language for prompt in PROMPTS} == {"English", "German"}
    assert {prompt.format for prompt in PROMPTS} == {None, "json", "one word", "list of three"}
    for prompt in PROMPTS:
        if prompt.format is None:
            assert language_of(prompt.text) in (prompt.language, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m unable to do this.", True),
        ("As an AI, I have no garden.", True),
        ("Es tut mir leid, das geht nicht.", True),
        ("Press the keys together. You can't go wrong.", False),
        ("Sorry seems to be the hardest word.", False),
        ("", False),
        ("Cut it at the base. " * 30 + "I cannot say more.", False),  # not at the beginning
    ],
)
def test_refusals(text: str, expected: bool) -> None:
    assert refuses(text) is expected


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        (JSON, '{"name": "Tom", "colour": "grey"}', True),
        (JSON, "```json\n[1, 2, 3]\n```\n", True),
        (JSON, 'Here it is: {"city": "Paris"}', False),
        (JSON, "3", False),
        (JSON, "[" * 100_000, False),
        (WORD, " Blue.\n", True),
        (WORD, "It is blue", False),
        (WORD, "", False),
        (LIST, "- a\n\n- b\n* c\n", True),
        (LIST, "- a\n- b", False),
        (LIST, "Fruits:\n- a\n- b", False),
        (BehaviourPrompt(""), "anything", None),
    ],
)
def test_formats(prompt: BehaviourPrompt, text: str, expected: bool | None) -> None:
    assert keeps_format(prompt, text) is expected


def test_languages() -> None:
    assert language_of("The sky is blue because of the air") == "English"
    assert language_of("Der Himmel ist blau und die See auch") == "German"
    assert language_of("4 4 4") is None


def test_repetition_is_the_share_of_grams_that_were_there_before() -> None:
    assert repetition("a b c d e") == 0.0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repetition("x " * 13) == pytest.approx(9 / 10)
    assert repetition("a b c") == 0.0


def answers(model: str, *, refused: int, word: str) -> Behaviour:
    """``refused`` of the prompts refused; the others get a word, as one-word prompts want."""
    texts = ["I cannot help with that." if i < refused else word for i in range(len(PROMPTS))]
    return Behaviour(
        model=model,
        prompts=tuple(prompt.text for prompt in PROMPTS),
        texts=tuple(texts),
        num_tokens=tuple(3 * len(text.split()) for text in texts),
        is_finished=(True,) * len(PROMPTS),
        score_seconds=1.0,
        fingerprint="",
    )


@pytest.fixture(scope="module")
def part() -> TrainTaskBehaviour:
    results = planted_study({4: 0.8, 64: 0.8}, {4: 0.9, 64: 0.9})

    def changed(model: ModelResults) -> ModelResults:
        refused = {4: 0, 64: 15}[model.run.planned.rank or 0] if model.run else 0
        return model.model_copy(
            update={"behaviour": answers(model.name, refused=refused, word="Blue")}
        )

    results = results.model_copy(
        update={"base": changed(results.base), "models": tuple(map(changed, results.runs))}
    )
    (source,) = option_gains(results)
    found = behaviour(source)
    assert found is not None
    return found


def test_differences_are_paired_by_prompt(part: TrainTaskBehaviour) -> None:
    same, other = ({c.trait: c for c in model.changes} for model in part.models)
    assert all(change.difference.estimate == 0.0 for change in same.values())
    refused = other["refuses"]
    assert (refused.base, refused.num_prompts) == (0.0, len(PROMPTS))
    assert refused.adapted == pytest.approx(100 * 15 / len(PROMPTS))
    assert refused.difference.estimate == pytest.approx(refused.adapted)
    assert refused.difference.lower > 0.0
    length = other["length"]
    assert (length.unit, length.base) == ("tokens", 3.0)
    assert length.adapted == pytest.approx(3 * (15 * 5 + (len(PROMPTS) - 15)) / len(PROMPTS))
    formats = sum(prompt.format is not None for prompt in PROMPTS)
    assert same["keeps the format"].num_prompts == formats
    assert same["keeps the format"].base == pytest.approx(100 * 4 / formats)
    assert any(text.startswith("Rank 64 refuses more often") for text in part.statements)
    assert not any(text.startswith("Rank 4") for text in part.statements)


def test_the_section_has_every_trait_of_every_model(part: TrainTaskBehaviour) -> None:
    section = behaviour_section([part])
    (table,) = section.tables
    assert [group.title for group in table.table.groups][:2] == ["Refuses", "Length"]
    assert all(len(group.rows) == 2 for group in table.table.groups)
    assert len(csv_rows("behaviour", planted_study(), behaviour=[part])) == 2 * 5


def test_a_study_without_answers_has_none() -> None:
    (source,) = option_gains(planted_study({4: 0.8}, {4: 0.9}))
    assert behaviour(source) is None
