"""Which column of a row is what: recognised by the names that data sets use, or as a study says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from rankwise.errors import DataError
from rankwise.records.config.own_rows import ColumnsConfig
from rankwise.records.own_data import Convention

KNOWN = (
    "prompt and completion, messages, instruction and output (and input), conversations, question "
    "and answer, or text"
)
SAY_WHICH = (
    "train.columns: {prompt: ..., completion: ...} (of `rankwise try`: --column prompt=... "
    "--column completion=...)"
)

NOTHING = (None, "", [], {})
"""What a column may hold where a row has no use for it."""


class Reading(NamedTuple):
    """Which column of a row is what.

    Attributes:
        convention: by which it was recognised.
        columns: (role, column): prompt, input, system, completion and messages.
    """

    convention: Convention
    columns: tuple[tuple[str, str], ...]

    def column(self, role: str) -> str | None:
        """The column of a role; None if there is none."""
        return dict(self.columns).get(role)


class _Names(NamedTuple):
    """The columns of a convention by role: those that make it, and those that may come besides."""

    needed: Mapping[str, str]
    besides: Mapping[str, str] = {}


_CONVENTIONS: dict[Convention, _Names] = {
    "messages": _Names({"messages": "messages"}),
    "prompt and completion": _Names({"prompt": "prompt", "completion": "completion"}),
    "instruction and output": _Names(
        {"prompt": "instruction", "completion": "output"}, {"input": "input", "system": "system"}
    ),
    "conversations": _Names({"messages": "conversations"}, {"system": "system"}),
    "question and answer": _Names({"prompt": "question", "completion": "answer"}),
}
_TEXT = Reading("text", (("completion", "text"),))
_FIRST: tuple[Convention, ...] = ("messages", "prompt and completion")
"""Rows that have these are read so, whatever else they have."""

# beside a text, they may be what it answers
_PARTS = {name for names in _CONVENTIONS.values() for name in names.needed.values()}
# columns that change what a question asks
OPTIONS = ("choices", "options")
"""Columns that hold what a question is to be answered by."""


def recognise(row: Mapping[str, Any], wanted: ColumnsConfig | None) -> Reading:
    """Which column of a row is what.

    ``messages`` come first, then a prompt with its completion. A ``text`` beside columns of another
    convention usually repeats them, and is left. Every other pair is ambiguous.

    Args:
        row: columns and their content.
        wanted: what the study file says; None: it says nothing.

    Raises:
        DataError: no convention fits, or several do.
    """
    for role, name in ({} if wanted is None else wanted.by_role).items():
        if name not in row:
            raise DataError(
                f"has no column {name!r}, which train.columns.{role} names; it has "
                f"{listed(row) or 'no columns'}. Correct the name"
            )
    if wanted is not None:
        return Reading("train.columns", tuple(wanted.by_role.items()))
    found: list[Convention] = [
        convention
        for convention, names in _CONVENTIONS.items()
        if row.keys() >= set(names.needed.values())
    ]
    if found and found[0] in _FIRST:
        found = found[:1]
    if len(found) > 1:
        raise DataError(
            f"could be read as {' or as '.join(found)}; say which with {SAY_WHICH}, or with "
            "{messages: ...}"
        )
    if found:
        names = _CONVENTIONS[found[0]]
        besides = {role: name for role, name in names.besides.items() if name in row}
        reading = Reading(found[0], tuple({**names.needed, **besides}.items()))
        _refuse_options(row, reading)
        return reading
    parts = sorted(_PARTS & row.keys())
    if "text" in row and not parts:
        return _TEXT
    if "text" in row:
        raise DataError(
            f"has text and {', '.join(parts)}: is the text an answer, or all of it? Say with "
            f"train.columns: {{completion: text}} or {{prompt: {parts[0]}, completion: text}}"
        )
    raise DataError(
        f"has {listed(row) or 'no columns'}; needs {KNOWN}. If others hold them, say {SAY_WHICH}"
    )


def _refuse_options(row: Mapping[str, Any], reading: Reading) -> None:
    prompt, completion = reading.column("prompt"), reading.column("completion")
    if reading.convention == "prompt and completion" or prompt is None:
        return
    for name in OPTIONS:
        if row.get(name) not in NOTHING:
            raise DataError(
                f'column "{name}" would be lost; write it into column "{prompt}", or leave it out '
                f"with train.columns: {{prompt: {prompt}, completion: {completion}}}"
            )


def listed(names: Collection[Any]) -> str:
    """Columns in words, the first twelve of them."""
    shown = [str(name)[:40] for name in sorted(map(str, names))]
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return ", ".join(shown[:12]) + more
