"""Reads logs of other evaluation tools as they are: Inspect's, and HELM's per-instance files."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.errors import DataError, RankwiseError, did_you_mean
from rankwise.records.files import read_regular
from rankwise.records.grouping import grouped
from rankwise.records.json_reading import MOST_BYTES, MOST_PART_BYTES, parse_json
from rankwise.records.quantities import listed
from rankwise.records.yaml_reading import shown
from rankwise.scores.archives import unpacked_log
from rankwise.scores.models import Item, TableModel, TableScores, answered, score_of

HELM_FILES = ("per_instance_stats.json", "display_predictions.json", "predictions.json")
"""HELM's per-instance files, in a folder for each run; the first has every statistic."""

_INSPECT_VALUES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}
"""Inspect's values of answers that are correct, incorrect, partial, and of none."""

_HELM_METRICS = (
    "exact_match", "quasi_exact_match", "prefix_exact_match", "quasi_prefix_exact_match",
    "chain_of_thought_correctness", "final_number_exact_match", "math_equiv",
    "math_equiv_chain_of_thought", "f1_score", "rouge_l", "bleu_4", "ifeval_strict_accuracy",
)  # fmt: skip
"""HELM's main metrics. The first that a log has decides, unless another is named."""


class Log(NamedTuple):
    """A file, its digest and what is in it."""

    path: Path
    sha256: str
    content: Any


def read_log(path: Path) -> Log | None:
    """A file of Inspect or HELM; None where it is neither.

    Raises:
        DataError: it is one of them and cannot be read.
    """
    if path.is_dir():
        path = next((path / name for name in HELM_FILES if (path / name).is_file()), path)
    if not path.is_file() or path.suffix not in (".eval", ".json"):
        return None
    try:
        content = read_regular(path, MOST_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Give a part of it.") from error
    digest = hashlib.sha256(content).hexdigest()
    if path.suffix == ".eval":
        return Log(path, digest, unpacked_log(path, content))
    try:
        parsed = parse_json(content.decode("utf-8-sig"))
    except ValueError:
        return None  # lines of JSON, or a table that says itself what is wrong with it
    first = parsed[0] if isinstance(parsed, list) and parsed else None
    is_helm = isinstance(first, Mapping) and {"instance_id", "stats"} <= first.keys()
    return Log(path, digest, parsed) if is_helm or _is_inspect(parsed) else None


def log_scorings(log: Log, metric: str | None) -> TableScores:
    """What the log's model scored on its task.

    Args:
        log: of one model.
        metric: a scorer of Inspect, ``scorer.value`` of one with several values, or a statistic of
            HELM; None: the only one, or HELM's main one.

    Raises:
        DataError: it has no such metric, a value that is not a number, or another layout.
    """
    of_inspect = _is_inspect(log.content)
    try:
        return (_inspect if of_inspect else _helm)(log, metric)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, RankwiseError):
            raise
        tool = "Inspect" if of_inspect else "HELM"
        raise DataError(
            f"{log.path} is not laid out as {tool} writes it ({shown(error)}). Give a table of "
            "scores."
        ) from error


def _is_inspect(content: Any) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get("eval"), Mapping)


def _inspect(log: Log, metric: str | None) -> TableScores:
    """Samples of several epochs are averaged, as Inspect's mean reducer does."""
    head, samples = log.content["eval"], log.content.get("samples") or []
    status = log.content.get("status", "success")
    if status != "success":  # what is missing is no random part
        raise DataError(
            f"{log.path} is of an evaluation that was not finished (status {status!r}). Finish it: "
            f"inspect eval-retry {log.path}."
        )
    if not samples:
        raise DataError(f"{log.path} has no samples; log them (inspect eval --log-samples).")
    known = _metrics(samples)
    metric = _chosen(log, [*known], metric)
    scorer, key = known[metric]
    placed = ((f"sample {number}", sample) for number, sample in enumerate(samples, 1))
    by_item = grouped((str(sample["id"]), (place, sample)) for place, sample in placed)
    items: dict[str, Item] = {}
    for item, its in by_item.items():
        place, first = its[0]
        values: list[float] = []
        for where, sample in its:
            value: Any = (sample.get("scores") or {}).get(scorer, {}).get("value")
            if key is not None and isinstance(value, Mapping):
                value = value.get(key)
            if isinstance(value, str):
                value = _INSPECT_VALUES.get(value, value)
            try:
                values.append(score_of(value))
            except ValueError as error:
                raise DataError(
                    f"{log.path} {where} (id {shown(sample.get('id'))}): the value of {metric} is "
                    f"wrong: {error}. Score it, or leave it out of all models."
                ) from error
        answer = (first.get("scores") or {}).get(scorer, {}).get("answer")
        completion = (first.get("output") or {}).get("completion")
        line = answered(
            metric,
            math.fsum(values) / len(values),
            prompt=_inspect_text(first.get("input")),
            target=_inspect_text(first.get("target")),
            answer=completion or answer,
        )
        line["doc"] = dict(first.get("metadata") or {})
        items[item] = Item(f"{log.path} {place}", line)
    model, task = str(head.get("model", log.path.stem)), str(head.get("task", log.path.stem))
    return TableScores(TableModel(model), task.rpartition("/")[2], metric, items)


