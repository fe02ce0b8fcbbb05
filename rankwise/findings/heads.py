"""Attention heads: how much they changed, and whether those that changed most matter most."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from rankwise.findings.options import OptionGains, OptionName, TrainTaskFinding
from rankwise.findings.pairs import run_record
from rankwise.findings.stats.correlation import MIN_PAIRS
from rankwise.findings.trends import correlated, correlation, in_words, mean_of_options
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.heads import (
    CHANGE_MEASURES,
    ChangeMeasure,
    HeadChanges,
    HeadMap,
    HeadMode,
    TaskHeadEffects,
)
from rankwise.records.results import ModelResults
from rankwise.records.study import Interval, exact_rank

HeadMeasure = Literal["entropy", "divergence", "first_token_mass", "output", "share"]
"""A measure of change, or the head's share of attention's ‖delta‖²."""

MEASURE_NAMES: dict[HeadMeasure, str] = {
    "entropy": "entropy of the attention",
    "divergence": "divergence of the attention",
    "first_token_mass": "mass on the first token",
    "output": "output",
    "share": "share of attention's delta",
}

MODE_NAMES: dict[HeadMode, str] = {
    "ablate": "set to zero",
    "ablate-mean": "set to its mean",
}


class MeasureOfRun(Record):
    """One measure of change over all heads of a run.

    ``mean`` is of absolute values. ``agreement`` is Spearman's correlation over heads of two
    halves of the prompts: the control. ``like_full`` that with full fine-tuning's map, None where
    there is none.
    """

    measure: ChangeMeasure
    mean: float
    agreement: Interval | None
    like_full: Interval | None


class HeadsOfRun(Record):
    """The heads of one run.

    ``top_share`` is how much of attention's ‖delta‖² (of q, k, v and output projections, of no
    other matrix) is in the tenth of heads that has most.
    """

    run: str
    label: str
    option: OptionName
    num_heads: int
    measures: tuple[MeasureOfRun, ...]
    top_share: float | None


class ChangeAgainstRank(Record):
    """Spearman's correlation of a mean change with the rank, over LoRA's options."""

    measure: ChangeMeasure
    num_options: int
    correlation: Interval | None
    reason: str | None


class ChangeAndEffect(Record):
    """Whether the heads that changed most matter most: Spearman's correlation over heads.

    The absolute change is correlated with the absolute effect on the answers' log-probability, or
    with the part of it beyond the base's (``is_beyond_control``). None where a screen skipped
    heads: it chose the others by the size of the effects that it expected.
    """

    run: str
    label: str
    option: OptionName
    task: str
    mode: HeadMode
    measure: HeadMeasure
    is_beyond_control: bool
    num_heads: int
    correlation: Interval | None
    reason: str | None


class TrainTaskHeads(TrainTaskFinding):
    """The heads of one trained task's runs.

    ``labels`` are what runs are called, with the seed where several differ by it alone.
    ``not_analysed`` has, by run, why it has no maps, or no shares.
    """

    num_seeds: int
    labels: dict[str, str]
    runs: tuple[HeadsOfRun, ...]
    against_rank: tuple[ChangeAgainstRank, ...]
    matters: tuple[ChangeAndEffect, ...]
    not_analysed: dict[str, str]


def ablation(mode: HeadMode) -> str:
    """What is done to a head, in a sentence."""
    becomes = "zero" if mode == "ablate" else "its mean over the task's tokens"
    return f"What a head puts out, before the output projection, becomes {becomes}."


def is_selected(effects: TaskHeadEffects) -> bool:
    """Whether a screen skipped heads, so that those scored were chosen by their effects."""
    return effects.screen is not None and len(effects.answers) < effects.num_candidates


def _by_head(values: HeadMap) -> list[float]:
    """The values of all heads in one list, layer by layer."""
    return list(itertools.chain.from_iterable(values))


def head_findings(source: OptionGains, *_: object) -> TrainTaskHeads | None:
    """The heads of one trained task's runs; None where none were analysed."""
    results, confidence = source.results, source.confidence
    looked = [model for model in results.runs if model.head_changes or model.head_effects]
    if not looked:
        return None
    # a run is called by its option, and by its seed too where several have one option
    counts, labels = Counter(source.labels.values()), dict(source.labels)
    for plan in results.planned:
        if counts[labels[plan.name]] > 1:
            labels[plan.name] += f", seed {plan.seed}"
    analysed = [
        (model, changes) for model in looked if (changes := model.head_changes) and changes.changes
    ]
    full = next((its for m, its in analysed if run_record(m).planned.method == "full"), None)
    runs = [_heads_of_run(source, model, labels[model.name], its, full) for model, its in analysed]
    against_rank = tuple(_against_rank(runs, confidence))
    matters = [
        each
        for model in looked
        for effects in model.head_effects
        for each in _matters(source, model, labels[model.name], effects)
    ]
    return source.found(
        TrainTaskHeads,
        num_seeds=len(results.study.config.seeds),
        labels={model.name: labels[model.name] for model in looked},
        runs=tuple(runs),
        against_rank=against_rank,
        matters=tuple(matters),
        statements=tuple(_statements(runs, against_rank, matters)),
        not_analysed={
            model.name: changes.not_analysed
            for model in looked
            if (changes := model.head_changes) is not None and changes.not_analysed is not None
        },
    )


