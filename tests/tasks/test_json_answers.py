"""JSON of models: what is JSON, where it is found in an answer, and which values are equal."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from rankwise.records.json_reading import MOST_DEEP
from rankwise.tasks.json_answers import answer_json, fields, is_same, read_json

VALUE = {"a": 1}
TEXT = json.dumps(VALUE)
DEEPEST = "[" * MOST_DEEP + "]" * MOST_DEEP


@pytest.mark.parametrize(
    "answer",
    [
        TEXT,
        f"\n {TEXT}\t",
        f"```json\n{TEXT}\n```",
        f"```JSON\n{TEXT}\n```",
        f"```Json {TEXT}```",
        f"```{TEXT}```",
        f"Here you are:\n```json\n{TEXT}\n```\nAnything else?",
        f"```json\n{TEXT}\n",  # cut off before its end
        f"```python\nx\n```\n```json\n{TEXT}\n```",
        f"<think>It is {{}}.</think>{TEXT}",
        f"It is {{}}.\n</think>\n\n{TEXT}",  # the prompt began the thought
        f"<think>\n```json\n{{}}\n```\n</think>\n```json\n{TEXT}\n```",
    ],
)
def test_json_is_found_in_an_answer(answer: str) -> None:
    assert answer_json(answer) == VALUE


@pytest.mark.parametrize("value", ["```x```", "```json\n{}\n```", "</think>", "<think>"])
def test_marks_within_a_value_are_none(value: str) -> None:
    text = json.dumps({"a": value})
    assert answer_json(text) == {"a": value}
    if "think" not in value:
        assert answer_json(f"```json\n{text}\n```") == {"a": value}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        f"Here you are: {TEXT}",
        f"{TEXT} as you asked",
        f"{TEXT}{TEXT}",
        f"```json\n{TEXT} // one\n```",
        f"```json\n{TEXT[:-1]}\n```",
        f"```yaml\n{TEXT}\n```",
        f"```json5\n{TEXT}\n```",
        "```" + "\n" * 100_000,
        "```x " * 100_000,
        f"<think>```json\n{TEXT}\n```",  # the thought does not end
        f"<think>{TEXT}",
        f"{TEXT}</think>",
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": -Infinity}',
        '{"a": 1, "a": 1}',
        '{"b": [{"a": 1, "a": 2}]}',
        f"[{DEEPEST}]",
        "[" * 100_000,
        '{"a": ' * 100_000,
        *("{'a': 1}", '{"a": 01}', '{"a": .5}', '{"a": 1.}', '{"a": +1}', '{"a": 1,}', "{a: 1}"),
        *('{"a": "\t"}', '{"a": "\\x41"}', '{"a": True}', "\ufeff{}", "{}\0"),
    ],
)
def test_all_else_is_no_json(answer: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (each says something else)
        answer_json(answer)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5000, f"-{'9' * 5000}", "1e400"])
def test_a_number_beyond_every_float_is_valid_and_equals_none(number: str) -> None:
    found = read_json(number)
    assert math.isinf(found)
    assert not is_same(found, 1e308, 0.1, in_any_order=False)


def test_the_deepest_value_is_read() -> None:
    assert json.dumps(read_json(DEEPEST)) == DEEPEST
    assert read_json(f"[{'1, ' * 9}1]") == [1] * 10


def test_what_is_json_is_what_another_strict_reader_says() -> None:
    """Pydantic's is written in Rust; it takes NaN, keys twice and great depths, which we do not."""
    from pydantic_core import from_json

    rng = random.Random(0)
    good = json.dumps({"a": [1, -0.5, 1e9, True, None, "x\\u00e9\\n"], "b": {"c": {}}, "d": []})
    letters = '{}[]",:0123456789.-+eE\\ntrufalsx \n\t'
    outcomes = {True: 0, False: 0}
    for _ in range(20_000):
        text = good
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(text) + 1)
            stop = min(len(text), start + rng.choice([0, 1, 1, 2, 5]))
            text = text[:start] + "".join(rng.choices(letters, k=rng.randint(0, 2))) + text[stop:]
        try:
            expected = from_json(text, allow_inf_nan=False)
        except ValueError:
            expected = ...
        found, why = ..., ""
        try:
            found = read_json(text)
        except ValueError as error:
            why = str(error)
        assert found == expected or "twice" in why, text
        outcomes[expected is not ...] += 1
    assert min(outcomes.values()) > 1000


NESTED: dict[str, Any] = {"a.b": 1, "a": {"b": 2, "": {"c": [3]}}, "d": {}, "e": {"f": {}}}


def test_fields_are_named_by_all_keys_that_lead_to_them() -> None:
    assert fields(NESTED) == {
        ("a.b",): 1,
        ("a", "b"): 2,
        ("a", "", "c"): [3],
        ("d",): {},
        ("e", "f"): {},
    }


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ([3.0, {"x": 2}], [3, {"x": 2.0}]),
        ([101, {"x": [99]}], [100, {"x": [100]}]),
        (-101, -100),
        (10**400, 10**400),
        (1e300 + 1e285, 1e300),
    ],
)
def test_numbers_may_differ_by_a_share_in_lists_and_objects(written: Any, right: Any) -> None:
    assert is_same(written, right, 0.01, in_any_order=False)


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ([102], [100]),
        ([True], [1]),
        (["3"], [3]),
        ([None], [0]),
        ([[]], [{}]),
        ([1, 2], [2, 1]),
        ([1], [1, 1]),
        ({"x": 1}, {"x": 1, "y": 1}),
        (0.001, 0),
        (10**400, 0.5),
        (0.5, 10**400),
        (10**400, 2 * 10**400),
    ],
)
def test_what_is_not_the_same(written: Any, right: Any) -> None:
    assert not is_same(written, right, 0.01, in_any_order=False)


@pytest.mark.parametrize(
    ("written", "right", "tolerance", "equal"),
    [
        (["b", 1.0, {"x": [2.0]}], [{"x": [2]}, "b", 1], 0.0, True),
        (["b", True], ["b", 1], 0.0, False),
        ([[1, 2]], [[2, 1]], 0.0, False),
        (["a", "a", "b"], ["a", "b", "b"], 0.0, False),
        ([], [], 0.1, True),
        ([], ["a"], 0.1, False),
        ([{"x": 99}, "b"], ["b", {"x": 100}], 0.1, True),
        # 105 is the first value of both, and each needs one of its own
        ([105, 112], [100, 105], 0.1, True),
        ([112, 112], [100, 105], 0.1, False),
    ],
)
def test_lists_in_any_order(
    written: list[Any], right: list[Any], tolerance: float, equal: bool
) -> None:
    assert is_same(written, right, tolerance, in_any_order=True) == equal
    assert is_same(written[::-1], right, tolerance, in_any_order=True) == equal
