"""Sample files of several models, read to be compared: by which metric, which way is better."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rankwise.errors import RecordError, TaskError
from rankwise.records import quantities
from rankwise.records.lm_eval_samples import (
    SampleFile,
    check_same_items,
    check_same_tokens,
    file_names,
    higher_is_better,
    read_sample_file,
)
from rankwise.records.p_right import P_RIGHT
from rankwise.records.results import LOSS_METRIC

Direction = Literal["results_file", "metric_name", "assumed"]

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


class Chosen(NamedTuple):
    """What is compared, and how it is read; see ``findings.against_base.ModelVerdicts``."""

    filter: str
    metric: str
    higher_is_better: bool
    direction_from: Direction
    unit: str


class ComparedFiles(NamedTuple):
    """The files of a comparison, the base's first, with what is worth knowing about them."""

    names: tuple[str, ...]
    files: list[SampleFile]
    chosen: Chosen
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
    paths = (base, *candidates)
    names = file_names(paths)
    files = [read_sample_file(path) for path in paths]
    return ComparedFiles(names, files, *_chosen(files, metric, filter_name))


def _chosen(
    files: Sequence[SampleFile], metric: str | None, filter_name: str | None
) -> tuple[Chosen, tuple[str, ...]]:
    """What to compare and how to read it, with what is worth knowing about the files."""
    base, *others = files
    notes: list[str] = []
    first, *more = base.filters
    if filter_name is None and more:
        notes.append(
            f"{base.path} has results of several filters; compared is {first!r}, the others are "
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
        notes += check_same_items(base, other, filter_name)
        if metric == LOSS_METRIC:
            check_same_tokens(base, other, filter_name)
    values = [value for file in files for value in file.values(filter_name, metric)]
    higher, direction_from = _direction(files, metric, values)
    if direction_from == "assumed":
        notes.append(
            f"no results file next to the samples says whether more or less of {metric!r} is "
            "better; higher is assumed to be better"
        )
    unit = metric
    if metric == LOSS_METRIC:
        unit = "nats"
    elif metric in OF_LOG_LIKELIHOODS and higher:
        unit = "log-likelihood"
    elif all(0.0 <= value <= 1.0 for value in values):
        unit = "points"
    return Chosen(filter_name, metric, higher, direction_from, unit), tuple(notes)


def _metric(files: Sequence[SampleFile], filter_name: str, wanted: str | None) -> str:
    """The wanted metric, or the base's first, that is one number per item in every file."""
    tables = [file.metrics(filter_name) for file in files]
    for name in tables[0] if wanted is None else [wanted]:
        if all(table.get(name, False) for table in tables):
            return name
    listing = "; ".join(
        f"{file.path} has {_usable(table)}" for file, table in zip(files, tables, strict=True)
    )
    missing = "no metric" if wanted is None else f"no metric {wanted!r}"
    raise TaskError(
        f"{missing} is one finite number per item in every file under filter {filter_name!r}: "
        f"{listing}. Choose one that all files have with --metric."
    )


def _usable(table: dict[str, bool]) -> str:
    good = [name for name, usable in table.items() if usable]
    bad = [name for name, usable in table.items() if not usable]
    text = quantities.listed(good) or "none"
    return f"{text} (not one number per item: {quantities.listed(bad)})" if bad else text


def _direction(
    files: Sequence[SampleFile], metric: str, values: Sequence[float]
) -> tuple[bool, Direction]:
    # a perplexity is at least 1; what is below 0 is the log-likelihood that it is made from
    if metric in OF_LOG_LIKELIHOODS and all(value <= 0.0 for value in values):
        return True, "metric_name"
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
        return found.pop(), "results_file"
    if metric in LOWER_IS_BETTER:
        return False, "metric_name"
    return True, "metric_name" if metric in HIGHER_IS_BETTER else "assumed"
