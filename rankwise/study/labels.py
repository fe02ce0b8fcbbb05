"""A person's labels of what models wrote, beside a judge's numbers for all of it.

``evaluation.labels`` says how many items of a task a person judges too. With N items, of which the
n labelled ones were drawn at random, a model's score is the mean of the judge's numbers plus the
mean difference of the labels from them: the prediction-powered estimate (Angelopoulos et al. 2023,
Science 382, 669, doi:10.1126/science.adi6000). A judge that is wrong in one direction shifts
nothing; one that is often wrong widens the intervals.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import DataError
from rankwise.records import quantities
from rankwise.records.files import write_atomically
from rankwise.records.folder import StudyFolder
from rankwise.records.p_right import requests_of
from rankwise.records.results import ModelResults, TaskItems
from rankwise.records.study import StudyRecord
from rankwise.tasks.row_files import read_raw_rows

COLUMNS = ("key", "question", "right_answer", "answer", "label")
"""Of a file of labels; ``key`` and ``label`` are read back."""

_FORMULAS = ("=", "+", "-", "@")
"""Spreadsheets compute a cell that begins so."""


class LabelFile(NamedTuple):
    """A file of labels, as it was written.

    Attributes:
        task: whose answers are in it.
        path: of the file.
        num_items: that are judged by a person.
        num_answers: of all models to these; equal answers to an item count once.
        num_left: answers without a label.
    """

    task: str
    path: Path
    num_items: int
    num_answers: int
    num_left: int


class _AnswerRow(NamedTuple):
    key: str
    question: str
    right: str
    text: str


def write_labels(
    folder: StudyFolder, study: StudyRecord, models: Sequence[ModelResults]
) -> list[LabelFile]:
    """Write a file for each task with labels; what was labelled before is kept.

    Answers stand in an order that tells nothing of the models, and without the judge's numbers.

    Args:
        folder: of the study.
        study: its record.
        models: all that are scored, the base first.

    Raises:
        DataError: a file that is there is no file of labels.
        RecordError: the answers cannot be read.
        StorageError: a file cannot be written.
    """
    written: list[LabelFile] = []
    for task, number in _labelled(study, models):
        path = folder.labels_file(task)
        given = _given(path)
        items = _drawn(task, models[0].items[task].doc_ids, number)
        answers: dict[str, _AnswerRow] = {}
        for model in _scored(models):
            answers |= {each.key: each for each in _answers(folder, model, task, items).values()}
        rows = {key: [*map(_as_text, each), ""] for key, each in answers.items()}
        for key, cells in given.items():  # labels of answers that no model gives now are kept
            if cells["label"] or key in rows:
                ours = rows.get(key) or [cells.get(column) or "" for column in COLUMNS]
                rows[key] = [*ours[:-1], cells["label"]]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerows([COLUMNS, *(cells for _, cells in sorted(rows.items()))])
        write_atomically(path, "\ufeff" + text.getvalue())  # else Excel takes it for its own code
        left = sum(not rows[key][-1] for key in answers)
        written.append(LabelFile(task, path, len(items), len(answers), left))
    return written


def with_labels(
    folder: StudyFolder, study: StudyRecord, models: Sequence[ModelResults]
) -> tuple[list[ModelResults], tuple[str, ...]]:
    """The models with the scores that labels correct, and what is to be known of it.

    A task whose answers are not all labelled keeps the judge's numbers, and is named.

    Args:
        folder: of the study.
        study: its record.
        models: all that are scored, the base first, on the same items.

    Raises:
        DataError: a file of labels has a row that is none.
        RecordError: the answers cannot be read.
    """
    models, said = [*models], list[str]()
    for task, number in _labelled(study, models):
        path = folder.labels_file(task)
        given = {
            key: _number(path, key, cells["label"])
            for key, cells in _given(path).items()
            if cells["label"]
        }
        items = _drawn(task, models[0].items[task].doc_ids, number)
        asked = {model.name: _answers(folder, model, task, items) for model in _scored(models)}
        wanted = {each.key for answers in asked.values() for each in answers.values()}
        if left := len(wanted - given.keys()):
            said.append(
                f"{task}: {left} of {quantities.counted(len(wanted), 'answer')} have no label yet, "
                f"so its judge decides alone; `rankwise labels {folder.root}` writes them to "
                f"{path}"
            )
            continue
        labels = {
            name: {item: given[each.key] for item, each in answers.items()}
            for name, answers in asked.items()
        }
        models = [_corrected(model, task, labels) for model in models]
        said.append(
            f"{task}: the judge's numbers are corrected by a person's labels of "
            f"{len(items)} of {quantities.counted(len(models[0].items[task].doc_ids), 'item')}"
        )
    return models, tuple(said)


def _labelled(study: StudyRecord, models: Sequence[ModelResults]) -> list[tuple[str, int]]:
    """The tasks with labels, and how many; a task that takes no part is named elsewhere."""
    labels = study.config.evaluation.labels
    return [(task, number) for task, number in labels.items() if task in models[0].items]


def _scored(models: Iterable[ModelResults]) -> Iterator[ModelResults]:
    """The models, and each in its deployed forms."""
    for model in models:
        yield model
        yield from (form.scores for form in model.forms)


def _corrected(
    model: ModelResults, task: str, labels: Mapping[str, Mapping[int, float]]
) -> ModelResults:
    forms = tuple(
        form.model_copy(update={"scores": _corrected(form.scores, task, labels)})
        for form in model.forms
    )
    items = dict(model.items)
    if task in items:
        items[task] = corrected(items[task], labels[model.name])
    return model.model_copy(update={"items": items, "forms": forms})


def corrected(items: TaskItems, labels: Mapping[int, float]) -> TaskItems:
    """The items with values whose mean is the prediction-powered estimate.

    Of N items with the judge's numbers f, n are labelled, and on them the person's labels y lie
    above f by b on average. Each item becomes f + b, and a labelled one (N / n) (y - f - b) more,
    so that where judge and person agree nothing changes. The mean of these values is mean(f) + b,
    and the variance of the mean of N such values is that estimate's: a judge that is always wrong
    by as much adds nothing to it. Few labels may have none of a judge's rare errors:
    ``num_labelled`` has intervals make room for one labelled item (``pairs.size_of``).

    Args:
        items: by the judge.
        labels: item -> label, from 0 to 1; of items that are not there they do not count.
    """
    labelled = {*items.doc_ids} & labels.keys()
    if not labelled:
        return items
    factor = len(items.doc_ids) / len(labelled)
    judged = dict(zip(items.doc_ids, items.values, strict=True))
    plain = judged | {doc_id: labels[doc_id] for doc_id in labelled}
    apart = {doc_id: labels[doc_id] - judged[doc_id] for doc_id in labelled}
    bias = math.fsum(apart.values()) / len(labelled)
    values = plain.values()  # where all are labelled these are the labels, exactly
    if factor > 1.0:
        values = [
            judged[each] + bias + factor * (apart[each] - bias if each in apart else 0.0)
            for each in items.doc_ids
        ]
    return items.model_copy(
        update={
            "values": tuple(values),
            "plain": tuple(plain.values()),
            "num_labelled": len(labelled),
        }
    )


def _drawn(task: str, doc_ids: Collection[int], number: int) -> list[int]:
    """Items to label: always the same, and with more of them the same and others.

    They are those whose hashes come first, so that an item that drops out moves no other.
    """
    return sorted(sorted(doc_ids, key=lambda doc_id: _hash(task, str(doc_id)))[:number])


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _answers(
    folder: StudyFolder, model: ModelResults, task: str, items: Collection[int]
) -> dict[int, _AnswerRow]:
    """Item -> what a model answered, of those that it was asked."""
    if task not in model.items:
        return {}
    wanted, its_filter = {*items}, model.evaluations[task].decision_filter
    found: dict[int, _AnswerRow] = {}
    for line in folder.read_samples(model.name, task):
        doc_id = int(line["doc_id"])
        if doc_id not in wanted or line.get("filter") != its_filter:
            continue
        requests, said = requests_of(line), line.get("filtered_resps")
        text = str(said[0] if isinstance(said, list) and said else said)
        question = str(requests[0][0]) if requests else ""
        right = str(line.get("target", ""))
        # 16 digits alone would be a number to Excel
        key = f"k{_hash(task, str(doc_id), question, right, text)}"
        found[doc_id] = _AnswerRow(key, question, right, text)
    return found


def _as_text(cell: str) -> str:
    """A cell that spreadsheets and readers of CSV leave as it is."""
    cell = cell.strip().replace("\r\n", "\n").replace("\r", "\n")
    return f"'{cell}" if cell.startswith(_FORMULAS) else cell


def _given(path: Path) -> dict[str, dict[str, str]]:
    """Key -> the cells of its row, with its label, of a file that may not be there yet."""
    if not path.exists():
        return {}
    rows: dict[str, dict[str, str]] = {}
    for row in read_raw_rows(path).rows:
        content: Any = row.content
        if row.problem is not None or not isinstance(content, Mapping):
            raise DataError(f"{path} {row.place} {row.problem or 'is no row'}.")
        cells = {str(name): str(cell).strip() for name, cell in content.items()}
        if not {"key", "label"} <= cells.keys():
            raise DataError(
                f"{path} has no columns key and label. Save it with them, or remove it and write "
                "it again with rankwise labels."
            )
        key, label = cells["key"], cells["label"]
        before = rows.get(key, cells)["label"]
        if label and before and before != label:
            raise DataError(
                f"{path} {row.place}: {key} has the labels {before} and {label}. Leave one."
            )
        if key and (label or key not in rows):
            rows[key] = cells
    return rows


def _number(path: Path, key: str, label: str) -> float:
    try:
        value = float(label.replace(",", "."))  # as some spreadsheets write it
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= 1.0:
        raise DataError(
            f"{path}: the label of {key} is {label!r}. Write a number from 0 (wrong) to 1 (right)."
        )
    return value
