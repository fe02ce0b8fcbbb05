"""Users' own rows as prompts and completions, from whatever conventions their columns follow."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import DataError, TaskError
from rankwise.records.config.own_rows import ColumnsConfig
from rankwise.records.own_data import ColumnsRead, Convention
from rankwise.tasks.chat_templates import (
    Renderer,
    Span,
    Turn,
    end_of_turn,
    render_chat,
    render_turns,
)
from rankwise.tasks.columns import (
    CONVERSATION,
    NOTHING,
    SURE_LABELS,
    RowReading,
    guess,
    label_of,
    recognise,
)
from rankwise.tasks.row_files import RawRow, RawRows, flat_row, read_raw_rows
from rankwise.tasks.task_files import task_code
from rankwise.tasks.training_rows import TrainingRow

MOST_SHOWN = 10
"""Bad rows that are named one by one."""

MOST_CHARACTERS = 2_000_000
"""The most characters in one row. More is far beyond any context, and a plan counts a row's tokens
many times."""

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Who speaks in ShareGPT's ``from`` -> the role."""

_NOT_TEXT = {
    bool: "true or false",
    float: "a number with a fraction",
    list: "a list",
    dict: "an object",
}


class OwnRow(NamedTuple):
    """A row as it is trained on.

    Attributes:
        prompt: the text before the answer, with the chat template where there is one.
        completion: the answer, without its end.
        end: from which the model learns to stop.
        is_conversation: rendered with the chat template.
        rejected: the answer that ``completion`` is preferred to; None: there is none.
        raw: as it was read, and where; None of what no user wrote.
        cluster: (column, value) that rows of one cluster have in common; empty: it is its own.
        turns: where answers that are learned stand in prompt, completion and end together, each
            with its own end; empty: the completion is learned.
        taught: the prompt of a teacher that knows the answer; empty: there is none.
    """

    prompt: str
    completion: str
    end: str
    is_conversation: bool
    rejected: str | None = None
    raw: RawRow | None = None
    cluster: tuple[tuple[str, str], ...] = ()
    turns: tuple[Span, ...] = ()
    taught: str = ""

    @property
    def as_trained(self) -> TrainingRow:
        """Prompt, completion with its end, and the end; the rejected answer with it too."""
        return TrainingRow(
            self.prompt,
            self.completion + self.end,
            self.end,
            rejected=None if self.rejected is None else self.rejected + self.end,
            turns=self.turns,
            columns={} if self.raw is None else self.raw.content,
            taught=self.taught,
        )


class OwnRows(NamedTuple):
    """All rows of a file or a data set.

    Attributes:
        raw: what was read.
        rows: those that differ as text, in their order.
        columns: which column was taken for what.
        cluster: the column by whose values rows belong together; None: each is its own.
        num_without_answer: rows that were left out, because their answer is empty.
    """

    raw: RawRows
    rows: list[OwnRow]
    columns: tuple[ColumnsRead, ...]
    cluster: str | None
    num_without_answer: int = 0

    @property
    def guessed(self) -> Mapping[str, str] | None:
        """Role -> column, where what stands in the columns says it, and it may be otherwise.

        None where the names of the columns say it.
        """
        for read in self.columns:
            label = read.columns.get("completion", "")
            is_sure = read.convention != "text and label" or label.strip().lower() in SURE_LABELS
            if read.convention == "guess" or not is_sure:
                return dict(read.columns)
        return None

    @property
    def needs_columns(self) -> bool:
        """Whether a study file has to name the columns: they were guessed by what they hold."""
        return any(read.convention == "guess" for read in self.columns)


class EmptyAnswerError(DataError):
    """A row has no answer to learn: it is left out and counted, unless all are like it."""


_kept: ContextVar[dict[Any, OwnRows] | None] = ContextVar("kept rows", default=None)


@contextlib.contextmanager
def rows_kept() -> Generator[None]:
    """Within the block a file that has not changed is read and rendered once.

    Whoever plans one study in several sizes would read its rows for each.
    """
    token = _kept.set({} if (kept := _kept.get()) is None else kept)
    try:
        yield
    finally:
        _kept.reset(token)


