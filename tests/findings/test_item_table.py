"""Items one by one: planted samples, and what the table says of them."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from typing import Any

import pytest

from rankwise.findings.item_table import ItemTable, changed_answers, item_table
from rankwise.records.p_right import Line
from rankwise.records.results import ModelResults, StudyResults, TaskItems
from rankwise.report.items import encoded_items
from tests.planted.results import planted_study

RIGHT = 1
"""The place of every item's right option."""


def line(doc_id: int, chosen: int, prompt: str = "What is it?") -> dict[str, Any]:
    """As lm-eval logs an item of two options; the chosen one is ahead by a nat and a half."""
    nats = [-2.0, -2.0]
    nats[chosen] += 1.5
    return {
        "doc_id": doc_id,
        "target": RIGHT,
        "arguments": [[f"{prompt} {doc_id}", " no"], [f"{prompt} {doc_id}", " yes"]],
        "resps": [[[value, False]] for value in nats],
        "filtered_resps": [[value, False] for value in nats],
        "filter": "none",
        "metrics": ["acc"],
        "acc": float(chosen == RIGHT),
    }


def samples_of(results: StudyResults) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Samples that agree with the planted scores."""
    return {
        (model.name, task): [
            line(doc, RIGHT if value == 1.0 else 1 - RIGHT)
            for doc, value in zip(items.doc_ids, items.values, strict=True)
        ]
        for model in (results.base, *results.runs)
        for task, items in model.items.items()
        if items.unit == "points"
    }


def table_of(results: StudyResults, **options: Any) -> ItemTable:
    samples = samples_of(results)

    def read(model: str, task: str) -> Sequence[Line]:
        return samples[model, task]

    table = item_table(results, read, **options)
    assert table is not None
    return table


@pytest.fixture(scope="module")
def planted() -> ItemTable:
    return table_of(planted_study())


def test_every_item_of_every_task_in_points_is_there(planted: ItemTable) -> None:
    assert [model.label for model in planted.models] == [
        "base", "rank 4", "rank 16", "rank 64", "full fine-tuning",
    ]  # fmt: skip
    assert [task.name for task in planted.tasks] == [
        "kinship", "syllogism", "capitals", "elements",
    ]  # fmt: skip
    assert len(planted.items) == 300 + 300 + 200 + 200
    for answers in planted.answers:
        assert len(answers.is_right) == len(answers.margins) == len(planted.items)


def test_outcomes_and_margins_are_the_planted_ones(planted: ItemTable) -> None:
    first = slice(0, 300)  # kinship: half right by the base, 80 % at rank 16
    right = {
        model.label: sum(bool(each) for each in answers.is_right[first])
        for model, answers in zip(planted.models, planted.answers, strict=True)
    }
    assert right == {
        "base": 150, "rank 4": 210, "rank 16": 240, "rank 64": 243, "full fine-tuning": 243,
    }  # fmt: skip
    for answers in planted.answers:
        for is_right, margin in zip(answers.is_right, answers.margins, strict=True):
            assert margin == pytest.approx(1.5 if is_right else -1.5)
    item = planted.items[0]
    assert (item.prompt, item.right, item.options) == ("What is it? 0", "yes", ("no", "yes"))


def test_an_item_comes_back_where_the_trained_format_has_it_right() -> None:
    results = planted_study()
    part = results.study.model_copy(update={"trained_formats": {"kinship": {"capitals": "asked"}}})

    def also_asked(model: ModelResults) -> ModelResults:
        items = model.items["capitals"]
        all_right = TaskItems(**{**items.model_dump(), "task": "asked",
                                 "values": (1.0,) * len(items.doc_ids)})  # fmt: skip
        return model.model_copy(update={"items": {**model.items, "asked": all_right}})

    runs = tuple(map(also_asked, results.runs))
    table = table_of(results.model_copy(update={"study": part, "models": runs}))
    place = [task.name for task in table.tasks].index("capitals")
    for answers in table.answers[1:]:
        for item, right, back in zip(
            table.items, answers.is_right, answers.comes_back, strict=True
        ):
            assert back == (item.task == place and right is False)
    assert not any(table.answers[0].comes_back)  # the base was not asked so


def test_answers_that_changed_are_named_the_lost_ones_first() -> None:
    results = planted_study()
    base, run = results.base, results.runs[0]
    samples = samples_of(results)
    found = list(changed_answers(base, run, lambda *asked: samples[asked]))
    values = {name: model.items["kinship"].values for name, model in (("b", base), ("r", run))}
    pairs = list(zip(values["b"], values["r"], strict=True))
    own = [each for each in found if each.task == "kinship"]
    assert [each.is_lost for each in own] == (
        [True] * pairs.count((1.0, 0.0)) + [False] * pairs.count((0.0, 1.0))
    )
    lost, gained = next(e for e in found if e.is_lost), next(e for e in found if not e.is_lost)
    assert (lost.right, lost.reference_answer, lost.form_answer) == ("yes", "yes", "no")
    assert (gained.right, gained.reference_answer, gained.form_answer) == ("yes", "no", "yes")
    assert lost.prompt == f"What is it? {lost.doc_id}"
    assert not list(changed_answers(base, base, lambda *asked: samples[asked]))


def test_without_texts_nothing_of_the_data_is_left() -> None:
    table = table_of(planted_study(), with_texts=False)
    encoded = encoded_items(table)
    content = gzip.decompress(base64.b64decode(encoded.data)).decode()
    assert "What is it?" not in content
    assert "yes" not in content
    assert json.loads(content)["texts"] == [""]


def test_the_encoding_has_every_outcome_and_is_the_same_each_time(planted: ItemTable) -> None:
    encoded = encoded_items(planted)
    assert encoded == encoded_items(planted)
    assert not encoded.is_large
    content = json.loads(gzip.decompress(base64.b64decode(encoded.data)))
    for answers, packed in zip(planted.answers, content["answers"], strict=True):
        letters = ["1" if right else "0" for right in answers.is_right]
        assert packed["outcome"] == "".join(letters)
        assert set(packed["margin"]) == {150, -150}
    texts = content["texts"]
    assert texts[content["prompt"][0]] == "What is it? 0"
    assert len(texts) == len(set(texts))


def test_a_study_of_losses_has_no_items() -> None:
    results = planted_study(
        {4: 2.1, 16: 2.0},
        base={"kinship": 2.4},
        in_domain_unit="nats",
        retention_tasks=(),
        out_of_domain_tasks=(),
    )
    assert item_table(results, lambda model, task: []) is None


def test_no_answer_by_raw_log_likelihoods_stands_beside_another_metric() -> None:
    """By acc_norm a long option may be right whose log-likelihood is lower."""

    def by_length(model: ModelResults) -> ModelResults:
        items = {
            task: its.model_copy(update={"metric": "acc_norm"}) if its.unit == "points" else its
            for task, its in model.items.items()
        }
        return model.model_copy(update={"items": items})

    results = planted_study({4: 0.7})
    other = results.model_copy(
        update={"base": by_length(results.base), "models": tuple(map(by_length, results.runs))}
    )
    plain, normed = table_of(results), table_of(other)
    for mine, theirs in zip(plain.answers, normed.answers, strict=True):
        assert mine.is_right == theirs.is_right
        assert None not in mine.margins
        assert set(theirs.margins) == set(theirs.answers) == {None}
