"""Is one model better than another? The paired verdict from two or more sample files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rankwise.errors import ConfigError, RecordError, TaskError
from rankwise.findings.pairs import (
    Pair,
    PairedTest,
    Scores,
    accuracy_difference,
    additional_items,
    pair_scores,
    paired_test,
)
from rankwise.findings.stats.estimates import holm, items_factor, mcnemar_exact
from rankwise.records import quantities
from rankwise.records.folder import LOSS_METRIC
from rankwise.records.lm_eval_samples import (
    SampleFile,
    check_same_items,
    check_same_tokens,
    file_names,
    higher_is_better,
    read_sample_file,
)
from rankwise.records.p_right import ACCURACY, P_RIGHT
from rankwise.records.study import (
    SCHEMA_VERSION,
    AccuracyDifference,
    PairedDifference,
    Record,
    SchemaVersion,
)

Verdict = Literal["better", "worse", "cannot_tell"]
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
        "prompt_level_loose_acc", "prompt_level_strict_acc", "rouge1", "rouge2", "rougeL",
    }
)  # fmt: skip
"""Metrics of which more is better; for unknown metrics this is assumed, with a warning."""

# lm-eval aggregates these from log-likelihoods, and that is what it writes for an item.
_OF_LOG_LIKELIHOODS = frozenset({"perplexity"})


class SampleVerdict(PairedDifference):
    """One file against the base file, paired over the same items.

    Scores are in the unit of ``SampleVerdicts``. ``difference`` is signed so that positive is
    better for the candidate; ``lower`` and ``upper`` bound it for this comparison alone. The
    counts are None unless every item is 0 or 1; ``p_value`` then is the paired t-test's instead
    of McNemar's. Where p(right) is compared, ``accuracy`` has the difference in accuracy, and the
    counts are of it. ``verdict`` follows ``holm_p_value``. ``num_items_needed`` is how many more
    items would decide if the difference is as estimated; None where none are needed, or where
    no number would do.
    """

    name: str
    file: str
    num_examples: int
    base_score: float
    candidate_score: float
    difference: float
    stderr: float
    lower: float
    upper: float
    num_learned: int | None
    num_forgotten: int | None
    num_kept_right: int | None
    num_kept_wrong: int | None
    test: Literal["mcnemar_exact", "paired_t"]
    p_value: float
    holm_p_value: float
    verdict: Verdict
    num_items_needed: int | None
    statement: str
    accuracy: AccuracyDifference | None = None


class SampleVerdicts(Record):
    """Every candidate file against one base file, by one metric under one filter.

    ``unit`` is "points" for shares (times 100), "nats" for ``loss_nats``, else what a value of
    the metric is. ``direction_from`` says how ``higher_is_better`` is known.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    base: str
    base_file: str
    metric: str
    filter: str
    unit: str
    higher_is_better: bool
    direction_from: Direction
    confidence: float
    warnings: tuple[str, ...]
    candidates: tuple[SampleVerdict, ...]


class _Chosen(NamedTuple):
    filter: str
    metric: str
    higher_is_better: bool
    direction_from: Direction
    unit: str


def compare_samples(
    base: Path,
    candidates: Sequence[Path],
    *,
    metric: str | None = None,
    filter_name: str | None = None,
    confidence: float = 0.95,
) -> SampleVerdicts:
    """Compare models item by item, from files that ``lm_eval --log_samples`` wrote for a task.

    Args:
        base: the samples file of the model to compare with.
        candidates: those of the other models, on the same documents.
        metric: None takes p(right) where every file has options, else the first that has one
            finite number per item in every file.
        filter_name: None takes the first of the base file.
        confidence: of each interval, and 1 - that of a wrong "better" or "worse" among all
            candidates together; above 0.5 and below 1.

    Raises:
        ConfigError: the confidence is no such number.
        DataError: a file cannot be read, or is given twice.
        TaskError: a file does not have the metric or the filter.
        RecordError: the files are not about the same items.
    """
    if not 0.5 < confidence < 1.0:
        problem = f"confidence: {confidence:g} given; use a number above 0.5 and below 1"
        raise ConfigError("compare-samples", [problem])
    paths = (base, *candidates)
    names = file_names(paths)
    files = [read_sample_file(path) for path in paths]
    chosen, notes = _choose(files, metric, filter_name)
    tests = [paired_test(pair, confidence) for pair in _pairs(names, files, chosen)]
    in_accuracy: list[PairedTest | None] = [None] * len(tests)
    if chosen.metric == P_RIGHT:
        accuracy = chosen._replace(metric=ACCURACY)
        in_accuracy = [paired_test(pair, confidence) for pair in _pairs(names, files, accuracy)]
    adjusted = holm([test.p_value for test in tests])
    family = 1.0 - confidence, len(tests)
    return SampleVerdicts(
        base=names[0],
        base_file=str(base),
        **chosen._asdict(),
        confidence=confidence,
        warnings=notes,
        candidates=tuple(
            _verdict(names[0], *each, family, chosen.unit)
            for each in zip(names[1:], candidates, tests, in_accuracy, adjusted, strict=True)
        ),
    )


