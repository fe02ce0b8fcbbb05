"""What ``bounded`` calls: schemas and patterns of users, held against what a model writes.

It imports little, since a process of its own does.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

from rankwise.tasks.json_answers import key_of

_KEPT = 16
"""Schemas that stay parsed: one set of rows has one, and a study few sets."""


def schema_fault(schema: str) -> str | None:
    """Why a text that is JSON is no JSON Schema that can be used; None if it can."""
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing.exceptions import Unresolvable

    content = json.loads(schema)
    try:
        kind: Any = validator_for(content, default=Draft202012Validator)
        kind.check_schema(content)
        _resolve_all(content, kind.ID_OF(kind.META_SCHEMA))
    except SchemaError as error:
        return error.message
    except Unresolvable as error:
        return f"it refers elsewhere ({error}); write that in here"
    except Exception as error:  # noqa: BLE001 (what a library makes of anything that is JSON)
        return str(error) or type(error).__name__
    return None


def meets_schema(schema: str, value: Any) -> bool | None:
    """Whether a value matches a schema that has no fault; None where that has no answer."""
    try:
        return bool(_validator(schema).is_valid(value))
    except Exception:  # noqa: BLE001 (references in circles, numbers beyond a float)
        return None


def matches(must: Sequence[str], must_not: Sequence[str], text: str) -> bool:
    """Whether a text matches all of some patterns, and none of others."""
    return all(re.search(pattern, text) for pattern in must) and not any(
        re.search(pattern, text) for pattern in must_not
    )


@functools.lru_cache(_KEPT)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend, validator_for
    from referencing import Registry

    content = json.loads(schema)
    kind = extend(
        validator_for(content, default=Draft202012Validator), {"uniqueItems": _unique_items}
    )
    return kind(content, registry=Registry())  # an empty one fetches nothing


def _unique_items(_: Any, is_wanted: Any, value: Any, __: Any) -> Iterator[Any]:
    """The library compares each value with each."""
    from jsonschema import ValidationError

    if is_wanted is True and isinstance(value, list):
        items = cast(list[Any], value)
        if len(set(map(key_of, items))) < len(items):
            yield ValidationError("it has a value twice")


def _resolve_all(schema: Any, dialect: str) -> None:
    """Raises Unresolvable where a part of a schema refers to what is not in it."""
    from jsonschema_specifications import REGISTRY
    from referencing.jsonschema import specification_with

    resource = specification_with(dialect).create_resource(schema)
    open_parts = [(resource, REGISTRY.resolver_with_root(resource))]
    while open_parts:
        part, resolver = open_parts.pop()
        if isinstance(part.contents, dict):
            for name in ("$ref", "$dynamicRef"):
                if isinstance(place := part.contents.get(name), str):
                    resolver.lookup(place)
        for inner in part.subresources():
            open_parts.append((inner, resolver.in_subresource(inner)))
