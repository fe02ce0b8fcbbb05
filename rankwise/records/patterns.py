"""Regular expressions of other people: bounded before they are compiled, and while they match.

``re`` says what a pattern means, but nothing stops it; ``regex`` has a time limit, but unrolls
repeats in memory and reads some patterns differently (``x{i}`` is fuzzy there, ``[[:digit:]]`` a
class). So a pattern is parsed by ``re``, measured, written without what is read differently, and
matched by ``regex``.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import regex

MAX_CHARACTERS = 1_000
"""The longest pattern of lm-eval's own tasks has 119."""

MAX_UNROLLED = 20_000
"""Nodes of a pattern whose repeats are written out: 12 MB at most once it is compiled. It is enough
for ``.{1,10000}``, and for two repeats of 100 within each other."""

SECONDS = 1.0
"""The most seconds of matching one text. A pattern that backtracks takes years on a few hundred
letters."""

_parser: Any = importlib.import_module("re._parser")
_REPEATS = (_parser.MAX_REPEAT, _parser.MIN_REPEAT, _parser.POSSESSIVE_REPEAT)

# An escape, a comment, a set, or a brace that is no repeat. Where they are not looked for in this
# order, a bracket in a comment would begin a set.
_PARTS = re.compile(
    r"(?P<as_it_is>\\N\{[^}]*\}|\\.|\(\?#[^)]*\))"
    r"|(?P<set>\[\^?\]?(?:[^\]\\]|\\.)*\])"
    r"|(?P<brace>\{(?!(?:[0-9]+(?:,[0-9]*)?|,[0-9]*)\}))",
    re.DOTALL,
)
_IN_SET = re.compile(r"(\\.)|\[", re.DOTALL)


def layer_pattern(key: str) -> Pattern:
    """A key of PEFT's ``rank_pattern`` as PEFT matches it: a layer's name, or the end of one.

    Raises:
        ValueError: it is no regular expression, or is too large.
    """
    return Pattern(rf"(.*\.)?({key})$")


def rank_entries(ranks: Mapping[str, int], scaling: float) -> dict[str, Any]:
    """The entries of PEFT's config that give each layer its rank, and all the same scaling.

    ``r`` is the rank that most layers have; patterns name the others as a whole, so that they match
    no layer whose name ends as theirs.
    """
    most = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != most}
    return {
        "r": most,
        "lora_alpha": scaling * most,
        "rank_pattern": others,
        "alpha_pattern": {name: scaling * rank for name, rank in others.items()},
    }


class Pattern:
    """A regular expression of ``re`` that is matched in bounded time.

    Attributes:
        size: nodes with repeats written out, which its memory goes by.
        least_width: characters of the shortest text that it matches.

    Raises:
        ValueError: the text is no such pattern, or is too large.
    """

    def __init__(self, text: str) -> None:
        self.size, self.least_width, self._compiled = _compiled(text)

    def begins(self, text: str, seconds: float = SECONDS) -> bool:
        """Whether the beginning of the text matches; raises TimeoutError."""
        return self._compiled.match(text, timeout=seconds) is not None

    def findall(self, text: str) -> list[Any]:
        """What ``re.findall`` returns; raises TimeoutError."""
        return self._compiled.findall(text, timeout=SECONDS)

    def sub(self, replacement: str, text: str, count: int = 0) -> str:
        """What ``re.sub`` returns; raises TimeoutError."""
        return self._compiled.sub(replacement, text, count=count, timeout=SECONDS)


kept_pattern = lru_cache(32)(Pattern)
"""The same, for patterns that are given anew with each text; the last ones are kept."""


def _compiled(text: str) -> tuple[int, int, regex.Pattern[str]]:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{_shown(text)} has more than {MAX_CHARACTERS} characters; shorten it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that re may read otherwise one day
            tree = _parser.parse(text)
        if tree.state.flags & re.VERBOSE or _has_verbose_part(tree):
            raise ValueError(f"{_shown(text)} has the flag x; write it without spaces and comments")
        if (size := _unrolled(tree)) > MAX_UNROLLED:
            raise ValueError(
                f"{_shown(text)} has {size:,} parts with its repeats written out, and at most "
                f"{MAX_UNROLLED:,} are allowed; write * or +, or smaller numbers"
            )
        # regex would keep 500 patterns of 12 MB
        written = _PARTS.sub(_as_re_reads, text)
        compiled = regex.compile(written, regex.VERSION0, cache_pattern=False)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        problem = f"{_shown(text)} is not a regular expression: {reason}; correct it"
        raise ValueError(problem) from error
    return size, int(tree.getwidth()[0]), compiled


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _as_re_reads(part: re.Match[str]) -> str:
    """A part of a pattern as ``regex`` has to be given it."""
    if part["brace"]:
        return r"\{"
    if part["set"]:
        return "[" + _IN_SET.sub(lambda found: found[1] or r"\[", part["set"][1:])
    return part[0]


def _parts(value: Any) -> list[Any]:
    """The patterns that a node's value holds."""
    if isinstance(value, _parser.SubPattern):
        return [value]
    return (
        [part for each in value for part in _parts(each)] if isinstance(value, list | tuple) else []
    )


def _has_verbose_part(tree: Any) -> bool:
    return any(
        (operation is _parser.SUBPATTERN and value[1] & re.VERBOSE)
        or any(map(_has_verbose_part, _parts(value)))
        for operation, value in tree
    )


def _unrolled(tree: Any) -> int:
    """Nodes that a pattern has once its repeats are written out, as ``regex`` compiles it.

    ``regex`` writes the least number of repeats and one more.
    """
    size = 0
    for operation, value in tree:
        inner = max(1, sum(map(_unrolled, _parts(value))))
        if operation in _REPEATS:
            least, most, _ = value
            size += inner * (1 + (least if most is _parser.MAXREPEAT else most))
        else:
            size += len(value) if operation is _parser.IN else inner
    return size
