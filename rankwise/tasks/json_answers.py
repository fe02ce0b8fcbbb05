"""JSON in what a model writes: found, read as strictly as RFC 8259 says, compared by fields."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, cast

from rankwise.records.json_reading import is_too_deep, values_in

MOST_COMPARED = 1_000_000
"""Values of a list in any order times its length, where numbers may differ: a second or two."""

_MOST_DIGITS = 4300
"""The most digits of a whole number that Python reads, since it takes the square of their number of
steps."""

_THOUGHT, _END_OF_THOUGHT = "<think>", "</think>"
_FENCE = "```"
_LABEL = re.compile(r"[A-Za-z0-9_+.-]*")
_SPACE = re.compile(r"[ \t\n\r]*")

Keys = tuple[str, ...]
"""Those that lead to a value."""


def read_json(text: str) -> Any:
    """A text that is JSON from its beginning to its end.

    A number beyond every float is infinite, and so equals none.

    Raises:
        ValueError: it is none, or it has NaN, Infinity, a key twice, or more than ``MOST_DEEP``
            lists and objects in one another.
    """
    value, end = _read_at(text, 0)
    if _SPACE.fullmatch(text, end) is None:
        raise ValueError("more follows on its end")
    return value


def answer_json(answer: str) -> Any:
    """The JSON of an answer: the whole answer, or its first block of code.

    A block counts that is labelled ``json``, in any case, or not at all; its end may be cut off.
    What stands before ``</think>`` is no part of an answer.

    Raises:
        ValueError: there is none; see ``read_json``.
    """
    text = answer.strip()
    _, ends, behind = text.partition(_END_OF_THOUGHT)
    try:
        return read_json(text)
    except ValueError:
        if not ends and (text.startswith(_THOUGHT) or _FENCE not in text):
            raise
    if not ends:
        return _fenced(text)
    try:
        return read_json(behind.strip())
    except ValueError:
        if _FENCE not in behind:
            raise
    return _fenced(behind)


def _fenced(text: str) -> Any:
    start = text.find(_FENCE)
    while start >= 0:
        label = _LABEL.match(text, start + len(_FENCE))
        assert label is not None
        if label[0].lower() in ("", "json"):
            value, end = _read_at(text, label.end())
            behind = text[end:].lstrip()
            if behind and not behind.startswith(_FENCE):
                raise ValueError("more follows on its end")
            return value
        closing = text.find(_FENCE, label.end())
        start = -1 if closing < 0 else text.find(_FENCE, closing + len(_FENCE))
    raise ValueError("no block of code is labelled json")


def _read_at(text: str, start: int) -> tuple[Any, int]:
    """A value that begins there, behind spaces, and the place behind its end."""
    space = _SPACE.match(text, start)
    assert space is not None
    try:
        value, end = _DECODER.raw_decode(text, space.end())
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if is_too_deep(value):
        raise ValueError("it is nested too deep")
    return value, end


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _whole_number(digits: str) -> float:
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_whole_number, parse_constant=_no_number
)


def is_finite(value: Any) -> bool:
    """Whether every number of a value is."""
    return all(map(is_finite, values_in(value))) and (
        not isinstance(value, float) or math.isfinite(value)
    )


def fields(value: Mapping[str, Any], before: Keys = ()) -> dict[Keys, Any]:
    """The values of an object and of the objects in it, by the keys that lead to them."""
    found: dict[Keys, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            found |= fields(inner, (*before, name))
        else:
            found[*before, name] = inner
    return found


def called(path: Keys) -> str:
    """A field's name for readers: ``outer.inner``."""
    return ".".join(path)


def is_same(written: Any, right: Any, tolerance: float, *, in_any_order: bool) -> bool:
    """Whether a field is right.

    Args:
        written: its value in an answer.
        right: its right value.
        tolerance: share of a right number by which a written one may differ, in lists and objects
            too.
        in_any_order: the values of a list may be; those of lists in it may not.
    """
    if in_any_order and isinstance(written, list) and isinstance(right, list):
        return _has_same(cast(list[Any], written), cast(list[Any], right), tolerance)
    return _is_equal(written, right, tolerance)


def _is_equal(written: Any, right: Any, tolerance: float) -> bool:
    if isinstance(right, list) and isinstance(written, list):
        return len(written) == len(right) and all(
            _is_equal(one, other, tolerance) for one, other in zip(written, right, strict=True)
        )
    if isinstance(right, dict) and isinstance(written, dict):
        return written.keys() == right.keys() and all(
            _is_equal(written[name], value, tolerance) for name, value in right.items()
        )
    if _is_number(written) and _is_number(right):
        one, other = cast(float, written), cast(float, right)
        try:
            return one == other or abs(one - other) <= tolerance * abs(other)
        except OverflowError:  # a whole number beyond every float
            return False
    return type(written) is type(right) and written == right  # true is not 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def num_compared(right: Any) -> int:
    """How many values are compared where a list is in any order and numbers may differ."""
    return len(right) * _num_values(right) if isinstance(right, list) else 0


def _num_values(value: Any) -> int:
    return 1 + sum(map(_num_values, values_in(value)))


def _has_same(written: list[Any], right: list[Any], tolerance: float) -> bool:
    """Whether each right value has a written one of its own that equals it."""
    if len(written) != len(right) or not right:
        return not written and not right
    if tolerance == 0:
        return sorted(map(key_of, written)) == sorted(map(key_of, right))
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    equal = [[_is_equal(one, other, tolerance) for one in written] for other in right]
    return bool((maximum_bipartite_matching(csr_array(equal)) >= 0).all())


def key_of(value: Any) -> str:
    """A text that equal values have in common, and no others: 3.0 is 3, true is not 1."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(inner) for inner in cast(list[Any], value)]
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in cast(dict[str, Any], value).items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value
