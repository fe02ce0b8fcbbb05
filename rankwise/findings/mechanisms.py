"""Tests of three mechanisms by which LoRA is said to differ from full fine-tuning.

That low ranks regularise (the gap between trained and test items; what is kept at equal gain),
and that high ranks approach full fine-tuning.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from rankwise.findings.agreement import AgreementWithFull, agreement_with_full
from rankwise.findings.options import Option, OptionGains, OptionName, TaskMean, TrainTaskFinding
from rankwise.findings.pairs import interval_of
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.findings.trends import Answer, Measured, RankTrend, TrendOf, answer_of, rank_trend
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import Interval, Unit, exact_rank

Match = Literal["within delta", "not distinguished"]


class TrainTestGap(Record):
    """An option's gain on items that it was trained on, less that on test items.

    Both are over the same tasks and against the base, ``gap`` in their unit.
    """

    option: OptionName
    trained: TaskMean
    test: TaskMean
    gap: Interval


class MatchedPair(Record):
    """Two options of equal in-domain gain; ``other`` has the higher rank, or is full fine-tuning.

    ``gain`` and ``kept`` are ``option`` less ``other``: in-domain, and on the retention tasks.
    ``answer`` is whether the lower rank is shown to keep more.
    """

    option: OptionName
    other: OptionName
    gain: TaskMean
    kept: TaskMean
    answer: Answer


class MatchedPairs(Record):
    """All pairs whose gains are shown to be equal within delta.

    Where there is none, those whose gains are not distinguished: that is weaker, for a small study
    distinguishes nothing.
    """

    match: Match
    pairs: tuple[MatchedPair, ...]


class TrainTaskMechanisms(TrainTaskFinding):
    """What one trained task says of the mechanisms.

    ``matched`` is None without retention tasks; ``agreement`` is empty where nothing is compared
    with full fine-tuning.
    """

    unit: Unit
    delta: float
    gaps: tuple[TrainTestGap, ...]
    matched: MatchedPairs | None
    agreement: tuple[AgreementWithFull, ...]
    trends: tuple[RankTrend, ...]


def mechanisms(source: OptionGains, recommendation: Recommendation) -> TrainTaskMechanisms | None:
    """What can be tested on one trained task; None where nothing can."""
    gaps, gap_trend = _gaps(source, recommendation.unit)
    matched = _matched(source, recommendation)
    answered = source.results.answered
    same = source if answered is source.results else OptionGains(answered)
    agreement, trends = agreement_with_full(same.by_accuracy)
    if not (gaps or matched or agreement):
        return None
    trends = trends if gap_trend is None else (gap_trend, *trends)
    return source.found(
        TrainTaskMechanisms,
        unit=recommendation.unit,
        delta=recommendation.delta,
        gaps=gaps,
        matched=matched,
        agreement=agreement,
        trends=trends,
        statements=tuple(_statements(trends, matched, recommendation)),
        left_out=source.left_out,
    )


def _gaps(source: OptionGains, unit: Unit) -> tuple[tuple[TrainTestGap, ...], RankTrend | None]:
    """The gap of every option trained here; an imported model may not have seen these items.

    Over the in-domain tasks of this unit whose trained items were scored by the same metric.
    """
    items = source.results.base.items
    names = {
        task: name
        for task, name in source.results.trained_items.items()
        if task in source.tasks("in_domain", unit)
        and name in items
        and items[name].metric == items[task].metric
        and task not in source.results.base.labelled_tasks  # nobody labelled the trained rows
    }
    options = [option for option in source.options if option.plan.role != "imported"]
    if not names or not options:
        return (), None
    gaps: list[TrainTestGap] = []
    measured: list[Measured] = []
    for option in options:
        parts = source.gap_parts(option.runs, names)
        gaps.append(
            TrainTestGap(
                option=option.name,
                trained=source.change(option.runs, list(names.values())),
                test=source.change(option.runs, list(names)),
                gap=interval_of(mean_over_tasks(parts), source.confidence),
            )
        )
        if option.rank is not None:
            measured.append(Measured(option.name, parts))
    trend = rank_trend("train-test gap", measured, unit=unit, confidence=source.confidence)
    return tuple(gaps), trend


def _matched(source: OptionGains, recommendation: Recommendation) -> MatchedPairs | None:
    tasks = source.tasks("in_domain", recommendation.unit)
    retention = source.tasks("retention")
    if not retention:
        return None
    pairs: list[MatchedPair] = []
    for one, other in itertools.combinations(source.options, 2):
        if _rank(one) == _rank(other):
            continue
        low, high = sorted((one, other), key=_rank)
        gain, kept = (source.difference(low.runs, high.runs, names) for names in (tasks, retention))
        answer = answer_of(kept)
        pairs.append(
            MatchedPair(option=low.name, other=high.name, gain=gain, kept=kept, answer=answer)
        )
    delta = recommendation.delta
    equal = [p for p in pairs if -delta < p.gain.lower and p.gain.upper < delta]
    if equal:
        return MatchedPairs(match="within delta", pairs=tuple(equal))
    alike = tuple(pair for pair in pairs if pair.gain.sign() == 0)
    return MatchedPairs(match="not distinguished", pairs=alike)


def _rank(option: Option) -> float:
    """Full fine-tuning is above every rank."""
    return float("inf") if option.rank is None else exact_rank(option.plan)


_CLAIMS: dict[TrendOf, str] = {
    "train-test gap": "the gap between trained and test items",
    "same outcome": "the share of items on which LoRA is right or wrong like full fine-tuning",
    "same option": "the share on which both choose the same option",
    "same next token": "the share of tokens that both find the most probable",
    "KL": "KL(full || LoRA)",
}


def _statements(
    trends: Sequence[RankTrend], matched: MatchedPairs | None, recommendation: Recommendation
) -> Iterable[str]:
    gap = [trend for trend in trends if trend.of == "train-test gap"]
    if gap:
        yield f"Lower ranks regularise: {_trend_words(gap)}."
    if matched is not None and not matched.pairs:
        yield "Lower ranks keep more at equal gain: no two options have the same gain."
    elif matched is not None:
        count = Counter(pair.answer for pair in matched.pairs)
        delta = quantities.amount(recommendation.delta, recommendation.unit)
        how = (
            f"shown to be equal within δ = {delta}"
            if matched.match == "within delta"
            else f"not distinguished (none is shown to be equal within δ = {delta})"
        )
        yield (
            f"Lower ranks keep more at equal gain: of "
            f"{quantities.counted(len(matched.pairs), 'pair')} of options with gains {how}, the "
            f"lower rank is shown to keep more in {count['shown']}, to keep less in "
            f"{count['contradicted']}; undecided in {count['undecided']}."
        )
    near = [trend for trend in trends if trend.of != "train-test gap"]
    if near:
        yield f"High ranks approach full fine-tuning: {_trend_words(near)}."


def _trend_words(trends: Sequence[RankTrend]) -> str:
    """From rank 8 to 128 the gap changes by +3.1 points (+1.0 to +5.2), shown; ..."""
    parts = [
        f"{_CLAIMS[trend.of]} changes by "
        f"{quantities.with_interval(trend.change, trend.change.unit)}, {trend.answer}"
        for trend in trends
    ]
    first = trends[0]
    return f"from rank {first.smallest_rank} to rank {first.largest_rank} " + "; ".join(parts)
