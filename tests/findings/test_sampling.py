"""Means over all items from some of them, against planted truths: unbiased, and covered."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.margin_sampling import Population, measure
from rankwise.findings.stats.items import Floats
from rankwise.findings.stats.sampling import (
    SampledMean,
    draw,
    inclusion_probabilities,
    mean_of_all,
)

N, DRAWN, DRAWS = 500, 100, 2_000
NO_PREDICTORS = np.empty((N, 0))


def margins_of(rng: np.random.Generator) -> Floats:
    """(N,) log odds of the right option in the base."""
    return rng.normal(0.5, 2.0, N)


def zero_one(margins: Floats, rng: np.random.Generator) -> Floats:
    """Differences of accuracy: items flip by their margins, and a few anywhere."""
    flips = rng.random(N) < 0.05 + 0.5 * np.exp(-np.abs(margins))
    return np.where(flips, np.where(margins > 0, -1.0, 1.0), 0.0)


def p_right(margins: Floats, rng: np.random.Generator) -> Floats:
    """Differences of p(right): every margin moves."""
    return share(margins + rng.normal(0.1, 1.0, N)) - share(margins)


def share(margins: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-margins))


def right_sizes(margins: Floats) -> Floats:
    p = share(margins)
    return np.sqrt(p * (1.0 - p))


def useless_sizes(margins: Floats) -> Floats:
    return np.random.default_rng(5).random(len(margins))


def perverse_sizes(margins: Floats) -> Floats:
    return 0.5 - right_sizes(margins)


def predictors_of(margins: Floats) -> Floats:
    return np.column_stack([share(margins), right_sizes(margins)])


def estimates(
    values: Floats, sizes: Floats, predictors: Floats, rng: np.random.Generator
) -> list[SampledMean]:
    """Of many draws."""
    probabilities = inclusion_probabilities(sizes, DRAWN)
    drawn = [draw(probabilities, rng) for _ in range(DRAWS)]
    return [mean_of_all(values[places], places, probabilities, predictors) for places in drawn]


def test_probabilities_by_hand() -> None:
    """The largest is drawn for certain; the others share what is left by their sizes."""
    sizes = np.array([1.0, 1.0, 2.0, 6.0])
    assert inclusion_probabilities(sizes, 2) == pytest.approx([0.25, 0.25, 0.5, 1.0])
    floored = np.array([0.0, 1.0, 1.0, 2.0])  # 0 becomes a tenth of the mean
    assert inclusion_probabilities(floored, 2) == pytest.approx(
        np.array([0.1, 1.0, 1.0, 2.0]) * 2 / 4.1
    )
    assert inclusion_probabilities(np.zeros(4), 3) == pytest.approx([0.75] * 4)


@pytest.mark.parametrize("num", [2, 17, 250, 499, 500])
def test_probabilities_add_up(num: int) -> None:
    sizes = np.random.default_rng(num).exponential(size=N) ** 3
    probabilities = inclusion_probabilities(sizes, num)
    assert probabilities.sum() == pytest.approx(num)
    assert (probabilities > 0).all()
    assert (probabilities <= 1).all()


@pytest.mark.parametrize(
    ("sizes", "num", "floor", "problem"),
    [
        ([1.0, -1.0, 1.0], 2, 0.1, "negative"),
        ([1.0, np.nan, 1.0], 2, 0.1, "not a finite"),
        ([1.0, 1.0, 1.0], 1, 0.1, "1 of 3 items"),
        ([1.0, 1.0, 1.0], 4, 0.1, "4 of 3 items"),
        ([1.0, 1.0, 1.0], 2, 0.0, "floor"),
    ],
)
def test_what_cannot_be_drawn(sizes: list[float], num: int, floor: float, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        inclusion_probabilities(np.array(sizes), num, floor)


def test_items_are_drawn_with_their_probabilities() -> None:
    rng = np.random.default_rng(1)
    probabilities = inclusion_probabilities(rng.exponential(size=40), 12)
    counts, draws = np.zeros(40), 20_000
    for _ in range(draws):
        places = draw(probabilities, rng)
        assert len(np.unique(places)) == 12
        counts[places] += 1
    errors = np.sqrt(probabilities * (1 - probabilities) / draws)
    # of 40 normal numbers one is above 4.5 once in 3,700 times
    assert (np.abs(counts / draws - probabilities) <= 4.5 * errors).all()
    same = [draw(probabilities, np.random.default_rng(3)) for _ in range(2)]
    assert (same[0] == same[1]).all()


def test_equal_probabilities_draw_every_pair_alike() -> None:
    rng = np.random.default_rng(2)
    pairs, draws = np.zeros((10, 10)), 20_000
    for _ in range(draws):
        places = draw(np.full(10, 0.4), rng)
        pairs[np.ix_(places, places)] += 1
    shares = pairs[~np.eye(10, dtype=bool)] / draws
    expected = 4 * 3 / (10 * 9)
    assert shares == pytest.approx(expected, abs=4.5 * (expected * (1 - expected) / draws) ** 0.5)


@pytest.mark.parametrize("differences", [zero_one, p_right])
@pytest.mark.parametrize("sizes", [right_sizes, useless_sizes, perverse_sizes])
@pytest.mark.parametrize("predicted", [True, False])
def test_unbiased_whatever_the_margins_say(
    differences: Callable[[Floats, np.random.Generator], Floats],
    sizes: Callable[[Floats], Floats],
    predicted: bool,
) -> None:
    rng = np.random.default_rng(11)
    margins = margins_of(rng)
    values = differences(margins, rng)
    predictors = predictors_of(margins) if predicted else NO_PREDICTORS
    found = np.array([mean.value for mean in estimates(values, sizes(margins), predictors, rng)])
    assert abs(found.mean() - values.mean()) <= 3 * found.std() / DRAWS**0.5


@pytest.mark.parametrize("differences", [zero_one, p_right])
@pytest.mark.parametrize("sizes", [right_sizes, useless_sizes])
def test_intervals_cover_the_mean_of_these_items(
    differences: Callable[[Floats, np.random.Generator], Floats],
    sizes: Callable[[Floats], Floats],
) -> None:
    rng = np.random.default_rng(12)
    margins = margins_of(rng)
    values = differences(margins, rng)
    found = estimates(values, sizes(margins), predictors_of(margins), rng)
    bounds = np.array([mean.interval(0.95, of_all_such_items=False) for mean in found])
    covered = (bounds[:, 0] <= values.mean()) & (values.mean() <= bounds[:, 1])
    assert 0.93 <= covered.mean() <= 0.97
    stated = np.mean([mean.sampling_variance for mean in found])
    assert stated == pytest.approx(np.var([mean.value for mean in found]), rel=0.12)


@pytest.mark.parametrize("differences", [zero_one, p_right])
def test_intervals_cover_the_mean_of_all_such_items(
    differences: Callable[[Floats, np.random.Generator], Floats],
) -> None:
    """The N items are new in every draw; the truth is the mean of very many."""
    rng = np.random.default_rng(13)
    truth = np.mean([differences(margins_of(rng), rng).mean() for _ in range(20_000)])
    covered = 0
    for _ in range(DRAWS):
        margins = margins_of(rng)
        values = differences(margins, rng)
        probabilities = inclusion_probabilities(right_sizes(margins), DRAWN)
        places = draw(probabilities, rng)
        mean = mean_of_all(values[places], places, probabilities, predictors_of(margins))
        lower, upper = mean.interval(0.95, of_all_such_items=True)
        covered += bool(lower <= truth <= upper)
    assert 0.93 <= covered / DRAWS <= 0.97


@pytest.mark.parametrize("sizes", [right_sizes, np.ones_like])
def test_all_items_give_the_plain_estimate(sizes: Callable[[Floats], Floats]) -> None:
    rng = np.random.default_rng(14)
    margins = margins_of(rng)
    values = p_right(margins, rng)
    probabilities = inclusion_probabilities(sizes(margins), N)
    mean = mean_of_all(values, draw(probabilities, rng), probabilities, predictors_of(margins))
    assert mean.value == pytest.approx(values.mean())
    assert mean.sampling_variance == pytest.approx(0.0, abs=1e-15)
    assert mean.item_variance == pytest.approx(values.var(ddof=1) / N)


def test_equal_probabilities_are_plain_sampling() -> None:
    rng = np.random.default_rng(15)
    values = p_right(margins_of(rng), rng)
    probabilities = inclusion_probabilities(np.ones(N), DRAWN)
    places = draw(probabilities, rng)
    seen = values[places]
    mean = mean_of_all(seen, places, probabilities, NO_PREDICTORS)
    assert mean.value == pytest.approx(seen.mean())
    plain = (1 - DRAWN / N) * seen.var(ddof=1) / DRAWN
    assert mean.sampling_variance == pytest.approx(plain)
    assert mean.plain_variance == pytest.approx(plain)
    assert mean.effective_sample_size == pytest.approx(1.0)
    assert mean.item_variance == pytest.approx(seen.var(ddof=1) / N)


def test_the_estimate_of_a_difference_is_the_difference_of_the_estimates() -> None:
    rng = np.random.default_rng(16)
    margins = margins_of(rng)
    one, other = p_right(margins, rng), p_right(margins, rng)
    probabilities = inclusion_probabilities(right_sizes(margins), DRAWN)
    places = draw(probabilities, rng)
    values = np.array([one, other, one - other])[:, places]
    mean = mean_of_all(values, places, probabilities, predictors_of(margins))
    assert mean.value[2] == pytest.approx(mean.value[0] - mean.value[1])
    alone = mean_of_all(values[1], places, probabilities, predictors_of(margins))
    assert alone.value == pytest.approx(mean.value[1])
    assert alone.sampling_variance == pytest.approx(mean.sampling_variance[1])


def test_sizes_that_are_true_save_what_theory_says() -> None:
    """Differences of mean 0 whose spread is the size: the probabilities of least variance."""
    rng = np.random.default_rng(17)
    sizes = rng.exponential(size=N) + 0.2
    values = rng.normal(0.0, sizes)
    found = estimates(values, sizes, NO_PREDICTORS, rng)
    plain = (1 - DRAWN / N) * values.var(ddof=1) / DRAWN
    measured = plain / np.var([mean.value for mean in found])
    p = inclusion_probabilities(sizes, DRAWN)
    least = (sizes**2 * (1 / p - 1)).sum() / N**2
    expected = (1 - DRAWN / N) * (sizes**2).mean() / DRAWN / least
    assert expected > 1.5
    assert measured == pytest.approx(expected, rel=0.15)
    stated = np.median([mean.effective_sample_size for mean in found])
    assert stated == pytest.approx(measured, rel=0.15)


def test_a_prediction_from_another_model_saves_what_its_correlation_says() -> None:
    """And a benchmark's cell says so: of the first adapter's value, not of the margins."""
    rng = np.random.default_rng(18)
    base = 50 + rng.normal(size=N)
    first = base + rng.normal(size=N)
    adapters = np.array([first, *(first + rng.normal(0.0, 0.5, (2, N)))])
    population = Population("planted", "p_right", rng.uniform(0.2, 0.8, N), base, adapters)
    by_design = {
        design: next(iter(measure(population, 0.25, design, DRAWS))).ess
        for design in ("control", "first")
    }
    # the differences' variance is 1 + 0.25, of which the first adapter leaves 0.25
    assert by_design["first"] == pytest.approx(5.0, rel=0.2)
    assert by_design["control"] == pytest.approx(1.0, rel=0.1)


def test_pseudo_items_widen_where_nothing_was_seen() -> None:
    probabilities = inclusion_probabilities(np.ones(N), DRAWN)
    places = draw(probabilities, np.random.default_rng(19))
    values = np.zeros(DRAWN)
    bare = mean_of_all(values, places, probabilities, NO_PREDICTORS)
    widened = mean_of_all(values, places, probabilities, NO_PREDICTORS, item_size=100.0)
    assert bare.sampling_variance == bare.item_variance == 0.0
    assert np.isnan(bare.effective_sample_size)
    # two disagreements of 100 points among 100 items, of which a fifth of 500 was drawn
    assert widened.sampling_variance == pytest.approx(0.8 * 2 * 100.0**2 / DRAWN**2)
    assert widened.item_variance == pytest.approx(2 * 100.0**2 / DRAWN / N)


def test_what_does_not_fit_together() -> None:
    probabilities = inclusion_probabilities(np.ones(N), DRAWN)
    places = draw(probabilities, np.random.default_rng(20))
    with pytest.raises(ValueError, match="fit together"):
        mean_of_all(np.zeros(N), places, probabilities, NO_PREDICTORS)
    with pytest.raises(ValueError, match="fit together"):
        mean_of_all(np.zeros(DRAWN), places, probabilities, np.empty((DRAWN, 0)))
    with pytest.raises(ValueError, match="finite"):
        mean_of_all(np.full(DRAWN, np.nan), places, probabilities, NO_PREDICTORS)
