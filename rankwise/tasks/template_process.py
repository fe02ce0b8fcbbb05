"""The process that renders chat templates, as a program of its own: ``python template_process.py``.

A template is other people's. jinja's sandbox keeps it from Python's objects, and this process from
the machine's time and memory: it ends where a template takes more than it may. It has what
transformers renders with, and neither torch nor rankwise. Its arguments are the seconds of one
rendering, and of each on average.

A request is a line of JSON: the arguments of transformers' ``render_jinja_template``, with
``messages`` for one conversation. The answer is ``{"text": ..., "marked": ...}``, or ``{"error":
name, "message": ..., "is_template_error": ...}``. ``marked`` has begin and end of what stands
between ``{% generation %}`` and ``{% endgeneration %}``, if that is asked for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import types
from collections.abc import Callable
from typing import Any

SECONDS = 5.0
"""The seconds of processor time that one rendering may take, compiling included; a template of
today takes a millisecond."""

SECONDS_EACH = 0.1
"""What each rendering may take on average, so that rows that take nearly ``SECONDS`` each end."""

MEMORY_BYTES = 1 << 30
"""The most memory beside what the process has when it begins. The longest row has 2 MB."""

MOST_ADDED = 100_000
"""Characters that a template may write beside its messages; a long instruction has 20,000."""

MOST_TIMES = 4
"""How often it may write the messages: some write an answer's thoughts apart from it."""

_MOST_OF_AN_ERROR = 1_000


class TooLongError(Exception):
    """A template that writes far more than its messages."""


def main(seconds: float, seconds_each: float) -> None:
    """Answer requests from stdin until it is closed."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else gets between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks decides what ends
    render = _transformers_renderer()
    _limit_memory()
    for request in sys.stdin.buffer:
        left = signal.getitimer(signal.ITIMER_PROF)[0] or seconds  # 0 before the first request
        # SIGPROF ends the process, also in the midst of C code
        signal.setitimer(signal.ITIMER_PROF, min(seconds, left + seconds_each))
        answers.write(_answer(render, request) + b"\n")
        answers.flush()


def _answer(render: Callable[..., Any], line: bytes) -> bytes:
    import jinja2

    try:
        request = json.loads(line)
        messages = request.pop("messages")
        given = sum(len(str(value)) for turn in messages for value in turn.values())
        (text,), marked = render(conversations=[messages], **request)
        if len(text) > MOST_ADDED + MOST_TIMES * given:
            raise TooLongError(f"it makes {len(text):,} characters of {given:,}")
        found = {"text": text, "marked": marked[0] if marked else []}
        answer = json.dumps(found, ensure_ascii=False).encode()
    except Exception as error:  # noqa: BLE001 (a template may raise anything)
        failure = {
            "error": type(error).__name__,
            "message": str(error)[:_MOST_OF_AN_ERROR],
            "is_template_error": isinstance(error, jinja2.TemplateError),
        }
        answer = json.dumps(failure).encode()
    return answer


def _transformers_renderer() -> Callable[..., Any]:
    """What transformers renders with. The packages around it are left empty: they import long."""
    found = importlib.util.find_spec("transformers")
    assert found is not None
    assert found.submodule_search_locations is not None
    (folder,) = found.submodule_search_locations
    names = {"transformers": folder, "transformers.utils": os.path.join(folder, "utils")}
    for name, path in names.items():
        package = types.ModuleType(name)
        package.__path__ = [path]
        sys.modules[name] = package
    try:
        from transformers.utils.chat_template_utils import render_jinja_template
    except ImportError:  # a version in which it needs more of them
        for name in [each for each in sys.modules if each.partition(".")[0] == "transformers"]:
            del sys.modules[name]
        from transformers.utils.chat_template_utils import render_jinja_template
    return render_jinja_template


def _limit_memory() -> None:
    import resource  # of POSIX; the module is imported everywhere

    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        now = 1 << 32
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, now + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
