"""Reads sample files of lm-evaluation-harness, of any version since 0.4.0, for comparison.

A line is one document under one filter. Since 0.4.3, it has hashes of document, prompt and target.
Since 0.4.7, it names its filter and its metrics. Before 0.4.3, a file is one JSON array. What is
missing is inferred from the rest of the line where possible.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import DataError, RecordError
from rankwise.records.files import read_regular
from rankwise.records.p_right import P_RIGHT, p_right_of_items, requests_of
from rankwise.records.results import LOSS_METRIC, weighted_by_tokens

# All fields of a line that are not metrics.
_FIELDS = frozenset(
    {
        "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
        "doc_hash", "prompt_hash", "target_hash", "num_loss_tokens",
    }
)  # fmt: skip

_SAMPLES_NAME = re.compile(r"samples_(.+)_([^_]+)\.jsonl?")


class Mark(NamedTuple):
    """Identifies a part of an item: by lm-eval's hash, and by our hash of the part."""

    given: str | None
    made: str | None

    def differs(self, other: Mark) -> bool | None:
        """Whether two parts differ; None if the lines do not tell."""
        for mine, theirs in zip(self, other, strict=True):
            if mine is not None and theirs is not None:
                return mine != theirs
        return None


class SampleItem(NamedTuple):
    """One line. ``values`` has None for a metric that is not one finite number."""

    doc_id: int
    document: Mark
    prompt: Mark
    target: Mark
    values: Mapping[str, float | None]
    num_loss_tokens: int | None
    is_rolling: bool


class SampleFile(NamedTuple):
    """A file's items by filter, in the file's order, and the lines that they are made of."""

    path: Path
    filters: Mapping[str, Sequence[SampleItem]]
    lines: Mapping[str, Sequence[Mapping[str, Any]]]

    def metrics(self, filter_name: str) -> dict[str, bool]:
        """Every metric of a filter, and whether each item has one finite number for it."""
        items = self.filters[filter_name]
        names = dict.fromkeys(name for item in items for name in item.values)
        return {name: all(item.values.get(name) is not None for item in items) for name in names}

    def pairs(self, other: SampleFile, filter_name: str) -> list[tuple[SampleItem, SampleItem]]:
        """The items of this file and the other's of the same ``doc_id``, if there is one."""
        theirs = {item.doc_id: item for item in other.filters[filter_name]}
        own = self.filters[filter_name]
        return [(item, theirs[item.doc_id]) for item in own if item.doc_id in theirs]

    def values(self, filter_name: str, metric: str) -> list[float]:
        """One number per item; the loss of prose is weighted by its tokens, as in a study.

        So its mean is the loss per token over all texts.
        """
        items = self.filters[filter_name]
        values = [value for item in items if (value := item.values[metric]) is not None]
        weights = [item.num_loss_tokens for item in items if item.is_rolling]
        tokens = [weight for weight in weights if weight]
        if metric != LOSS_METRIC or len(tokens) != len(values):
            return values
        return weighted_by_tokens(values, tokens)


def read_sample_file(path: Path) -> SampleFile:
    """Read one file.

    Items with options also have p(right), before the metrics that the file names.

    Raises:
        DataError: the file cannot be read, is empty or not JSON, a line is not an object or has no
            usable ``doc_id``, or a document occurs twice under one filter.
    """
    filters: dict[str, dict[int, SampleItem]] = {}
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for where, line in _lines(path):
        item = _item(line, where)
        items = filters.setdefault(str(line.get("filter", "none")), {})
        if item.doc_id in items:
            reason = (
                "a file has each document once per filter; score it again into a new file"
                if "filter" in line
                else "lm-eval before 0.4.7 wrote the results of several filters one after another "
                "and did not name them; split the file there, or score again with a newer one"
            )
            raise DataError(f"{where}: doc_id {item.doc_id} occurs twice: {reason}.")
        items[item.doc_id] = item
        lines.setdefault(str(line.get("filter", "none")), []).append(line)
    if not filters:
        raise DataError(f"{path} is empty; give a samples_*.jsonl file of lm_eval --log_samples.")
    by_filter = {
        name: _with_p_right(tuple(items.values()), lines[name]) for name, items in filters.items()
    }
    return SampleFile(path, by_filter, lines)


