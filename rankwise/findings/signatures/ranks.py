"""Failures that show between the options of a study: over its ranks, and over its seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from rankwise.findings.options import Ladder, Option, OptionGains, TaskMean, ladders
from rankwise.findings.signatures.scores import level
from rankwise.findings.signatures.signature import Signature, judged_amount, signature
from rankwise.findings.stats.estimates import seed_spread
from rankwise.records import quantities
from rankwise.records.recommendation import Recommendation


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
    source: OptionGains, recommendation: Recommendation, ladder: Ladder, tasks: Sequence[str]
) -> Iterator[Signature]:
    """Every two ranks are shown to be less than delta apart.

    All intervals must lie within the margin, so none needs a correction.
    """
    pairs = [
        (one, other, source.difference(one.runs, other.runs, tasks))
        for one, other in itertools.permutations(ladder.rungs, 2)
    ]
    bounds = [bound for *_, mean in pairs for bound in (mean.lower, mean.upper)]
    if not all(abs(bound) < recommendation.delta for bound in bounds):
        return
    easy = _easy(source, ladder, tasks)
    ahead, behind, widest = max(
        (pair for pair in pairs if pair[2].estimate >= 0), key=lambda pair: pair[2].upper
    )
    unit = widest.unit
    advice = (
        "Use the smallest rank, or score harder items: these items do not distinguish ranks."
        if easy
        else "Use the smallest rank, and look at learning rate, epochs and training rows."
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


def _easy(source: OptionGains, ladder: Ladder, tasks: Sequence[str]) -> str:
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
    source: OptionGains, recommendation: Recommendation, ladder: Ladder, tasks: Sequence[str]
) -> Iterator[Signature]:
    """A rank that is shown to be over delta below a smaller and below a larger one.

    Scores that rise with rank, fall, or have one peak never look so.
    """
    rungs = ladder.rungs
    valleys = [
        (
            low,
            _best(source, rungs[:place], low, tasks),
            _best(source, rungs[place + 1 :], low, tasks),
        )
        for place, low in enumerate(rungs[1:-1], start=1)
    ]
    # of both leads over a rank the one that is less sure counts
    sure = [min(left, right, key=lambda mean: mean.lower) for _, (left, _), (right, _) in valleys]
    nearer = max(sure, key=lambda mean: mean.lower, default=None)
    if nearer is None or nearer.sign(at=recommendation.delta) <= 0:
        return
    low, (left, smaller), (right, larger) = valleys[sure.index(nearer)]
    several = nearer.num_seeds > 1
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
            else "Add seeds (`rankwise extend DIR --seeds 2`): with one, an unlucky run looks the "
            "same."
        ),
    )


def _best(
    source: OptionGains, others: Sequence[Option], low: Option, tasks: Sequence[str]
) -> tuple[TaskMean, Option]:
    """The option whose lead has the highest lower bound, and that lead."""
    leads = [(source.difference(other.runs, low.runs, tasks), other) for other in others]
    return max(leads, key=lambda pair: pair[0].lower)


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


def _among(ladder: Ladder) -> str:
    return f"with {ladder.label}, " if ladder.label else ""
