"""Names of other people, in whatever field of a record they stand, hide nothing."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError, create_model

from rankwise import records
from rankwise.errors import visible
from rankwise.records.base import Record
from rankwise.records.fields import Section, Text

HIDDEN = "a\x1b]0;b\x07\u202ec"

PATTERNS = {"RegexCheckConfig.must", "RegexCheckConfig.must_not", "SdftConfig.template"}
"""What is looked for in answers may be a control character; errors show it by its code."""


@cache
def _classes() -> tuple[type[BaseModel], ...]:
    found: list[type[BaseModel]] = []
    for module in pkgutil.walk_packages(records.__path__, "rankwise.records."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, BaseModel) and kind.__module__ == module.name:
                found.append(kind)
    return tuple(found)


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types within a type, each with its own checks."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner = typing.get_args(annotation)[0]
        yield from [annotation] if inner in (str, Path) else _leaves(inner)
    elif typing.get_origin(annotation) is not typing.Literal:
        parts = [part for part in typing.get_args(annotation) if part is not ...]
        yield from (leaf for part in parts for leaf in _leaves(part))
        yield from [] if parts else [annotation]


def _texts() -> list[tuple[type[BaseModel], str, Any]]:
    """Class, field and type of every field with a text or a path in it."""
    found: list[tuple[type[BaseModel], str, Any]] = []
    for kind in _classes():
        hints = typing.get_type_hints(kind, include_extras=True)
        for name in kind.model_fields:
            if any(_bare(leaf) in (str, Path) for leaf in _leaves(hints[name])):
                found.append((kind, name, hints[name]))
    return found


def _bare(annotation: Any) -> Any:
    is_checked = typing.get_origin(annotation) is typing.Annotated
    return typing.get_args(annotation)[0] if is_checked else annotation


def _refuses(leaf: Any) -> bool:
    try:
        TypeAdapter(leaf).validate_python(HIDDEN)
    except ValidationError:
        return True
    return False


def _sample(annotation: Any) -> Any:
    """A value of a type, with something hidden in every text."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _sample(parts[0])
    if origin is typing.Literal:
        return parts[0]
    if origin in (dict, Mapping):
        return {_sample(parts[0]): _sample(parts[1])}
    if origin is tuple:
        return tuple(_sample(part) for part in parts if part is not ...)
    if origin is not None:  # a union; what may be missing is there
        return _sample(next(part for part in parts if part is not type(None)))
    return {str: HIDDEN, Path: HIDDEN, int: 1, float: 0.5, bool: True, Any: HIDDEN}[annotation]


def _without_records(annotation: Any) -> Any:
    """A type in which a number stands for each other record: that has a test of its own."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return int
    if origin is typing.Annotated:
        return typing.Annotated[(_without_records(parts[0]), *parts[1:])]
    if origin is None or origin is typing.Literal:
        return annotation
    plain = tuple(map(_without_records, parts))
    return typing.Union[plain] if origin is types.UnionType else origin[plain]  # noqa: UP007


def _hides(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_hides, (*value, *value.values())))  # pyright: ignore
    if isinstance(value, tuple):
        return any(map(_hides, value))  # pyright: ignore
    return isinstance(value, str | Path) and visible(str(value)) != str(value)


def _kept(name: str, annotation: Any) -> Any:
    """What a record keeps of such a value; None where it refuses it."""
    annotation = _without_records(annotation)
    definition: Any = {name: (annotation, ...)}
    one: Any = create_model("One", __base__=Record, **definition)
    try:
        return getattr(one.model_validate({name: _sample(annotation)}), name)
    except ValidationError:
        return None


def test_a_record_refuses_a_hidden_character_or_keeps_its_code() -> None:
    texts = [each for each in _texts() if issubclass(each[0], Record)]
    hiding = {
        f"{kind.__name__}.{name}"
        for kind, name, annotation in texts
        if not all(map(_refuses, _texts_of(annotation))) and _hides(_kept(name, annotation))
    }
    assert hiding == set()
    assert len(texts) > 150
    check = "_with_nothing_hidden"
    assert [kind for kind, _, _ in texts if vars(kind).get(check) is not None] == []


def _texts_of(annotation: Any) -> list[Any]:
    return [leaf for leaf in _leaves(annotation) if _bare(leaf) in (str, Path)]


def test_a_setting_refuses_a_hidden_character() -> None:
    """A study file is written by hand: its author corrects it."""
    texts = [each for each in _texts() if issubclass(each[0], Section)]
    taken = {
        f"{kind.__name__}.{name}"
        for kind, name, annotation in texts
        for leaf in _texts_of(annotation)
        if not _refuses(leaf)
    }
    assert taken == PATTERNS
    assert len(texts) > 30


def test_every_class_is_of_one_kind() -> None:
    assert [kind for kind in _classes() if not issubclass(kind, Record | Section)] == []


@pytest.mark.parametrize(
    ("annotation", "is_refused"),
    [(Text, True), (str, False), (dict[str, Text], True), (tuple[str, ...] | None, False)],
)
def test_the_search_itself(annotation: Any, is_refused: bool) -> None:
    assert (_kept("field", annotation) is None) == is_refused
    assert not _hides(_kept("field", annotation))
    assert _hides({"a": (HIDDEN,)})
    assert _hides((Path(HIDDEN),))
