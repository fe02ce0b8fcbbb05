"""What checks types and shapes in the tests: beartype, once for each signature.

jaxtyping hands over functions that have a signature and do nothing. Those of a function within a
function are made anew at every call, and beartype would write their checks anew as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from beartype import beartype

_CHECKS: dict[tuple[str, str, str], Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with checks of its arguments and of what it returns."""
    key = function.__module__, function.__qualname__, str(inspect.signature(function))
    if key not in _CHECKS:
        _CHECKS[key] = beartype(function)
    return _CHECKS[key]
