"""What checks types and shapes in the tests: jaxtyping with beartype, where a call may still err.

A tiny study calls some functions a hundred thousand times, and always alike. Each is checked at its
first calls of each test, as often as `CALLS` says. Functions within a function are made anew at
every call of it, so all are known by their code, and their checks are written once.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import Any

import jaxtyping
from beartype import beartype

CALLS = 20  # more than the layers, and than the adapters of a pass, of any tiny study

_CHECKS: dict[tuple[str, str, str], Callable[..., Any]] = {}
_calls: Counter[CodeType] = Counter()
_jaxtyped = jaxtyping.jaxtyped


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with checks of its arguments and of what it returns."""
    key = function.__module__, function.__qualname__, str(inspect.signature(function))
    if key not in _CHECKS:
        _CHECKS[key] = beartype(function)
    return _CHECKS[key]


def check_first_calls() -> None:
    """Puts a `jaxtyped` that tires in the place of jaxtyping's: its import hook looks it up."""
    jaxtyping.jaxtyped = _first_calls


def forget_calls() -> None:
    """Lets all functions be checked anew."""
    _calls.clear()


def _first_calls(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    def decorated(function: Any) -> Any:
        if isinstance(function, type):
            return _jaxtyped(function, typechecker=typechecker)
        checks: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def counted(*args: Any, **named: Any) -> Any:
            __tracebackhide__ = True
            if _calls[function.__code__] >= CALLS:
                return function(*args, **named)
            _calls[function.__code__] += 1
            if not checks:
                checks.append(_jaxtyped(function, typechecker=typechecker))
            return checks[0](*args, **named)

        return counted

    return decorated
