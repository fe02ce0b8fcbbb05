"""Spearman's correlation: hand-computed values, and that its interval covers what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rankwise.findings.stats.correlation import rank_correlation


def test_a_hand_computed_correlation_with_its_interval() -> None:
    # ranks 1 2 3 4 5 against 2 1 4 3 5: Σd² = 4, ρ = 1 - 6·4/(5·24) = 0.8
    found = rank_correlation([1, 2, 3, 4, 5], [20, 10, 40, 30, 50])
    assert found is not None
    assert found.estimate == pytest.approx(0.8)
    width = 1.959964 * math.sqrt((1 + 0.8**2 / 2) / 2)
    assert found.lower == pytest.approx(math.tanh(math.atanh(0.8) - width), abs=1e-6)
    assert found.upper == pytest.approx(math.tanh(math.atanh(0.8) + width), abs=1e-6)


def test_a_perfect_order_of_few_keeps_a_wide_interval() -> None:
    few = rank_correlation([1, 2, 3, 4], [1, 2, 3, 4])
    many = rank_correlation(list(range(30)), [-value for value in range(30)])
    assert few is not None
    assert many is not None
    assert (few.estimate, few.upper) == (1.0, 1.0)
    assert few.lower < 0.0  # four pairs in order show nothing
    assert many.estimate == many.lower == -1.0
    assert many.upper < -0.95


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([], [])]
)
def test_too_few_pairs_or_no_spread_have_none(x: list[float], y: list[float]) -> None:
    assert rank_correlation(x, y) is None


def test_values_without_partners_are_refused() -> None:
    with pytest.raises(ValueError, match="4 and 5 values"):
        rank_correlation([1, 2, 3, 4], [1, 2, 3, 4, 5])


@pytest.mark.parametrize(("n", "true_rho"), [(6, 0.0), (12, 0.5), (40, 0.8)])
def test_intervals_cover_as_often_as_they_say(n: int, true_rho: float) -> None:
    rng = np.random.default_rng(n)
    pearson = 2 * math.sin(math.pi * true_rho / 6)  # of a normal pair with this Spearman's ρ
    covered = 0
    for _ in range(600):
        x = rng.standard_normal(n)
        y = pearson * x + math.sqrt(1 - pearson**2) * rng.standard_normal(n)
        found = rank_correlation(x.tolist(), y.tolist())
        assert found is not None
        covered += found.lower <= true_rho <= found.upper
    assert covered / 600 > 0.92
