"""Reads sample files of lm-evaluation-harness, of any version since 0.4.0, for comparison.

A line is one document under one filter. Since 0.4.3, it has hashes of document, prompt and target.
Since 0.4.7, it names its filter and its metrics. Before 0.4.3, a file is one JSON array. What is
missing is inferred from the rest of the line where possible.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import DataError, RecordError, TaskError
from rankwise.records import quantities
from rankwise.records.files import read_regular
from rankwise.records.fingerprints import fingerprint
from rankwise.records.json_reading import (
    MOST_BYTES,
    MOST_PART_BYTES,
    JsonError,
    parse_json,
    refuse_values,
)
from rankwise.records.p_right import P_RIGHT, p_right_of_items, requests_of
from rankwise.records.results import LOSS_METRIC
from rankwise.records.study import LARGEST_SCORE, Unit

# All fields of a line that are not metrics.
LINE_FIELDS = frozenset(
    {
        "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
        "doc_hash", "prompt_hash", "target_hash", "num_loss_tokens",
    }
)  # fmt: skip


LOWER_IS_BETTER = frozenset(
    {
        "bits_per_byte", "brier_score", "byte_perplexity", "cer", "difference_male_female",
        "likelihood_diff", LOSS_METRIC, "pct_female_preferred", "pct_invalid",
        "pct_male_preferred", "pct_stereotype", "perplexity", "perspective_api_toxicity_score",
        "ter", "wer", "word_perplexity",
    }
)  # fmt: skip
"""Metrics of lm-eval of which less is better, for files that have no results file next to them."""

HIGHER_IS_BETTER = frozenset(
    {
        "acc", "acc_bytes", "acc_mutual_info", "acc_norm", "accuracy", "bleu", "chrf", "em",
        "exact_match", "f1", "inst_level_loose_acc", "inst_level_strict_acc", P_RIGHT, "pass@1",
        "preference", "prompt_level_loose_acc", "prompt_level_strict_acc", "rouge1", "rouge2",
        "rougeL",
    }
)  # fmt: skip
"""Metrics of which more is better; for unknown metrics this is assumed, with a warning."""

OF_LOG_LIKELIHOODS = frozenset({"perplexity"})
"""lm-eval aggregates these from log-likelihoods, and that is what it writes for an item."""

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


class ComparedFiles(NamedTuple):
    """The files of a comparison, the base's first, and what of them is compared.

    ``notes`` are what is worth knowing about the files.
    """

    files: list[SampleFile]
    filter: str
    metric: str
    higher_is_better: bool
    unit: Unit
    notes: tuple[str, ...]


def read_compared(
    base: Path, candidates: Sequence[Path], metric: str | None, filter_name: str | None
) -> ComparedFiles:
    """Read the files of models on the same items.

    Args:
        base: the file of the model to compare with.
        candidates: those of the other models.
        metric: None takes p(right) where every file has options, else the first that has one
            finite number per item in every file.
        filter_name: None takes the first of the base file.

    Raises:
        DataError: a file cannot be read, or is given twice.
        TaskError: a file does not have the metric or the filter.
        RecordError: the files are not about the same items, or do not agree on the metric.
    """
    file_names((base, *candidates))  # refuses a file that is given twice
    files = [read_sample_file(path) for path in (base, *candidates)]
    own, *others = files
    notes: list[str] = []
    first, *more = own.filters
    if filter_name is None and more:
        notes.append(
            f"{base} has results of several filters; compared is {first!r}, the others are "
            f"{quantities.listed(more)} (--filter)"
        )
    filter_name = first if filter_name is None else filter_name
    for file in files:
        if filter_name not in file.filters:
            raise TaskError(
                f"{file.path} has no filter {filter_name!r}; it has "
                f"{quantities.listed(list(file.filters))}. Choose one that all files have with "
                "--filter."
            )
    metric = _metric(files, filter_name, metric)
    for other in others:
        notes += check_same_items(own, other, filter_name, metric)
    found = [item.values[metric] for file in files for item in file.filters[filter_name]]
    values = [value for value in found if value is not None]
    higher = _is_higher_better(files, metric, values)
    if higher is None:
        notes.append(
            f"no results file next to the samples says whether more or less of {metric!r} is "
            "better; higher is assumed to be better"
        )
        higher = True
    unit: Unit = "units"
    if metric == LOSS_METRIC:
        unit = "nats"
    elif metric in OF_LOG_LIKELIHOODS and higher:
        notes.append(f"items of {metric!r} are log-likelihoods, of which more is better")
    elif all(0.0 <= value <= 1.0 for value in values):
        unit = "points"
    return ComparedFiles(files, filter_name, metric, higher, unit, tuple(notes))


def _metric(files: Sequence[SampleFile], filter_name: str, wanted: str | None) -> str:
    """The wanted metric, or the base's first, that is one number per item in every file."""
    tables = [file.metrics(filter_name) for file in files]
    for name in tables[0] if wanted is None else [wanted]:
        if all(table.get(name, False) for table in tables):
            return name
    has: list[str] = []
    for file, table in zip(files, tables, strict=True):
        good = quantities.listed([name for name, is_usable in table.items() if is_usable])
        bad = [name for name, is_usable in table.items() if not is_usable]
        also = f" (not one number per item: {quantities.listed(bad)})" if bad else ""
        has.append(f"{file.path} has {good or 'none'}{also}")
    missing = "no metric" if wanted is None else f"no metric {wanted!r}"
    raise TaskError(
        f"{missing} is one finite number per item in every file under filter {filter_name!r}: "
        f"{'; '.join(has)}. Choose one that all files have with --metric."
    )