def read_own_rows(
    data: Path,
    tokenizer: Any,
    *,
    chat_template: bool,
    columns: ColumnsConfig | None = None,
    in_pairs: bool = False,
    all_turns: bool = False,
    template: str | None = None,
) -> OwnRows:
    """Read and render every row. Of rows that are equal as text, the first is kept.

    Where no row is of a known convention, columns are guessed by what stands in them, if one
    reading is clear. Rows whose answer is empty are left out.

    Args:
        data: a file, or the name of a data set of the Hub; see ``read_raw_rows``.
        tokenizer: renders conversations.
        chat_template: render prompts that are no conversations as a user's turn too.
        columns: which column is what; None: as their names say.
        in_pairs: whether every row has a chosen and a rejected answer.
        all_turns: learn every turn of the assistant in a conversation, or in a completion of
            several turns; False: the last one.
        template: of what a teacher is asked, with ``{prompt}`` and ``{answer}``.

    Raises:
        DataError: it cannot be read, or rows are bad (the message names the first ten).
    """
    kept = _kept.get()
    if kept is None:
        return _read(data, tokenizer, chat_template, columns, in_pairs, all_turns, template)
    said = None if columns is None else tuple(columns.by_role.items())
    how = chat_template, said, in_pairs, all_turns, template
    key = (str(data), _stamp(data), Renderer.of(tokenizer), *how)
    if key not in kept:
        how = chat_template, columns, in_pairs, all_turns, template
        kept[key] = _read(data, tokenizer, *how)
    return kept[key]


def _stamp(data: Path) -> tuple[int, ...]:
    """What changes with a file; nothing of a data set."""
    try:
        found = data.stat()
    except (OSError, ValueError):
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(
    data: Path,
    tokenizer: Any,
    chat_template: bool,
    columns: ColumnsConfig | None,
    in_pairs: bool,
    all_turns: bool,
    template: str | None,
) -> OwnRows:
    raw = read_raw_rows(data)
    reading_of = _readings(raw, columns, in_pairs=in_pairs)
    if reading_of.rows is not None:
        raw = raw._replace(rows=reading_of.rows)
    rows: dict[OwnRow, OwnRow] = {}  # by what is trained on: of equal ones, the first is kept
    readings: list[tuple[RowReading, frozenset[str]]] = []
    problems: list[str] = []
    empty: list[str] = []
    for row in raw.rows:
        try:
            reading = reading_of(row)
            render = _rendered_pair if in_pairs else partial(_rendered, all_turns=all_turns)
            parsed = render(row.content, reading, tokenizer, chat_template)
            length = len(parsed.prompt) + len(parsed.completion) + len(parsed.rejected or "")
            if length > MOST_CHARACTERS:
                raise DataError(
                    f"has {length:,} characters, and at most {MOST_CHARACTERS:,} are read; cut it "
                    "into rows"
                )
        except EmptyAnswerError as error:
            empty.append(f"{row.place}: {error}")
        except (DataError, TaskError) as error:
            problems.append(f"{row.place}: {error}")
        else:
            if parsed not in rows:
                taught = ""
                if template is not None:
                    asked = _as_taught(row.content, reading, template)
                    taught = _rendered(asked, reading, tokenizer, chat_template).prompt
                rows[parsed] = parsed._replace(raw=row, taught=taught)
            readings.append((reading, frozenset(row.content)))
    if problems or (empty and not rows):
        raise DataError(_in_words(raw, problems or empty))
    named = None if columns is None else columns.cluster
    cluster, distinct = named or CONVERSATION, list(rows.values())
    cells = [row.raw.content.get(cluster) for row in distinct if row.raw is not None]
    values = ["" if cell in NOTHING else str(cell).strip() for cell in cells]
    if all(values) and len({*values}) > 1:
        pairs = zip(distinct, values, strict=True)
        clustered = [row._replace(cluster=((cluster, value),)) for row, value in pairs]
        return OwnRows(raw, clustered, _columns_read(readings), cluster, len(empty))
    if named is not None:
        raise DataError(
            f"{raw.source}: column {named!r} (columns.cluster) is empty in some rows, or the same "
            "in all; name one that tells groups of rows apart"
        )
    return OwnRows(raw, distinct, _columns_read(readings), None, len(empty))


def _in_words(raw: RawRows, problems: list[str]) -> str:
    count = f"{len(problems)} bad row{'s' if len(problems) > 1 else ''}"
    alike = {problem.partition(": ")[2] for problem in problems}
    if len(problems) > MOST_SHOWN and len(alike) == 1:  # one sentence for all of them
        first, last = (problem.partition(": ")[0] for problem in (problems[0], problems[-1]))
        problems = [f"{first} and all others to {last}: {alike.pop()}"]
    shown = problems[:MOST_SHOWN]
    if len(problems) > MOST_SHOWN:
        shown = [*shown, f"and {len(problems) - MOST_SHOWN} more"]
    return "\n  ".join([f"{raw.source} has {count}", *shown])


