"""The sentences of a recommendation: what a practitioner reads first, and the reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rankwise.records import quantities
from rankwise.records.study import Bound, RankVerdict, Recommendation, Unit

TRANSFER_ALARM_SHARE = 0.10
"""A drop of over a tenth of the base's score on another domain is named."""


class FullGain(NamedTuple):
    """Full fine-tuning under one label, averaged over its runs and tasks, without bounds.

    ``gain`` is in-domain, in the unit that decides; ``retention_loss`` in points, None without
    retention tasks.
    """

    label: str
    gain: float
    retention_loss: float | None


def statement(draft: Recommendation) -> str:
    """One sentence: the answer, its ground, and its condition."""
    if not draft.verdicts:
        return "The data cannot tell which rank to use: no LoRA rank was trained with every seed."
    if draft.outcome == "recommended":
        text = _recommended(draft)
    elif draft.outcome == "no_evidence":
        text = _no_evidence(draft)
    elif draft.outcome == "none_keeps_enough":
        text = _none_keeps_enough(draft)
    else:
        text = (
            f"The data cannot tell which rank to use ({draft.num_items_in_domain:,} in-domain "
            f"items, δ = {_amount(draft.delta, draft.unit)}): {_what_decides(draft)}"
        )
    if draft.num_seeds == 1:
        text += ", conditional on this seed"
    if draft.epsilon_points is None:
        text += "; forgetting was not measured"
    return text + "."


def reasons(
    draft: Recommendation, full: Sequence[FullGain], parameters: Sequence[int]
) -> tuple[str, ...]:
    """Short sentences with the numbers: each verdict, and what stands beside it.

    Args:
        draft: a recommendation whose statement and reasons are still empty.
        full: full fine-tuning, which is compared and never recommended.
        parameters: trainable parameters of each verdict's option.
    """
    return (
        *_margins_used(draft),
        *(_verdict(verdict, draft) for verdict in draft.verdicts),
        *_alternatives(draft, parameters),
        *_full(full, draft.unit),
        *_by_format(draft),
    )


def _recommended(draft: Recommendation) -> str:
    chosen = next(v for v in draft.verdicts if v.qualifies)
    unit = draft.unit
    text = (
        f"Use rank {chosen.rank} ({_settings(chosen)}): it gains "
        f"{_amount(chosen.gain.estimate, unit)} over the base (at least "
        f"{_number(chosen.gain.lower, unit)})"
    )
    if len(draft.verdicts) > 1:
        ahead = chosen.shortfall.upper
        text += (
            f", no other rank that was not rejected is over {_amount(ahead, unit)} better"
            if ahead > 0
            else ", it is better than every other rank that was not rejected"
        )
    if chosen.retention_loss is not None:
        loss = max(chosen.retention_loss.upper, 0.0)
        text += f", and it loses at most {_amount(loss, 'points')} on the retention tasks"
    return text


def _no_evidence(draft: Recommendation) -> str:
    best = max(draft.verdicts, key=lambda v: v.gain.estimate)
    text = (
        f"There is no evidence for fine-tuning: no rank is shown to be better than the base on "
        f"{draft.num_items_in_domain:,} in-domain items; the best, {best.label}, gains "
        f"{_amount(best.gain.estimate, draft.unit)} ({_range(best.gain, draft.unit)})"
    )
    if draft.num_items_needed is not None:
        text += f"; {_what_decides(draft)} if that is its true gain"
    return text


def _none_keeps_enough(draft: Recommendation) -> str:
    losses = [(v.retention_loss, v.label) for v in draft.verdicts if v.retention_loss is not None]
    least, label = min(losses, key=lambda pair: pair[0].estimate)
    epsilon = draft.epsilon_points or 0.0
    return (
        f"No rank keeps enough: every one loses more than {_amount(epsilon, 'points')} on the "
        f"retention tasks; the least is lost by {label}, {_amount(least.estimate, 'points')} "
        f"(at least {_number(least.lower, 'points')})"
        + (
            f"; {draft.sufficient_label} would qualify if "
            f"{_amount(draft.sufficient_epsilon_points or 0.0, 'points')} were acceptable (ε)"
            if draft.sufficient_label is not None
            else ""
        )
    )


def _what_decides(draft: Recommendation) -> str:
    items: list[str] = []
    if draft.num_items_needed is not None:
        items.append(f"{draft.num_items_needed:,} more in-domain items")
    if draft.num_retention_items_needed is not None:
        items.append(f"{draft.num_retention_items_needed:,} more retention items")
    ways = [f"about {' and '.join(items)}"] if items else []
    if draft.num_seeds_needed is not None:
        ways.append(f"about {draft.num_seeds_needed} more seeds")
    if not ways and draft.sufficient_label is not None:
        return (
            "no rank is shown both to keep enough and to come near the best, and more items would "
            f"not change that; {draft.sufficient_label} would qualify if a loss of "
            f"{_amount(draft.sufficient_epsilon_points or 0.0, 'points')} on the retention tasks "
            "were acceptable (ε)"
        )
    if not ways:
        return (
            "the estimates lie too near the margins or beyond them for more items to decide; "
            "try other ranks, rates or margins"
        )
    return f"{' or '.join(ways)} would decide"


