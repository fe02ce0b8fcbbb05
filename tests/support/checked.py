"""What checks types and shapes in the tests: jaxtyping with beartype, where a call may still err.

A tiny study calls some functions a hundred thousand times, and nearly always alike. Each function
is checked at its first calls of each test, as often as `CALLS` says, and data classes always.
Functions within a function are made anew at every call of it, so all are known by their code, and
their checks are written once. A test that calls with many different things forgets the calls.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from types import CodeType, FunctionType
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


def _first_calls(*arguments: Any, **named: Any) -> Any:
    """What the import hook calls, with a type checker alone; of all else jaxtyping takes care."""
    if arguments or [*named] != ["typechecker"]:
        return _jaxtyped(*arguments, **named)

    def decorated(function: Any) -> Any:
        if not isinstance(function, FunctionType):
            return _jaxtyped(function, **named)
        # at once, as names are now: a test may put others in their place, such as torch.Generator
        is_made_once = "<locals>" not in function.__qualname__
        checks = [_jaxtyped(function, **named)] if is_made_once else list[Callable[..., Any]]()

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if _calls[function.__code__] >= CALLS:
                return function(*args, **kwargs)
            _calls[function.__code__] += 1
            if not checks:
                checks.append(_jaxtyped(function, **named))
            return checks[0](*args, **kwargs)

        return counted

    return decorated