def _columns_read(readings: list[tuple[RowReading, frozenset[str]]]) -> tuple[ColumnsRead, ...]:
    counts = Counter(reading for reading, _ in readings)
    unread: dict[RowReading, set[str]] = {reading: set() for reading in counts}
    for reading, names in set(readings):
        unread[reading] |= names - {name for _, name in reading.columns}
    return tuple(
        ColumnsRead(
            convention=reading.convention,
            columns=dict(reading.columns),
            unread=tuple(sorted(unread[reading])),
            num_rows=number,
        )
        for reading, number in counts.items()
    )


class _Readings(NamedTuple):
    """How rows are read: each by its own names, or all by what was said or guessed."""

    columns: ColumnsConfig | None
    in_pairs: bool
    is_guess: bool = False
    label: str | None = None
    """The column that is a text's label in all rows."""
    suggested: Mapping[str, str] | None = None
    """Columns that may be meant, where it is not clear."""
    rows: list[RawRow] | None = None
    """The rows with nested columns flattened; None: they are read as they are."""

    def __call__(self, row: RawRow) -> RowReading:
        if row.problem is not None:
            raise DataError(row.problem)
        if not isinstance(row.content, dict):
            raise DataError("not a JSON object; write one with a prompt and a completion")
        if row.content.get("tools"):
            raise DataError("has tools, which would be lost; write them into a system message")
        reading = recognise(
            row.content,
            self.columns,
            in_pairs=self.in_pairs,
            label=self.label,
            suggested=self.suggested,
        )
        if self.is_guess:
            reading = reading._replace(convention="guess")
        if reading.column("cluster") is None and CONVERSATION in row.content:
            return reading._replace(columns=(*reading.columns, ("cluster", CONVERSATION)))
        return reading


def _readings(raw: RawRows, columns: ColumnsConfig | None, *, in_pairs: bool) -> _Readings:
    """How the rows of a file are read; guessed where none is of a known convention."""
    contents = [row.content for row in raw.rows if isinstance(row.content, dict)]
    label = None if columns is not None or in_pairs else label_of(contents)
    plain = _Readings(columns, in_pairs, label=label)
    if columns is not None and not any({*columns.by_role.values()} <= {*row} for row in contents):
        return plain._replace(rows=_flat(raw, contents))
    if columns is not None or in_pairs or any(_is_known(row, label) for row in contents):
        return plain
    rows = _flat(raw, contents)
    found = guess(contents if rows is None else [row.content for row in rows])
    if found is None:
        return plain
    if not found.is_clear:
        return plain._replace(suggested=found.columns.by_role)
    return _Readings(found.columns, in_pairs, is_guess=True, rows=rows)


def _flat(raw: RawRows, contents: Sequence[Mapping[str, Any]]) -> list[RawRow] | None:
    """The rows with nested columns under names with dots; None where none is nested, or too deeply.

    None too where some are no rows.
    """
    is_nested = any(isinstance(value, Mapping) for row in contents for value in row.values())
    if not is_nested or len(contents) < len(raw.rows):
        return None
    try:
        return [row._replace(content=flat_row(row.content)) for row in raw.rows]
    except RecursionError:
        return None


def _is_known(row: Mapping[str, Any], label: str | None) -> bool:
    try:
        recognise(row, None, label=label)
    except DataError:
        return False
    return True


def _rendered_pair(
    row: Mapping[str, Any], reading: RowReading, tokenizer: Any, chat_template: bool
) -> OwnRow:
    """The chosen answer's row, with the rejected one beside it."""
    columns = dict(reading.columns)
    rejected = columns.pop("rejected")
    role = "messages" if "messages" in columns else "completion"
    answers: list[OwnRow] = []
    for column in (columns[role], rejected):
        value = [row[column]] if isinstance(row[column], dict) else row[column]
        if value in NOTHING:
            raise DataError(f'column "{column}" is empty; give both answers or drop the row')
        if role == "messages" and not isinstance(value, list):
            raise DataError(
                f'column "{column}" is a text with its prompt in it; write the prompt into a '
                'column "prompt"'
            )
        own, content = {**columns, role: column}, {**row, column: value}
        prompt = own.get("prompt")
        if prompt is not None and isinstance(value, list) and isinstance(row[prompt], str):
            if len(value) > 1:  # the whole conversation, beside which the prompt stands once more
                own = {"messages": column}
            content[prompt] = [{"role": "user", "content": row[prompt]}]
        of_answer = RowReading(reading.convention, tuple(own.items()))
        answers.append(_rendered(content, of_answer, tokenizer, chat_template))
    chosen, other = answers
    if chosen.prompt != other.prompt:
        raise DataError(
            f'columns "{columns[role]}" and "{rejected}" answer different prompts; give both the '
            "same turns before the last one"
        )
    if chosen.completion.strip() == other.completion.strip():
        raise DataError(
            f'columns "{columns[role]}" and "{rejected}" hold the same answer; drop the row'
        )
    return chosen._replace(rejected=other.completion)