def _margins_used(draft: Recommendation) -> tuple[str, ...]:
    percent = f"{100 * draft.confidence:g} %"
    delta = f"δ = {_amount(draft.delta, draft.unit)}"
    delta += " (derived from the number of items)" if draft.delta_is_derived else ""
    best = max((v.gain.estimate for v in draft.verdicts), default=math.inf)
    coarse: tuple[str, ...] = ()
    if draft.delta_is_derived and draft.delta > best:
        coarse = ("δ is larger than any gain: this study tells ranks apart only roughly.",)
    if draft.epsilon_points is None:
        return (
            f"Judged with {delta} at {percent} simultaneous confidence.",
            *coarse,
            "Forgetting was not measured: the study has no retention task that decides.",
        )
    epsilon = f"ε = {_amount(draft.epsilon_points, 'points')}"
    epsilon += " (derived from the number of items)" if draft.epsilon_is_derived else ""
    return (f"Judged with {delta} and {epsilon} at {percent} simultaneous confidence.", *coarse)


def _verdict(verdict: RankVerdict, draft: Recommendation) -> str:
    unit = draft.unit
    better = {"yes": "", "no": ", worse than the base", "undecided": ", not shown better"}
    parts = [
        f"gain {_amount(verdict.gain.estimate, unit)} ({_range(verdict.gain, unit)})"
        + better[verdict.better_than_base]
    ]
    if verdict.retention_loss is not None and verdict.keeps_enough is not None:
        keeps = {"yes": "", "no": ", too much", "undecided": ", not shown below ε"}
        loss = (
            f"retention loss {_amount(verdict.retention_loss.estimate, 'points')} "
            f"({_range(verdict.retention_loss, 'points')}){keeps[verdict.keeps_enough]}"
        )
        if verdict.worst_retention_task is not None and verdict.worst_retention_loss is not None:
            loss += (
                f", worst {verdict.worst_retention_task} "
                f"{_number(verdict.worst_retention_loss, 'points')}"
            )
        parts.append(loss)
    if len(draft.verdicts) > 1:
        near = {"yes": "", "no": ", too much", "undecided": ", not shown below δ"}
        parts.append(
            f"at most {_amount(max(verdict.shortfall.upper, 0.0), unit)} below the best"
            + near[verdict.near_the_best]
        )
    ends = "qualifies" if verdict.qualifies else "does not qualify"
    return f"{quantities.capital(verdict.label)} {ends}: {'; '.join(parts)}."


def _alternatives(draft: Recommendation, parameters: Sequence[int]) -> tuple[str, ...]:
    able = [(v, n) for v, n in zip(draft.verdicts, parameters, strict=True) if v.qualifies]
    if len(able) < 2:
        return ()
    (chosen, size), *others = able
    texts: list[str] = []
    for other, number in others:
        more = other.gain.estimate - chosen.gain.estimate
        text = f"{other.label} ({more:+.{_digits(draft.unit)}f} {draft.unit} in-domain"
        if other.retention_loss is not None and chosen.retention_loss is not None:
            lost = other.retention_loss.estimate - chosen.retention_loss.estimate
            text += f", {lost:+.1f} points of retention loss"
        texts.append(f"{text}, {number / size:.3g} times the trainable parameters)")
    return (f"Alternatives that qualify too: {', '.join(texts)}.",)


def _full(full: Sequence[FullGain], unit: Unit) -> tuple[str, ...]:
    """Full fine-tuning beside the ranks."""
    texts: list[str] = []
    for each in full:
        name = quantities.capital(each.label)
        text = f"{name}, for comparison only: gain {_amount(each.gain, unit)}"
        loss = each.retention_loss
        text += "" if loss is None else f"; retention loss {_amount(loss, 'points')}"
        texts.append(f"{text}.")
    return tuple(texts)


def _by_format(draft: Recommendation) -> tuple[str, ...]:
    """Where a loss is shown to be smaller if the task is asked as the training asked."""
    return tuple(
        f"A matter of format: {effect.run} changes by "
        f"{_number(effect.standard_difference, effect.unit)} on {effect.task} and by "
        f"{_amount(effect.difference, effect.unit)} where it is asked as in training "
        f"({effect.scored_as}); the difference is at least "
        f"{_number(-effect.by_format.upper, effect.unit)}."
        for effect in draft.format_effects
        if effect.by_format is not None
        and effect.by_format.upper < 0
        and effect.standard_difference < 0
    )


def _digits(unit: Unit) -> int:
    return 1 if unit == "points" else 3


def _number(value: float, unit: Unit) -> str:
    digits = _digits(unit)
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _amount(value: float, unit: Unit) -> str:
    return f"{_number(value, unit)} {unit}"


def _range(bound: Bound, unit: Unit) -> str:
    return f"{_number(bound.lower, unit)} to {_number(bound.upper, unit)}"


def _settings(verdict: RankVerdict) -> str:
    """All that a user must set beside the rank; an imported adapter does not say everything."""
    rate, epochs = verdict.learning_rate, verdict.epochs
    parts = [f"alpha {verdict.alpha:g}"]
    if not math.isclose(verdict.scaling, verdict.alpha / verdict.rank):
        parts[0] += " with rsLoRA"
    parts += [] if rate is None else [f"learning rate {quantities.learning_rate(rate)}"]
    parts.append(quantities.modules(verdict.target_modules))
    parts += [] if epochs is None else [quantities.counted(epochs, "epoch")]
    return ", ".join(parts)
