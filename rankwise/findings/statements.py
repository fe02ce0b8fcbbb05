"""The sentences of a recommendation: what a practitioner reads first, and the reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rankwise.records import quantities
from rankwise.records.quantities import amount, score
from rankwise.records.study import Bound, RankVerdict, Recommendation, Unit

TRANSFER_ALARM_SHARE = 0.10
"""A drop of more than this share of the base's score on another domain is reported."""


class FullGain(NamedTuple):
    """Full fine-tuning under one label, averaged over its runs and tasks, without bounds.

    ``gain`` is in-domain, in the unit that decides; ``retention_loss`` in points, None without
    retention tasks.
    """

    label: str
    gain: float
    retention_loss: float | None


def statement(numbers: Recommendation) -> str:
    """One sentence: the answer, its ground, and its condition, from the other fields."""
    if not numbers.verdicts:
        return "The data cannot tell which rank to use: no LoRA rank was trained with every seed."
    if numbers.outcome == "recommended":
        text = _recommended(numbers)
    elif numbers.outcome == "no_evidence":
        text = _no_evidence(numbers)
    elif numbers.outcome == "none_keeps_enough":
        text = _none_keeps_enough(numbers)
    else:
        text = (
            f"The data cannot tell which rank to use ({_in_domain_items(numbers)}, "
            f"δ = {amount(numbers.delta, numbers.unit)}): {_what_decides(numbers)}"
        )
    if numbers.num_seeds == 1:
        text += ", conditional on this seed"
    if numbers.epsilon_points is None:
        text += "; forgetting was not measured"
    return text + "."


def reasons(
    numbers: Recommendation, full: Sequence[FullGain], parameters: Sequence[int]
) -> tuple[str, ...]:
    """Short sentences with the numbers: the margins, each verdict, and what it is compared with.

    ``parameters`` are the trainable ones of each verdict's option.
    """
    return (
        *_margins_used(numbers),
        *(_verdict(verdict, numbers) for verdict in numbers.verdicts),
        *_alternatives(numbers, parameters),
        *_full(full, numbers.unit),
        *_by_format(numbers),
    )


def _in_domain_items(numbers: Recommendation) -> str:
    """1,319 in-domain items, or 817 in-domain items in 120 clusters."""
    clusters = quantities.in_clusters(numbers.num_clusters_in_domain)
    return f"{numbers.num_items_in_domain:,} in-domain items{clusters}"


def _recommended(numbers: Recommendation) -> str:
    chosen = next(v for v in numbers.verdicts if v.qualifies)
    unit = numbers.unit
    text = (
        f"Use rank {chosen.rank} ({_settings(chosen)}): it gains "
        f"{amount(chosen.gain.estimate, unit)} over the base (at least "
        f"{score(chosen.gain.lower, unit)})"
    )
    if len(numbers.verdicts) > 1:
        ahead = chosen.shortfall.upper
        text += (
            f", no other rank that was not rejected is over {amount(ahead, unit)} better"
            if ahead > 0
            else ", it is better than every other rank that was not rejected"
        )
    if chosen.retention_loss is not None:
        loss = max(chosen.retention_loss.upper, 0.0)
        text += f", and it loses at most {amount(loss, 'points')} on the retention tasks"
    return text


def _no_evidence(numbers: Recommendation) -> str:
    best = max(numbers.verdicts, key=lambda v: v.gain.estimate)
    text = (
        f"There is no evidence for fine-tuning: no rank is shown to be better than the base on "
        f"{_in_domain_items(numbers)}; the best, {best.label}, gains "
        f"{amount(best.gain.estimate, numbers.unit)} ({score_range(best.gain, numbers.unit)})"
    )
    if numbers.num_items_needed is not None:
        text += f"; {_what_decides(numbers)} if that is its true gain"
    return text


def _none_keeps_enough(numbers: Recommendation) -> str:
    losses = [(v.retention_loss, v.label) for v in numbers.verdicts if v.retention_loss is not None]
    least, label = min(losses, key=lambda pair: pair[0].estimate)
    text = (
        f"No rank keeps enough: every one loses more than "
        f"{amount(numbers.epsilon_points or 0.0, 'points')} on the "
        f"retention tasks; the least is lost by {label}, {amount(least.estimate, 'points')} "
        f"(at least {score(least.lower, 'points')})"
    )
    if numbers.sufficient_label is not None:
        price = amount(numbers.sufficient_epsilon_points or 0.0, "points")
        text += f"; {numbers.sufficient_label} would qualify if {price} were acceptable (ε)"
    return text


def _what_decides(numbers: Recommendation) -> str:
    items: list[str] = []
    if numbers.num_items_needed is not None:
        items.append(f"{numbers.num_items_needed:,} more in-domain items")
    if numbers.num_retention_items_needed is not None:
        items.append(f"{numbers.num_retention_items_needed:,} more retention items")
    ways = [f"about {' and '.join(items)}"] if items else []
    if numbers.num_seeds_needed is not None:
        ways.append(f"about {numbers.num_seeds_needed} more seeds")
    if not ways and numbers.sufficient_label is not None:
        return (
            "no rank is shown both to keep enough and to come near the best, and more items would "
            f"not change that; {numbers.sufficient_label} would qualify if a loss of "
            f"{amount(numbers.sufficient_epsilon_points or 0.0, 'points')} on the retention tasks "
            "were acceptable (ε)"
        )
    if not ways:
        return (
            "the estimates lie too near the margins or beyond them for more items to decide; "
            "try other ranks, rates or margins"
        )
    return f"{' or '.join(ways)} would decide"