def _rendered(
    row: Mapping[str, Any],
    reading: RowReading,
    tokenizer: Any,
    chat_template: bool,
    all_turns: bool = False,
) -> OwnRow:
    column = reading.column("system")
    text = "" if column is None else _text(row[column], column)
    system = [{"role": "system", "content": text}] if text.strip() else []
    column = reading.column("messages")
    if column is not None:
        *before, answer = turns_of(row[column], column)
        learned = before if all_turns else None
        return _conversation([*system, *before], answer, column, tokenizer, learned)
    column = reading.column("completion")
    assert column is not None
    prompt = reading.column("prompt")
    if prompt is None:
        answer = _answer(row[column], column, "write a text or drop the row")
        return OwnRow("", answer, end_of_turn(tokenizer, chat_template=False), False)
    if _has_turns(row[prompt]) or _has_turns(row[column]):
        *earlier, answer = turns_of(row[column], column)
        before = [*system, *turns_of(row[prompt], prompt), *earlier]
        return _conversation(before, answer, column, tokenizer, earlier if all_turns else None)
    answer = _answer(row[column], column, "give an answer or drop the row")
    asked = _text(row[prompt], prompt)
    if not asked.strip() and reading.convention != "prompt and completion":
        raise DataError(f'column "{prompt}" is empty; write a question or drop the row')
    more = reading.column("input")
    below = "" if more is None else _text(row[more], more)
    question = [asked, below] if below.strip() else [asked]
    if chat_template:
        turn = {"role": "assistant", "content": answer}
        turns = [*system, {"role": "user", "content": "\n\n".join(question)}]
        return _conversation(turns, turn, column, tokenizer, () if all_turns else None)
    before = plain_prompt(reading.convention, [*(turn["content"] for turn in system)], question)
    if reading.convention.startswith("question") or reading.convention == "text and label":
        answer = f" {answer.lstrip()}"
    return OwnRow(before, answer, end_of_turn(tokenizer, chat_template=False), False)


def _as_taught(row: Mapping[str, Any], reading: RowReading, template: str) -> dict[str, Any]:
    """The row as a teacher reads it: its last question by a template that tells the answer too."""

    def told(question: str, answer: str) -> str:
        given = {"{prompt}": question, "{answer}": answer.strip()}
        return re.sub(r"\{prompt\}|\{answer\}", lambda found: given[found[0]], template)

    def last(column: str) -> str:
        has_turns = _has_turns(row[column])
        return (
            turns_of(row[column], column)[-1]["content"]
            if has_turns
            else _text(row[column], column)
        )

    asked, answered = reading.column("prompt"), reading.column("completion")
    column = reading.column("messages") or asked
    if column is None:
        raise DataError("has no prompt that a teacher could be asked; give it one")
    answer = last(answered or column)
    if column != asked or _has_turns(row[column]):
        turns = turns_of(row[column], column)
        places = [place for place, turn in enumerate(turns) if turn["role"] == "user"]
        if not places:
            raise DataError(f'column "{column}" has no turn of a user to tell a teacher the answer')
        turn = turns[places[-1]]
        turns[places[-1]] = {**turn, "content": told(turn["content"], answer)}
        return {**row, column: turns}
    question, more = _text(row[column], column), reading.column("input")
    if more is None:
        return {**row, column: told(question, answer)}
    if (below := _text(row[more], more)).strip():
        question = f"{question}\n\n{below}"
    return {**row, column: told(question, answer), more: ""}


