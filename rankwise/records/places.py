"""Names of folders of this machine, and what is given away without them."""

from __future__ import annotations

import getpass
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel

from rankwise.records.fields import Section

T = TypeVar("T")

_LETTER = r"[^\s/\"'`,;:()<>|\[\]{}]"
# A path in a sentence: from the root, from a home or from a folder above, and at least one folder.
# A slash behind a word is none, as in `org/name`, a URL or `acc/loss`.
_PATH = re.compile(
    rf"(?<![\w.~/-])(?:file://)?(?:(?:~[\w.-]*|\.\.?)/(?:{_LETTER}+/)*|/(?:{_LETTER}+/)+)"
    rf"({_LETTER}*)"
)
_HOME = re.compile(rf"/(?:home|Users)/{_LETTER}+|/root(?![\w-])")


class LocalFolders:
    """Takes the folders of a machine out of what is given away, as if files lay beside the reader.

    Paths go as whole values, and out of sentences, where they are known or look like paths.

    Args:
        known: paths of files and folders; sentences may name them with spaces in them.
        kept: names that stay, whatever they look like, where they stand alone.
    """

    def __init__(self, known: Iterable[str], kept: Iterable[str] = ()) -> None:
        places, (home, self._user) = frozenset(known), _home_and_user()
        self._names = {
            **{str(folder): "." for place in places for folder in Path(place).parents},
            **{place: f"./{Path(place).name}" for place in places},
            **dict.fromkeys(home, "~"),
            **{name: name for name in kept},
        }
        longest_first = sorted(filter(_says_something, self._names), key=len, reverse=True)
        self._places = re.compile("|".join(map(_pattern, longest_first)) or "(?!)")

    def out_of(self, value: T) -> T:
        """The same record, or part of one, without names of folders."""
        return each_text(value, self._without)

    def out_of_settings(self, value: T) -> T:
        """The same settings; of texts among them, such as patterns, none is a sentence."""
        return each_text(value, self._without, is_setting=True)

    def _without(self, value: str | Path, is_setting: bool) -> str | Path:
        if isinstance(value, Path):
            return Path(value.name) if value.is_absolute() else value
        return self._names.get(value, value) if is_setting else self._sentence(value)

    def _sentence(self, text: str) -> str:
        if text in self._names:
            return self._names[text]
        text = self._places.sub(lambda found: self._names[found[0]], text)
        return _PATH.sub(self._name, _HOME.sub("~", text))

    def _name(self, path: re.Match[str]) -> str:
        return "~" if path[1] and path[1] == self._user else f"./{path[1]}"


def each_text(
    value: T, change: Callable[[str | Path, bool], str | Path], *, is_setting: bool = False
) -> T:
    """The same record, or part of one, with every text and path in it changed.

    Args:
        value: a record, or mappings and sequences of records and texts.
        change: makes another text or path of one, and of whether it is a setting.
        is_setting: of the value's own texts.
    """
    found = cast(Any, value)
    if isinstance(found, str | Path):
        return cast(T, change(found, is_setting))
    within = partial(each_text, change=change, is_setting=is_setting or isinstance(found, Section))
    if isinstance(found, BaseModel):
        parts = {name: within(part) for name, part in found}
        changed = {name: part for name, part in parts.items() if part != getattr(found, name)}
        return cast(T, found.model_copy(update=changed)) if changed else value
    if isinstance(found, Mapping):
        pairs = cast(Mapping[Any, Any], found).items()
        return cast(T, dict(_one_by_one((within(key), within(part)) for key, part in pairs)))
    if isinstance(found, tuple | list):
        if found and isinstance(found[0], int | float):  # long ones are of numbers
            return value
        kind: Any = type(cast(Any, found))
        return getattr(kind, "_make", kind)(map(within, cast(tuple[Any, ...], found)))
    return value


def _says_something(place: str) -> bool:
    """Whether a place is taken out of sentences; `/data` and `studies` are not."""
    return len(Path(place).parts) >= (3 if place.startswith("/") else 2)


def _pattern(place: str) -> str:
    begin = "" if place.startswith("/") else r"(?<![\w./-])"
    return rf"{begin}{re.escape(place)}(?![\w-])"


def _one_by_one(parts: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Parts of a mapping: files of two folders may have one name."""
    seen = Counter[Any]()
    for key, part in parts:
        seen[key] += 1
        yield (key if seen[key] == 1 else f"{key} ({seen[key]})"), part


def paths_in(value: Any) -> Iterator[str]:
    """Every path, and every text that is one from the root, in settings or in a part of them."""
    if isinstance(value, BaseModel):
        yield from paths_in(dict(value))
    elif isinstance(value, Mapping):
        for key, part in cast(Mapping[Any, Any], value).items():
            yield from (*paths_in(key), *paths_in(part))
    elif isinstance(value, tuple | list):
        for part in cast(tuple[Any, ...], value):
            yield from paths_in(part)
    elif isinstance(value, str | Path) and str(value).startswith("/") and "\n" not in str(value):
        yield str(value)


def _home_and_user() -> tuple[list[str], str | None]:
    try:
        return [str(Path.home())], getpass.getuser()
    except (KeyError, OSError, RuntimeError):  # a container has numbers without names
        return [], None
