"""Answers of models, and what judges them: schemas, patterns, texts, code and contracts of users.

A check that is made judges whatever a model writes: by numbers in 0..1, and in bounded time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from pydantic import ValidationError

from rankwise.errors import RankwiseError
from rankwise.records.config.own_rows import CheckConfig
from rankwise.records.study_file import load_contract
from rankwise.tasks import bounded
from rankwise.tasks.answer_checks import checker
from tests.fuzz.strategies import (
    NASTY_TEXTS,
    damaged,
    dumped_yaml,
    with_nasty_values,
)

_SECONDS = 0.5
"""For a call that has a limit: an input makes several, and has a limit of its own."""

_NUMBERS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "0.1", "3.0", "-0", "01", "1."),
    *("9" * 400, "-" + "9" * 400, "9" * 5000, "0." + "9" * 5000, "1e400", "1e308"),
)
_RIGHT: dict[str, Any] = {
    "name": "Ada",
    "year": 1815,
    "share": 0.5,
    "tags": ["a", "b", 1.5],
    "a.b": 1,
    "a": {"b": 2, "c": [{"d": 3.0}]},
    "none": None,
    "yes": True,
    "empty": {},
}
_TEXTS = st.one_of(
    st.text(),
    st.text("ab #$,.\n0123456789"),
    st.sampled_from(NASTY_TEXTS),
    st.sampled_from([*"ay#`\n ", "a ", "#### ", "yes no "]).map(lambda text: text * 20_000),
)
_PATTERNS = st.one_of(
    st.sampled_from(
        [
            *("^(a|a)*$", "(a+)+$", "(?:(?:a{1000}){1000}){1000}", "(x+x+)+y", "x{i}", r"(a)\1"),
            *("(?=(a+))a*b", "((a{0,9}){0,9}){0,9}", "[", "(", "(?P<a>", "", ".*", r"\p{L}"),
        ]
    ),
    st.text("ab()[]{}|*+?\\^$.0123456789,", max_size=12),
)

values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, -(10**400), 0.1, 3, 3.0, *_RIGHT.values()]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from([*_RIGHT, "b", "c"]) | st.text(max_size=3), inner)
    ),
    max_leaves=12,
)


@st.composite
def answers(draw: st.DrawFn) -> str:
    """JSON and what is nearly JSON: numbers that are none, keys twice, depths, blocks, thoughts."""
    text: str = draw(
        st.one_of(
            values.map(json.dumps),
            with_nasty_values(_RIGHT).map(lambda value: json.dumps(value, default=str)),
            damaged([json.dumps(_RIGHT), json.dumps(_RIGHT, indent=2)]),
            st.sampled_from(_NUMBERS).map(
                lambda number: f'{{"year": {number}, "share": {number}}}'
            ),
            st.integers(1, 20_000).map(lambda depth: '{"a": ' * depth + "1" + "}" * depth),
            st.integers(1, 20_000).map(lambda depth: "[" * depth + "]" * depth),
            st.integers(1, 3000).map(lambda number: json.dumps({"tags": [{"a": number}] * number})),
            st.just(json.dumps({str(number): number for number in range(20_000)})),
            _TEXTS,
        )
    )
    before = st.sampled_from(["", "Here: ", "<think>", "<think>```{}```</think>", "```x\n```\n"])
    opening = st.sampled_from(
        ["", "```", "```json", "```JSON\n", "```json\n", "```jsonc\n", "````"]
    )
    closing = st.sampled_from(["", "```", "\n```", " ```\nDone.", "}", "</think>"])
    return draw(before) + draw(opening) + text + draw(closing)


_REFERENCES = st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#/properties/a", "#x", "http://x/y"])
_SCHEMA_VALUES: dict[str, Callable[[st.SearchStrategy[Any]], st.SearchStrategy[Any]]] = {
    **dict.fromkeys(
        ("allOf", "anyOf", "oneOf", "prefixItems"),
        lambda inner: st.lists(inner, min_size=1, max_size=4) | inner.map(lambda one: [one] * 10),
    ),
    **dict.fromkeys(
        ("not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames"),
        lambda inner: inner,
    ),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems"), lambda inner: inner),
    **dict.fromkeys(
        ("properties", "$defs", "dependentSchemas"),
        lambda inner: st.dictionaries(st.sampled_from([*_RIGHT, "b"]), inner, max_size=4),
    ),
    "patternProperties": lambda inner: st.dictionaries(_PATTERNS, inner, max_size=2),
    "pattern": lambda _: _PATTERNS,
    "$ref": lambda _: _REFERENCES,
    "$dynamicRef": lambda _: _REFERENCES,
    "$id": lambda _: st.sampled_from(["http://x/y", "#a", "a", "http://[", "urn:x"]),
    "$anchor": lambda _: st.sampled_from(["x", "y"]),
    "$schema": lambda _: st.sampled_from(
        [
            *(f"https://json-schema.org/draft/{name}/schema" for name in ("2020-12", "2019-09")),
            *(f"http://json-schema.org/draft-0{number}/schema#" for number in (3, 4, 6, 7)),
            "http://x/unknown",
        ]
    ),
    "type": lambda _: st.sampled_from(["object", "array", "string", "number", "integer", ["null"]]),
    "enum": lambda _: st.lists(values, max_size=4),
    "const": lambda _: values,
    "required": lambda _: st.lists(st.sampled_from([*_RIGHT]), max_size=3),
    "uniqueItems": lambda _: st.booleans(),
    **dict.fromkeys(
        ("multipleOf", "minimum", "maximum", "minItems", "maxLength", "minContains"),
        lambda _: st.sampled_from([0, 1, 2, 0.1, 0.5, 1e-300, 1e308, 10**400, 5e-324]),
    ),
}


def _with_keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    optional = {name: make(inner) for name, make in _SCHEMA_VALUES.items()}
    names = st.lists(st.sampled_from(sorted(optional)), max_size=4, unique=True)
    return names.flatmap(
        lambda chosen: st.fixed_dictionaries({name: optional[name] for name in chosen})
    )


schemas = st.recursive(st.booleans() | st.just({}), _with_keywords, max_leaves=6)
_BOMBS = (
    {"$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 10} for n in range(12)}
     | {"d12": {}}, "$ref": "#/$defs/d0"},
    {"anyOf": [{"type": "string"}] * 10_000},
    {"properties": {"tags": {"uniqueItems": True}}},
    {"properties": {"a": {"$ref": "#"}}, "$ref": "#/properties/a"},
)  # fmt: skip


def _numbers(settings: Any, right: str, answer: str, **doc: str) -> None:
    """Make a check, and judge by it."""
    try:
        of = settings if isinstance(settings, str) else CheckConfig.model_validate(settings)
    except ValidationError:
        return
    with mock.patch.object(bounded, "SECONDS", _SECONDS):
        check = checker(of, {"line 1": right}, "rows.jsonl", allow_code=True)
        try:
            numbers = check(answer, {"completion": right, "place": "line 1", **doc})
        except RankwiseError as error:
            if "code" in settings:
                raise
            raise AssertionError(f"{answer[:200]!r} is not judged: {error}") from error
    assert numbers
    for name, number in numbers.items():
        assert number is None or 0 <= number <= 1, (name, number)


def judge_json(_: Path, content: tuple[Any, str, str]) -> None:
    """By fields; a right answer is judged as right."""
    settings, right, answer = content
    _numbers({"json": settings}, right, answer)


def judge_by_schema(folder: Path, content: tuple[str, str]) -> None:
    """By a schema, which may be anything."""
    schema, answer = content
    file = folder / "schema.json"
    file.write_bytes(schema.encode("utf-8", "surrogatepass"))
    _numbers({"json": {"schema": str(file)}}, json.dumps(_RIGHT), answer)


def judge_by_patterns(_: Path, content: tuple[list[str], list[str], str]) -> None:
    """By patterns that must match, and by others that must not."""
    must, must_not, answer = content
    _numbers({"regex": {"must": must, "must_not": must_not}}, "a", answer)


def judge_texts(_: Path, content: tuple[str, str, str]) -> None:
    """By the right text."""
    name, right, answer = content
    _numbers(name, right, answer)


_RETURNED = (
    *("1", "0.5", "None", "True", "np.True_", "np.float32(0.5)", "np.array(1.0)", "np.array([1])"),
    *("float('nan')", "10**400", "'x'", "Fraction(1, 2)", "answer", "row", "np.longdouble(1)", "2"),
    *("1 / 0", "exit(1)", "(_ for _ in ()).throw(GeneratorExit)", "[][0]", "np.array(None)", "1j"),
    *("f()", "recursion(row)", "'a' * 10**7", "type('X', (float,), {'__float__': None})(1)"),
)


def judge_by_code(folder: Path, content: tuple[str, str]) -> None:
    """By a function that returns or raises anything."""
    returned, answer = content
    file = folder / "check.py"
    file.write_text(
        "import numpy as np\nfrom fractions import Fraction\n\n"
        "def recursion(row):\n    return recursion(row)\n\n"
        "class Odd(BaseException):\n    pass\n\ndef f():\n    raise Odd\n\n"
        f"def score(row, answer):\n    return {returned}\n"
    )
    _numbers({"code": f"{file}:score"}, "a", answer, row="{}")


_CONTRACT: dict[str, Any] = {
    "tools": {
        "data": "tools.jsonl",
        "judged_by": {"json": {"schema": "s.json", "tolerance": 0.1, "sets": ["a"]}},
        "max_loss": 3,
        "max_new_tokens": 20,
        "columns": {"prompt": "q", "completion": "a"},
    },
    "refusals": {"data": "r.jsonl", "judged_by": [{"regex": {"must": "(?i)^no"}}, "exact"]},
}


def read_contract(folder: Path, text: str) -> object:
    """A contract's file."""
    path = folder / "contract.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return load_contract(path)


_SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "tolerance": st.sampled_from([0.0, 0.1, 1e308]),
        "sets": st.lists(st.sampled_from(["tags", "a.c", "a.b", "a"]), max_size=2, unique=True),
    },
)
PARSERS: dict[str, tuple[Callable[[Path, Any], object], st.SearchStrategy[Any], int]] = {
    "answers in JSON": (
        judge_json,
        st.tuples(_SETTINGS, st.just(json.dumps(_RIGHT)) | answers(), answers()),
        300,
    ),
    "answers and schemas": (
        judge_by_schema,
        st.tuples(
            st.one_of(
                schemas.map(json.dumps),
                st.sampled_from(_BOMBS).map(json.dumps),
                schemas.map(json.dumps).flatmap(lambda text: damaged([text])),
                answers(),
            ),
            answers(),
        ),
        200,
    ),
    "answers and patterns": (
        judge_by_patterns,
        st.tuples(st.lists(_PATTERNS, max_size=3), st.lists(_PATTERNS, max_size=2), _TEXTS),
        60,
    ),
    "answers as texts": (
        judge_texts,
        st.tuples(
            st.sampled_from(["exact", "contains", "number", "rouge", "bleu", "chrf"]),
            _TEXTS,
            _TEXTS,
        ),
        150,
    ),
    "answers and code": (judge_by_code, st.tuples(st.sampled_from(_RETURNED), _TEXTS), 100),
    "contract": (
        read_contract,
        with_nasty_values(_CONTRACT).map(dumped_yaml) | damaged([dumped_yaml(_CONTRACT)]),
        300,
    ),
}
