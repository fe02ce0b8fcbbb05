"""Effects of interventions on heads: paired over items, with a control, corrected over heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rankwise.head_records import HeadEffect, HeadEstimate
from rankwise.stats import Floats, crossed_difference, holm, zero_p_value


class HeadScores(NamedTuple):
    """A model's values by item, signed so that more is better.

    Attributes:
        intact: (items,) of the model as it is.
        changed: (heads, items) under an intervention on each head.
    """

    intact: Floats
    changed: Floats

    @property
    def effects(self) -> Floats:
        """(heads, items) what each intervention adds."""
        return self.changed - self.intact


def head_effects(
    heads: Sequence[tuple[int, int]],
    adapted: HeadScores,
    control: HeadScores,
    *,
    item_size: float,
    confidence: float,
    less_control: bool,
) -> tuple[HeadEffect, ...]:
    """The effect on every head, and that on the control.

    Args:
        heads: layer and number of each.
        adapted: of the run's model.
        control: of the base, same items and heads.
        item_size: what one whole item counts: 100 for points, 0 for nats (``stats``).
        confidence: of the bounds, for all heads at once.
        less_control: whether effect less control means anything.
    """
    effect = estimates(adapted.effects, item_size=item_size, confidence=confidence)
    of_base = estimates(control.effects, item_size=item_size, confidence=confidence)
    beyond: Sequence[HeadEstimate | None] = [None] * len(heads)
    if less_control:
        difference = adapted.effects - control.effects
        # two models' disagreements with themselves: twice as many may be unseen
        beyond = estimates(difference, item_size=item_size * 2**0.5, confidence=confidence)
    return tuple(
        HeadEffect(layer=layer, head=head, effect=own, control=base, beyond_control=less)
        for (layer, head), own, base, less in zip(heads, effect, of_base, beyond, strict=True)
    )


def estimates(effects: Floats, *, item_size: float, confidence: float) -> tuple[HeadEstimate, ...]:
    """Means over items, corrected over the rows: bounds by Bonferroni, p-values by Holm.

    Args:
        effects: (rows, items), at least two items.
        item_size: as in ``head_effects``.
        confidence: that all bounds hold together, 0..1.
    """
    found = [crossed_difference(row, item_size=item_size) for row in effects]
    level = 1.0 - (1.0 - confidence) / max(len(found), 1)
    adjusted = holm([zero_p_value(each) for each in found])
    bounds = [each.interval(level) for each in found]
    return tuple(
        HeadEstimate(
            estimate=each.value, stderr=each.stderr, lower=lower, upper=upper, p_value=p_value
        )
        for each, (lower, upper), p_value in zip(found, bounds, adjusted, strict=True)
    )


def first_half(effects: Floats) -> tuple[float, ...]:
    """The mean over items 0, 2, 4 ... of each row: what a choice of heads may look at."""
    return tuple(float(value) for value in np.atleast_2d(effects)[:, ::2].mean(axis=1))