def _pairs(names: Sequence[str], files: Sequence[SampleFile], chosen: _Chosen) -> list[Pair]:
    """The base with each candidate, by one metric."""
    base, *others = (
        Scores(
            name,
            [item.doc_id for item in file.filters[chosen.filter]],
            file.values(chosen.filter, chosen.metric),
        )
        for name, file in zip(names, files, strict=True)
    )
    return [
        pair_scores(
            f"metric {chosen.metric!r}",
            base,
            other,
            higher_is_better=chosen.higher_is_better,
            in_points=chosen.unit == "points",
        )
        for other in others
    ]


def _choose(
    files: Sequence[SampleFile], metric: str | None, filter_name: str | None
) -> tuple[_Chosen, tuple[str, ...]]:
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
            "better; more is assumed to be better"
        )
    unit = metric
    if metric == LOSS_METRIC:
        unit = "nats"
    elif metric in _OF_LOG_LIKELIHOODS and higher:
        unit = "log-likelihood"
    elif all(0.0 <= value <= 1.0 for value in values):
        unit = "points"
    return _Chosen(filter_name, metric, higher, direction_from, unit), tuple(notes)


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
    if metric in _OF_LOG_LIKELIHOODS and all(value <= 0.0 for value in values):
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


def _verdict(
    base: str,
    name: str,
    file: Path,
    test: PairedTest,
    in_accuracy: PairedTest | None,
    holm_p_value: float,
    family: tuple[float, int],
    unit: str,
) -> SampleVerdict:
    """The record of one candidate; ``family`` is the error rate of all and how many they are."""
    alpha, num_candidates = family
    verdict: Verdict = "cannot_tell"
    if holm_p_value <= alpha:
        verdict = "better" if test.estimate.value > 0.0 else "worse"
    needed = None
    if verdict == "cannot_tell":
        needed = _items_needed(test, alpha / num_candidates)
    found = SampleVerdict(
        name=name,
        file=str(file),
        candidate_score=test.adapted_score,
        **test.values(SampleVerdict, in_accuracy),
        accuracy=in_accuracy and accuracy_difference(ACCURACY, test, in_accuracy),
        test="paired_t" if test.counts is None else "mcnemar_exact",
        holm_p_value=holm_p_value,
        verdict=verdict,
        num_items_needed=needed,
        statement="",
    )
    return found.model_copy(update={"statement": _statement(found, base, unit, num_candidates)})


def _items_needed(test: PairedTest, alpha: float) -> int | None:
    """How many more items would show the difference, were it as estimated.

    At ``alpha`` divided by the number of candidates, which suffices for Holm whatever the
    others turn out to be; with counts, the exact test must reach it too.
    """
    slack = abs(test.estimate.value)
    factor = items_factor(slack, test.estimate.spread, 1.0 - alpha / 2.0)
    if factor == float("inf"):
        return None
    while test.counts is not None and alpha < mcnemar_exact(
        round(test.counts.learned * factor), round(test.counts.forgotten * factor)
    ):
        factor *= 1.02
    return additional_items(factor, test.num_examples)


def _statement(found: SampleVerdict, base: str, unit: str, num_candidates: int) -> str:
    """One candidate in plain words."""
    estimate, lower, upper = (
        sample_amount(value, unit, signed=True)
        for value in (found.difference, found.lower, found.upper)
    )
    items = quantities.counted(found.num_examples, "item")
    difference = f"{estimate} {unit} ({lower} to {upper}) on {items}"
    if found.verdict == "cannot_tell":
        text = f"Cannot tell whether {found.name} is better or worse than {base}: {difference}"
    else:
        text = f"{found.name} is {found.verdict} than {base}: {difference}"
    if found.accuracy is not None:
        text += f"; accuracy {quantities.with_interval(found.accuracy.interval, 'points')}"
        text += ", the opposite sign" if found.accuracy.is_opposite else ""
    if found.num_learned == found.num_forgotten == 0:
        text += "; right on exactly the same items"
    elif found.num_learned is not None and found.num_forgotten is not None:
        text += (
            f"; right on {quantities.count(found.num_learned)} that {base} has wrong, "
            f"wrong on {quantities.count(found.num_forgotten)} that it has right"
        )
    text += f"; p = {quantities.p_value(found.p_value)}"
    if num_candidates > 1:
        text += f", {quantities.p_value(found.holm_p_value)} corrected for {num_candidates} files"
    if found.verdict != "cannot_tell":
        return f"{text}."
    if found.num_items_needed is not None:
        more = quantities.counted(found.num_items_needed, "more item")
        return f"{text}. If this is the true difference, about {more} would decide."
    if found.difference == 0.0:
        return f"{text}. No difference was observed, so no number of items can be named."
    return f"{text}. The difference is too small for any reasonable number of items to decide."


def sample_amount(value: float, unit: str, *, signed: bool = False) -> str:
    """A score or a difference in the unit of ``SampleVerdicts``; that is not written."""
    if unit == "points" or unit == "nats":
        write = quantities.change if signed else quantities.score
        return write(value, unit)
    text = f"{abs(value):.4g}"
    if float(text) == 0.0:
        return "0"
    if value < 0.0:
        return quantities.MINUS + text
    return f"+{text}" if signed else text
