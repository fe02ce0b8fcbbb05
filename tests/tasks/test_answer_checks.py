"""What a model writes is checked as it is used: planted answers, and what hostile checks do."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import DataError
from rankwise.records.config.own_rows import CheckConfig
from rankwise.tasks.answer_checks import checker, content_of

RIGHT = json.dumps({"name": "Ada", "year": 1815, "tags": ["a", "b"], "born": {"in": "London"}})


def check(settings: Any, right: str = RIGHT) -> Any:
    of = settings if isinstance(settings, str) else CheckConfig.model_validate(settings)
    found = checker(of, [right], "rows.jsonl")
    return lambda answer: found(answer, right)


def changed(**values: Any) -> str:
    return json.dumps(json.loads(RIGHT) | values)


@pytest.mark.parametrize(
    ("answer", "all_correct", "share"),
    [
        (RIGHT, 1, 1.0),
        (f"Here:\n```json\n{RIGHT}\n```\n", 1, 1.0),
        (changed(year=1815.0), 1, 1.0),
        (changed(year=1816), 0, 0.75),
        (changed(year=True), 0, 0.75),
        (changed(name="ada"), 0, 0.75),
        (changed(tags=["b", "a"]), 0, 0.75),
        (changed(born={"in": "Paris"}), 0, 0.75),
        (changed(born="London"), 0, 0.75),
        (changed(more=1), 0, 1.0),  # what nobody asked for
        ("{}", 0, 0.0),
        ("[]", 0, 0.0),
        ("Ada, 1815", 0, 0.0),
        (RIGHT[:-1], 0, 0.0),
        ("[" * 100_000, 0, 0.0),
    ],
)
def test_json_is_compared_field_by_field(answer: str, all_correct: int, share: float) -> None:
    numbers = check("json")(answer)
    assert next(iter(numbers)) == "all_correct"
    assert (numbers["all_correct"], numbers["fields_correct"]) == (all_correct, share)
    fields = [value for name, value in numbers.items() if name.startswith("field.")]
    assert len(fields) == 4
    assert sum(fields) / 4 == share


def test_numbers_within_a_tolerance_and_lists_in_any_order() -> None:
    judged = check({"json": {"tolerance": 0.01, "sets": ["tags"]}})
    assert judged(changed(year=1820, tags=["b", "a"]))["all_correct"] == 1
    assert judged(changed(year=1900))["field.year"] == 0
    assert judged(changed(tags=["b", "b"]))["field.tags"] == 0


def schema(tmp_path: Path, content: Any) -> dict[str, Any]:
    file = tmp_path / "schema.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return {"json": {"schema": str(file)}}


def test_answers_match_a_schema_or_do_not(tmp_path: Path) -> None:
    of = {"type": "object", "required": ["year"], "properties": {"year": {"type": "integer"}}}
    judged = check(schema(tmp_path, of))
    assert judged(RIGHT)["schema_valid"] == 1
    assert judged(changed(year="1815"))["schema_valid"] == 0
    assert judged("no json")["schema_valid"] == 0
    before = content_of(CheckConfig.model_validate(schema(tmp_path, of)))
    after = content_of(CheckConfig.model_validate(schema(tmp_path, {"type": "object"})))
    assert before != after  # another schema scores again
    assert str(tmp_path) not in before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON Schema that can be used"),
        ({"type": 3}, "is no JSON Schema that can be used"),
        ({"$ref": "http://127.0.0.1:1/x.json"}, "refers elsewhere"),
        ({"$ref": "#"}, "cannot be checked"),
        (
            {"properties": {"name": {"pattern": "a"}}, "patternProperties": {}},
            "no time limit",
        ),
        ({"required": ["city"]}, "does not match"),
    ],
)
def test_a_schema_that_cannot_be_used(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check(schema(tmp_path, content))


def test_right_answers_that_are_no_json_are_named() -> None:
    with pytest.raises(DataError, match="right answer of held-out row 1 is no JSON object: 'Ada'"):
        check("json", "Ada")


def test_patterns_that_must_and_must_not_match() -> None:
    judged = check({"regex": {"must": r"^<think>.*</think>", "must_not": ["I cannot", "As an AI"]}})
    assert judged("<think>so</think> yes") == {"regex": 1}
    assert judged("<think>so</think> I cannot") == {"regex": 0}
    assert judged("yes") == {"regex": 0}


SLOW, ANSWER = "^(a|a)*$", "a" * 60 + "b"
"""A pattern that would need 2^60 steps on an answer."""


def test_a_pattern_that_backtracks_is_stopped(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match="took more than 1 s on one answer"):
        check({"regex": {"must": SLOW}})(ANSWER)
    hostile = schema(tmp_path, {"properties": {"name": {"pattern": SLOW}}})
    with pytest.raises(DataError, match="cannot be checked"):
        check(hostile, changed(name="a"))(changed(name=ANSWER))
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("name", "answer", "metric", "value"),
    [
        ("exact", "  42\n", "exact_match", 1),
        ("exact", "42.", "exact_match", 0),
        ("contains", "It is 42, I think", "contains", 1),
        ("contains", "It is 24", "contains", 0),
        ("number", "so\n#### $42.", "number", 1),
        ("number", "42 #### 41", "number", 0),
    ],
)
def test_texts_are_compared_with_the_right_one(
    name: str, answer: str, metric: str, value: int
) -> None:
    assert check(name, "42")(answer) == {metric: value}