def is_samples_file(path: Path) -> bool:
    """Whether a file is named as lm-eval names it, or begins with a line that has its fields."""
    if _SAMPLES_NAME.fullmatch(path.name):
        return True
    try:
        with path.open("rb") as file:
            line = json.loads(file.readline().strip().removeprefix(b"[").removesuffix(b",") or b"0")
    except (OSError, ValueError, RecursionError):
        return False
    is_line = isinstance(line, dict) and "doc_id" in line and "model" not in line
    return is_line and bool({"resps", "arguments", "doc"} & {*line})


def task_of(path: Path) -> str | None:
    """The task that lm-eval named a file after; None where it has another name."""
    named = _SAMPLES_NAME.fullmatch(path.name)
    return None if named is None else named[1]


def _with_p_right(
    items: Sequence[SampleItem], lines: Sequence[Mapping[str, Any]]
) -> Sequence[SampleItem]:
    """The same with p(right) as the first metric, where the lines tell it."""
    values = p_right_of_items(lines)
    if values is None or any(P_RIGHT in item.values for item in items):
        return items
    return [
        item._replace(values={P_RIGHT: _number(value), **item.values})
        for item, value in zip(items, values, strict=True)
    ]


def check_same_items(base: SampleFile, other: SampleFile, filter_name: str) -> tuple[str, ...]:
    """Check that a ``doc_id`` means the same document and target in both files.

    Returns:
        Warnings: prompts that differ, documents that could not be checked.

    Raises:
        RecordError: documents or targets differ.
    """
    pairs = base.pairs(other, filter_name)
    documents = [item.document.differs(theirs.document) for item, theirs in pairs]
    targets = [item.target.differs(theirs.target) for item, theirs in pairs]
    for noun, differs in (("documents", documents), ("right answers (target)", targets)):
        if True in differs:
            example = pairs[differs.index(True)][0].doc_id
            raise RecordError(
                f"{base.path} and {other.path} have different {noun} in {differs.count(True)} of "
                f"{len(pairs)} items that share a doc_id, for example doc_id {example}. Score both "
                "models on the same version of the task's data."
            )
    notes: list[str] = []
    prompts = [item.prompt.differs(theirs.prompt) for item, theirs in pairs].count(True)
    if prompts:
        notes.append(
            f"{other.path}: prompts differ on {prompts} of {len(pairs)} items, so model "
            "and prompt are compared together"
        )
    unchecked = documents.count(None)
    if unchecked:
        notes.append(
            f"{other.path}: {unchecked} of {len(pairs)} items have neither a doc_hash nor a doc in "
            "both files; it is assumed that equal doc_ids mean equal documents"
        )
    return tuple(notes)


