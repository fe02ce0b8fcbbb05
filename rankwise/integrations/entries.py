"""The entries of a tool's config, each read as what it should be, with everything that is wrong."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from rankwise.errors import redacted

_MOST_SHOWN = 80
_NOTHING = (None, "", [], {})


def shown(value: Any) -> str:
    """A value on a part of a line, without characters that would end it."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    text = " ".join(text.split())
    text = redacted("".join(c for c in text if unicodedata.category(c)[0] != "C"))
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


class Entries:
    """Keys and values of a config; those that are null or empty count as not given.

    Attributes:
        problems: of the values that were read, one sentence each.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = {str(key): value for key, value in content.items()}
        self._read: set[str] = set()
        self.problems: list[str] = []

    def take(self, key: str) -> Any:
        """The value as it is; None where it is not given."""
        self._read.add(key)
        value = self._content.get(key)
        return None if value in _NOTHING else value

    def number(self, key: str) -> float | None:
        """A finite number, which may be in quotes."""
        value = self.take(key)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
        self._problem(key, value, "is not a number")
        return None

    def whole(self, key: str) -> int | None:
        """A whole number."""
        number = self.number(key)
        if number is None or number == int(number):
            return None if number is None else int(number)
        self._problem(key, number, "is not a whole number")
        return None

    def switch(self, key: str) -> bool:
        """True or false, which may be in quotes; false where it is not given."""
        value = self.take(key)
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if value is None:
            return False
        found = known.get(str(value).lower())
        if found is None:
            self._problem(key, value, "is neither true nor false")
        return bool(found)

    def text(self, key: str) -> str | None:
        """Text."""
        value = self.take(key)
        if value is None or isinstance(value, str):
            return value
        self._problem(key, value, "is not text")
        return None

    def names(self, key: str) -> tuple[str, ...]:
        """A list of names, or names with commas between them."""
        value = self.take(key)
        if value is None:
            return ()
        names = value.split(",") if isinstance(value, str) else value
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
        self._problem(key, value, "is not a list of names")
        return ()

    def unread(self, without_effect: re.Pattern[str]) -> list[str]:
        """``key: value`` of what is given and was not read, but for keys that change no result."""
        return [
            f"{shown(key)}: {shown(value)}"
            for key, value in self._content.items()
            if key not in self._read
            and value not in (*_NOTHING, False)
            and not without_effect.fullmatch(key)
        ]

    def _problem(self, key: str, value: Any, what: str) -> None:
        self.problems.append(f"{key}: {shown(value)} {what}; correct it")
