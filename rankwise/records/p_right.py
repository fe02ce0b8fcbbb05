"""p(right): the probability of an item's right option among its options, from logged answers.

What lm-eval logs of an item has the options' log-likelihoods, so nothing is scored for it.
lm-eval 0.4 has no metric of this name; its ``brier_score`` takes the same softmax.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

P_RIGHT = "p_right"

ACCURACY = "acc"
"""lm-eval's share of items whose right option has the highest log-likelihood."""

Line = Mapping[str, Any]
"""A line of a samples file."""

_Right = Collection[int] | None
"""Places of an item's right options; None where a line cannot be read in this way."""


def is_wanted(metric: str | None) -> bool:
    """Whether a configured metric asks for p(right); no metric does, where there are options."""
    return metric is None or metric.partition(",")[0] == P_RIGHT


def p_right(nats: Sequence[float], right: Collection[int]) -> float:
    """The softmax over an item's options, summed over the right ones, in [0, 1].

    Equal options share equally, also where all are -inf. Where no option is right it is 0, as
    lm-eval's accuracy is. nan if a log-likelihood is nan.

    Args:
        nats: the log-likelihood of each option, at least one.
        right: places of the right options; those that no option has are left out.
    """
    if any(map(math.isnan, nats)):
        return math.nan
    highest = max(nats)
    shares = [1.0 if x == highest else math.exp(x - highest) for x in nats]
    return sum(share for place, share in enumerate(shares) if place in right) / sum(shares)


def p_right_of_items(
    lines: Sequence[Line], nats: Sequence[Sequence[float]] | None = None
) -> list[float] | None:
    """p(right) of each item of one filter, or None where the lines do not tell it.

    A task whose ``acc`` is something else than what the right options say has no p(right), nor has
    one without options to choose from.

    Args:
        lines: of the samples file.
        nats: ``option_nats`` of each line, where they are at hand.
    """
    nats = [option_nats(line) for line in lines] if nats is None else nats
    right = right_options(lines, nats)
    return None if right is None else list(map(p_right, nats, right))


def right_options(
    lines: Sequence[Line], nats: Sequence[Sequence[float]] | None = None
) -> list[Collection[int]] | None:
    """The places of each item's right options, or None where the lines do not tell them.

    A target is read as the text of the right option where every item has an option of that text,
    else as its place: options may be digits, and lm-eval writes places as texts too. lm-eval does
    not log which of two contexts is right (winogrande); there, the accuracy tells. A reading
    counts only if it gives every item the accuracy that lm-eval has logged.

    Args:
        lines: of the samples file.
        nats: ``option_nats`` of each line, where they are at hand.
    """
    nats = [option_nats(line) for line in lines] if nats is None else nats
    if max(map(len, nats), default=0) < 2 or min(map(len, nats)) < 1:
        return None
    for read in _READINGS:
        known: list[Collection[int]] = []
        for line, values in zip(lines, nats, strict=True):
            places = read(line)
            if places is None:
                break
            # p(right) of a nan is nan too, which no comparison accepts
            is_nan = any(map(math.isnan, values))
            if not is_nan and line.get(ACCURACY) != float(highest(values) in places):
                break
            known.append(places)
        else:
            return known
    return None


_SEQUENCES = (list, tuple)


def option_nats(line: Line) -> list[float]:
    """The log-likelihood of each option; empty where the answers are none.

    For ``acc_mutual_info``, every option is scored again without its context; those come last and
    are left out.
    """
    responses: Any = line.get("resps")
    try:  # as nearly all are: a study of a thousand runs has a million lines
        nats = [value for [[value, _]] in responses]
    except (TypeError, ValueError):
        nats = _numbers(responses)
    if not set(map(type, nats)) <= {float}:
        nats = _numbers(responses)
    metrics = line.get("metrics")
    names = metrics if isinstance(metrics, list) else line
    return nats[: len(nats) // 2] if "acc_mutual_info" in names else nats


def _numbers(responses: Any) -> list[float]:
    """The first number of each response, which may be text; empty where one has none."""
    nats: list[float] = []
    for repeats in responses if isinstance(responses, list) else ():
        first = repeats[0] if isinstance(repeats, _SEQUENCES) and repeats else None
        if not isinstance(first, _SEQUENCES) or len(first) != 2:
            return []  # a generation, or prose
        if not isinstance(first[0], int | float | str):
            return []
        try:
            nats.append(float(first[0]))
        except (ValueError, OverflowError):  # OverflowError: an integer of 400 digits
            return []
    return nats


def highest(nats: Sequence[float]) -> int:
    """The first option with the highest log-likelihood, as in lm-eval."""
    return nats.index(max(nats))


def requests_of(line: Line) -> list[list[Any]]:
    """The arguments of each request, from lists or from gen_args_0, arg_0 and so on."""
    arguments = line.get("arguments")
    outer = list(arguments.values()) if isinstance(arguments, dict) else arguments
    if not isinstance(outer, list):
        return []
    inner = [list(part.values()) if isinstance(part, dict) else part for part in outer]
    return [list(arguments) for arguments in inner if isinstance(arguments, list | tuple)]


def _by_place(line: Line) -> _Right:
    target = line.get("target")
    if isinstance(target, str):  # as lm-eval writes every target
        try:
            target = json.loads(target)
        except (ValueError, RecursionError):
            return None
    named = target if isinstance(target, list) else [target]
    places = [place for place in named if isinstance(place, int)]
    return places if places and len(places) == len(named) else None


def _by_text(line: Line) -> _Right:
    """The first option of this text; continuations begin with a delimiter. A number is a place."""
    target = line.get("target")
    texts = [str(request[1]).strip() for request in requests_of(line) if len(request) == 2]
    if not isinstance(target, str) or target.strip() not in texts:
        return None
    return [texts.index(target.strip())]


def _by_outcome(line: Line) -> _Right:
    requests = requests_of(line)
    is_one_text = all(requests) and len({str(request[-1]) for request in requests}) == 1
    if len(requests) != 2 or not is_one_text or line.get(ACCURACY) not in (0.0, 1.0):
        return None
    chosen = highest(option_nats(line))
    return [chosen if line[ACCURACY] else 1 - chosen]


_READINGS: tuple[Callable[[Line], _Right], ...] = (_by_text, _by_place, _by_outcome)