def plain_prompt(convention: Convention, before: Sequence[str], question: Sequence[str]) -> str:
    """A prompt without a chat template, in the form that its convention is known for.

    Args:
        convention: of the row.
        before: what stands before it, such as a system's turn.
        question: the prompt, and what goes below it.
    """
    parts = list(question)
    if convention.startswith("instruction"):
        titled = zip(("### Instruction:", "### Input:"), question, strict=False)
        parts = [*(f"{title}\n{part}" for title, part in titled), "### Response:\n"]
    elif convention.startswith("question"):
        return f"Question: {question[0]}\nAnswer:"
    elif convention == "text and label":
        return f"{question[0]}\nLabel:"
    return "\n\n".join([*before, *parts])


def _has_turns(value: Any) -> bool:
    """Whether a cell is a list of turns; a list of one text is that text."""
    return isinstance(value, list) and not (len(value) == 1 and isinstance(value[0], str))


def _answer(value: Any, column: str, remedy: str) -> str:
    text = _text(value, column)
    if not text.strip():
        raise EmptyAnswerError(f'column "{column}" is empty; {remedy}')
    return text


def _text(value: Any, column: str) -> str:
    """A cell as text: whole numbers are written out, and nothing is the empty text."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and not _has_turns(value):
        return value[0]
    kind = _NOT_TEXT.get(type(value), f"a {type(value).__name__}")
    raise DataError(f'column "{column}" is {kind}; write it as text, or drop the row')


def turns_of(value: Any, column: str) -> list[dict[str, str]]:
    """Turns with role and content, from these or from ShareGPT's ``from`` and ``value``."""
    if not isinstance(value, list) or not value:
        raise DataError(
            f'column "{column}" must be a list of objects with role and content, or with from and '
            "value; write it so, or drop the row"
        )
    return [_turn(turn, f"{column}[{index}]") for index, turn in enumerate(value)]


def _turn(turn: Any, place: str) -> dict[str, str]:
    for role, content in (("role", "content"), ("from", "value")):
        if not isinstance(turn, dict) or not isinstance(turn.get(role), str):
            continue
        if not isinstance(turn.get(content), str):
            break
        if lost := [key for key in turn if key not in (role, content) and turn[key] not in NOTHING]:
            raise DataError(
                f"{place} has {', '.join(map(str, lost))}, which would be lost; write it into "
                f"{content}, or leave the row out"
            )
        speaker = turn[role]
        if role == "from" and speaker not in _SPEAKERS:
            known = ", ".join(_SPEAKERS)
            raise DataError(
                f"{place} is from {speaker!r}; known are {known}. Write one of them, or drop the "
                "row"
            )
        return {"role": _SPEAKERS[speaker] if role == "from" else speaker, "content": turn[content]}
    raise DataError(
        f"{place} must be an object with the texts role and content, or from and value; write it "
        "so, or drop the row"
    )


def _conversation(
    before: list[dict[str, str]],
    answer: dict[str, str],
    column: str,
    tokenizer: Any,
    learned: Sequence[Turn] | None,
) -> OwnRow:
    """A row of turns.

    Of ``learned``, the last of the turns before the answer, those of the assistant are learned as
    every turn is; None: the answer is learned as it is scored.
    """
    if answer["role"] != "assistant" or not answer["content"].strip():
        raise DataError(
            f'the last turn of column "{column}" must be the assistant\'s, and not empty; add its '
            "answer, or drop the row"
        )
    if not before:
        raise DataError("there is no turn before the assistant's answer; add one, or drop the row")
    if not tokenizer.chat_template:
        raise DataError(
            "the base model's tokenizer has no chat template to render messages with; take an "
            "instruct model, or write the rows as prompt and completion"
        )
    with task_code("the chat template refuses the messages", "Change the row or the template."):
        if learned is None:
            prompt, turns = render_chat(tokenizer, before), ()
        else:
            number = sum(turn["role"] == "assistant" for turn in learned)
            prompt, turns = render_turns(tokenizer, before, number)
        end = end_of_turn(tokenizer, chat_template=True)
        if learned is not None:
            turns = (*turns, (len(prompt), len(f"{prompt}{answer['content']}{end}")))
    shown = "".join(prompt.split())
    for index, turn in enumerate(before):
        # templates may leave out a system's turn, which lm-eval allows, and an assistant's thoughts
        is_kept = turn["role"] in ("system", "assistant")
        if not is_kept and "".join(turn["content"].split()) not in shown:
            raise DataError(
                f"the chat template leaves out turn {index}, whose role is {turn['role']!r}; "
                "change the role to user, or leave the row out"
            )
    return OwnRow(prompt, answer["content"], end, True, turns=turns)
