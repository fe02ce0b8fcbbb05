"""Laws of a learning curve: planted ones are found, and nothing is fitted to two points."""

from __future__ import annotations

import numpy as np
import pytest

from rankwise.findings.stats.learning_curve import REACH, at_twice, fitted_laws

SIZES = (50, 100, 200, 400, 800, 1600)


def test_a_logarithm_is_found_and_continued() -> None:
    values = [10.0 + 3.0 * np.log2(n / 50) for n in SIZES]
    found = at_twice(SIZES, values, 0.5)
    assert found.law.name == "logarithm"
    assert found.increase == pytest.approx(3.0)
    assert found.value == pytest.approx(28.0)
    assert found.reach == pytest.approx(REACH * 0.5)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_a_power_law_is_found_and_continued(exponent: float) -> None:
    def law(n: float) -> float:
        return 40.0 - 30.0 * (n / 50) ** -exponent

    found = at_twice(SIZES, [law(n) for n in SIZES], 0.5)
    assert found.law.name == "power law"
    assert found.law.exponent == pytest.approx(exponent, rel=1e-3)
    assert found.value == pytest.approx(law(3200), abs=0.01)


def test_noise_alone_is_a_constant_in_most_cases() -> None:
    """By AIC the line is taken where its gain is above 2: 16 % of the time, the power law less."""
    rng = np.random.default_rng(0)
    names = [fitted_laws(SIZES, rng.normal(20.0, 1.0, 6), 1.0)[0].name for _ in range(300)]
    assert 0.70 < names.count("constant") / 300 < 0.90


def test_a_curve_that_falls_is_continued_too() -> None:
    found = at_twice((50, 100, 200), [3.0, 2.0, 1.0], 0.01)
    assert found.increase == pytest.approx(-1.0)


def test_values_without_any_noise_are_fitted() -> None:
    assert at_twice((50, 100, 200), [1.0, 1.0, 1.0], 0.0).increase == pytest.approx(0.0)


def test_two_sizes_are_no_curve() -> None:
    with pytest.raises(ValueError, match="2 sizes make no curve; at least 3 are needed"):
        fitted_laws((50, 100), [1.0, 2.0], 1.0)
