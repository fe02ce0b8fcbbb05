"""Is one model better than another? The paired verdict from two or more sample files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rankwise.errors import ConfigError
from rankwise.findings.clusters import suspect, suspicion, too_few
from rankwise.findings.pairs import (
    Counts,
    Pair,
    PairedTest,
    Scores,
    accuracy_difference,
    pair_scores,
    paired_test,
)
from rankwise.findings.stats.anytime import anytime_interval
from rankwise.findings.stats.estimates import holm, holm_levels
from rankwise.findings.stats.items import POINTS, num_clusters
from rankwise.findings.stats.prospects import chance_of_sign
from rankwise.records import quantities
from rankwise.records.base import SCHEMA_VERSION, Record, SchemaVersion
from rankwise.records.clusters import candidate_fields, cluster_numbers, linked_clusters
from rankwise.records.compared_samples import Chosen, Direction, read_compared
from rankwise.records.lm_eval_samples import SampleFile
from rankwise.records.p_right import ACCURACY, P_RIGHT
from rankwise.records.recommendation import AccuracyDifference, PairedDifference

Verdict = Literal["better", "worse", "cannot_tell"]

MORE_ITEMS = (2.0, 4.0, 10.0)
"""By these factors more items are imagined, where nothing is decided."""

NEXT_LOOK = 2.0
"""They would be a second look, for which half of alpha is assumed."""


class MoreItems(Record):
    """How probable a verdict is with more items, the present ones kept."""

    factor: float
    num_items: int
    probability: float


class SampleVerdict(PairedDifference):
    """One file against the base file, paired over the same items.

    Scores are in the unit of ``SampleVerdicts``. ``difference`` is signed so that positive is
    better for the candidate. The counts and McNemar's exact test are None unless every item is 0
    or 1; where p(right) is compared, ``accuracy`` has the difference in accuracy by itself, and
    they are of it. ``num_clusters`` is None where every item is its own. ``p_value`` is the
    interval's own test, ``holm_p_value`` corrected for the number of files; both are None where the
    interval holds at any time. ``interval_confidence`` is the level at which the interval
    leaves zero out exactly where ``verdict`` is better or worse. ``with_more_items`` says what
    more items would do; empty where the verdict is there.
    """

    name: str
    file: str
    num_examples: int
    num_clusters: int | None = None
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
    p_value: float | None
    holm_p_value: float | None
    mcnemar_p_value: float | None
    interval_confidence: float
    verdict: Verdict
    with_more_items: tuple[MoreItems, ...]
    statement: str
    accuracy: AccuracyDifference | None = None


class SampleVerdicts(Record):
    """Every candidate file against one base file, by one metric under one filter.

    ``unit`` is "points" for shares (times 100), "nats" for ``loss_nats``, else what a value of
    the metric is. ``direction_from`` says how ``higher_is_better`` is known. ``cluster`` is the
    field whose values make clusters of items, None where items are taken as independent.
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
    anytime: bool
    """Whether the verdicts hold however often growing files are compared."""
    cluster: str | None = None
    warnings: tuple[str, ...]
    candidates: tuple[SampleVerdict, ...]


