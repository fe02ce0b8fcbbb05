"""What every record is: frozen, without unknown fields, and versioned where it is a file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from rankwise.errors import has_hidden, visible

# A record of another version is refused: its fields may mean something else.
SchemaVersion = Literal[1]
SCHEMA_VERSION: SchemaVersion = 1


class Record(BaseModel):
    """Base of everything that is written into a study folder, and of what is concluded from it.

    Its texts are of other people too: names, sentences with names in them, what models wrote. In
    none of them anything is hidden: what a field's own type does not refuse, as ``Text`` does,
    stands there by its code.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*")
    @classmethod
    def _with_nothing_hidden(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name not in _textual(cls) or not _is_hiding(value):
            return value
        return _shown(value)


class FileRecord(Record):
    """Base of what is written as a file of its own.

    ``has_texts``: whether it holds texts of the user's, such as values of documents, or what a
    model wrote. A class that does not say it cannot be made: what has texts is shared only where
    that is asked for.
    """

    has_texts: ClassVar[bool]

    def __init_subclass__(cls, *, has_texts: bool, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls.has_texts = has_texts


class VersionedRecord(FileRecord, has_texts=False):
    """Base of the files whose first field is their version."""

    schema_version: SchemaVersion = SCHEMA_VERSION


@cache
def _textual(kind: type[Record]) -> frozenset[str]:
    """The fields that may hold texts: long ones of numbers need not be searched."""
    fields = kind.model_fields.items()
    return frozenset(name for name, field in fields if _may_be_text(field.annotation))


def _may_be_text(annotation: Any) -> bool:
    return annotation in (str, Any) or any(map(_may_be_text, get_args(annotation)))


def _is_hiding(value: Any) -> bool:
    if isinstance(value, Mapping):
        parts = cast(Mapping[Any, Any], value)
        return any(map(_is_hiding, parts)) or any(map(_is_hiding, parts.values()))
    if isinstance(value, tuple | list):
        return any(map(_is_hiding, cast(tuple[Any, ...], value)))
    return isinstance(value, str) and has_hidden(value)


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        parts = cast(Mapping[Any, Any], value)
        return {_shown(key): _shown(part) for key, part in parts.items()}
    if isinstance(value, tuple | list):
        parts = map(_shown, cast(tuple[Any, ...], value))
        return tuple(parts) if isinstance(value, tuple) else list(parts)
    return visible(value) if isinstance(value, str) else value
