"""Python files of users: what runs is what stands in the file, and what fails is named."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import io
import linecache
import math
import numbers
import signal
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rankwise.errors import TaskError
from rankwise.records.config.own_rows import CODE
from rankwise.records.files import read_regular
from rankwise.tasks.task_files import task_code

MOST_CODE_BYTES = 1 << 20
"""The most bytes of a file: no module of the standard library has a quarter of it."""

MOST_SECONDS = 600.0
"""The most seconds for one answer. A judge model that is asked in both orders, three times for a
minute each, takes six minutes."""


class _TooLong(BaseException):
    """A function took more than its time; code that catches every Exception does not catch it."""


@dataclass(frozen=True)
class OwnFunction:
    """A function of a row and an answer, and maybe of the base's answer.

    Attributes:
        function: the function.
        where: names it, and the setting that it stands in.
        needs_base: whether it takes the base's answer too.
        content: says what it does: its name, and the digest of the file that runs.
    """

    function: Callable[..., Any]
    where: str
    needs_base: bool
    content: str

    def share(self, place: str, *given: Any) -> float | None:
        """What it gives for a row; None: the row is missing.

        Raises:
            TaskError: it fails, takes more than ``MOST_SECONDS``, or gives neither a number from 0
                to 1 nor None. The text names the function and ``place``, the row.
        """
        where = f"{self.where} on {place}"
        with task_code(f"{where} fails", "Correct it."), timed(where):
            return number_given(self.function(*given), where, 0, 1, "a number from 0 to 1")


def number_given(value: Any, where: str, least: float, most: float, wanted: str) -> float | None:
    """What a function gives, also a number of numpy or torch.

    Raises:
        TaskError: it is neither a number within the limits nor None; ``wanted`` names these.
    """
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None:
        return None
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not least <= number <= most:
        raise TaskError(f"{where} gives {value!r:.60}; give {wanted}, or None.")
    return number


def own_function(code: str) -> OwnFunction:
    """The function that ``FILE.py:FUNCTION`` names.

    Raises:
        TaskError: the file cannot be read or fails, or has no such function of two or three
            arguments.
    """
    function, where, content = named_function(code, "judged_by")
    with task_code(f"{where} cannot be loaded", "Correct the file."):
        num_parameters = len(inspect.signature(function).parameters)
    if num_parameters not in (2, 3):
        raise TaskError(
            f"{where} takes {num_parameters} arguments; take (row, answer), or (row, answer, "
            "base_answer)."
        )
    return OwnFunction(function, where, num_parameters == 3, content)


def named_function(code: str, setting: str) -> tuple[Callable[..., Any], str, str]:
    """What ``FILE.py:FUNCTION`` names, how errors name it, and its name with its file's digest.

    Raises:
        TaskError: the file cannot be read or fails, or has nothing of that name.
    """
    parts = CODE.fullmatch(code)
    assert parts is not None
    file, name = Path(parts["file"]), parts["function"]
    where = f"{setting}: {file.name}:{name}"
    with task_code(f"{where} cannot be loaded", "Correct the file."), timed(where):
        module, sha256 = module_of(file, file.stem)
        return getattr(module, name), where, f"{name} of {sha256}"


def module_of(file: Path, name: str) -> tuple[ModuleType, str]:
    """A module from the bytes of its file, and their sha256.

    Python itself would run compiled code that lies in ``__pycache__`` beside the file.

    Args:
        file: ends in ``.py``.
        name: of the module.

    Raises:
        OSError: the file cannot be read, or is larger than ``MOST_CODE_BYTES``.
        BaseException: whatever its code raises.
    """
    content = read_regular(file, MOST_CODE_BYTES)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    code = compile(content, file, "exec", dont_inherit=True)
    # whoever asks for the source of its functions gets what runs, whatever becomes of the file
    lines = io.StringIO(importlib.util.decode_source(content)).readlines()
    linecache.cache[str(file)] = (len(content), None, lines, str(file))
    exec(code, module.__dict__)  # noqa: S102 (the user's code, which was allowed)
    return module, hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def timed(where: str) -> Generator[None]:
    """Raises TaskError after ``MOST_SECONDS`` in the block.

    The system's alarm rings in the main thread alone; one that is set already is left as it is.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def ring(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    except _TooLong:
        raise TaskError(
            f"{where} takes more than {MOST_SECONDS:g} seconds. Give it a limit of its own."
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
