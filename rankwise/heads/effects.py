"""Effects of ablating heads: paired over items, with a control, corrected over heads."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.findings.stats.estimates import crossed_difference, holm, zero_p_value
from rankwise.findings.stats.items import Floats
from rankwise.records.heads import HeadEffect, HeadEstimate


def head_effects(
    heads: Sequence[tuple[int, int]],
    adapted: Floats,
    control: Floats,
    *,
    item_size: float,
    confidence: float,
    num_candidates: int,
) -> tuple[HeadEffect, ...]:
    """The effect of every head, and the same head's effect in the control.

    Args:
        heads: layer and number of each.
        adapted: (heads, items) of the run's model, signed so that more is better: the value under
            an ablation of each head, less that of the model as it is.
        control: of the base, same items and heads.
        item_size: what one whole item counts: 100 for points, 0 for nats (``stats``).
        confidence: of the bounds, for all candidates at once.
        num_candidates: number of heads that these were chosen from, themselves included.
    """

    def corrected(effects: Floats, size: float) -> tuple[HeadEstimate, ...]:
        return estimates(effects, item_size=size, confidence=confidence, family=num_candidates)

    effect, of_base = corrected(adapted, item_size), corrected(control, item_size)
    # A difference of two models' effects: each may have unseen disagreements, so their variance
    # counts twice.
    beyond = corrected(adapted - control, item_size * 2**0.5)
    return tuple(
        HeadEffect(layer=layer, head=head, effect=of_run, control=base, beyond_control=less)
        for (layer, head), of_run, base, less in zip(heads, effect, of_base, beyond, strict=True)
    )


def estimates(
    effects: Floats, *, item_size: float, confidence: float, family: int
) -> tuple[HeadEstimate, ...]:
    """Means over items, corrected over a family of rows: bounds by Bonferroni, p-values by Holm.

    Rows of the family that are not given enter with a p-value of 1. So the correction also holds
    if the given rows were chosen by the same items.

    Args:
        effects: (rows, items), at least two items.
        item_size: as in ``head_effects``.
        confidence: that all bounds hold together, 0..1.
        family: number of rows, the given ones included.
    """
    means = [crossed_difference(row, item_size=item_size) for row in effects]
    level = 1.0 - (1.0 - confidence) / max(family, 1)
    adjusted = holm([*map(zero_p_value, means), *[1.0] * (family - len(means))])
    bounds = [mean.interval(level) for mean in means]
    return tuple(
        HeadEstimate(
            estimate=mean.value, stderr=mean.stderr, lower=lower, upper=upper, p_value=p_value
        )
        for mean, (lower, upper), p_value in zip(means, bounds, adjusted, strict=False)
    )
