"""Failures that show in how a model answers: it does not stop, or always says the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from string import ascii_uppercase
from typing import NamedTuple

from rankwise.errors import RecordError
from rankwise.findings.options import Option, OptionGains
from rankwise.findings.signatures.signature import Signature, SignatureName
from rankwise.findings.stats.estimates import POINTS, wilson_interval
from rankwise.records import quantities
from rankwise.records.results import ModelResults
from rankwise.records.study import TaskEvaluation

COLLAPSED_SHARE, COLLAPSED_LOWER = 0.9, 0.8
"""An option that is chosen on so many items, and on more than so many by its lower bound."""

UNFINISHED_SHARE = 0.1
"""So many answers without an end are no accident."""


class _Shares(NamedTuple):
    """A share, or the difference of two, in 0..1, with its bounds."""

    estimate: float
    lower: float
    upper: float


def answer_signatures(source: OptionGains) -> Iterator[Signature]:
    """How the options of one trained task answer, on everything that they were scored on."""
    results = source.results
    seen = set(results.trained_items.values())
    for option in source.options:
        for task, base in results.base.evaluations.items():
            if base.num_unfinished is not None:
                yield from _runs_on(source, option, task)
            if len(base.predicted_shares or ()) > 1 and task not in seen:
                yield from _collapsed(source, option, task)
        if results.ending_items is not None and option.plan.imported_as is None:
            yield from _has_no_end(source, option, results.ending_items)


def _runs_on(source: OptionGains, option: Option, task: str) -> Iterator[Signature]:
    """More generations without an end than the base's, by Newcombe's interval."""
    base = source.results.base.evaluations[task]
    num_items = base.num_examples
    num_texts = num_items * max(base.num_draws, 1)  # draws of one item are no items of their own
    before = _wilson((base.num_unfinished or 0) / num_texts, num_items, source.confidence)
    unfinished = [_record(run, task).num_unfinished or 0 for run in option.runs]
    after = _wilson(_mean(unfinished) / num_texts, num_items, source.confidence)
    more = _difference(after, before)
    if more.lower > 0 and after.lower > UNFINISHED_SHARE:
        yield _of_shares(
            "does_not_stop",
            source,
            option,
            task,
            more,
            num_items,
            statement=f"does not end {_percent(after.estimate)} of its {num_items:,} answers on "
            f"{task}, at least {_percent(after.lower)}; the base {_percent(before.estimate)}.",
            advice="See whether the training rows end as the task asks, with its stop strings or "
            "the end of turn; raise max_gen_toks if its answers are only long.",
        )


def _has_no_end(source: OptionGains, option: Option, task: str) -> Iterator[Signature]:
    """Training rows behind whose right answer something is more likely than their end."""
    base = source.results.base.evaluations[task]
    num_items = base.num_examples
    share = _mean([1.0 - _accuracy(_record(run, task)) for run in option.runs])
    without = _wilson(share, num_items, source.confidence)
    if without.lower > UNFINISHED_SHARE:
        yield _of_shares(
            "does_not_stop",
            source,
            option,
            task,
            without,
            num_items,
            statement=f"would go on behind the right answer of {_percent(share)} of "
            f"{num_items:,} training rows, at least {_percent(without.lower)}, though it was "
            f"trained to end there; the base of {_percent(1.0 - _accuracy(base))}.",
            advice="Train for longer or at a higher rate, or stop its answers with a stop string.",
        )


def _collapsed(source: OptionGains, option: Option, task: str) -> Iterator[Signature]:
    """One option nearly always, more often than that can be right; judged run by run."""
    base, confidence = source.results.base.evaluations[task], source.confidence
    size, before = base.num_examples, base.predicted_shares or ()
    found: list[tuple[_Shares, int]] = []
    for run in option.runs:
        record = _record(run, task)
        shares = record.predicted_shares or ()
        place = max(range(len(shares)), key=lambda each: shares[each])
        chosen = _wilson(shares[place], size, confidence)
        right = _wilson(_accuracy(record), size, confidence)
        was_so = _is_collapsed(_wilson(before[place], size, confidence))
        if _is_collapsed(chosen) and right.upper < chosen.lower and not was_so:
            found.append((chosen, place))
    if found:
        chosen, place = max(found)
        several = len(option.runs) > 1
        runs = f" with {len(found)} of {len(option.runs)} seeds" if several else ""
        yield _of_shares(
            "letters_collapsed",
            source,
            option,
            task,
            chosen,
            size,
            statement=f"chooses option {_letter(place)} ({place + 1} of {len(before)}) on "
            f"{_percent(chosen.estimate)} of {size:,} items of {task}{runs}, at least "
            f"{_percent(chosen.lower)}; the base on {_percent(before[place])}.",
            advice="See whether the right answers of the training rows stand at every place "
            "equally often, or shuffle their options; try a lower learning rate.",
        )


def _is_collapsed(chosen: _Shares) -> bool:
    return chosen.estimate >= COLLAPSED_SHARE and chosen.lower > COLLAPSED_LOWER


def _difference(after: _Shares, before: _Shares) -> _Shares:
    """Of two proportions, from Wilson's bounds of each (Newcombe 1998, method 10)."""
    estimate = after.estimate - before.estimate
    below = math.hypot(after.estimate - after.lower, before.upper - before.estimate)
    above = math.hypot(after.upper - after.estimate, before.estimate - before.lower)
    return _Shares(estimate, estimate - below, estimate + above)


def _of_shares(
    name: SignatureName,
    source: OptionGains,
    option: Option,
    task: str,
    shares: _Shares,
    num_items: int,
    *,
    statement: str,
    advice: str,
) -> Signature:
    return Signature(
        name=name,
        train_task=source.results.train_task,
        label=option.label,
        task=task,
        statement=f"{quantities.capital(option.label)} {statement}",
        advice=advice,
        estimate=POINTS * shares.estimate,
        lower=POINTS * shares.lower,
        upper=POINTS * shares.upper,
        unit="points",
        num_items=num_items,
    )


def _wilson(share: float, num_items: int, confidence: float) -> _Shares:
    return _Shares(share, *wilson_interval(share * num_items, num_items, confidence))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _record(run: ModelResults, task: str) -> TaskEvaluation:
    if task not in run.evaluations:
        raise RecordError(f"{run.name} was not scored on {task!r}; run the study again")
    return run.evaluations[task]


def _accuracy(record: TaskEvaluation) -> float:
    """The share of items with the right answer: ``acc``, or what the task has in its place."""
    scores = [score for score in record.metrics if score.metric == "acc"]
    return (scores[0] if scores else record.decision).value


def _letter(place: int) -> str:
    return ascii_uppercase[place] if place < len(ascii_uppercase) else str(place + 1)


def _percent(share: float) -> str:
    return f"{quantities.score(POINTS * share, 'points')} %"
