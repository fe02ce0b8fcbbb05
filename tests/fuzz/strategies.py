"""Hostile input: nasty values in the places where good ones stand, and damaged good files."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from hypothesis import strategies as st

NASTY_TEXTS = (
    *("", " ", "\0", "\n", "\t", "~nosuchuser/x", "../../x", "/dev/null", ".", "x" * 5000),
    *("\u202e", "é中🙂", "\ufeff", "{{ 1 / 0 }}", "{% for", "%s%n", "null", "true", "1e999"),
    *("{{ cycler.__init__.__globals__ }}", "__class__", "NaN", "-0", "0x" + "f" * 5000),
)
NASTY_VALUES: tuple[Any, ...] = (
    *NASTY_TEXTS,
    *(None, True, False, [], {}, [[]], [None], [True], {"": ""}, 0, -1, 0.5, 10**30, 2**64),
    *(float("nan"), float("inf"), [1] * 2000, list(range(2000)), [["a"], "b"], {"a": {"b": {}}}),
)
NASTY_TOKENS = (
    *NASTY_TEXTS,
    *("[", "]", "{", "}", ":", ": ", "- ", ",", "&a ", "*a", "!function os.system", "!!binary x"),
    *("!!python/object/apply:os.system [true]", "<<: ", "? ", "---\n", "'", '"', "|\n", "#", "%"),
    *(
        "9" * 5000,
        "-" + "9" * 5000,
        "Infinity",
        ".inf",
        ".nan",
        "-1",
        "2020-99-99",
        "[" * 200,
        "[" * 50_000,
        '{"a": ' * 50_000,
        "\x85",
        "\u2028",
    ),
)

numbers = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 1, 2, 2**31, 2**64, 10**30]),
    st.floats(allow_nan=True, allow_infinity=True),
)
scalars = st.one_of(
    st.none(), st.booleans(), numbers, st.sampled_from(NASTY_TEXTS), st.text(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


_VALUE = re.compile(r"(?<=: )[^\n#{}\[\],]+|(?<==)[^\n]+")
"""A scalar behind a key of YAML or JSON, or behind the '=' of an override."""


@st.composite
def damaged(draw: st.DrawFn, texts: Sequence[str]) -> str:
    """Good texts after an edit or a few: values replaced by tokens, pieces cut out or doubled."""
    text = draw(st.sampled_from(list(texts)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 5]))):
        spans = [match.span() for match in _VALUE.finditer(text)]
        if spans and draw(st.booleans()):
            start, stop = draw(st.sampled_from(spans))
            piece = draw(st.sampled_from(NASTY_TOKENS))
        else:
            start = draw(st.integers(0, len(text)))
            stop = min(len(text), start + draw(st.integers(0, 30)))
            choices = [st.just(text[start:stop] * 2), st.sampled_from(NASTY_TOKENS)]
            piece = draw(st.one_of(st.just(""), *choices, st.text(max_size=5)))
        text = text[:start] + piece + text[stop:]
    return text


@st.composite
def with_nasty_values(draw: st.DrawFn, content: Any) -> Any:
    """A good document in which one value or two, or whole sections, are others, or are missing."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        holders = [(holder, key) for holder, key in _places(content)]
        if not holders:
            return draw(values)
        holder, key = draw(st.sampled_from(holders))
        if draw(st.sampled_from([True] * 9 + [False])):
            holder[key] = copy.deepcopy(draw(st.one_of(st.sampled_from(NASTY_VALUES), values)))
        else:
            del holder[key]
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])


def dumped_yaml(content: Any) -> str:
    """As YAML, whatever it is."""
    return yaml.safe_dump(content, allow_unicode=True)


def dumped_json_lines(rows: Any) -> str:
    """As JSON Lines; NaN and half surrogate pairs as Python writes them."""
    return "\n".join(map(json.dumps, rows if isinstance(rows, list) else [rows]))
