"""A ratio of two means: its interval by definition and by coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rankwise.findings.shares import ratio_of_means
from rankwise.findings.stats.estimates import crossed_difference


def fieller(numerator: Any, denominator: Any, confidence: float = 0.95) -> Any:
    one, other = (crossed_difference(values, item_size=0.0) for values in (numerator, denominator))
    both = crossed_difference(np.asarray(numerator) - np.asarray(denominator), item_size=0.0)
    return ratio_of_means(one, other, both, confidence)


def test_the_interval_of_a_ratio_is_where_the_two_may_be_alike() -> None:
    """By its definition: at its ends, numerator - θ denominator is just not shown to differ."""
    generator = np.random.default_rng(5)
    denominator = generator.normal(3.0, 2.0, 200)
    numerator = 0.8 * denominator + generator.normal(0.0, 1.0, 200)
    ratio = fieller(numerator, denominator)
    assert ratio.estimate == pytest.approx(numerator.mean() / denominator.mean())
    for end in (ratio.lower, ratio.upper):
        at_end = crossed_difference(numerator - end * denominator, item_size=0.0)
        quantile = float(at_end.spread.quantile(0.975))
        assert abs(at_end.value) == pytest.approx(quantile * at_end.stderr, rel=1e-6)


def test_the_interval_of_a_ratio_covers() -> None:
    generator = np.random.default_rng(11)
    hits = 0
    for _ in range(1000):
        denominator = generator.normal(1.0, 2.0, 60)
        numerator = 0.5 * denominator + generator.normal(0.0, 1.0, 60)
        ratio = fieller(numerator, denominator)
        hits += ratio.estimate is not None and ratio.lower <= 0.5 <= ratio.upper
        hits += ratio.estimate is None  # every θ may be right
    assert 0.93 <= hits / 1000 <= 0.975
