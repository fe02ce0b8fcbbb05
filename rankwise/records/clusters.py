"""Which items belong together: those that ask the same, that share a text, or a named field."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rankwise.errors import TaskError, did_you_mean
from rankwise.records.fingerprints import fingerprint
from rankwise.records.p_right import Line, requests_of
from rankwise.records.study import StudyTasks

LONG_TEXT_CHARACTERS = 80
"""Texts that are shorter on average (an answer, a subject) do not show that items share a text."""

MIN_CANDIDATES = 6
"""A field with fewer values is no candidate: answer letters have up to five, and fewer clusters say
next to nothing of their variance."""

DOC_ID = "doc_id"
"""Stands for lm-eval's number of the item where documents have no such field."""

_QUOTES = str.maketrans("", "", "\"'`\u2018\u2019\u201c\u201d")
_MARKS = ".,;:!?\u2026"

_ID = re.compile(r"(?:^|[^a-z])(?:id|idx|index|uid|uuid)$|[a-z]I[Dd]$")
_DIGITS = 15
"""Hexadecimal digits of a cluster's number: it fits 64 bits, and equal ones are equal values."""


def cluster_fields(settings: Mapping[str, str], study: StudyTasks) -> dict[str, str]:
    """Scored name -> the field that clusters its items, from task or group -> field.

    A task's own setting goes before its group's. The task in the trained format and its trained
    rows (``<task>@...``) are clustered as the task; the ends of trained rows are no items of it.

    Raises:
        TaskError: a task or group that is not scored.
    """
    endings = study.ending_items.values()
    task_of = {n: n.partition("@")[0] for n in study.scored_tasks() if n not in endings}
    known = sorted({*task_of.values(), *study.groups})
    for name in settings:
        if name not in known:
            hint = did_you_mean(name, known) or f"there are {', '.join(known)}"
            raise TaskError(f"evaluation.clusters: no task or group {name!r} is scored; {hint}")
    by_task = {
        task: settings[group]
        for group, tasks in study.groups.items()
        if group in settings
        for task in tasks
    } | dict(settings)
    return {name: by_task[task] for name, task in task_of.items() if task in by_task}


def cluster_numbers(
    documents: Mapping[int, Any], field: str, setting: str, what: str
) -> tuple[int, ...]:
    """A number for the cluster of each document, the same wherever field and value are the same.

    Args:
        documents: ``doc_id`` -> document, in order.
        field: of the documents, or ``doc_id``.
        setting: begins an error's sentence: evaluation.clusters.drop, or --cluster.
        what: whose documents they are.

    Raises:
        TaskError: no document has the field, or it is absent or empty in some, or all values are
            the same.
    """
    values = {
        doc_id: _fields(document).get(field, doc_id if field == DOC_ID else None)
        for doc_id, document in documents.items()
    }
    missing = [doc_id for doc_id, value in values.items() if _is_empty(value)]
    if len(missing) == len(values):
        known = list(dict.fromkeys(name for doc in documents.values() for name in _fields(doc)))
        has = f"they have {', '.join(known)}" if known else "they have no fields"
        hint = did_you_mean(field, known) or has
        raise TaskError(f"{setting}: the documents of {what} have no field {field!r}; {hint}")
    if missing:
        raise TaskError(
            f"{setting}: {len(missing)} of {len(values)} documents of {what} have no {field!r}, "
            f"for example doc_id {missing[0]}. Name a field that every document has."
        )
    numbers = tuple(_number(field, value) for value in values.values())
    if len(set(numbers)) == 1:
        raise TaskError(
            f"{setting}: {field!r} is the same in all {len(values)} documents of {what}, and one "
            "cluster has no error. Name a field that tells groups of items apart."
        )
    return numbers


def candidate_fields(documents: Mapping[int, Any]) -> dict[str, tuple[int, ...]]:
    """Fields that several documents share and that may be a cause of clusters, with the numbers.

    They are in all documents and nowhere empty, and either long texts or named as an id. A field
    that is the same in all documents, or in no two of them, is none.
    """
    names = [name for name in _fields(next(iter(documents.values()), None)) if name != DOC_ID]
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        values = [_fields(document).get(name) for document in documents.values()]
        if any(map(_is_empty, values)):
            continue  # two items without a passage do not share one
        texts = [value for value in values if isinstance(value, str)]
        num_letters = sum(map(len, texts))
        is_text = len(texts) == len(values) and num_letters >= LONG_TEXT_CHARACTERS * len(texts)
        are_ids = all(isinstance(each, str | int) and not isinstance(each, bool) for each in values)
        if is_text or (_ID.search(name) and are_ids):
            numbers = tuple(_number(name, value) for value in values)
            if MIN_CANDIDATES <= len(set(numbers)) < len(numbers):
                found[name] = numbers
    return found


class Ties(NamedTuple):
    """What ties an item to others: hashes of all that is asked, and of the long texts in it.

    ``asked`` is None where the lines do not tell it. ``passages`` are parts of its prompt that it
    shares with a few items of its task.
    """

    asked: int | None
    texts: tuple[int, ...]
    passages: tuple[int, ...] = ()


def normalised(text: str) -> str:
    """A text without what near-duplicates differ in: case, whitespace, quotes, sentence marks.

    Marks count as such at the ends of words only, and signs such as + and - never do: they may be
    what is asked.
    """
    words = unicodedata.normalize("NFKC", text).casefold().translate(_QUOTES).split()
    return " ".join(word for each in words if (word := each.strip(_MARKS)))


