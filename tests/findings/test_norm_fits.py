"""Which law a planted growth of norms follows."""

from __future__ import annotations

import numpy as np
import pytest

from rankwise.findings.stats.growth import norm_growth

RANKS = [4, 8, 16, 32, 64, 128]


def test_a_logarithmic_growth_is_recognised_with_its_slope() -> None:
    found = norm_growth(RANKS, [1.0 + 0.5 * np.log2(rank) for rank in RANKS])
    assert found is not None
    assert found.logarithmic.slope == pytest.approx(0.5)
    assert found.logarithmic.intercept == pytest.approx(1.0)
    assert found.logarithmic.r_squared == pytest.approx(1.0)
    assert found.power_law.r_squared < 0.99


def test_a_power_law_is_recognised_with_its_exponent() -> None:
    found = norm_growth(RANKS, [0.2 * rank**0.5 for rank in RANKS])
    assert found is not None
    assert found.power_law.slope == pytest.approx(0.5)
    assert np.exp(found.power_law.intercept) == pytest.approx(0.2)
    assert found.logarithmic.r_squared < 0.99


def test_three_ranks_have_both_slopes() -> None:
    found = norm_growth([4, 16, 64], [1.0, 2.1, 2.9])
    assert found is not None
    # slope by hand: x = 2, 4, 6; (1·-2 + 2.9·2) / 8
    assert found.logarithmic.slope == pytest.approx(0.475)
    # residuals -0.05, 0.1, -0.05: s² = 0.015, stderr = sqrt(0.015 / 8), t(1) = 12.706
    assert found.logarithmic.upper - 0.475 == pytest.approx(12.7062 * (0.015 / 8) ** 0.5, rel=1e-4)


def test_the_interval_covers_the_planted_slope() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        norms = [3.0 + 0.4 * np.log2(rank) + 0.1 * rng.standard_normal() for rank in RANKS]
        found = norm_growth(RANKS, norms)
        assert found is not None
        covered += found.logarithmic.lower <= 0.4 <= found.logarithmic.upper
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize("norms", [[1.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
def test_two_ranks_or_a_zero_update_have_no_fit(norms: list[float]) -> None:
    assert norm_growth([8, 8, 16] if norms[0] else [8, 16, 32], norms) is None
