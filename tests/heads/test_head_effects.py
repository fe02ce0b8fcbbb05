"""Effects of heads from planted items: a planted effect is shown, noise is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rankwise.findings.stats.correlation import rank_correlation
from rankwise.findings.stats.items import Floats
from rankwise.heads.effects import estimates, head_effects
from rankwise.records.heads import HeadEstimate

HEADS = [(layer, head) for layer in range(5) for head in range(8)]


def effects_of(planted: dict[int, float], seed: int, noise: float = 0.3) -> Floats:
    rng = np.random.default_rng(seed)
    effects = rng.normal(scale=noise, size=(40, 60))
    for row, effect in planted.items():
        effects[row] += effect
    return effects


def corrected(effects: Floats, family: int) -> tuple[HeadEstimate, ...]:
    return estimates(effects, item_size=0.0, confidence=0.95, family=family)


def test_a_planted_effect_is_found_and_its_control_is_not() -> None:
    adapted, base = effects_of({7: -0.5, 20: 0.4}, 0), effects_of({20: 0.4}, 1)
    found = head_effects(HEADS, adapted, base, item_size=0.0, confidence=0.95, num_candidates=40)
    assert [(each.layer, each.head) for each in found] == HEADS
    assert {n for n, each in enumerate(found) if each.effect.sign() != 0} == {7, 20}
    assert {n for n, each in enumerate(found) if each.control.sign() != 0} == {20}
    beyond = [each.beyond_control for each in found]
    assert {n for n, each in enumerate(beyond) if each.sign() != 0} == {7}
    assert found[7].effect.estimate == pytest.approx(-0.5, abs=0.15)
    assert found[7].effect.stderr == pytest.approx(0.3 / math.sqrt(60), rel=0.3)


def test_noise_in_many_heads_is_rarely_shown() -> None:
    """Of forty heads without an effect, in one study of twenty at most one head is shown."""
    wrong = sum(
        any(each.sign() != 0 for each in corrected(effects_of({}, seed), 40)) for seed in range(100)
    )
    assert wrong <= 12  # 5 expected


def test_heads_that_the_same_items_have_chosen_are_corrected_over_all() -> None:
    """The largest of forty effects of noise is often shown, unless all forty are counted."""
    alone = among = 0
    for seed in range(100):
        effects = effects_of({}, seed)
        largest = effects[[np.abs(effects.mean(axis=1)).argmax()]]
        alone += corrected(largest, 1)[0].sign() != 0
        among += corrected(largest, 40)[0].sign() != 0
    assert alone >= 60
    assert among <= 12


def test_p_values_and_bounds_are_corrected_over_the_heads() -> None:
    effects = effects_of({3: 0.15}, 4)
    alone, among = corrected(effects[3:4], 1)[0], corrected(effects, 40)[3]
    assert corrected(effects[3:4], 40)[0].lower == among.lower
    assert alone.estimate == among.estimate
    assert alone.p_value < among.p_value
    assert among.lower < alone.lower < alone.upper < among.upper


def test_points_without_a_flipped_item_are_not_certain() -> None:
    """No item of 20 has changed: that is no proof that none ever would."""
    (found,) = estimates(np.zeros((1, 20)), item_size=100.0, confidence=0.95, family=1)
    assert found.estimate == 0.0
    assert found.stderr > 0.0
    assert found.p_value == 1.0
    (exact,) = corrected(np.zeros((1, 20)), 1)
    assert exact.stderr == 0.0


def test_equal_orders_correlate() -> None:
    found = rank_correlation([1, 2, 3, 4, 5], [10, 20, 30, 40, 50])
    assert found is not None
    assert found.estimate == pytest.approx(1.0)
