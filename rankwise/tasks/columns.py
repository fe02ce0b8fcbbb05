"""Which column of users' own rows is what: by their names, or by what stands in them."""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from rankwise.errors import DataError
from rankwise.records.config.own_rows import ColumnsConfig
from rankwise.records.fields import plain_text
from rankwise.records.own_data import Convention

KNOWN = (
    "prompt and completion, messages, instruction and output (and input), conversations, question "
    "and answer, text and label, or text"
)
KNOWN_PAIRS = (
    "prompt (or question, instruction, conversations), chosen and rejected, or chosen and rejected "
    "conversations that begin with the same turns"
)

PROMPTS = frozenset(
    {
        "prompt", "question", "instruction", "query", "input", "problem", "user_message", "frage",
        "pregunta", "domanda",
    }
)  # fmt: skip
COMPLETIONS = frozenset(
    {
        "completion", "answer", "response", "output", "reply", "solution", "assistant", "target",
        "assistant_message", "antwort", "respuesta", "risposta", "réponse",
    }
)  # fmt: skip
"""Names of columns with a prompt or an answer; a row with one of each is read as these."""

TEXTS = ("text", "sentence", "content", "review", "utterance")
LABELS = ("label", "labels", "category", "categories", "class", "intent", "sentiment", "score")
"""A text beside a label is to be classified; of several labels the first is learned."""

SURE_LABELS = frozenset({"label", "labels", "intent"})
"""Those of them that are nothing else; a category may also be what a corpus says of its texts."""

_ABOUT = frozenset(
    {
        "split", "subset", "set", "fold", "lang", "language", "locale", "author", "user",
        "username", "user_id", "source", "domain", "url", "date", "time", "created_at",
        "updated_at", "verified_purchase", "license", "version",
    }
)  # fmt: skip
"""Names of columns that say something about a row, and are neither asked nor answered."""

CONVERSATION = "conversation_id"
"""The column that clusters rows where the study file names no other."""

NOTHING = (None, "", [], {})
"""What a column may hold where a row has no use for it."""


class RowReading(NamedTuple):
    """Which column of a row is what.

    Attributes:
        convention: by which it was recognised.
        columns: (role, column): prompt, input, system, completion, messages, rejected and cluster.
    """

    convention: Convention
    columns: tuple[tuple[str, str], ...]

    def column(self, role: str) -> str | None:
        """The column of a role; None if there is none."""
        return dict(self.columns).get(role)


def column_options(columns: Mapping[str, str]) -> str:
    """The options of ``rankwise try`` that say so, as they are typed."""
    return " ".join(f"--column {shlex.quote(f'{role}={name}')}" for role, name in columns.items())


def say_which(columns: Mapping[str, str] | None = None) -> str:
    """How a user says which column is what: these, or any."""
    named = {"prompt": "...", "completion": "..."} if columns is None else columns
    setting = ", ".join(f"{role}: {name}" for role, name in named.items())
    return f"columns: {{{setting}}} (of `rankwise try`: {column_options(named)})"


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
_PAIR = {"completion": "chosen", "rejected": "rejected"}
# of the prompt's columns the first that is there is read
_PAIR_CONVENTIONS: dict[Convention, _Names] = {
    "prompt, chosen and rejected": _Names({"prompt": "prompt", **_PAIR}, {"system": "system"}),
    "question, chosen and rejected": _Names({"prompt": "question", **_PAIR}, {"system": "system"}),
    "instruction, chosen and rejected": _Names(
        {"prompt": "instruction", **_PAIR}, {"input": "input", "system": "system"}
    ),
    "conversations, chosen and rejected": _Names(
        {"prompt": "conversations", **_PAIR}, {"system": "system"}
    ),
    "chosen and rejected": _Names({"messages": "chosen", "rejected": "rejected"}),
}
_FIRST: tuple[Convention, ...] = ("messages", "prompt and completion")
"""Rows that have these are read so, whatever else they have."""

# beside a text, they may be what it answers
_PARTS = {name for names in _CONVENTIONS.values() for name in names.needed.values()}
# columns that change what a question asks
OPTIONS = ("choices", "options")
"""Columns that hold what a question is to be answered by."""


