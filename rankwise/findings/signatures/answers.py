"""Failures that show in how a model answers: it does not stop, or always says the same."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from string import ascii_uppercase

from rankwise.errors import RecordError
from rankwise.findings.options import Option, OptionGains, TaskMean
from rankwise.findings.signatures.signature import Signature, signature
from rankwise.findings.stats.estimates import newcombe_interval, wilson_interval
from rankwise.findings.stats.items import POINTS
from rankwise.records import quantities
from rankwise.records.results import ModelResults
from rankwise.records.study import Interval, TaskEvaluation

COLLAPSED_SHARE, COLLAPSED_LOWER = 0.9, 0.8
"""An option that is chosen on this share of the items, with this lower bound, is collapsed."""

UNFINISHED_SHARE = 0.1
"""A larger share of unfinished answers is no accident."""


def answer_signatures(source: OptionGains) -> Iterator[Signature]:
    """How the options of one trained task answer, on everything that they were scored on."""
    results = source.results
    seen = set(results.trained_items.values())
    for option in source.options:
        for task, base in results.base.evaluations.items():
            if task in results.study.validation_tasks(results.train_task):
                continue  # what is seen there is seen on the test items too
            if base.num_unfinished is not None:
                yield from _runs_on(source, option, task)
            if len(base.predicted_shares or ()) > 1 and task not in seen:
                yield from _collapsed(source, option, task)
        if results.ending_items is not None and option.plan.role != "imported":
            yield from _has_no_end(source, option, results.ending_items)


def _runs_on(source: OptionGains, option: Option, task: str) -> Iterator[Signature]:
    """More unfinished generations than the base has, by Newcombe's interval."""
    base = source.results.base.evaluations[task]
    num_items = base.num_examples
    num_texts = num_items * max(base.num_draws, 1)  # draws of one item are not separate items
    before = _wilson((base.num_unfinished or 0) / num_texts, num_items, source.confidence)
    unfinished = [_record(run, task).num_unfinished or 0 for run in option.runs]
    after = _wilson(statistics.fmean(unfinished) / num_texts, num_items, source.confidence)
    more = _difference(after, before, num_items, source.confidence)
    if more.sign() > 0 and after.sign(at=UNFINISHED_SHARE) > 0:
        yield signature(
            "does_not_stop",
            (source.results.train_task, option.label, task),
            _in_points(more, num_items),
            statement=f"{option.label} leaves {_percent(after.estimate)} of its {num_items:,} "
            f"answers on {task} unfinished (at least {_percent(after.lower)}); the base leaves "
            f"{_percent(before.estimate)} unfinished.",
            advice="See whether the training rows end as the task asks, with its stop strings or "
            f"the end of turn; raise {source.results.study.config.length_key(task)} if its answers "
            "are only long.",
        )


def _has_no_end(source: OptionGains, option: Option, task: str) -> Iterator[Signature]:
    """Training rows after whose right answer something is more likely than their end."""
    base = source.results.base.evaluations[task]
    num_items = base.num_examples
    share = statistics.fmean([1.0 - _accuracy(_record(run, task)) for run in option.runs])
    without = _wilson(share, num_items, source.confidence)
    if without.sign(at=UNFINISHED_SHARE) > 0:
        yield signature(
            "does_not_stop",
            (source.results.train_task, option.label, task),
            _in_points(without, num_items),
            statement=f"{option.label} prefers to continue after the right answer in "
            f"{_percent(share)} of {num_items:,} training rows (at least "
            f"{_percent(without.lower)}), although training ended there; the base does so in "
            f"{_percent(1.0 - _accuracy(base))}.",
            advice="Train for longer or at a higher rate, or stop its answers with a stop string.",
        )


def _collapsed(source: OptionGains, option: Option, task: str) -> Iterator[Signature]:
    """One option nearly always, more often than that can be right; judged run by run."""
    base, confidence = source.results.base.evaluations[task], source.confidence
    before = base.predicted_shares or ()
    size = min(_record(run, task).num_examples for run in option.runs)  # some answer a part
    collapsed: list[tuple[Interval, int]] = []
    for run in option.runs:
        record = _record(run, task)
        shares = record.predicted_shares or ()
        place = max(range(len(shares)), key=shares.__getitem__)
        chosen = _wilson(shares[place], size, confidence)
        right = _wilson(_accuracy(record), size, confidence)
        was_so = _is_collapsed(_wilson(before[place], base.num_examples, confidence))
        if _is_collapsed(chosen) and right.upper < chosen.lower and not was_so:
            collapsed.append((chosen, place))
    if collapsed:
        chosen, place = max(collapsed, key=lambda pair: (pair[0].estimate, pair[1]))
        letter = ascii_uppercase[place] if place < len(ascii_uppercase) else str(place + 1)
        several = len(option.runs) > 1
        runs = f" with {len(collapsed)} of {len(option.runs)} seeds" if several else ""
        yield signature(
            "letters_collapsed",
            (source.results.train_task, option.label, task),
            _in_points(chosen, size),
            statement=f"{option.label} chooses option {letter} ({place + 1} of "
            f"{len(before)}) on {_percent(chosen.estimate)} of {size:,} items of {task}{runs}, at "
            f"least {_percent(chosen.lower)}; the base on {_percent(before[place])}.",
            advice="Balance the positions of the right answers in the training rows, or shuffle "
            "their options; try a lower learning rate.",
        )


def _is_collapsed(chosen: Interval) -> bool:
    return chosen.estimate >= COLLAPSED_SHARE and chosen.sign(at=COLLAPSED_LOWER) > 0


def _difference(after: Interval, before: Interval, num_items: int, confidence: float) -> Interval:
    """The difference of two proportions of as many items."""
    lower, upper = newcombe_interval(after.estimate, before.estimate, num_items, confidence)
    return Interval(estimate=after.estimate - before.estimate, lower=lower, upper=upper)


def _wilson(share: float, num_items: int, confidence: float) -> Interval:
    lower, upper = wilson_interval(share * num_items, num_items, confidence)
    return Interval(estimate=share, lower=lower, upper=upper)


def _in_points(shares: Interval, num_items: int) -> TaskMean:
    ends = {name: value * POINTS for name, value in shares}
    return TaskMean(**ends, unit="points", num_examples=num_items, num_tasks=1, num_seeds=1)


def _record(run: ModelResults, task: str) -> TaskEvaluation:
    if task not in run.evaluations:
        raise RecordError(f"{run.name} was not scored on {task!r}; run the study again")
    return run.evaluations[task]


def _accuracy(record: TaskEvaluation) -> float:
    """The share of items with the right answer: ``acc``, or what the task has in its place."""
    scores = [score for score in record.metrics if score.metric == "acc"]
    return (scores[0] if scores else record.decision).value


def _percent(share: float) -> str:
    return f"{quantities.score(POINTS * share, 'points')} %"
