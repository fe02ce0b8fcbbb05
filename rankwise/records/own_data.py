"""What was read of users' own rows, and how: part of the record of a study."""

from __future__ import annotations

from typing import Literal

from rankwise.records.base import Record
from rankwise.records.config.own_rows import Judge

Convention = Literal[
    "prompt and completion",
    "messages",
    "instruction and output",
    "conversations",
    "question and answer",
    "text and label",
    "text",
    "prompt, chosen and rejected",
    "question, chosen and rejected",
    "instruction, chosen and rejected",
    "conversations, chosen and rejected",
    "chosen and rejected",
    "columns",
    "guess",
]
"""How the columns of a row are named; ``columns``: as the study file says; ``guess``: by what
stands in them."""


class ColumnsRead(Record):
    """Rows of one convention: which column was taken for what."""

    convention: Convention
    columns: dict[str, str]
    """Role (prompt, input, system, completion, messages, rejected, cluster) -> column."""
    unread: tuple[str, ...]
    """Columns of these rows that nothing was taken from."""
    num_rows: int


class OwnData(Record):
    """Users' own rows as they were read."""

    source: str
    """Name of the file, or of the data set of the Hub."""
    format: str
    """JSON Lines, JSON, CSV, Parquet or Hub; behind it the encoding of a file, if not UTF-8."""
    revision: str | None
    """Commit of the data set; None of a file."""
    sha256: str | None
    """Sha256 of the file; None for a data set."""
    columns: tuple[ColumnsRead, ...]
    num_rows: int
    num_distinct: int
    """Rows that differ as text; of equal ones, one is kept."""
    num_without_answer: int = 0
    """Rows that were left out, because their answer is empty."""
    num_conversations: int = 0
    """Distinct rows that are rendered with the chat template."""
    turns: Literal["last", "all"] = "last"
    """The assistant's turns that are learned of each of these."""
    num_turns: int = 0
    """Turns of the assistant that are learned in all rows to train on, before long rows are cut."""
    num_held_out: int
    """Distinct rows that are scored and not trained on."""
    judged_by: tuple[Judge, ...]
    """How the held-out rows are scored; the first decides."""
    answers: tuple[str, ...] = ()
    """The answers to choose among; empty where rows are not judged by choice."""
    cluster: str | None = None
    """The column by whose values rows belong together; None: each is its own."""
