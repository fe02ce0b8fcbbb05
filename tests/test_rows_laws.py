"""Laws of a learning curve: planted ones are found, and nothing is fitted to two points."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.rows_laws import fitted_laws

SIZES = (50, 100, 200, 400, 800, 1600)


def test_a_logarithm_is_found_and_continued() -> None:
    values = [10.0 + 3.0 * np.log2(n / 50) for n in SIZES]
    law = fitted_laws(SIZES, values, 0.5)[0]
    assert law.name == "logarithm"
    assert law.at(3200) == pytest.approx(28.0)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_a_power_law_is_found_and_continued(exponent: float) -> None:
    def law(n: float) -> float:
        return 40.0 - 30.0 * (n / 50) ** -exponent

    found = fitted_laws(SIZES, [law(n) for n in SIZES], 0.5)[0]
    assert found.name == "power law"
    assert found.exponent == pytest.approx(exponent, rel=1e-3)
    assert found.at(3200) == pytest.approx(law(3200), abs=0.01)


def test_noise_alone_is_a_constant_in_most_cases() -> None:
    """By AIC the line is taken where its gain is above 2: 16 % of the time, the power law less."""
    rng = np.random.default_rng(0)
    names = [fitted_laws(SIZES, rng.normal(20.0, 1.0, 6), 1.0)[0].name for _ in range(300)]
    assert 0.70 < names.count("constant") / 300 < 0.90


def test_a_curve_that_falls_is_continued_too() -> None:
    assert fitted_laws((50, 100, 200), [3.0, 2.0, 1.0], 0.01)[0].at(400) == pytest.approx(0.0)


def test_values_without_any_noise_are_fitted() -> None:
    assert fitted_laws((50, 100, 200), [1.0, 1.0, 1.0], 0.0)[0].at(400) == pytest.approx(1.0)


def test_two_sizes_are_no_curve() -> None:
    with pytest.raises(ValueError, match="2 sizes make no curve; at least 3 are needed"):
        fitted_laws((50, 100), [1.0, 2.0], 1.0)
