"""The command in a terminal of its own, and what reaches that terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rankwise.errors import visible

OURS = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[hl]|1A|2K)|\r")
"""Codes that rich prints: colours, the cursor, and a bar that is drawn again."""


def in_terminal(
    *arguments: object, columns: int = 100, typed: str = "", folder: Path | None = None
) -> tuple[int, str]:
    """The exit code of the command, and every character that it printed, in their order."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "rankwise", *map(os.fspath, map(_text, arguments))]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment
    ) as process:
        os.close(theirs)
        os.write(ours, typed.encode())
        printed = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end was closed
                break
            if not piece:
                break
            printed += piece
    os.close(ours)
    return process.returncode, printed.decode("utf-8", "surrogateescape")


def _text(argument: object) -> str | bytes:
    return argument if isinstance(argument, str | bytes) else str(argument)


def acting(printed: str) -> str:
    """What of a print is hidden and not of rich: empty where nobody else's characters act."""
    left = OURS.sub("", printed)
    return "" if visible(left) == left else ascii(left)
