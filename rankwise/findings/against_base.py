"""Is one model better than another? The paired verdict on each model against the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from rankwise.findings.notes import suspect, suspicion, too_few
from rankwise.findings.options import OptionGains
from rankwise.findings.pairs import (
    Counts,
    PairedTest,
    accuracy_difference,
    paired_test,
    run_record,
)
from rankwise.findings.stats.estimates import holm, holm_levels
from rankwise.findings.stats.items import Clusters, Floats, Items, num_clusters
from rankwise.findings.stats.prospects import chance_of_sign
from rankwise.records import quantities
from rankwise.records.axes import run_labels
from rankwise.records.base import Record, VersionedRecord
from rankwise.records.lm_eval_samples import OF_LOG_LIKELIHOODS
from rankwise.records.p_right import ACCURACY
from rankwise.records.recommendation import AccuracyDifference
from rankwise.records.results import ModelResults, TaskItems, TrainTaskResults
from rankwise.records.study import Interval

Test = Callable[[float], PairedTest]
"""The difference of one model from the base at a two-sided confidence."""

Verdict = Literal["better", "worse", "cannot_tell"]

MORE_ITEMS = (2.0, 4.0, 10.0)
"""Sample-size multipliers of the projection, where nothing is decided."""

NEXT_LOOK = 2.0
"""They would be a second look, for which half of alpha is assumed."""


class MoreItems(Record):
    """How probable a verdict is with more items, the present ones kept."""

    factor: float
    num_items: int
    probability: float


class ModelVerdict(Record):
    """One model against the base, paired over the same items.

    Scores are in the unit of ``ModelVerdicts``. ``difference`` is signed so that positive is
    better for the candidate. The counts and McNemar's exact test are None unless every item is 0
    or 1; where p(right) is compared, ``accuracy`` has the difference in accuracy by itself, and
    they are of it. ``num_clusters`` is None where every item is its own. ``p_value`` is the
    interval's own test, ``holm_p_value`` corrected for the number of models.
    ``interval_confidence`` is the level at which the interval
    leaves zero out exactly where ``verdict`` is better or worse. ``with_more_items`` says what
    more items would do; empty where the verdict is there.
    """

    name: str
    run: str
    """Its name in the study's records."""
    num_examples: int
    num_clusters: int | None = None
    base_score: float
    candidate_score: float
    difference: Interval
    stderr: float
    num_learned: int | None
    num_forgotten: int | None
    num_kept_right: int | None
    num_kept_wrong: int | None
    p_value: float
    holm_p_value: float
    mcnemar_p_value: float | None
    interval_confidence: float
    verdict: Verdict
    with_more_items: tuple[MoreItems, ...]
    statement: str
    accuracy: AccuracyDifference | None = None


class ModelVerdicts(VersionedRecord, has_texts=False):
    """Every model against the base on one task, by the metric that decides.

    ``unit`` is "points" for shares (times 100), "nats" for a loss, else what a value of the metric
    is. ``cluster`` is the field whose values make clusters of items, None where none is named.
    """

    base: str
    task: str
    metric: str
    filter: str
    unit: str
    higher_is_better: bool
    confidence: float
    cluster: str | None = None
    warnings: tuple[str, ...]
    candidates: tuple[ModelVerdict, ...]


def against_base(results: TrainTaskResults) -> ModelVerdicts | None:
    """Is each model better than the base? Of scores that were given, on the task that decides.

    None where more than one task decides, a model has several seeds, or there is no base.

    Args:
        results: of scores that were made elsewhere.

    Raises:
        RecordError: the models are not scored on the same items.
    """
    study, deciding = results.study, (*results.tasks["in_domain"], *results.tasks["retention"])
    labels = run_labels(results.planned)
    is_plain = len(deciding) == 1 and len({*labels.values()}) == len(results.runs)
    if study.scores is None or study.scores.base is None or not is_plain:
        return None
    (task,) = deciding
    base, cluster = results.base.items[task], study.config.evaluation.clusters.get(task)
    source, confidence = OptionGains(results), study.config.recommendation.confidence
    gains = [source.pair(run, task).gain for run in results.runs]
    clusters = source.clusters(task)
    tests = _tests(source, results.runs, task, clusters)
    judged = _judged(tests, confidence)
    in_accuracy: list[PairedTest | None] = [None] * len(tests)
    if base.accuracy is not None:
        own = _tests(source.by_accuracy, results.runs, task, clusters)
        in_accuracy = [test(confidence) for test in own]
    unit = base.metric if base.unit == "units" else base.unit
    if base.metric in OF_LOG_LIKELIHOODS and base.higher_is_better:
        unit = "log-likelihood"
    verdict = partial(_verdict, study.scores.base, unit, len(tests))
    return ModelVerdicts(
        base=study.scores.base,
        task=task,
        metric=base.metric,
        filter=results.base.evaluations[task].decision_filter,
        unit=unit,
        higher_is_better=base.higher_is_better,
        confidence=confidence,
        cluster=cluster,
        warnings=(*study.warnings, *_cluster_notes(np.stack(gains), clusters, base, cluster)),
        candidates=tuple(map(verdict, results.runs, judged, in_accuracy)),
    )


def _tests(
    source: OptionGains, runs: Sequence[ModelResults], task: str, clusters: Clusters | None
) -> list[Test]:
    """The test of each run, by what one whole item counts for all of them."""
    pairs = [source.pair(run, task) for run in runs]
    items = source.items([pair.gain for pair in pairs], [task] * len(pairs))
    return [
        partial(paired_test, pair, items=each._replace(clusters=clusters))
        for pair, each in zip(pairs, items, strict=True)
    ]


