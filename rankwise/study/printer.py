"""The one way to a terminal, on which nothing of other people acts: no name, no text, no password.

Models, tasks, studies and files are named by others. A control character in a name would move the
cursor, rename the window or hide a line; it is shown by its code. No other module makes a console
or prints, and in the command what libraries print goes the same way.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable
from typing import IO, Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from rankwise.errors import redacted, visible


def printable(text: str) -> str:
    """A text without passwords, and with the code of what would move or hide the text beside it."""
    return visible(redacted(text))


class Printer(Console):
    """A console on which texts are what they say: none is markup, and none acts."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    @property
    def file(self) -> IO[str]:
        """Where it writes to; what it writes for colours and bars is not shown by its code."""
        return _behind_guard(super().file)

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render_str(self, text: str, **settings: Any) -> Text:
        """A text, before it is measured."""
        return super().render_str(printable(text), **settings)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Everything that is printed comes by here: tables by their cells, cells by their lines."""
        if isinstance(renderable, Text):
            renderable = renderable.copy()
            renderable.plain = printable(renderable.plain)
        for text, style, control in super().render(renderable, options):
            if style is not None and style.link is not None:  # it hides where it leads
                style = style.update_link(None)
            yield Segment(text if control else visible(text), style, control)


_REDRAWN = re.compile(r"\r|(?:\x1b\[A)+\Z")
"""What a bar of tqdm begins with, or moves by, to be drawn again; lm-eval has such bars."""


class Guarded:
    """Stands in the place of stdout or stderr: what is written there is printable.

    Attributes:
        raw: the stream behind it. Its ``buffer`` is not there: it would lead past the guard.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str, /) -> int:
        """Returns the number of characters that were given."""
        redrawn = _REDRAWN.match(text)
        begin = "" if redrawn is None else redrawn[0]
        self.raw.write(begin + printable(text[len(begin) :]))
        return len(text)

    def writelines(self, lines: Iterable[str], /) -> None:
        """Each as by ``write``."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self.raw, name)


def guard_streams() -> None:
    """Guard stdout and stderr of this process: of libraries, of parsers, of tracebacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # what it cannot show is shown by its code
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, Guarded(stream))


def print_line(text: str, place: TextIO | None = None) -> None:
    """Print ASCII to stdout at once, such as JSON; or to what stdout was before it was redirected.

    Raises:
        OSError: nobody reads it any more.
    """
    print(text, file=_behind_guard(sys.stdout if place is None else place), flush=True)


def _behind_guard(stream: IO[str]) -> IO[str]:
    return stream.raw if isinstance(stream, Guarded) else stream
