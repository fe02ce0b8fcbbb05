"""What reaches a terminal: the command in one of its own, or in this process with one feigned."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import warnings
from pathlib import Path
from unittest.mock import patch

from rankwise.cli import application
from rankwise.cli.main import app
from rankwise.errors import visible
from rankwise.study.printer import guard_streams

_OURS = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[hl]|1A|2K)|\r(?=[\n\x1b])")
"""Codes that rich prints, and ends of lines on a terminal: colours, the cursor, bars."""

HOSTILE = (
    *("\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b31m", "\x07", "\x08\x08", "\x00", "\x7f", "\x85"),
    *("\u202e", "\u2066", "\u200f", "\u200b", "\u2060", "\ufeff", "a\u200db", "\u2028", "\u2029"),
    *("\U000e0041\U000e007f", "a\ufe0f", "\U000e0100", "\u034f", "\u3164", "\xad", "a\rb"),
)
"""What may not act: C0 and C1, bidirectional, without width, ends of lines, tags, selectors."""

HARMLESS = (
    *(
        "日本語モデル",
        "e\u0301\u0323",
        "می\u200cخواهم",
        "क्\u200dष",
        "עברית",
        "👩\u200d💻",
        "❤\ufe0f\u200d🔥",
        "葛\U000e0100",
        "ﬁ",
    ),
    *("[/x]", "[bold]q[/bold]", ":smile:", "%s {0} {{x}}", "é́模"),
)
"""What is printed as it is: wide, combining and joined letters, and what rich marks by."""


ALL = "".join(f"<{letter}>" for letter in HOSTILE)
"""Everything hostile in one name."""


def in_terminal(*arguments: object, columns: int = 100, typed: str = "") -> tuple[int, str]:
    """The exit code of the command, and every character that it printed, in their order."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "rankwise", *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        os.write(ours, typed.encode())
        printed = b""
        with contextlib.suppress(OSError):  # the other end was closed
            while piece := os.read(ours, 65536):
                printed += piece
    os.close(ours)
    return process.returncode, printed.decode("utf-8", "surrogateescape")


def printed_by(*arguments: object) -> tuple[int, str]:
    """The same in this process, as on a terminal with colours."""
    written = io.BytesIO()
    place = io.TextIOWrapper(written, encoding="utf-8", write_through=True)
    code = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(place))
        stack.enter_context(contextlib.redirect_stderr(place))
        for console in (application.stdout, application.stderr):
            stack.enter_context(patch.object(console, "_force_terminal", True))
        guard_streams()
        try:
            app([str(argument) for argument in arguments], prog_name="rankwise")
        except SystemExit as end:
            code = int(end.code or 0)
    place.flush()
    return code, written.getvalue().decode("utf-8", "surrogateescape")


def acting(printed: str) -> str:
    """What was printed, where something of it is hidden and not of rich; else nothing."""
    left = _OURS.sub("", printed)
    return "" if visible(left) == left else ascii(left)


def without_codes(printed: str) -> str:
    """What was printed, without colours and ends of lines."""
    return " ".join(_OURS.sub("", printed).split())


def hostile_folder(parent: Path, name: str) -> Path:
    """A folder of such a name, as far as a file system takes it."""
    place = parent / name.replace("\0", "").replace("/", "_")
    place.mkdir(parents=True)
    return place


def print_by_hand() -> None:
    print(ALL)
    print(ALL, file=sys.stderr)


def write_lines() -> None:
    sys.stdout.writelines([ALL, "\n"])


def warn() -> None:
    warnings.warn(ALL, stacklevel=1)


def log() -> None:
    logging.getLogger("of.a.library").warning(ALL)


def fail() -> None:
    raise ValueError(ALL)