def _cluster_notes(
    gains: Floats, clusters: Clusters | None, base: TaskItems, cluster: str | None
) -> Iterator[str]:
    """Too few clusters; without ``cluster``, a field that the differences (runs, items) go by."""
    known = num_clusters([Items(gains, 0.0, clusters=clusters)])
    if cluster is None:
        found = suspect(base, known, gains)
        if found is not None:
            items = f"the {quantities.counted(len(base.doc_ids), 'item')}"
            yield suspicion(found, items, f"Use --cluster {found.field}")
    elif known is not None and (few := too_few(f"--cluster {cluster}", known)):
        yield few


class _CorrectedTest(NamedTuple):
    """The test of one model, at the level at which it decides, and corrected for all models."""

    test: PairedTest
    p_value: float
    holm_p_value: float
    level: float


def _judged(tests: Sequence[Test], confidence: float) -> list[_CorrectedTest]:
    p_values = [test(confidence).p_value for test in tests]
    levels = [1.0 - alpha for alpha in holm_levels(p_values, 1.0 - confidence)]
    found = [test(level) for test, level in zip(tests, levels, strict=True)]
    return list(map(_CorrectedTest, found, p_values, holm(p_values), levels))


class _Found(NamedTuple):
    """What was found of a candidate, for its record and for its statement."""

    name: str
    judged: _CorrectedTest
    verdict: Verdict
    counts: Counts | None
    accuracy: AccuracyDifference | None
    more: tuple[MoreItems, ...]


def _verdict(
    base: str,
    unit: str,
    num_models: int,
    run: ModelResults,
    judged: _CorrectedTest,
    in_accuracy: PairedTest | None,
) -> ModelVerdict:
    """The record of one candidate; ``in_accuracy`` is beside p(right)."""
    test, called = judged.test, run_record(run).planned.called
    verdict: Verdict = ("worse", "cannot_tell", "better")[test.difference.sign() + 1]
    more: tuple[MoreItems, ...] = ()
    # nothing was observed where all answers are the same
    if verdict == "cannot_tell" and test.has_differences:
        alpha = (1.0 - judged.level) / NEXT_LOOK
        more = tuple(
            MoreItems(
                factor=factor,
                num_items=round(factor * test.num_examples),
                probability=chance_of_sign(test.estimate, factor, alpha),
            )
            for factor in MORE_ITEMS
        )
    values: dict[str, Any] = {**test.values(ModelVerdict, in_accuracy), "p_value": judged.p_value}
    accuracy = in_accuracy and accuracy_difference(ACCURACY, test, in_accuracy)
    name = run.name if called is None else called
    found = _Found(name, judged, verdict, (in_accuracy or test).counts, accuracy, more)
    return ModelVerdict(
        name=name,
        run=run.name,
        candidate_score=test.adapted_score,
        **values,
        holm_p_value=judged.holm_p_value,
        interval_confidence=judged.level,
        accuracy=accuracy,
        verdict=verdict,
        with_more_items=more,
        statement=_statement(found, base, unit, num_models),
    )


def _statement(of: _Found, base: str, unit: str, num_models: int) -> str:
    """One candidate in plain words."""
    test, counts = of.judged.test, of.counts
    difference = test.difference
    estimate, lower, upper = (
        sample_amount(value, unit, signed=True)
        for value in (difference.estimate, difference.lower, difference.upper)
    )
    items = quantities.counted(test.num_examples, "item")
    items += quantities.in_clusters(test.num_clusters)
    of_metric = "" if of.accuracy is None else " of p(right)"
    text = f"{of.name} is {of.verdict} than {base}"
    if of.verdict == "cannot_tell":
        text = f"Cannot tell whether {of.name} is better or worse than {base}"
    text += f": {estimate} {unit}{of_metric} ({lower} to {upper}) on {items}"
    if of.accuracy is not None:
        text += f"; accuracy {quantities.with_interval(of.accuracy.difference, 'points')}"
        text += ", the opposite sign" if of.accuracy.is_opposite else ""
    is_equal = counts is not None and counts.learned == counts.forgotten == 0
    if is_equal:
        text += "; right on exactly the same items"
    elif counts is not None:
        text += (
            f"; right on {quantities.count(counts.learned)} that {base} has wrong, "
            f"wrong on {quantities.count(counts.forgotten)} that it has right"
        )
    text += f"; p = {quantities.p_value(of.judged.p_value)}"
    if num_models > 1:
        corrected = quantities.p_value(of.judged.holm_p_value)
        text += f", {corrected} corrected for {num_models} models"
    text += "."
    if of.verdict == "cannot_tell" and is_equal and of.accuracy is None:
        text += " No difference was observed."
    elif of.more:
        likely = [each for each in of.more if each.probability >= 0.5]
        first, even = (likely[0], "") if likely else (of.more[-1], "even ")
        size = f"{first.num_items:,}"
        if test.num_clusters is not None:
            size += quantities.in_clusters(round(first.factor * test.num_clusters))
        text += (
            f" With {even}{first.factor:g} times the items ({size}) it would be decided with "
            f"probability {first.probability:.2g}."
        )
    return text


def sample_amount(value: float, unit: str, *, signed: bool = False) -> str:
    """A score or a difference in the unit of ``ModelVerdicts``; that is not written."""
    if unit == "points" or unit == "nats":
        write = quantities.change if signed else quantities.score
        return write(value, unit)
    text = f"{abs(value):.4g}"
    if float(text) == 0.0:
        return "0"
    if value < 0.0:
        return quantities.MINUS + text
    return f"+{text}" if signed else text
