"""JSON from other people's hands: bounded before it is built, and every fault is one sentence.

Three characters, ``[],``, become a list of 64 bytes. So what a text stands for is counted on its
marks, which costs no memory, and how deep it nests before anything calls itself to walk through it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, cast

MOST_BYTES = 1 << 30
"""The most bytes of a file of rows, items or scores, and of what one unpacks to; in memory it is
about ten times as much."""

MOST_PART_BYTES = 64 << 20
"""The most bytes of one item: a line, or a file in an archive. The longest transcripts of agents
have a tenth."""

MOST_VALUES = 50_000_000
"""The most values of a file: a million rows of fifty columns. A value takes up to 100 bytes in
memory."""

MOST_DEEP = 100
"""Rows and logs nest some ten levels. What walks through them calls itself twice a level, and
Python does that a thousand times."""

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON writes it


class JsonError(ValueError):
    """JSON that may be right but is not built: one sentence with its remedy."""


def parse_json(text: str) -> Any:
    """The value that a JSON text stands for, with U+FFFD for half surrogate pairs.

    Raises:
        JsonError: it nests too deep, stands for too many values, or has a number of thousands of
            digits.
        ValueError: it is not JSON.
    """
    value = parse_exactly(text)
    if may_hold_half(text):
        return json.loads(whole_characters(json.dumps(value, ensure_ascii=False)))
    return value


def parse_exactly(text: str) -> Any:
    """The same with half surrogate pairs as they are, which no encoding has.

    Raises:
        JsonError, ValueError: as ``parse_json``.
    """
    refuse_values(sum(map(text.count, "[{,:")))
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep() from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # Python reads no number of more than 4300 digits
        raise JsonError("a number has thousands of digits; shorten it") from error
    if is_too_deep(value):
        raise _too_deep()
    return value


def is_too_deep(value: Any) -> bool:
    """Whether it has more than ``MOST_DEEP`` lists and mappings in one another."""
    level = [value]
    for _ in range(MOST_DEEP):
        # scalars are left out at once: a file has fifty times as many
        inside = (inner for each in level for inner in values_in(each))
        level = [inner for inner in inside if isinstance(inner, list | dict)]
        if not level:
            return False
    return True


def refuse_values(number: int) -> None:
    """Refuse what stands for more than ``MOST_VALUES`` values.

    Raises:
        JsonError: it does.
    """
    if number > MOST_VALUES:
        raise JsonError(f"more than {MOST_VALUES:,} values; give a part of it")


def whole_characters(text: str) -> str:
    """A text with U+FFFD in place of half surrogate pairs, which no encoding has."""
    if _HALF_A_PAIR.search(text) is None:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def may_hold_half(text: str) -> bool:
    """Whether JSON may have half surrogate pairs: an escape is one, or one half of a whole pair."""
    return _ESCAPED_HALF.search(text) is not None


def holds_half(value: Any) -> bool:
    """Whether a value has half a surrogate pair in any of its texts."""
    return _HALF_A_PAIR.search(json.dumps(value, ensure_ascii=False)) is not None


def values_in(value: Any) -> Iterable[Any]:
    """What a list or a mapping holds; nothing in anything else."""
    if isinstance(value, dict):
        return cast(dict[str, Any], value).values()
    return cast(list[Any], value) if isinstance(value, list) else ()


def _too_deep() -> JsonError:
    return JsonError("nested too deep; flatten it")
