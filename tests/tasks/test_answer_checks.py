"""What a model writes is checked as it is used: planted answers, and what hostile checks do."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rankwise.errors import DataError, TaskError
from rankwise.records.config.own_rows import CheckConfig
from rankwise.tasks import bounded
from rankwise.tasks.answer_checks import MOST_SCHEMA_BYTES, Check, checker
from tests.support.sentences import Sentences

RIGHT = json.dumps({"name": "Ada", "year": 1815, "tags": ["a", "b"], "born": {"in": "London"}})


ROOT = Path(__file__).parents[2]


def made(settings: Any, right: str = RIGHT) -> Check:
    of = settings if isinstance(settings, str) else CheckConfig.model_validate(settings)
    return checker(of, {"line 1": right}, "rows.jsonl")


def check(settings: Any, right: str = RIGHT) -> Any:
    found = made(settings, right)
    return lambda answer: found(answer, {"completion": right})


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
    before = made(schema(tmp_path, of)).content
    after = made(schema(tmp_path, {"type": "object"})).content
    assert before != after  # another schema scores again
    assert str(tmp_path) not in before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON Schema that can be used"),
        ({"type": 3}, "is no JSON Schema that can be used"),
        ({"$ref": "http://127.0.0.1:1/x.json"}, "refers elsewhere"),
        ({"$ref": "#"}, "cannot be checked"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}}}, "refers elsewhere"),
        ({"pattern": "("}, "is no JSON Schema that can be used"),
        ({"patternProperties": {"(": {}}}, "is no JSON Schema that can be used"),
        ({"patternProperties": {"e": {"type": "string"}}}, "does not match"),
        ('{"type": "object", "type": "object"}', "twice"),
        ({"maximum": float("nan")}, "NaN"),
        ({"$schema": ["x"]}, "is no JSON Schema that can be used"),
        ("null", "is no JSON Schema that can be used"),
        ('{"not": ' * 200 + "{}" + "}" * 200, "too deep"),
        (" " * MOST_SCHEMA_BYTES + "{}", "more than"),
        ({"required": ["city"]}, "does not match"),
    ],
)
def test_a_schema_that_cannot_be_used(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check(schema(tmp_path, content))


@pytest.mark.parametrize(
    ("right", "settings", "named"),
    [
        ("Ada", {}, "'Ada'"),
        ('{"a": NaN}', {}, "NaN"),
        ('{"a": [1e999]}', {}, "line 1"),
        ('{"a": 1, "a": 2}', {}, '{"a": 1, "a": 2}'),
        (json.dumps({"a": [*range(2000)]}), {"tolerance": 0.1, "sets": ["a"]}, "2000"),
    ],
    ids=["no JSON", "NaN", "beyond every float", "a key twice", "2000 values"],
)
def test_right_answers_that_none_can_equal_are_named(
    right: str, settings: dict[str, Any], named: str, sentence: Sentences
) -> None:
    with pytest.raises(DataError) as caught:
        check({"json": settings}, right)
    sentence(caught.value, names=("rows.jsonl", "line 1", named))


def test_a_key_with_a_dot_is_not_nested() -> None:
    judged = check("json", '{"a.b": 1}')
    assert judged('{"a.b": 1}')["all_correct"] == 1
    assert judged('{"a": {"b": 1}}')["all_correct"] == 0
    # both have one name, which is right if both are
    judged = check("json", '{"a.b": 1, "a": {"b": 2}}')
    assert judged('{"a.b": 1, "a": {"b": 2}}')["field.a.b"] == 1
    assert judged('{"a.b": 1, "a": {"b": 3}}')["field.a.b"] == 0
    assert judged('{"a.b": 1, "a": {"b": 3}}')["fields_correct"] == 0.5


@pytest.mark.parametrize(
    "number", ["9" * 320, "9" * 400, "-" + "9" * 400, "9" * 5000, "1e999", "1e400", "NaN", "true"]
)
@pytest.mark.parametrize("settings", [{}, {"tolerance": 0.5, "sets": ["tags"]}])
def test_no_number_of_a_model_ends_a_scoring(
    tmp_path: Path, number: str, settings: dict[str, Any]
) -> None:
    of = {"multipleOf": 0.5, "maximum": 1e308, "exclusiveMinimum": -(10**400)}
    schema_of = schema(tmp_path, {"properties": {"a": of, "tags": {"items": of}}})["json"]
    right = '{"a": 0.5, "tags": [0.5, 1.5]}'
    judged = check({"json": {**settings, **schema_of}}, right)
    assert judged(right)["all_correct"] == judged(right)["schema_valid"] == 1
    numbers = judged(f'{{"a": {number}, "tags": [{number}, 0.5]}}')
    assert (numbers["all_correct"], numbers["fields_correct"]) == (0, 0)
    assert numbers["json_valid"] == (number != "NaN")


def test_patterns_that_must_and_must_not_match() -> None:
    judged = check({"regex": {"must": r"^<think>.*</think>", "must_not": ["I cannot", "As an AI"]}})
    assert judged("<think>so</think> yes") == {"regex": 1}
    assert judged("<think>so</think> I cannot") == {"regex": 0}
    assert judged("yes") == {"regex": 0}


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        (["(?:(?:a{100}){100}){100}"], "written out"),
        ([f"a{{9000}}{n}" for n in range(5)], "too large together"),
    ],
)
def test_patterns_that_are_too_large(patterns: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check({"regex": {"must": patterns}})


def test_a_pattern_of_letters_and_braces_is_not_fuzzy() -> None:
    judged = check({"regex": {"must": "x{i}"}})
    assert [judged(text)["regex"] for text in ("zzzx", "x{i}")] == [0, 1]


SLOW, ANSWER = "^(a|a)*$", "a" * 60 + "b"
"""A pattern that would need 2^60 steps on an answer."""


WIDE: dict[str, Any] = {"$defs": {"d12": {}}, "$ref": "#/$defs/d0"}
"""A schema that asks 10^12 times whether an answer matches."""
WIDE["$defs"] |= {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 10} for n in range(12)}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 0.5)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "regex", [{"must": SLOW}, {"must_not": SLOW}, {"must": ["a", SLOW], "must_not": "x"}]
)
def test_an_answer_on_which_a_pattern_takes_too_long_is_wrong(
    regex: Any, sentence: Sentences
) -> None:
    judged = check({"regex": regex}, "b")
    assert judged(ANSWER) == {"regex": 0}
    assert judged("ba") == {"regex": "must_not" in regex and "must" not in regex}
    with pytest.raises(DataError) as caught:
        check({"regex": regex}, ANSWER)
    sentence(caught.value)


TOO_LONG = {
    "pattern": {"pattern": SLOW},
    "pattern of names": {"additionalProperties": {"patternProperties": {SLOW: {}}}},
    "wide": {"anyOf": [{"maxLength": 1}, {"$ref": "#/$defs/d0"}]},
    "circle": {"anyOf": [{"maxLength": 1}, {"$ref": "#/properties/name"}]},
}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("of_name", TOO_LONG.values(), ids=TOO_LONG)
def test_an_answer_on_which_a_schema_takes_too_long_does_not_match(
    tmp_path: Path, of_name: Any, sentence: Sentences
) -> None:
    settings = schema(tmp_path, {"$defs": WIDE["$defs"], "properties": {"name": of_name}})
    hostile = changed(name={"x": {ANSWER: 1}} if "additionalProperties" in of_name else ANSWER)
    judged = check(settings, changed(name="a"))
    assert judged(changed(name="a"))["schema_valid"] == 1
    assert judged(hostile)["schema_valid"] == 0
    with pytest.raises(DataError) as caught:
        check(settings, hostile)
    sentence(caught.value)


def test_many_values_are_compared_in_good_time(tmp_path: Path) -> None:
    judged = check(schema(tmp_path, {"properties": {"tags": {"uniqueItems": True}}}))
    tags = [{"a": number} for number in range(20_000)]
    assert judged(changed(tags=tags))["schema_valid"] == 1
    assert judged(changed(tags=[*tags, {"a": 0.0}]))["schema_valid"] == 0
    assert judged(changed(tags=[1, True]))["schema_valid"] == 1


@pytest.mark.parametrize("name", ["number", "contains", "exact", "json", "rouge", "bleu", "chrf"])
@pytest.mark.parametrize(
    "answer", ["```" + "\n" * 20_000, "#" * 20_000, "y" * 20_000, "a b " * 10_000], ids=repr
)
def test_long_answers_are_judged_in_good_time(name: str, answer: str) -> None:
    """What took the square of their length, or called itself for each letter, took minutes."""
    assert check(name)(answer)


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


@pytest.mark.parametrize(
    ("name", "answer", "right", "wanted"),
    [
        # 3 words in common, of 4 and of 6: F1 = 2 · 3 / (4 + 6); pairs: 1 of 3 and of 5
        (
            "rouge",
            "the cat sat down",
            "the cat is on a sat",
            {"rougeL": 0.6, "rouge1": 0.6, "rouge2": 0.25},
        ),
        ("rouge", "dogs", "dog", {"rougeL": 1, "rouge1": 1, "rouge2": 0}),
        ("bleu", "good day", "good day", {"bleu": 1}),  # no group of four words
        # 4, 3, 2 and 1 groups of 5, 4, 3 and 2 words, and no shorter than it should be
        ("bleu", "a b c d e", "a b c d f", {"bleu": (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25}),
        ("chrf", "abc", "abc", {"chrf": 1}),
        ("chrf", "abc", "xyz", {"chrf": 0}),
        ("bleu", "", "a b", {"bleu": 0}),
        ("rouge", "", "a b", {"rougeL": 0, "rouge1": 0, "rouge2": 0}),
        ("chrf", "", "a b", {"chrf": 0}),
    ],
)
def test_texts_are_compared_by_their_words_and_letters(
    name: str, answer: str, right: str, wanted: dict[str, float]
) -> None:
    assert check(name, right)(answer) == pytest.approx(wanted)


def code(tmp_path: Path, text: str, function: str = "score") -> CheckConfig:
    file = tmp_path / "my_check.py"
    file.write_text(text)
    return CheckConfig(code=f"{file}:{function}")


def judged_by_code(tmp_path: Path, text: str, answer: str = "x", **more: str) -> Any:
    found = checker(code(tmp_path, text), {}, "rows.jsonl", allow_code=True)
    return found(answer, {"row": json.dumps({"n": 3}), "place": "line 7", **more})


@pytest.mark.parametrize(
    ("body", "value"),
    [("row['n'] / 4", 0.75), ("answer == 'x'", 1.0), ("0", 0.0), ("None", None)],
)
def test_a_function_judges_a_row_and_an_answer(tmp_path: Path, body: str, value: Any) -> None:
    text = f"def score(row, answer):\n    return {body}\n"
    assert judged_by_code(tmp_path, text) == {"code": value}


def test_a_function_that_compares_gets_the_answer_of_the_base(tmp_path: Path) -> None:
    text = "def score(row, answer, base_answer):\n    return len(answer) > len(base_answer)\n"
    assert judged_by_code(tmp_path, text, "long", base_answer="no") == {"code": 1.0}
    assert judged_by_code(tmp_path, text, "no", base_answer="long") == {"code": 0.0}
    # the same answer as the base's, as the base's own is
    assert judged_by_code(tmp_path, text, "long", base_answer="long") == {"code": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def score(row, answer):\n    return row['m']\n",
            r"my_check.py:score on line 7 fails: Key",
        ),
        ("def score(row, answer):\n    exit(3)\n", "on line 7 fails: SystemExit: 3"),
        (
            "def score(row, answer):\n    return 1.01\n",
            "on line 7 gives 1.01; give a number from 0",
        ),
        ("def score(row, answer):\n    return float('nan')\n", "on line 7 gives nan"),
        ("def score(row, answer):\n    return 'good'\n", "on line 7 gives 'good'"),
        ("def score(row):\n    return 1\n", "takes 1 arguments; take"),
        ("def other(row, answer):\n    return 1\n", "cannot be loaded: AttributeError"),
        ("score = 3\n", "cannot be loaded: TypeError"),
        ("def score(:\n", "cannot be loaded: SyntaxError"),
        ("raise RuntimeError('no')\n", "cannot be loaded: RuntimeError: no"),
    ],
)
def test_code_that_fails_is_named_with_the_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        judged_by_code(tmp_path, text)


def test_code_runs_only_where_it_is_allowed(tmp_path: Path, sentence: Sentences) -> None:
    ran = tmp_path / "ran"
    config = code(tmp_path, f"open({str(ran)!r}, 'w')\ndef score(row, answer):\n    return 1\n")
    with pytest.raises(DataError) as caught:
        checker(config, {}, "rows.jsonl")
    sentence(caught.value, "my_check.py", names=("my_check.py",))
    assert not ran.exists()
    with pytest.raises(TaskError) as caught:
        checker(CheckConfig(code=f"{tmp_path}/gone.py:score"), {}, "rows.jsonl", allow_code=True)
    sentence(caught.value, "second")


def test_what_code_says_is_part_of_the_scores_and_where_it_lies_is_not(tmp_path: Path) -> None:
    def content_of(folder: Path, value: int) -> str:
        config = code(folder, f"def score(row, answer):\n    return {value}\n")
        return checker(config, {}, "rows.jsonl", allow_code=True).content

    other = tmp_path / "other"
    other.mkdir()
    assert content_of(other, 1) == content_of(tmp_path, 1)
    assert content_of(other, 0) != content_of(tmp_path, 1)


def judge_of(said: str) -> Any:
    """What a model that judges says: the longer answer is better, but for two questions."""
    content = json.loads(said)["messages"][0]["content"]
    question = content.partition("Question:\n")[2].partition("\n")[0]
    first = content.partition("Answer A:\n")[2].partition("\n")[0]
    second = content.partition("Answer B:\n")[2].partition("\n")[0]
    if question == "refused":
        return "I cannot judge that."
    if question == "first one wins":
        return "A"
    return "TIE" if len(first) == len(second) else "A." if len(first) > len(second) else "B"


@pytest.mark.parametrize(
    ("question", "answer", "base_answer", "value", "num_asked"),
    [
        ("plain", "longer", "long", 1.0, 2),
        ("plain", "long", "longer", 0.0, 2),
        ("plain", "one", "two", 0.5, 2),
        ("plain", "same", "same", 0.5, 0),
        ("first one wins", "longer", "long", 0.5, 2),
        ("refused", "longer", "long", None, 2),
    ],
)
def test_a_judge_model_is_asked_in_both_orders(
    monkeypatch: pytest.MonkeyPatch,
    question: str,
    answer: str,
    base_answer: str,
    value: float | None,
    num_asked: int,
) -> None:
    with answering(judge_of, fails_first=1) as server:
        monkeypatch.setenv("JUDGE_URL", server.url)
        monkeypatch.setenv("JUDGE_KEY", "a key")
        monkeypatch.setattr("time.sleep", lambda _: None)
        config = CheckConfig(code=f"{ROOT / 'examples' / 'judge_model.py'}:score")
        found = checker(config, {}, "rows.jsonl", allow_code=True)
        row = {"prompt": question, "completion": "right"}
        doc = {"row": json.dumps(row), "place": "line 1", "base_answer": base_answer}
        assert found(answer, doc) == {"code": value}
    assert server.keys == ["Bearer a key"] * len(server.keys)
    assert len(server.keys) == num_asked + (num_asked > 0)  # one was refused as too busy


@contextlib.contextmanager
def answering(judge: Callable[[str], str], fails_first: int = 0) -> Iterator[Any]:
    """A server of the loopback that answers as OpenAI's chat protocol says."""
    seen = SimpleNamespace(keys=[])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said = self.rfile.read(int(self.headers["Content-Length"])).decode()
            seen.keys.append(self.headers["Authorization"])
            busy = len(seen.keys) <= fails_first
            self.send_response(429 if busy else 200)
            self.end_headers()
            if not busy:
                message = {"message": {"role": "assistant", "content": judge(said)}}
                self.wfile.write(json.dumps({"choices": [message]}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
