"""Which items belong together: clusters by a field of their documents, such as a passage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rankwise.errors import TaskError, did_you_mean
from rankwise.records.fingerprints import fingerprint
from rankwise.records.study import StudyTasks

LONG_TEXT_CHARACTERS = 80
"""Texts that are shorter on average (an answer, a subject) do not show that items share a text."""

MIN_CANDIDATES = 6
"""A field with fewer values is no candidate: answer letters have up to five, and fewer clusters say
next to nothing of their variance."""

DOC_ID = "doc_id"
"""Stands for lm-eval's number of the item where documents have no such field."""

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
    values = {doc_id: _value(document, field, doc_id) for doc_id, document in documents.items()}
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
        if _is_long_text(values) or (_ID.search(name) and _is_id(values)):
            numbers = tuple(_number(name, value) for value in values)
            if MIN_CANDIDATES <= len(set(numbers)) < len(numbers):
                found[name] = numbers
    return found


def _fields(document: Any) -> Mapping[str, Any]:
    return document if isinstance(document, Mapping) else {}


def _value(document: Any, field: str, doc_id: int) -> Any:
    return _fields(document).get(field, doc_id if field == DOC_ID else None)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _number(field: str, value: Any) -> int:
    return int(fingerprint([field, value])[:_DIGITS], 16)


def _is_long_text(values: Sequence[Any]) -> bool:
    texts = [value for value in values if isinstance(value, str)]
    return len(texts) == len(values) and sum(map(len, texts)) >= LONG_TEXT_CHARACTERS * len(texts)


def _is_id(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str | int) and not isinstance(value, bool) for value in values)