def _is_higher_better(
    files: Sequence[SampleFile], metric: str, values: Sequence[float]
) -> bool | None:
    """Whether more is better by the results files, else by the metric's name.

    None if neither says it.
    """
    # a perplexity is at least 1; what is below 0 is the log-likelihood that it is made from
    if metric in OF_LOG_LIKELIHOODS and all(value <= 0.0 for value in values):
        return True
    answers = {file.path: higher_is_better(file.path, metric) for file in files}
    found = {answer for answer in answers.values() if answer is not None}
    if len(found) > 1:
        higher = [str(path) for path, answer in answers.items() if answer]
        lower = [str(path) for path, answer in answers.items() if answer is False]
        raise RecordError(
            f"the results files do not agree on {metric!r}: higher is better next to "
            f"{quantities.listed(higher)}, lower next to {quantities.listed(lower)}. These are two "
            "different metrics; score both models with one version of the task."
        )
    if found:
        return found.pop()
    if metric in LOWER_IS_BETTER:
        return False
    return True if metric in HIGHER_IS_BETTER else None


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
    by_filter: dict[str, Sequence[SampleItem]] = {}
    for name, items in filters.items():
        by_filter[name] = own = list(items.values())
        values = p_right_of_items(lines[name])
        if values is not None and not any(P_RIGHT in item.values for item in own):
            by_filter[name] = [
                item._replace(values={P_RIGHT: _number(value), **item.values})
                for item, value in zip(own, values, strict=True)
            ]
    return SampleFile(path, by_filter, lines)


def is_samples_file(path: Path) -> bool:
    """Whether a file is named as lm-eval names it, or begins with a line that has its fields."""
    if _SAMPLES_NAME.fullmatch(path.name):
        return True
    try:
        with path.open("rb") as file:
            text = file.readline(MOST_PART_BYTES).decode("utf-8-sig")
        line = parse_json(text.strip().removeprefix("[").removesuffix(",") or "0")
    except (OSError, ValueError):
        return False
    is_line = isinstance(line, dict) and "doc_id" in line and "model" not in line
    return is_line and bool({"resps", "arguments", "doc"} & {*line})


def task_of(path: Path) -> str | None:
    """The task that lm-eval named a file after; None where it has another name."""
    named = _SAMPLES_NAME.fullmatch(path.name)
    return None if named is None else named[1]


def check_same_items(
    base: SampleFile, other: SampleFile, filter_name: str, metric: str
) -> Iterator[str]:
    """Check that a ``doc_id`` means the same document and target in both files.

    Yields:
        Warnings: prompts that differ, documents that could not be checked.

    Raises:
        RecordError: documents or targets differ, or losses per token are compared and are over
            different numbers of tokens, so that the models have different tokenizers.
    """
    by_id = {item.doc_id: item for item in other.filters[filter_name]}
    own = base.filters[filter_name]
    pairs = [(item, by_id[item.doc_id]) for item in own if item.doc_id in by_id]
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
    if metric == LOSS_METRIC:
        differing = sum(item.num_loss_tokens != theirs.num_loss_tokens for item, theirs in pairs)
        if differing:
            raise RecordError(
                f"{base.path} and {other.path} have losses over different numbers of tokens in "
                f"{differing} items, so the models have different tokenizers. A loss per token "
                "cannot be compared between them; choose another metric with --metric."
            )
    prompts = [item.prompt.differs(theirs.prompt) for item, theirs in pairs].count(True)
    if prompts:
        yield (
            f"{other.path}: prompts differ on {prompts} of {len(pairs)} items, so model "
            "and prompt are compared together"
        )
    unchecked = documents.count(None)
    if unchecked:
        yield (
            f"{other.path}: {unchecked} of {len(pairs)} items have neither a doc_hash nor a doc in "
            "both files; it is assumed that equal doc_ids mean equal documents"
        )


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a file, with its place for error messages."""
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8-sig")
        refuse_values(sum(map(text.count, "[{,:\n")))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. Check the path.") from error
    except (OSError, UnicodeDecodeError, JsonError) as error:
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
        return parse_json(text)
    except ValueError as error:
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
    metrics: Any = line.get("metrics")
    if not isinstance(metrics, list):
        metrics = [name for name in line if name not in LINE_FIELDS]
    elif LOSS_METRIC in line and LOSS_METRIC not in metrics:  # ours, which lm-eval does not name
        metrics = [*metrics, LOSS_METRIC]
    return SampleItem(
        doc_id=doc_id,
        document=Mark(_text(line.get("doc_hash")), _digest(line.get("doc"))),
        prompt=Mark(_text(line.get("prompt_hash")), _digest(prompt)),
        target=Mark(_text(line.get("target_hash")), _digest(target)),
        values={str(name): _number(line.get(str(name))) for name in metrics},
        num_loss_tokens=tokens if isinstance(tokens, int) else None,
        is_rolling=len(requests) == 1 and len(requests[0]) == 1,
    )


def _digest(part: Any) -> str | None:
    return None if part is None else fingerprint(part)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    """A finite number, including true and false; None for anything else."""
    if not isinstance(value, int | float) or not abs(value) <= LARGEST_SCORE:
        return None
    return float(value)


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
            content = parse_json(read_regular(results, MOST_PART_BYTES).decode("utf-8-sig"))
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