def check_same_tokens(base: SampleFile, other: SampleFile, filter_name: str) -> None:
    """Check that losses per token are over the same numbers of tokens in both files.

    Raises:
        RecordError: they are not, so the models have different tokenizers.
    """
    pairs = base.pairs(other, filter_name)
    differing = sum(item.num_loss_tokens != theirs.num_loss_tokens for item, theirs in pairs)
    if differing:
        raise RecordError(
            f"{base.path} and {other.path} have losses over different numbers of tokens in "
            f"{differing} items, so the models have different tokenizers. A loss per token cannot "
            "be compared between them; choose another metric with --metric."
        )


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a file, with its place for error messages."""
    try:
        text = read_regular(path).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Give a samples_*.jsonl file.") from error
    if text.lstrip().startswith("["):  # of lm-eval 0.4.0 to 0.4.2
        parts = enumerate(_parsed(text, str(path)), start=1)
        lines = [(f"{path}, item {number}", part) for number, part in parts]
    else:
        # not splitlines(): JSON texts may contain U+0085, U+2028 and the like
        numbered = enumerate(text.split("\n"), start=1)
        places = ((f"{path}, line {number}", line) for number, line in numbered if line.strip())
        lines = ((where, _parsed(line, where)) for where, line in places)
    for where, line in lines:
        if not isinstance(line, dict):
            raise DataError(
                f"{where}: {str(line)[:40]!r} is not a JSON object. Give a samples_*.jsonl file of "
                "lm_eval --log_samples."
            )
        yield where, line


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise DataError(
            f"{where}: not JSON ({error}). Give a samples_*.jsonl file of lm_eval --log_samples; "
            "if the file was cut short, score again."
        ) from error


def _item(line: Mapping[str, Any], where: str) -> SampleItem:
    doc_id = line.get("doc_id")
    if not isinstance(doc_id, int) or isinstance(doc_id, bool):
        raise DataError(
            f"{where}: doc_id is {doc_id!r}, not a whole number. Give a samples_*.jsonl file of "
            "lm_eval --log_samples."
        )
    requests = requests_of(line)
    prompt = requests[0][0] if requests and requests[0] else None
    tokens = line.get("num_loss_tokens")
    target = str(line["target"]) if "target" in line else None  # as later versions write it
    return SampleItem(
        doc_id=doc_id,
        document=Mark(_text(line.get("doc_hash")), _digest(line.get("doc"))),
        prompt=Mark(_text(line.get("prompt_hash")), _digest(prompt)),
        target=Mark(_text(line.get("target_hash")), _digest(target)),
        values={name: _number(line.get(name)) for name in _metric_names(line)},
        num_loss_tokens=tokens if isinstance(tokens, int) else None,
        is_rolling=len(requests) == 1 and len(requests[0]) == 1,
    )


def _metric_names(line: Mapping[str, Any]) -> list[str]:
    """The metrics that a line names, and ours; without names, all keys that are not fields."""
    named = line.get("metrics")
    if not isinstance(named, list):
        return [name for name in line if name not in _FIELDS]
    ours = [LOSS_METRIC] if LOSS_METRIC in line and LOSS_METRIC not in named else []
    return [str(name) for name in named] + ours


def _digest(part: Any) -> str | None:
    if part is None:
        return None
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    """A finite number, including true and false; None for anything else."""
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def higher_is_better(path: Path, metric: str) -> bool | None:
    """Read it from the results file of the same date in the same folder; None if it is not there.

    Raises:
        DataError: the results file is damaged.
    """
    named = _SAMPLES_NAME.fullmatch(path.name)
    if named is None:
        return None
    task, date = named.groups()
    for results in sorted(path.resolve().parent.glob("*.json")):
        if not results.name.endswith(f"_{date}.json") or results.name.startswith("samples_"):
            continue
        try:
            content = json.loads(read_regular(results))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{results} cannot be read: {error}. It says whether a higher metric is better. "
                "Repair it, or move it away: then the metric's name decides."
            ) from error
        for key in ("higher_is_better", task, metric):
            content = content.get(key) if isinstance(content, dict) else None
        if isinstance(content, bool):
            return content
    return None


def file_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """A short and distinct name for each file.

    It is the model's folder if lm-eval named the file, else the file's name; if these are equal,
    the part of the path that differs.

    Raises:
        DataError: a file is given twice.
    """
    whole = [Path(os.path.abspath(path)) for path in paths]
    repeated = sorted({str(path) for path in whole if whole.count(path) > 1})
    if repeated:
        raise DataError(f"{', '.join(repeated)} is given twice; give each file once.")
    named = [_SAMPLES_NAME.fullmatch(path.name) for path in whole]
    both = list(zip(whole, named, strict=True))
    models = [path.parent.name if task else path.stem for path, task in both]
    rows = [(*path.parent.parts, task[1] if task else path.stem) for path, task in both]
    end = _num_shared([row[::-1] for row in rows])
    parts = _without_shared_start([row[: len(row) - end] for row in rows])
    ways = (models, parts, [path.stem for path in whole])
    distinct = (names for names in ways if len(set(names)) == len(names) and "" not in names)
    return tuple(next(distinct, _without_shared_start([path.parts for path in whole])))


def _without_shared_start(rows: Sequence[tuple[str, ...]]) -> list[str]:
    shared = _num_shared(rows)
    return ["/".join(row[shared:]) for row in rows]


def _num_shared(rows: Sequence[tuple[str, ...]]) -> int:
    """Number of parts at the beginning that all rows share."""
    shortest = min(map(len, rows))
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)
