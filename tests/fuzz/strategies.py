"""Hostile input: nasty values in the places where good ones stand, and damaged good files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml
from hypothesis import strategies as st

NASTY_TEXTS = (
    *("", " ", "\0", "\n", "\t", "~nosuchuser/x", "../../x", "/dev/null", ".", "x" * 5000),
    *("\u202e", "é中🙂", "\ufeff", "{{ 1 / 0 }}", "{% for", "%s%n", "null", "true", "1e999"),
    *("{{ cycler.__init__.__globals__ }}", "__class__", "NaN", "-0", "0x" + "f" * 5000),
)
NASTY_TOKENS = (
    *NASTY_TEXTS,
    *("[", "]", "{", "}", ":", ": ", "- ", ",", "&a ", "*a", "!function os.system", "!!binary x"),
    *("!!python/object/apply:os.system [true]", "<<: ", "? ", "---\n", "'", '"', "|\n", "#", "%"),
    *("9" * 5000, ".inf", ".nan", "-1", "2020-99-99", "[" * 200, "\x85", "\u2028"),
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


def damaged(texts: Sequence[str]) -> st.SearchStrategy[str]:
    """Good texts after a few edits: pieces cut out, doubled, moved, or replaced by a token."""

    @st.composite
    def edited(draw: st.DrawFn) -> str:
        text = draw(st.sampled_from(list(texts)))
        for _ in range(draw(st.integers(1, 5))):
            start = draw(st.integers(0, len(text)))
            stop = min(len(text), start + draw(st.integers(0, 30)))
            piece = draw(
                st.one_of(
                    st.just(""),
                    st.just(text[start:stop] * 2),
                    st.sampled_from(NASTY_TOKENS),
                    st.text(max_size=5),
                )
            )
            text = text[:start] + piece + text[stop:]
        return text

    return edited()


def with_nasty_values(content: Any) -> st.SearchStrategy[Any]:
    """A good document in which a few values, or whole sections, are others."""
    if isinstance(content, dict):
        kept = {key: with_nasty_values(value) for key, value in content.items()}
        known = st.fixed_dictionaries({}, optional=kept)
        return st.one_of(known, known, known, values)
    if isinstance(content, list):
        inner = [with_nasty_values(entry) for entry in content] or [values]
        return st.one_of(st.lists(st.one_of(*inner), max_size=4), values)
    return st.one_of(st.just(content), st.just(content), values)


def dumped_yaml(content: Any) -> str:
    """As YAML, whatever it is."""
    return yaml.safe_dump(content, allow_unicode=True)


def dumped_json_lines(rows: Sequence[Any]) -> str:
    """As JSON Lines; NaN and half surrogate pairs as Python writes them."""
    return "\n".join(map(json.dumps, rows))
