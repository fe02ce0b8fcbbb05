"""Failures that show in scores: against the base, on training rows, over ranks and over seeds.

Also whether models answer a task nearly perfectly.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rankwise.findings.options import Option, OptionGains, RankSeries, TaskMean, ladders
from rankwise.findings.pairs import are_opposite
from rankwise.findings.signatures.signature import Signature, judged_amount, signature
from rankwise.findings.statements import TRANSFER_ALARM_SHARE
from rankwise.findings.stats.estimates import mean_over_tasks, seed_spread, wilson_interval
from rankwise.findings.stats.items import POINTS, Items, num_clusters
from rankwise.findings.transfer import TESTED
from rankwise.records import quantities
from rankwise.records.config.objectives import GrpoConfig
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import ModelResults
from rankwise.records.study import Unit

NEARLY_PERFECT_SHARE = 0.9

NEARLY_PERFECT_NATS = -math.log(NEARLY_PERFECT_SHARE)
"""0.105 nats per token: each token of the right text has 0.9 of the probability, on average."""

_LESS_TRAINING = "a lower learning rate, fewer epochs or a smaller rank"


def score_signatures(source: OptionGains, recommendation: Recommendation) -> Iterator[Signature]:
    """What single options lost against the base, and what they gained on training rows alone."""
    for option in source.options:
        for task in source.results.tasks.get("in_domain", ()):
            yield from _worse_than_base(source, recommendation, option, task)
        for task in source.tasks("out_of_domain"):
            yield from _negative_transfer(source.by_accuracy, recommendation, option, task)
        for relation in TESTED:
            for task in source.tasks(relation):
                yield from _metrics_disagree(source, option, task)
        for task in source.tasks("held_out_text", "nats"):
            yield from _forgetting(source, option, task)
        if option.plan.role != "imported":
            for task, seen in source.results.trained_items.items():
                yield from _train_test_gap(source, recommendation, option, task, seen)


def _worse_than_base(
    source: OptionGains, recommendation: Recommendation, option: Option, task: str
) -> Iterator[Signature]:
    loss = _loss(source, option, task)
    # rewards teach no right answers, and those of the rows may stand for none
    is_rewarded = isinstance(source.results.study.config.train.written, GrpoConfig)
    if loss.sign() > 0 and not (is_rewarded and loss.unit == "nats"):
        base = quantities.score(source.base_score((task,)).estimate, loss.unit)
        advice = (
            f"Do not use it. Try {_LESS_TRAINING}, and see whether the rows that it was trained "
            "on are right."
        )
        yield signature(
            "worse_than_base",
            (source.results.train_task, option.label, task),
            loss,
            statement=f"{option.label} is {judged_amount(loss)} worse than the base on {task}, "
            f"where the base has {base}.",
            advice=_format_advice(source, recommendation, option, task) or advice,
        )


def _negative_transfer(
    source: OptionGains, recommendation: Recommendation, option: Option, task: str
) -> Iterator[Signature]:
    """Judge the lower bound of the drop, relative to the base's score on these items.

    In accuracy, as the reference paper's alarm is: p(right) may also drop by less certainty.
    """
    base = source.base_score((task,)).estimate
    loss = _loss(source, option, task)
    if base > 0 and loss.lower / base > TRANSFER_ALARM_SHARE:
        advice = [f"If that domain matters, use the base, or try {_LESS_TRAINING}."]
        study = source.results.study
        if task in study.replayable and source.tasks("retention"):  # which judges every arm
            # as large a share kept all of a first task while another was trained
            # (docs/one-after-another.md)
            advice.append(
                "Or train it once more with 20 % of the rows from that task's training split: add "
                f"`{{replay: {{share: 0.2, rows: {{task: {task}}}}}}}` to mitigations in the study "
                "file, and run it again."
            )
        if option.rank is not None and study.scores is None:
            trained = ",".join(source.results.tasks.get("in_domain", ()))
            names = (study.config.base_model.name, trained, task)
            base_model, trained, kept = map(shlex.quote, names)
            advice.append(
                f"`rankwise repair {base_model} DIR/runs/{option.plan.name}/adapter --tasks "
                f"{trained} --retention {kept} --max-loss 1 --output repaired` looks for a change "
                "of the adapter that needs no training."
            )
        yield signature(
            "negative_transfer",
            (source.results.train_task, option.label, task),
            loss,
            statement=f"{option.label} loses {judged_amount(loss)} on {task}, at least "
            f"{100 * loss.lower / base:.0f} % of the base's {quantities.score(base, 'points')}.",
            advice=_format_advice(source, recommendation, option, task) or " ".join(advice),
        )


def _metrics_disagree(source: OptionGains, option: Option, task: str) -> Iterator[Signature]:
    """p(right) goes up and accuracy down, or the reverse, and one of the two is shown."""
    accuracy = source.results.base.items[task].accuracy
    if accuracy is None:
        return
    change, own = (of.change(option.runs, (task,)) for of in (source, source.by_accuracy))
    if are_opposite(change, own):
        by_metric = [
            f"{quantities.with_interval(one, one.unit)} in {name}"
            for one, name in ((change, "p(right)"), (own, accuracy.metric))
        ]
        yield signature(
            "metrics_disagree",
            (source.results.train_task, option.label, task),
            change,
            statement=f"{option.label} changes on {task} by {' and by '.join(by_metric)}: the two "
            "have opposite signs.",
            advice="Check whether only confidence changed and not the answers, and decide which of "
            f"the two matters: evaluation.metric.{task}={accuracy.metric} judges by accuracy.",
        )


def _forgetting(source: OptionGains, option: Option, task: str) -> Iterator[Signature]:
    margin = source.results.study.config.recommendation.delta_nats
    rise = _loss(source, option, task)
    if rise.sign(at=margin) > 0:
        base = quantities.score(source.base_score((task,)).estimate, "nats")
        yield signature(
            "forgetting_on_prose",
            (source.results.train_task, option.label, task),
            rise,
            statement=f"{option.label} has {judged_amount(rise)} more loss per token on {task} "
            f"than the base ({base}).",
            advice=f"If general text matters, try {_LESS_TRAINING}.",
        )


def _train_test_gap(
    source: OptionGains, recommendation: Recommendation, option: Option, task: str, seen: str
) -> Iterator[Signature]:
    """The gain on rows that were trained on less the gain on others, above delta."""
    items, confidence = source.results.base.items, source.confidence
    unit = items[task].unit
    if unit != recommendation.unit or items[seen].metric != items[task].metric:
        return
    if task in source.results.base.labelled_tasks:  # nobody labelled the trained rows
        return
    gap = source.mean_of(source.gap_parts(option.runs, {task: seen}), unit)
    if gap.sign(at=recommendation.delta) <= 0:
        return
    on_seen, on_others = source.change(option.runs, (seen,)), source.change(option.runs, (task,))
    known = level(option.runs, seen, confidence)
    rows = quantities.counted(on_seen.num_examples, "training row")
    statement = (
        f"gains {quantities.change(on_seen.estimate, unit)} {unit} on {rows} of {task} and "
        f"{quantities.change(on_others.estimate, unit)} on its test items: "
        f"{judged_amount(gap)} less"
    )
    if not known.is_mastered:
        advice = (
            "It fits its rows better than the task: train on more rows, or try fewer epochs, "
            "dropout or a smaller rank."
        )
        name, ending = "train_test_gap", "."
    elif unit == "nats":
        advice = "It may repeat its rows verbatim: check that they hold nothing private."
        name = "memorised"
        ending = (
            f"; its loss on these rows is {quantities.score(known.score, unit)}, at most "
            f"{quantities.score(known.worst, unit)} (below {NEARLY_PERFECT_NATS:.3f})."
        )
    else:
        advice = (
            "It has memorised its rows: train on more rows or for fewer epochs, and judge it on "
            "other items only."
        )
        name = "memorised"
        ending = (
            f"; it answers {quantities.score(known.score, unit)} % of these rows right, at least "
            f"{quantities.score(known.worst, unit)} %."
        )
    yield signature(
        name,
        (source.results.train_task, option.label, task),
        gap,
        statement=f"{option.label} {statement}{ending}",
        advice=advice,
    )


def _format_advice(
    source: OptionGains, recommendation: Recommendation, option: Option, task: str
) -> str:
    """What comes first where a part of the loss is shown to be a matter of format."""
    runs = {run.name for run in option.runs}
    shown = any(
        effect.task == task and effect.run in runs and effect.by_format.sign() < 0
        for effect in recommendation.format_effects
        if effect.by_format is not None
    )
    if not shown:
        return ""
    return (
        f"A part is a matter of format: compare with {source.results.trained_formats[task]}, "
        "which asks as the training asked, and train in the format that is needed."
    )


def _loss(source: OptionGains, option: Option, task: str) -> TaskMean:
    """Base - adapted: positive where the adapted model is worse, whatever the metric."""
    return source.change(option.runs, (task,)).negated()


class Level(NamedTuple):
    """A score in its unit, averaged over seeds; ``worst`` is the bound on its bad side."""

    score: float
    worst: float
    unit: Unit

    @property
    def is_mastered(self) -> bool:
        """Whether the score is nearly perfect, by its bound."""
        if self.unit == "nats":
            return self.worst < NEARLY_PERFECT_NATS
        return self.worst > POINTS * NEARLY_PERFECT_SHARE


def level(models: Sequence[ModelResults], task: str, confidence: float) -> Level:
    """The score of models that differ by seed, with Wilson's bound, for a loss with Student's.

    Of items in clusters Wilson's takes the clusters for items, as if all of one were alike.

    They are the base alone, or the runs of one option, scored on the task; the interval is
    two-sided.
    """
    # nearly perfect is a matter of right answers, not of certainty
    items = [model.items[task].by_accuracy for model in models]
    values = np.array([each.values for each in items], dtype=np.float64)
    mean = float(values.mean())
    clusters = None if items[0].clusters is None else np.asarray(items[0].clusters)
    part = Items(values, 0.0, clusters=clusters)
    if items[0].unit == "nats":
        _, upper = mean_over_tasks([part]).interval(confidence)
        return Level(mean, upper, "nats")
    answered = min(len((each.scored or each).doc_ids) for each in items)
    size = min(num_clusters([part]) or answered, answered)
    mean = min(max(mean, 0.0), 1.0)  # an estimate from a part of the items may leave the scale
    lower, _ = wilson_interval(mean * size, size, confidence)
    return Level(POINTS * mean, POINTS * lower, "points")


def rank_signatures(source: OptionGains, recommendation: Recommendation) -> Iterator[Signature]:
    """Ranks that are all alike, ranks that follow no order, and options that vary over seeds.

    All are judged in-domain, on the tasks of the recommendation's unit, against its delta.
    """
    tasks = source.tasks("in_domain", recommendation.unit)
    for ladder in ladders(source):
        yield from _alike(source, recommendation, ladder, tasks)
        yield from _erratic(source, recommendation, ladder, tasks)
    for option in source.options:
        yield from _unstable(source, recommendation, option, tasks)


def _alike(
    source: OptionGains, recommendation: Recommendation, ladder: RankSeries, tasks: Sequence[str]
) -> Iterator[Signature]:
    """Every rank is shown to be within delta of the best one, as the verdict has it."""
    labels = {option.label for option in ladder.rungs}
    verdicts = [each for each in recommendation.verdicts if each.label in labels]
    if len(verdicts) < len(labels) or any(each.near_the_best != "yes" for each in verdicts):
        return
    pairs = [
        (one, other, source.difference(one.runs, other.runs, tasks))
        for one, other in itertools.permutations(ladder.rungs, 2)
    ]
    easy = _easy(source, ladder, tasks)
    ahead, behind, widest = max(
        (pair for pair in pairs if pair[2].estimate >= 0), key=lambda pair: pair[2].upper
    )
    unit = widest.unit
    smallest = recommendation.chosen
    use = "" if smallest is None else f"Use {smallest.label}. "
    advice = (
        f"{use}Score harder items to tell ranks apart: these do not."
        if easy
        else f"{use}Look at learning rate, epochs and training rows: they may matter more."
    )
    every = "both" if len(ladder.rungs) == 2 else f"all {len(ladder.rungs)}"
    yield signature(
        "too_easy" if easy else "not_a_matter_of_rank",
        (source.results.train_task, ladder.label, None),
        widest,
        statement=(
            f"{_among(ladder)}{every} ranks are within "
            f"δ = {quantities.amount(recommendation.delta, unit)} of each other in-domain; the "
            f"largest difference is {_name(ahead)} over {_name(behind)}, "
            f"{judged_amount(widest)}{easy}."
        ),
        advice=advice,
    )


def _easy(source: OptionGains, ladder: RankSeries, tasks: Sequence[str]) -> str:
    """What shows that there is little left to learn; empty where nothing does."""
    base = [level((source.results.base,), task, source.confidence) for task in tasks]
    ranks = [level(option.runs, t, source.confidence) for option in ladder.rungs for t in tasks]
    for who, levels in (("the base alone", base), ("every rank", ranks)):
        if all(each.is_mastered for each in levels):
            if levels[0].unit == "nats":
                most = quantities.score(max(each.worst for each in levels), "nats")
                return f", and {who} has a loss of at most {most} nats per token"
            least = quantities.score(min(each.worst for each in levels), "points")
            return f", and {who} is right on at least {least} % of the items"
    return ""


def _erratic(
    source: OptionGains, recommendation: Recommendation, ladder: RankSeries, tasks: Sequence[str]
) -> Iterator[Signature]:
    """A rank that is shown to be over delta below a smaller and below a larger one.

    Scores that rise with rank, fall, or have one peak never look so.
    """
    rungs = ladder.rungs

    def best(others: Sequence[Option], low: Option) -> tuple[TaskMean, Option]:
        """The option whose lead has the highest lower bound, and that lead."""
        leads = [(source.difference(other.runs, low.runs, tasks), other) for other in others]
        return max(leads, key=lambda pair: pair[0].lower)

    valleys = [
        (low, best(rungs[:place], low), best(rungs[place + 1 :], low))
        for place, low in enumerate(rungs[1:-1], start=1)
    ]
    # of both leads over a rank the one that is less sure counts
    sure = [min(left, right, key=lambda mean: mean.lower) for _, (left, _), (right, _) in valleys]
    nearer = max(sure, key=lambda mean: mean.lower, default=None)
    if nearer is None or nearer.sign(at=recommendation.delta) <= 0:
        return
    low, (left, smaller), (right, larger) = valleys[sure.index(nearer)]
    several = nearer.num_seeds > 1
    is_of_scores = source.results.study.scores is not None
    command = "" if is_of_scores else " (`rankwise extend DIR --seeds 2`)"
    yield signature(
        "erratic_over_ranks",
        (source.results.train_task, ladder.label, None),
        nearer,
        statement=(
            f"{_among(ladder)}{_name(low)} is {judged_amount(left)} below {_name(smaller)} "
            f"and {judged_amount(right)} below {_name(larger)} in-domain, both more than "
            f"δ = {quantities.amount(recommendation.delta, nearer.unit)}"
            f"{'' if several else ', conditional on this seed'}."
        ),
        advice=(
            "Something other than rank decides: tune the learning rate for each rank before ranks "
            "are compared, and look at the training loss of these runs."
            if several
            else f"Add seeds{command}: with one, an unlucky run looks the same."
        ),
    )


def _unstable(
    source: OptionGains, recommendation: Recommendation, option: Option, tasks: Sequence[str]
) -> Iterator[Signature]:
    """Runs of one option differ by more than delta, beyond what their items explain."""
    if len(option.runs) < 2:
        return
    gains, unit = [source.gains(option.runs, task) for task in tasks], recommendation.unit
    parts = source.items(gains, tasks)
    spread = TaskMean.over(parts, unit, *seed_spread(parts, source.confidence))
    if spread.sign(at=recommendation.delta) <= 0:
        return
    scores = [
        sum(array[seed].mean() for array in gains) / len(tasks) for seed in range(len(option.runs))
    ]
    gained = quantities.change_interval(min(scores), max(scores), unit)
    yield signature(
        "unstable_over_seeds",
        (source.results.train_task, option.label, None),
        spread,
        statement=(
            f"{option.label} gains {gained} {unit} in-domain over {len(scores)} seeds, a "
            f"standard deviation of {judged_amount(spread)} beyond what the items explain, "
            f"more than δ = {quantities.amount(recommendation.delta, unit)}."
        ),
        advice=(
            "Try a lower learning rate or a longer warm-up, and add seeds before this option is "
            "compared with others."
        ),
    )


def _name(option: Option) -> str:
    return f"rank {option.plan.rank}"


def _among(ladder: RankSeries) -> str:
    return f"with {ladder.label}, " if ladder.label else ""
