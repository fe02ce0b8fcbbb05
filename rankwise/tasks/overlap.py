"""Finds scored items in training rows, by their normalised texts.

A score on items that were trained on measures memory. Two tasks may ask one question in different
templates, so the texts of the documents are compared as well as the prompts.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rankwise.records.grouping import grouped
from rankwise.tasks.bundled.splits import normalised
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.training_rows import TrainingRow, scored_row

LONG_TEXT_CHARACTERS = 30
"""Normalised texts that are shorter do not identify an item."""

_LABEL = re.compile(r"\s*(?:\w+ ){0,2}\w+:\s*(.+)")
_WITH_ANSWER = "\n"

_Place = tuple[str, int]


class Overlap(NamedTuple):
    """Scored items in training rows.

    Attributes:
        num_items: scored task -> number of its items that are in the rows.
        num_scored: scored task -> number of its items.
        rows: trained task -> indices of the rows that contain an item.
        other_rows: trained task -> indices of the other rows.
    """

    num_items: dict[str, int]
    num_scored: dict[str, int]
    rows: dict[str, list[int]]
    other_rows: dict[str, list[int]]

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.rows.values()))

    @property
    def all_rows(self) -> dict[str, list[int]]:
        """Trained task -> indices of all rows."""
        return {name: sorted((*self.rows[name], *self.other_rows[name])) for name in self.rows}

    def __str__(self) -> str:
        """In words: 14 of 320 training rows contain scored items (12 of 300 of kinship)."""
        total = sum(map(len, self.all_rows.values()))
        items = ", ".join(
            f"{number} of {self.num_scored[task]} of {task}"
            for task, number in self.num_items.items()
            if number
        )
        return f"{self.num_rows} of {total} training rows contain scored items ({items})"


def find_overlap(
    rows: Mapping[str, Sequence[TrainingRow]], tasks: Sequence[PreparedTask], tokenizer: Any
) -> Overlap:
    """Find the scored items of tasks in training rows, in time linear in both.

    Texts are compared in lower case and NFKC, with everything but letters and digits folded into
    single spaces. An item is found in a row if

    - its prompt, zero-shot and without a chat template, is the row's prompt, one of its turns, or
      what stands before an earlier answer that is learned; if the prompt is short, or shared by
      scored items with other answers, the answer must be the same too; or
    - all long texts of its document that its prompt shows are texts of the row: fields of the row's
      document, or lines of its prompt, with or without a label such as "Question:". Texts that
      several scored items share (an instruction, a passage) do not suffice.

    Args:
        rows: trained task -> its training rows.
        tasks: the scored tasks, with the documents that are scored.
        tokenizer: its special tokens separate the turns of a rendered conversation.
    """
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} - {""}
    longest_first = sorted(special, key=len, reverse=True)
    parts = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    items = [(task.name, sets) for task in tasks for sets in _items(task, parts)]
    wanted = {text for _, sets in items for texts in sets for text in texts}
    texts_of = {
        (name, index): known
        for name, task_rows in rows.items()
        for index, row in enumerate(task_rows)
        if (known := wanted.intersection(_texts(row, parts)))
    }
    rows_with = grouped((text, place) for place, known in texts_of.items() for text in known)
    num_items = {task.name: 0 for task in tasks}
    found: set[_Place] = set()
    for task, sets in items:
        places = {
            place
            for texts in sets
            for place in min((rows_with.get(text, []) for text in texts), key=len)
            if texts <= texts_of[place]
        }
        num_items[task] += bool(places)
        found |= places
    numbers = {name: range(len(task_rows)) for name, task_rows in rows.items()}
    return Overlap(
        num_items=num_items,
        num_scored={task.name: task.num_items for task in tasks},
        rows={
            name: [i for i in indices if (name, i) in found] for name, indices in numbers.items()
        },
        other_rows={
            name: [i for i in indices if (name, i) not in found]
            for name, indices in numbers.items()
        },
    )


def _texts(row: TrainingRow, parts: re.Pattern[str]) -> Iterator[str]:
    """All texts of a row that are compared with an item's, normalised."""
    answer = _joined(row.completion, parts)
    before, read = "", 0
    for begin, stop in row.turns[:-1]:  # an earlier answer that is learned, behind what asks for it
        asked = f"{before} {_joined(row.prompt[read:begin], parts)}".strip()
        learned = _joined(row.prompt[begin:stop], parts)
        yield from (asked, f"{asked}{_WITH_ANSWER}{learned}")
        before, read = f"{asked} {learned}", stop
    turns = [
        [line for line in turn.split("\n") if line.strip()] for turn in parts.split(row.prompt)
    ]
    words = [[normalised_text(line) for line in lines] for lines in turns]
    said = [" ".join(line for lines in words for line in lines)]
    if len(turns) > 1:  # a turn may begin with the speaker's name
        said += [" ".join(lines[start:]) for lines in words for start in (0, 1)]
    for text in said:
        yield from (text, f"{text}{_WITH_ANSWER}{answer}")
    yield answer
    for line in itertools.chain.from_iterable(turns):
        label = _LABEL.match(line)
        if label is not None:
            yield normalised_text(label[1])
    yield from itertools.chain.from_iterable(words)
    yield from map(normalised_text, row.texts)


def _joined(text: str, parts: re.Pattern[str]) -> str:
    return normalised_text(parts.sub("\n", text))


def normalised_text(text: str) -> str:
    """``text`` in lower case and NFKC, with single spaces for all but letters and digits."""
    return normalised(unicodedata.normalize("NFKC", text))


def _items(task: PreparedTask, parts: re.Pattern[str]) -> Iterator[list[frozenset[str]]]:
    """Sets of each scored item's normalised texts: a row with all texts of one set contains it."""
    docs = {instance.doc_id: instance.doc for instance in task.instances}
    questions: list[tuple[str, str, frozenset[str]]] = []  # prompt, answer, long texts in it
    answers: dict[str, set[str]] = defaultdict(set)
    asked: dict[frozenset[str], set[tuple[str, str]]] = defaultdict(set)
    for doc in docs.values():
        row = scored_row(task.loaded, doc)
        prompt, answer = _joined(row.prompt, parts), _joined(row.completion, parts)
        texts = (_joined(text, parts) for text in row.texts)
        around = f" {prompt} "
        shown = (t for t in texts if len(t) >= LONG_TEXT_CHARACTERS and f" {t} " in around)
        long_texts = frozenset(shown)
        questions.append((prompt, answer, long_texts))
        answers[prompt].add(answer)
        asked[long_texts].add((prompt, answer))
    for prompt, answer, long_texts in questions:
        sets: list[frozenset[str]] = []
        if len(prompt) >= LONG_TEXT_CHARACTERS and len(answers[prompt]) == 1:
            sets.append(frozenset([prompt]))
        elif prompt and answer:
            sets.append(frozenset([f"{prompt}{_WITH_ANSWER}{answer}"]))
        if long_texts and len(asked[long_texts]) == 1:
            sets.append(long_texts)
        yield sets