def recognise(
    row: Mapping[str, Any],
    wanted: ColumnsConfig | None,
    *,
    in_pairs: bool = False,
    label: str | None = None,
    suggested: Mapping[str, str] | None = None,
) -> RowReading:
    """Which column of a row is what.

    ``messages`` come first, then a prompt with its completion. A ``text`` beside columns of another
    convention usually repeats them, and is left. Every other pair is ambiguous. Capitals, spaces
    and hyphens in names make no difference.

    Args:
        row: columns and their content.
        wanted: what the study file says; None: it says nothing.
        in_pairs: whether rows have a chosen and a rejected answer.
        label: the column that is a text's label in all rows, see ``label_of``; None: there is none.
        suggested: columns by role that an error names as an example; None: it names none.

    Raises:
        DataError: no convention fits, or several do.
    """
    for role, name in ({} if wanted is None else wanted.by_role).items():
        if name not in row:
            raise DataError(
                f"has no column {name!r}, which columns.{role} names; it has "
                f"{listed(row) or 'no columns'}. Correct the name"
            )
    if wanted is not None:
        return RowReading("columns", tuple(wanted.by_role.items()))
    conventions, there = _PAIR_CONVENTIONS if in_pairs else _CONVENTIONS, _plain_names(row)
    found: list[Convention] = [
        convention
        for convention, names in conventions.items()
        if there.keys() >= set(names.needed.values())
    ]
    if found and (in_pairs or found[0] in _FIRST):
        found = found[:1]
    if len(found) > 1:
        raise DataError(
            f"could be read as {' or as '.join(found)}; say which with {say_which(suggested)}, or "
            "with {messages: ...}"
        )
    if found:
        names = conventions[found[0]]
        besides = {role: name for role, name in names.besides.items() if name in there}
        columns = {role: there[name] for role, name in {**names.needed, **besides}.items()}
        reading = RowReading(found[0], tuple(columns.items()))
        _refuse_options(row, reading)
        return reading
    if in_pairs:
        raise DataError(
            f"has {listed(row) or 'no columns'}; needs {KNOWN_PAIRS}. If others hold them, say "
            "columns: {prompt: ..., completion: ..., rejected: ...}"
        )
    if there.keys() >= {*_PAIR.values()}:
        raise DataError(
            "has chosen and rejected: train on such pairs with train.objective: dpo, or say which "
            "answer is learned, columns: {prompt: prompt, completion: chosen}"
        )
    parts = sorted(there[name] for name in _PARTS & there.keys())
    text = next((there[name] for name in TEXTS if name in there), None)
    if text is not None and label is not None and not parts:
        return RowReading("text and label", (("prompt", text), ("completion", label)))
    if "text" in there and not parts:
        return RowReading("text", (("completion", there["text"]),))
    if "text" in there:
        raise DataError(
            f"has text and {', '.join(parts)}: is the text an answer, or all of it? Say with "
            f"columns: {{completion: text}} or {{prompt: {parts[0]}, completion: text}}"
        )
    raise DataError(
        f"has {listed(row) or 'no columns'}; needs {KNOWN}. If others hold them, say "
        f"{say_which(suggested)}"
    )