def compare_samples(
    base: Path,
    candidates: Sequence[Path],
    *,
    metric: str | None = None,
    filter_name: str | None = None,
    cluster: str | None = None,
    confidence: float = 0.95,
    anytime: bool = False,
) -> SampleVerdicts:
    """Compare models item by item, from files that ``lm_eval --log_samples`` wrote for a task.

    Args:
        base: the samples file of the model to compare with.
        candidates: those of the other models, on the same documents.
        metric: None takes p(right) where every file has options, else the first that has one
            finite number per item in every file.
        filter_name: None takes the first of the base file.
        cluster: a field of the documents; items of equal value come in one cluster, as do those
            that ask the same. With None there is a warning where a field speaks for more.
        confidence: of each interval, and 1 - that of a wrong "better" or "worse" among all
            candidates together; above 0.5 and below 1.
        anytime: keep that promise over any number of comparisons of files to which items are added
            at the end.

    Raises:
        ConfigError: the confidence is no such number, or ``anytime`` with a metric that is not a
            share or with ``cluster``.
        DataError: a file cannot be read, or is given twice.
        TaskError: a file does not have the metric or the filter, or documents not the field.
        RecordError: the files are not about the same items.
    """
    if not 0.5 < confidence < 1.0:
        problem = f"confidence: {confidence:g} given; use a number above 0.5 and below 1"
        raise ConfigError("verdict", [problem])
    if anytime and cluster is not None:
        problem = "anytime: it takes every item by itself, so it cannot go with --cluster; drop one"
        raise ConfigError("verdict", [problem])
    names, files, chosen, notes = read_compared(base, candidates, metric, filter_name)
    base_scores = _scores(names[0], files[0], chosen)
    documents = {doc_id: files[0].documents[doc_id] for doc_id in base_scores.doc_ids}
    named = {}
    if cluster is not None:
        named = {str(base): cluster_numbers(documents, cluster, "--cluster", str(base))}
    clusters = None
    if not anytime:
        ties = [files[0].ties[doc_id] for doc_id in documents]
        clusters = linked_clusters({str(base): ties}, named)[str(base)]
    pairs = _pairs(names, files, chosen, clusters)
    if anytime and chosen.unit != "points":
        problem = f"anytime: {chosen.metric} is not between 0 and 1 on every item, as it must be"
        raise ConfigError("verdict", [problem])
    judged = _judged(pairs, confidence)
    if anytime:
        judged = _judged_at_any_time(pairs, confidence, base_scores.doc_ids)
        if list(base_scores.doc_ids) == sorted(base_scores.doc_ids):
            notes += (
                f"the items of {base} are in the order of the data set. --anytime holds where that "
                "order is random: shuffle a data set that is sorted, by subject or by length",
            )
    in_accuracy: list[PairedTest | None] = [None] * len(pairs)
    if chosen.metric == P_RIGHT:
        own = _pairs(names, files, chosen._replace(metric=ACCURACY), clusters)
        in_accuracy = [paired_test(pair, confidence) for pair in own]
    return SampleVerdicts(
        base=names[0],
        base_file=str(base),
        **chosen._asdict(),
        confidence=confidence,
        cluster=cluster,
        anytime=anytime,
        warnings=(*notes, *_cluster_notes(pairs, documents, cluster)),
        candidates=tuple(
            _verdict(names[0], name, file, chosen.unit, of_file, own)
            for name, file, of_file, own in zip(
                names[1:], candidates, judged, in_accuracy, strict=True
            )
        ),
    )


def _scores(name: str, file: SampleFile, chosen: Chosen) -> Scores:
    items = file.filters[chosen.filter]
    return Scores(name, [item.doc_id for item in items], file.values(chosen.filter, chosen.metric))


def _pairs(
    names: Sequence[str],
    files: Sequence[SampleFile],
    chosen: Chosen,
    clusters: Sequence[int] | None,
) -> list[Pair]:
    """The base with each candidate, by one metric; clusters are in the order of the base."""
    base, *others = (_scores(name, file, chosen) for name, file in zip(names, files, strict=True))
    return [
        pair_scores(
            f"metric {chosen.metric!r}",
            base._replace(clusters=clusters),
            other,
            higher_is_better=chosen.higher_is_better,
            in_points=chosen.unit == "points",
        )
        for other in others
    ]


class _Judged(NamedTuple):
    """The test of one file, at the level at which it decides, and corrected for all files."""

    test: PairedTest
    p_value: float | None
    holm_p_value: float | None
    level: float
    num_files: int
    point: float
    """What a point of the odds' prior is in the values' unit: 1 % of the largest differences."""


def _point(pair: Pair) -> float:
    return 1.0 if pair.in_points else pair.item_size / POINTS


def _judged(pairs: Sequence[Pair], confidence: float) -> list[_Judged]:
    p_values = [paired_test(pair, confidence).p_value for pair in pairs]
    levels = holm_levels(p_values, 1.0 - confidence)
    return [
        _Judged(
            paired_test(pair, 1.0 - level),
            p_value,
            corrected,
            1.0 - level,
            len(pairs),
            _point(pair),
        )
        for pair, p_value, corrected, level in zip(
            pairs, p_values, holm(p_values), levels, strict=True
        )
    ]


def _judged_at_any_time(
    pairs: Sequence[Pair], confidence: float, doc_ids: Sequence[int]
) -> list[_Judged]:
    """The same with intervals that hold at any number of items, divided by the number of files.

    ``doc_ids`` are in the order in which the items came; a pair's are sorted.
    """
    level = 1.0 - (1.0 - confidence) / len(pairs)
    arrival = np.searchsorted(np.sort(doc_ids), doc_ids)
    judged: list[_Judged] = []
    for pair in pairs:
        lower, upper = anytime_interval(pair.gain[arrival], POINTS, level)
        test = paired_test(pair, level)
        # early items count more than late ones: in an order that is not random the mean may lie
        # outside, and then nothing is shown
        mean = test.estimate.value
        test = test._replace(lower=min(lower, mean), upper=max(upper, mean))
        judged.append(_Judged(test, None, None, level, len(pairs), _point(pair)))
    return judged