def ties_of(lines: Sequence[Line]) -> tuple[Ties, ...]:
    """What may tie the items of a task to others, from the lines of its samples file.

    What is asked is every text of an item's requests, options in any order. Long texts are the
    first request's prompt and the document's fields, where these have several values: what nearly
    all items share is an instruction, and no text that they are about.
    """
    asked: list[int | None] = []
    texts: dict[str, dict[int, int]] = {}  # source -> item -> hash
    prompts: dict[int, str] = {}
    for place, line in enumerate(lines):
        requests = requests_of(line)
        strings = {normalised(part) for each in requests for part in each if isinstance(part, str)}
        asked.append(_hash("\n".join(sorted(strings))) if any(strings) else None)
        fields = {name: value for name, value in _fields(line.get("doc")).items() if name != DOC_ID}
        prompt = {"": requests[0][0]} if requests and requests[0] else {}
        for source, value in (fields | prompt).items():
            if isinstance(value, str) and len(value) >= LONG_TEXT_CHARACTERS:
                texts.setdefault(source, {})[place] = _hash(normalised(value))
                if not source:
                    prompts[place] = value
    varied = [its for its in texts.values() if len({*its.values()}) >= MIN_CANDIDATES]
    if len(lines) > 1 and len({*asked}) == 1:
        asked = [None] * len(lines)
    passages = _passages(prompts, len(lines)) if prompts else {}
    return tuple(
        Ties(
            own,
            tuple({its[place] for its in varied if place in its}),
            tuple(sorted(passages.get(place, ()))),
        )
        for place, own in enumerate(asked)
    )


def _passages(texts: Mapping[int, str], number: int) -> dict[int, set[int]]:
    """Item -> hashes of what its text shares with a few of the task's ``number`` items.

    They are paragraphs, and how texts begin behind what all of them begin with. Nothing where that
    links many items in turn: then it is examples, drawn for each prompt, and no subject.
    """
    whole = {place: normalised(text) for place, text in texts.items()}
    common = _common_start(whole.values()) + LONG_TEXT_CHARACTERS
    found: dict[int, set[int]] = {}
    for place, text in texts.items():
        paragraphs = (part for part in text.split("\n") if len(part) >= LONG_TEXT_CHARACTERS)
        found[place] = {_hash(normalised(part)) for part in paragraphs}
        if len(whole[place]) > common:
            found[place].add(_hash(whole[place][:common]))
    counts = Counter(part for parts in found.values() for part in parts)
    most = number / MIN_CANDIDATES
    few = {part for part, count in counts.items() if 1 < count <= most}
    shared = {place: parts & few for place, parts in found.items() if parts & few}
    links = Links()
    linked = Counter(links.joined(parts) for parts in shared.values())
    linked = Counter(links.root(key) for key in linked.elements())
    return shared if max(linked.values(), default=0) <= most else {}


def _common_start(texts: Iterable[str]) -> int:
    """The number of characters that all texts begin with."""
    first, last = min(texts), max(texts)
    return next(
        (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )


class Links:
    """Which keys are linked, also in turn: a union-find.

    Each key points to another of its set, or to itself, which is the root: the smallest of them.
    """

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def root(self, key: int) -> int:
        """The key that stands for all that are linked to this one."""
        parents = self._parents
        while (above := parents.setdefault(key, key)) != key:
            parents[key] = key = parents[above]  # halves the path for the next who asks
        return key

    def joined(self, keys: Collection[int]) -> int:
        """Link keys, at least one, with each other; returns one of them."""
        roots = [self.root(key) for key in keys]
        self._parents.update(dict.fromkeys(roots, min(roots)))
        return next(iter(keys))


def linked_clusters(
    ties: Mapping[str, Sequence[Ties]], named: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...] | None]:
    """Scored name -> the cluster of each item; None where each item is its own.

    Items are in one cluster that ask the same, that share a passage, or a long text which is in
    several tasks, or that have equal numbers in ``named`` (by a field, from ``cluster_numbers``),
    also in turn.
    """
    in_tasks: dict[int, set[str]] = {}
    for name, items in ties.items():
        for text in {text for item in items for text in item.texts}:
            in_tasks.setdefault(text, set()).add(name.partition("@")[0])
    links = Links()
    # All keys of an item are linked, so items that have a key in common end under one root. One of
    # its keys stands for the item until all are linked.
    first: dict[str, list[int]] = {}
    for name, items in ties.items():
        for place, item in enumerate(items):
            keys = [text for text in item.texts if len(in_tasks[text]) > 1]
            keys += [*item.passages, *([] if item.asked is None else [item.asked])]
            keys += [named[name][place]] if name in named else []
            keys = keys or [_hash(f"{name}\n{place}")]
            first.setdefault(name, []).append(links.joined(keys))
    clusters = {name: tuple(map(links.root, keys)) for name, keys in first.items()}
    tasks = {name: name.partition("@")[0] for name in clusters}
    # roots that several tasks have: what is asked in two of them is clustered in both
    shared = Counter(
        number for number, _ in {(n, tasks[name]) for name, its in clusters.items() for n in its}
    )
    return {
        name: its
        if name in named or len({*its}) < len(its) or any(shared[number] > 1 for number in its)
        else None
        for name, its in clusters.items()
    }


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _fields(document: Any) -> Mapping[str, Any]:
    return document if isinstance(document, Mapping) else {}


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _number(field: str, value: Any) -> int:
    return int(fingerprint([field, value])[:_DIGITS], 16)