def label_of(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The column that is the label of each row's text; None where none is one.

    It has the name of a label, and few short values: what a corpus says of its texts, such as a
    score of their quality, has many.
    """
    if not rows:
        return None
    there = _plain_names(rows[0])
    name = next((there[name] for name in LABELS if name in there), None)
    if name is None or not any(text in there for text in TEXTS):
        return None
    return name if _is_class([row.get(name) for row in rows]) else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def _plain_names(row: Mapping[str, Any]) -> dict[str, str]:
    """Name without capitals, spaces and hyphens -> column; one that is spelt so goes first."""
    plain: dict[str, str] = {}
    for name in map(str, row):
        plain.setdefault(_plain(name), name)
    return plain | {name: name for name in map(str, row) if name in plain}


class Guess(NamedTuple):
    """What columns seem to hold a prompt and an answer; ``is_clear`` says that nothing else may."""

    columns: ColumnsConfig
    is_clear: bool


FEWEST_GUESSED = 10
"""Rows by which a guess is made, at least."""

_SHORT, _FEW_ROWS, _MOST_ROWS_HAVE_IT = 50, 5, 0.9
"""A class has at most so many characters, and so many rows at least, on average; as many of all
rows have one."""

_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?|\d{1,2}[./]\d{1,2}[./]\d{2,4}.*")
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?", re.IGNORECASE)


def guess(rows: Sequence[Mapping[str, Any]]) -> Guess | None:
    """Which columns may hold a prompt and its answer, where no convention fits.

    It is clear where one column says by its name that it is asked and another that it answers, or
    where one text stands beside one class, and nothing else may be either. Dates, names of rows,
    what is always the same and what is said about a row are neither; a number of few values may be
    a class. None where nothing looks like a prompt and an answer.
    """
    if len(rows) < FEWEST_GUESSED:
        return None
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {
        name: [row.get(name) for row in rows]
        for name in names
        if _can_be_said(name) and _plain(name).rpartition(".")[2] not in _ABOUT
    }
    classes = [name for name, values in columns.items() if _is_class(values)]
    texts = {
        name: cells
        for name, values in columns.items()
        if (cells := _texts(values)) and not _is_id(cells)
    }
    others = [name for name in texts if name not in classes]
    prompts, answers = (
        [name for name in (*others, *classes) if _plain(name).rpartition(".")[2] in known]
        for known in (PROMPTS, COMPLETIONS)
    )
    if len(prompts) == len(answers) == 1:
        found = ColumnsConfig(prompt=prompts[0], completion=answers[0])
        return Guess(found, not {*others} - {*prompts, *answers})
    if not others or len(classes) + len(others) < 2:
        return None
    prompt = max(others, key=lambda name: statistics.fmean(map(len, texts[name])))
    if classes:
        is_text = classes[-1] in texts
        found = ColumnsConfig(prompt=prompt, completion=classes[-1])
        return Guess(found, is_text and len(classes) == len(others) == 1)
    return Guess(ColumnsConfig(prompt=others[0], completion=others[-1]), False)


def _can_be_said(name: str) -> bool:
    """Whether a column can be named in a study file."""
    try:
        return bool(plain_text(name).strip())
    except ValueError:
        return False


def _texts(values: Sequence[Any]) -> list[str]:
    """A column's texts; none of what is a number, a date, something nested or always the same."""
    if not all(isinstance(value, str) or value is None for value in values):
        return []
    cells = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    is_plain = all(map(_NUMBER.fullmatch, cells)) or all(map(_DATE.fullmatch, cells))
    return [] if is_plain or len({*cells}) < 2 else cells


def _is_class(values: Sequence[Any]) -> bool:
    """Whether nearly all rows have one of few short values: words, whole numbers, yes and no."""
    if not all(value is None or isinstance(value, str | int) for value in values):
        return False
    cells = [str(value).strip() for value in values if value is not None]
    cells = [cell for cell in cells if cell]
    most = max(2, len(values) // _FEW_ROWS)
    return (
        len(cells) >= _MOST_ROWS_HAVE_IT * len(values)
        and 2 <= len({*cells}) <= most
        and max(map(len, cells)) <= _SHORT
        and not all(map(_DATE.fullmatch, cells))
    )


def _is_id(cells: Sequence[str]) -> bool:
    """Whether every cell is another word of its own."""
    return len({*cells}) == len(cells) and not any(re.search(r"\s", cell) for cell in cells)


def _refuse_options(row: Mapping[str, Any], reading: RowReading) -> None:
    prompt, completion = reading.column("prompt"), reading.column("completion")
    if reading.convention == "prompt and completion" or prompt is None:
        return
    there = _plain_names(row)
    for name in (there[option] for option in OPTIONS if option in there):
        if row.get(name) not in NOTHING:
            raise DataError(
                f'column "{name}" would be lost; write it into column "{prompt}", or leave it out '
                f"with columns: {{prompt: {prompt}, completion: {completion}}}"
            )


def listed(names: Collection[Any]) -> str:
    """Columns in words, the first twelve of them."""
    shown = [str(name)[:40] for name in sorted(map(str, names))]
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return ", ".join(shown[:12]) + more