def _heads_of_run(
    source: OptionGains,
    model: ModelResults,
    label: str,
    changes: HeadChanges,
    full: HeadChanges | None,
) -> HeadsOfRun:
    confidence = source.confidence
    measures: list[MeasureOfRun] = []
    for change in changes.changes:
        values, (first, second) = _by_head(change.values), map(_by_head, change.halves)
        theirs = None if full is None or full is changes else full.change(change.measure)
        measures.append(
            MeasureOfRun(
                measure=change.measure,
                mean=statistics.fmean(map(abs, values)),
                agreement=correlation(first, second, confidence),
                like_full=theirs and correlation(values, _by_head(theirs.values), confidence),
            )
        )
    share, top_share = changes.share("all"), None
    if share is not None:
        largest = sorted(_by_head(share.values), reverse=True)
        top_share = sum(largest[: max(1, round(len(largest) / 10))])
    return HeadsOfRun(
        run=model.name,
        label=label,
        option=source.name_of(model),
        num_heads=len(_by_head(changes.base_entropy)),
        measures=tuple(measures),
        top_share=top_share,
    )


def _against_rank(runs: Sequence[HeadsOfRun], confidence: float) -> Iterator[ChangeAgainstRank]:
    adapters = [run for run in runs if run.option.rank is not None]
    for number, measure in enumerate(CHANGE_MEASURES if adapters else ()):
        options, means = mean_of_options(
            adapters, lambda run, number=number: run.measures[number].mean
        )
        ranks = [float(exact_rank(run.option)) for run in options]
        found, reason = correlated(ranks, means, confidence, "option")
        if found is None and len(options) >= MIN_PAIRS:
            reason = "all options have the same rank"
        yield ChangeAgainstRank(
            measure=measure, num_options=len(options), correlation=found, reason=reason
        )


def _matters(
    source: OptionGains, model: ModelResults, label: str, effects: TaskHeadEffects
) -> Iterator[ChangeAndEffect]:
    changes = model.head_changes
    maps: dict[HeadMeasure, HeadMap] = {}
    if changes is not None:
        maps = {change.measure: change.values for change in changes.changes}
        share = changes.share("all")
        maps |= {} if share is None else {"share": share.values}
    for measure, values in maps.items():
        for is_beyond in (False, True):
            pairs = [
                (
                    abs(values[head.layer][head.head]),
                    abs((head.beyond_control if is_beyond else head.effect).estimate),
                )
                for head in effects.answers
            ]
            scored = quantities.counted(len(pairs), "head")
            verb = "was" if len(pairs) == 1 else "were"
            found, reason = None, f"only the {scored} that a screen chose {verb} scored"
            if not is_selected(effects):
                x, y = zip(*pairs, strict=True)
                found, reason = correlated(x, y, source.confidence, "head")
            yield ChangeAndEffect(
                run=model.name,
                label=label,
                option=source.name_of(model),
                task=effects.task,
                mode=effects.mode,
                measure=measure,
                is_beyond_control=is_beyond,
                num_heads=len(pairs),
                correlation=found,
                reason=reason,
            )


def _statements(
    runs: Sequence[HeadsOfRun],
    against_rank: Sequence[ChangeAgainstRank],
    matters: Sequence[ChangeAndEffect],
) -> Iterator[str]:
    ends = {run.run: run for run in (runs[0], runs[-1])} if runs else {}
    yield from (_change_statement(run) for run in ends.values())
    for each in against_rank:
        if each.measure == "output" and each.correlation is not None:
            evidence = {
                1: "Heads change more at higher ranks",
                0: "No evidence that heads change more at higher ranks",
                -1: "Heads change less at higher ranks",
            }
            yield in_words(evidence, each.correlation, each.num_options, "option")
    for matter in matters:
        if matter.measure != "output" or matter.is_beyond_control:
            continue
        where = f"{matter.label}, {matter.task}, {MODE_NAMES[matter.mode]}"
        if matter.correlation is None:
            what = "Not tested whether the heads that changed most matter most"
            yield f"{what} ({where}): {matter.reason}."
            continue
        evidence = {
            1: "The heads that changed most matter most",
            0: "No evidence that the heads that changed most matter most",
            -1: "The heads that changed most matter least",
        }[matter.correlation.sign()]
        yield (
            f"{evidence} ({where}): Spearman's ρ of the output's change with the size of the "
            f"effect is {quantities.correlation(matter.correlation)} over "
            f"{quantities.counted(matter.num_heads, 'head')}."
        )


def _change_statement(run: HeadsOfRun) -> str:
    output = next(measured for measured in run.measures if measured.measure == "output")
    text = (
        f"{run.label}: heads' outputs change by {100 * output.mean:.2g} % of their size on "
        f"average over {quantities.counted(run.num_heads, 'head')}"
    )
    if output.agreement is not None:
        rho = quantities.correlation(output.agreement)
        text += f"; two halves of the prompts order the heads alike with ρ {rho}"
    if output.like_full is not None:
        rho = quantities.correlation(output.like_full)
        text += f", and full fine-tuning does with ρ {rho}"
    return f"{text}."