def _metrics(samples: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str | None]]:
    """Metric -> its scorer and, where that gives several values, ``scorer.value``, which of them.

    A scorer gives what it gives to the first sample that it scores.
    """
    values: dict[str, Any] = {}
    for sample in samples:
        for scorer, score in (sample.get("scores") or {}).items():
            values.setdefault(scorer, score.get("value"))
    found: dict[str, tuple[str, str | None]] = {}
    for scorer, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{scorer}.{key}": (scorer, key) for key in value}
        else:
            found[scorer] = (scorer, None)
    return found


def _inspect_text(value: Any) -> str | None:
    """A text; of messages and their parts, and of several targets, all that is text."""
    if isinstance(value, Mapping):
        value = value.get("content", value.get("text"))
    if isinstance(value, list):
        value = "\n".join(text for part in value if (text := _inspect_text(part)))
    return value if isinstance(value, str) and value else None


def _helm(log: Log, metric: str | None) -> TableScores:
    """Instances as they are, without perturbation; of several train trials the mean."""
    values: dict[str, dict[str, list[Any]]] = {}
    places: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for number, instance in enumerate(log.content, 1):
        if instance.get("perturbation") is not None:
            continue
        item = str(instance["instance_id"])
        places.setdefault(item, (f"instance {number}", instance))
        stats = instance["stats"]  # numbers by name, or a list of statistics
        if isinstance(stats, Mapping):
            means = list(stats.items())
        else:
            known = [stat for stat in stats if stat["name"].get("perturbation") is None]
            means = [(s["name"]["name"], s["mean"]) for s in known if s.get("mean") is not None]
        for name, value in means:
            values.setdefault(str(name), {}).setdefault(item, []).append(value)
    counts = Counter({name: len(its) for name, its in values.items()})
    everywhere = [name for name in values if counts[name] == len(places)]
    if metric is None:
        metric = next((name for name in _HELM_METRICS if name in everywhere), None)
    metric = _chosen(log, everywhere, metric)
    items: dict[str, Item] = {}
    for item, (place, instance) in places.items():
        try:
            numbers = list(map(score_of, values[metric][item]))
        except ValueError as error:
            raise DataError(
                f"{log.path} {place} (id {shown(item)}): the value of {metric} is wrong: {error}. "
                "Score it, or leave it out of all models."
            ) from error
        mean = math.fsum(numbers) / len(numbers)
        line = answered(metric, mean, answer=instance.get("predicted_text"))
        items[item] = Item(f"{log.path} {place}", {**line, "doc": {}})
    task, model = _helm_names(log.path)
    return TableScores(TableModel(model), task, metric, items)


def _helm_names(path: Path) -> tuple[str, str]:
    """The scenario and the model, from ``run_spec.json`` beside it or the folder's name."""
    scenario, _, arguments = path.resolve().parent.name.partition(":")
    parts = {part.partition("=")[0]: part.partition("=")[2] for part in arguments.split(",")}
    model = parts.get("model", path.resolve().parent.name)
    spec = path.parent / "run_spec.json"
    if spec.is_file():
        try:
            text = read_regular(spec, MOST_PART_BYTES).decode()
            model = parse_json(text)["adapter_spec"]["model"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{spec} cannot be read: {error}. Repair it, or move it away."
            ) from error
    named = [f"{name}={value}" for name, value in parts.items() if name in ("subset", "subject")]
    return ",".join([scenario, *named]), str(model)


def _chosen(log: Log, known: Sequence[str], metric: str | None) -> str:
    """The metric that decides."""
    if metric is None and len(known) == 1:
        return known[0]
    if metric in known:
        return str(metric)
    if not known:
        remedy = "Give another file of this run."
        if _is_inspect(log.content):
            remedy = f"Score it: inspect score {log.path}."
        raise DataError(f"{log.path} has no score on every item. {remedy}")
    if metric is None:
        raise DataError(f"{log.path} has {listed(known)}; say which: --metric NAME.")
    hint = did_you_mean(metric, known) or f"it has {listed(known)}."
    raise DataError(f"{log.path} has no metric {metric!r} on every item; {hint}")