def _margins_used(numbers: Recommendation) -> Iterator[str]:
    percent = f"{100 * numbers.confidence:g} %"
    delta = f"δ = {amount(numbers.delta, numbers.unit)}"
    delta += " (derived from the number of items)" if numbers.delta_is_derived else ""
    best = max((v.gain.estimate for v in numbers.verdicts), default=math.inf)
    epsilon = ""
    if numbers.epsilon_points is not None:
        epsilon = f" and ε = {amount(numbers.epsilon_points, 'points')}"
        epsilon += " (derived from the number of items)" if numbers.epsilon_is_derived else ""
    yield f"Judged with {delta}{epsilon} at {percent} simultaneous confidence."
    if numbers.delta_is_derived and numbers.delta > best:
        yield "δ is larger than any gain: this study can only tell very different ranks apart."
    if numbers.epsilon_points is None:
        yield "Forgetting was not measured: the study has no retention task that decides."


def _verdict(verdict: RankVerdict, numbers: Recommendation) -> str:
    unit = numbers.unit
    better = {"yes": "", "no": ", worse than the base", "undecided": ", not shown better"}
    parts = [
        f"gain {amount(verdict.gain.estimate, unit)} ({score_range(verdict.gain, unit)})"
        + better[verdict.better_than_base]
    ]
    if verdict.retention_loss is not None and verdict.keeps_enough is not None:
        keeps = {"yes": "", "no": ", too much", "undecided": ", not shown below ε"}
        loss = (
            f"retention loss {amount(verdict.retention_loss.estimate, 'points')} "
            f"({score_range(verdict.retention_loss, 'points')}){keeps[verdict.keeps_enough]}"
        )
        if verdict.worst_retention_task is not None and verdict.worst_retention_loss is not None:
            loss += (
                f", worst {verdict.worst_retention_task} "
                f"{score(verdict.worst_retention_loss, 'points')}"
            )
        parts.append(loss)
    if len(numbers.verdicts) > 1:
        near = {"yes": "", "no": ", too much", "undecided": ", not shown below δ"}
        parts.append(
            f"at most {amount(max(verdict.shortfall.upper, 0.0), unit)} below the best"
            + near[verdict.near_the_best]
        )
    ends = "qualifies" if verdict.qualifies else "does not qualify"
    return f"{quantities.capital(verdict.label)} {ends}: {'; '.join(parts)}."


def _alternatives(numbers: Recommendation, parameters: Sequence[int]) -> Iterator[str]:
    able = [(v, n) for v, n in zip(numbers.verdicts, parameters, strict=True) if v.qualifies]
    if len(able) < 2:
        return
    (chosen, size), *others = able
    texts: list[str] = []
    for other, number in others:
        more = other.gain.estimate - chosen.gain.estimate
        text = f"{other.label} ({quantities.change(more, numbers.unit)} {numbers.unit} in-domain"
        if other.retention_loss is not None and chosen.retention_loss is not None:
            lost = other.retention_loss.estimate - chosen.retention_loss.estimate
            text += f", {quantities.change(lost, 'points')} points of retention loss"
        texts.append(f"{text}, {number / size:.3g} times the trainable parameters)")
    yield f"Alternatives that qualify too: {', '.join(texts)}."


def _full(full: Sequence[FullGain], unit: Unit) -> Iterator[str]:
    """What full fine-tuning gains and loses."""
    for option in full:
        name = quantities.capital(option.label)
        text = f"{name}, for comparison only: gain {amount(option.gain, unit)}"
        loss = option.retention_loss
        text += "" if loss is None else f"; retention loss {amount(loss, 'points')}"
        yield f"{text}."


def _by_format(numbers: Recommendation) -> tuple[str, ...]:
    """The tasks on which a loss is shown to be smaller in the format of the training."""
    return tuple(
        f"A matter of format: {effect.run} changes by "
        f"{score(effect.standard_difference, effect.unit)} on {effect.task} and by "
        f"{amount(effect.difference, effect.unit)} in the format of the training "
        f"({effect.scored_as}); the difference is at least "
        f"{score(-effect.by_format.upper, effect.unit)}."
        for effect in numbers.format_effects
        if effect.by_format is not None
        and effect.by_format.sign() < 0
        and effect.standard_difference < 0
    )


def score_range(bound: Bound, unit: Unit) -> str:
    """The ends of an interval: 75.1 to 84.1."""
    return quantities.score_interval(bound.lower, bound.upper, unit)


def _settings(verdict: RankVerdict) -> str:
    """All that a user must set besides the rank; an imported adapter does not record everything."""
    rate, epochs = verdict.learning_rate, verdict.epochs
    parts = [f"alpha {verdict.alpha:g}"]
    if not math.isclose(verdict.scaling, verdict.alpha / verdict.rank):
        parts[0] += " with rsLoRA"
    parts += [] if rate is None else [f"learning rate {quantities.learning_rate(rate)}"]
    parts.append(quantities.modules(verdict.target_modules))
    parts += [] if epochs is None else [quantities.counted(epochs, "epoch")]
    return ", ".join(parts)
