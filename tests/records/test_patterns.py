"""Patterns of other people mean what they mean in ``re``, and are bounded."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rankwise.records.patterns import MAX_UNROLLED, Pattern

SLOW = "(?:.|.)*(?!.|$)"
"""Needs 2^60 steps on a text of 60 letters; a simpler one is seen through by ``regex``."""

# what regex reads otherwise than re, beside what both read alike
PIECES = (
    *("a", "b", "x", "1", ".", r"\d", r"\w", r"\s", r"\b", "^", "$", "|", "(", ")", "[", "]"),
    *("{", "}", "*", "+", "?", "{i}", "{e}", "{e<=1}", "{2}", "{,2}", "{1,}", "{,}", "{}"),
    *("(?:", "(?=", "(?!", "(?<=", "(?i)", "(?i:", "(?s:", "(?#", "(?P<n>", "(?P=n)", r"\1"),
    *("[[:alpha:]]", "[^", "[]", "--", "&&", "||", "~~", r"\[", r"\{", r"\N{DIGIT ONE}", r"\Z"),
    *("(?>", "*+", "++", "a-c", "^]", "ß", "İ", "(?x)", "(?x:", "(?R)", r"\p{L}", r"\K", "(?V1)"),
)
TEXTS = (
    *("", "a", "aab", "abc", "xi", "x{i}", "zzzx", "1", "a1 b", "[", "]", "{", "}", "ab{e}"),
    *("[:alpha:]", "a]", "aaa\n", "ß", "SS", "-", "&", "~", "a--c", "A", "abcabc", " "),
)


@settings(
    max_examples=1000,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=7).map("".join))
def test_a_pattern_means_what_it_means_in_re(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = re.compile(text)
        except re.error:
            with pytest.raises(ValueError, match="is not a regular expression"):
                Pattern(text)
            return
    assume("(?x" not in text)
    pattern = Pattern(text)
    for given_text in TEXTS:
        assert pattern.begins(given_text) == (expected.match(given_text) is not None)
        assert pattern.findall(given_text) == expected.findall(given_text)
        assert pattern.sub("-", given_text) == expected.sub("-", given_text)


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("x{i}", "ax{i}", "zzzx"),  # an inserted letter
        ("{e}", "ab{e}", "ab"),
        ("[[:digit:]]", "d]", "1]"),
        ("(?#[)a{i}", "a{i}", "za"),  # no set begins in a comment
    ],
)
def test_what_regex_would_read_otherwise(text: str, matching: str, other: str) -> None:
    assert Pattern(text).findall(matching)
    assert not Pattern(text).findall(other)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("(?:(?:a{100}){100}){100}", "written out"),  # a million nodes, and some gigabytes
        ("(((((((((((((a{2}){2}){2}){2}){2}){2}){2}){2}){2}){2}){2}){2}){2})", "written out"),
        (f".{{1,{MAX_UNROLLED}}}", "written out"),
        ("a" * 1001, "more than 1000 characters"),
        ("(?x)a b", "flag x"),
        ("(?x:a b)", "flag x"),
        ("a{99999999999}", "not a regular expression"),
        ("(" * 500 + ")" * 500, "not a regular expression"),
    ],
)
def test_large_patterns_are_refused_before_they_are_compiled(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Pattern(text)


def test_long_repeats_of_honest_patterns_are_accepted() -> None:
    assert Pattern(r"(?s)^.{1,10000}$").findall("a" * 10_000)
    assert Pattern(r"(?:[a-z]{1,100} ){1,100}").findall("ab cd ")


@pytest.mark.parametrize(
    "asked", [Pattern.begins, Pattern.findall, lambda p, text: p.sub("", text)]
)
def test_matching_is_stopped(asked: Callable[[Pattern, str], object]) -> None:
    with pytest.raises(TimeoutError):
        asked(Pattern(SLOW), "a" * 60)
