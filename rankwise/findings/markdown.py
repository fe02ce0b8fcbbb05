"""Markdown of texts with names of users: what would be a tag, a link or a cell's end is text."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence


def markdown_text(text: str) -> str:
    """A text as Markdown shows it; code between backticks stays code."""
    return re.sub(r"([\\\[\]|])", r"\\\1", html.escape(text, quote=False))


def markdown_code(name: str) -> str:
    """A name as code."""
    return f"`{name.replace('`', chr(39))}`"


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [[markdown_text(cell) for cell in row] for row in (heading, *rows)]
    return [f"| {' | '.join(row)} |" for row in (lines[0], ["---"] * len(heading), *lines[1:])]