def _cluster_notes(
    pairs: Sequence[Pair], documents: Mapping[int, Any], cluster: str | None
) -> Iterator[str]:
    """Too few clusters; without ``cluster``, a field that the differences go by."""
    if cluster is not None:
        number = num_clusters([pairs[0].items])
        if number is not None and (few := too_few(f"--cluster {cluster}", number)):
            yield few
        return
    order, known = np.argsort(list(documents)), num_clusters([pairs[0].items])
    candidates = {
        field: np.asarray(numbers, dtype=np.int64)[order]
        for field, numbers in candidate_fields(documents).items()
        if known is None or len({*numbers}) < known
    }
    found = suspect(candidates, np.stack([pair.gain for pair in pairs]))
    if found is not None:
        items = f"the {quantities.counted(len(documents), 'item')}"
        yield suspicion(found, items, f"Use --cluster {found.field}")


def _verdict(
    base: str, name: str, file: Path, unit: str, of_file: _Judged, in_accuracy: PairedTest | None
) -> SampleVerdict:
    """The record of one candidate; ``in_accuracy`` is there beside p(right)."""
    test = of_file.test
    verdict: Verdict = (
        "better" if test.lower > 0.0 else "worse" if test.upper < 0.0 else "cannot_tell"
    )
    more: tuple[MoreItems, ...] = ()
    # nothing was observed where all answers are the same
    if verdict == "cannot_tell" and of_file.p_value is not None and test.has_differences:
        alpha = (1.0 - of_file.level) / NEXT_LOOK
        more = tuple(
            MoreItems(
                factor=factor,
                num_items=round(factor * test.num_examples),
                probability=chance_of_sign(test.estimate, factor, alpha, of_file.point),
            )
            for factor in MORE_ITEMS
        )
    values: dict[str, Any] = {**test.values(SampleVerdict, in_accuracy), "p_value": of_file.p_value}
    accuracy = in_accuracy and accuracy_difference(ACCURACY, test, in_accuracy)
    counts = (in_accuracy or test).counts
    return SampleVerdict(
        name=name,
        file=str(file),
        candidate_score=test.adapted_score,
        **values,
        holm_p_value=of_file.holm_p_value,
        interval_confidence=of_file.level,
        accuracy=accuracy,
        verdict=verdict,
        with_more_items=more,
        statement=" ".join(_statement(base, name, unit, verdict, of_file, counts, accuracy, more)),
    )


def _statement(
    base: str,
    name: str,
    unit: str,
    verdict: Verdict,
    of_file: _Judged,
    counts: Counts | None,
    accuracy: AccuracyDifference | None,
    more: Sequence[MoreItems],
) -> Iterator[str]:
    """One candidate in plain words."""
    test = of_file.test
    estimate, lower, upper = (
        sample_amount(value, unit, signed=True)
        for value in (test.estimate.value, test.lower, test.upper)
    )
    items = quantities.counted(test.num_examples, "item")
    items += quantities.in_clusters(test.num_clusters)
    of_metric = "" if accuracy is None else " of p(right)"
    text = f"{name} is {verdict} than {base}"
    if verdict == "cannot_tell":
        text = f"Cannot tell whether {name} is better or worse than {base}"
    text += f": {estimate} {unit}{of_metric} ({lower} to {upper}) on {items}"
    if accuracy is not None:
        text += f"; accuracy {quantities.with_interval(accuracy.interval, 'points')}"
        text += ", the opposite sign" if accuracy.is_opposite else ""
    is_equal = counts is not None and counts.learned == counts.forgotten == 0
    if is_equal:
        text += "; right on exactly the same items"
    elif counts is not None:
        text += (
            f"; right on {quantities.count(counts.learned)} that {base} has wrong, "
            f"wrong on {quantities.count(counts.forgotten)} that it has right"
        )
    if of_file.p_value is not None:
        text += f"; p = {quantities.p_value(of_file.p_value)}"
    if of_file.holm_p_value is not None and of_file.num_files > 1:
        corrected = quantities.p_value(of_file.holm_p_value)
        text += f", {corrected} corrected for {of_file.num_files} files"
    yield f"{text}."
    if verdict == "cannot_tell" and is_equal and accuracy is None:
        yield "No difference was observed."
    elif more:
        likely = [each for each in more if each.probability >= 0.5]
        first, even = (likely[0], "") if likely else (more[-1], "even ")
        size = f"{first.num_items:,}"
        if test.num_clusters is not None:
            size += quantities.in_clusters(round(first.factor * test.num_clusters))
        yield (
            f"With {even}{first.factor:g} times the items ({size}) it would be decided with "
            f"probability {first.probability:.2g}."
        )


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
