"""Estimates and tests against hand-computed numbers, other implementations and simulation."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from rankwise.findings.stats.blocks import (
    GAIN_RUNS,
    LOSS_RUNS,
    Block,
    RunRows,
    StudyEvidence,
    block,
    crossed,
    lead_variances,
)
from rankwise.findings.stats.detectable import TaskSize, detectable
from rankwise.findings.stats.estimates import (
    SMALLEST_P_VALUE,
    Estimate,
    Spread,
    crossed_difference,
    holm,
    holm_levels,
    mcnemar_exact,
    mean_over_tasks,
    newcombe_interval,
    skewed_quantiles,
    welch_interval,
    wilson_interval,
    zero_p_value,
)
from rankwise.findings.stats.items import Floats, Items, item_size
from rankwise.findings.stats.truths import deciding_level


def one_run_each(values: Floats, size: float) -> Block:
    """The block of (K, n): K options of one run."""
    return block([Items(values, size)], crossed(1, len(values)), GAIN_RUNS)


@pytest.mark.parametrize(
    ("learned", "forgotten"), [(0, 0), (0, 1), (0, 6), (5, 5), (3, 12), (1, 40), (210, 260)]
)
def test_mcnemar_is_exact(learned: int, forgotten: int) -> None:
    ours = mcnemar_exact(learned, forgotten)
    if learned + forgotten == 0:
        assert ours == 1.0
        return
    table = [[70, forgotten], [learned, 30]]
    assert ours == pytest.approx(mcnemar(table, exact=True).pvalue, abs=1e-12)
    tail = sum(math.comb(learned + forgotten, k) for k in range(min(learned, forgotten) + 1))
    assert ours == pytest.approx(min(1.0, 2 * tail / 2 ** (learned + forgotten)), abs=1e-12)


def test_mcnemar_refuses_a_negative_count() -> None:
    with pytest.raises(ValueError, match="-1 learned"):
        mcnemar_exact(-1, 3)


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, made to rise: .02 .03 .06 .06
    assert holm([0.03, 0.005, 0.04, 0.01]) == pytest.approx((0.06, 0.02, 0.06, 0.03))
    assert holm([0.9, 0.6]) == (1.0, 1.0)
    assert holm([]) == ()


def test_paired_difference_by_hand() -> None:
    # 10 items, 4 learned, 1 forgotten: mean .3, sample variance (5 - 10 * .09) / 9
    differences = [1, 1, 1, 1, -1, 0, 0, 0, 0, 0]
    plain = crossed_difference(differences, item_size=0)
    assert plain.value == pytest.approx(0.3)
    assert plain.stderr == pytest.approx(math.sqrt(4.1 / 9 / 10))
    half = stats.t.ppf(0.975, 9) * plain.stderr
    assert plain.interval(0.95)[1] == pytest.approx(0.3 + half)
    safe = crossed_difference(differences, item_size=1)
    assert safe.value == plain.value
    assert safe.stderr == pytest.approx(math.sqrt((4.1 / 9 + 0.2) / 10))


def test_identical_outcomes_keep_an_interval() -> None:
    lower, upper = crossed_difference(np.zeros(300), item_size=100).interval(0.95)
    assert lower == -upper
    assert 0.5 < upper < 1.5
    assert crossed_difference(np.zeros(300), item_size=0).interval(0.95) == (0.0, 0.0)


def test_seeds_and_items_by_hand() -> None:
    # seed means 1, 2, 3; item means of the seed average 1, 3
    values = np.array([[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]])
    estimate = crossed_difference(values, item_size=0)
    seed_part, item_part = 1.0 / 3.0, 2.0 / 2.0
    assert estimate.value == 2.0
    assert estimate.stderr == pytest.approx(math.sqrt(seed_part + item_part))
    students = seed_part * stats.t.ppf(0.975, 2) + item_part * stats.t.ppf(0.975, 1)
    half = students / (seed_part + item_part) * estimate.stderr
    assert estimate.interval(0.95) == pytest.approx((2.0 - half, 2.0 + half))


@pytest.mark.parametrize(
    ("values", "message"), [([1.0], "1 items"), ([1.0, math.nan], "not a finite")]
)
def test_bad_differences_are_refused(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crossed_difference(values, item_size=1)


def test_skewness_only_widens() -> None:
    below, above = skewed_quantiles(np.full(3, 2.0), np.array([-0.1, 0.0, 0.1]))
    assert below == pytest.approx([2.15, 2.0, 2.0])
    assert above == pytest.approx([2.0, 2.0, 2.15])


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(
    ("successes", "total"),
    [(0, 1), (0, 10), (7, 10), (10, 10), (640, 1319), (0.3, 4), (12.75, 31), (999_999.5, 10**6)],
)
def test_wilson_agrees_with_statsmodels(successes: float, total: int, confidence: float) -> None:
    theirs = proportion_confint(successes, total, alpha=1 - confidence, method="wilson")
    assert wilson_interval(successes, total, confidence) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(
    ("after", "before", "total"),
    [(0.0, 0.0, 3), (1.0, 0.0, 8), (0.3, 0.03, 300), (0.123, 0.456, 77), (0.9995, 1.0, 10**5)],
)
def test_newcombe_agrees_with_statsmodels(
    after: float, before: float, total: int, confidence: float
) -> None:
    theirs = confint_proportions_2indep(
        after * total, total, before * total, total, method="newcomb", alpha=1 - confidence
    )
    ours = newcombe_interval(after, before, total, confidence)
    assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("sizes", [(2, 3), (3, 3), (5, 40)])
def test_welch_agrees_with_scipy(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(sizes))
    before, after = (rng.normal(place, 1 + place, n) for place, n in enumerate(sizes))
    theirs = stats.ttest_ind(after, before, equal_var=False).confidence_interval(0.9)
    ours = welch_interval(before, after, 0.9)
    assert ours == pytest.approx((after.mean() - before.mean(), theirs.low, theirs.high))
    assert welch_interval([1.0, 1.0], [0.0, 0.0], 0.9) == (-1.0, -1.0, -1.0)


def test_intervals_cover_also_where_few_items_disagree() -> None:
    rng = np.random.default_rng(1)
    for learned, forgotten in ((0.05, 0.05), (0.02, 0.01), (0.05, 0.0), (0.3, 0.05)):
        covered = 0
        for _ in range(1500):
            draws = rng.random(300)
            differences = (draws < learned) * 1.0 - (draws > 1 - forgotten)
            lower, upper = crossed_difference(differences, item_size=1).interval(0.95)
            covered += lower <= learned - forgotten <= upper
        assert covered / 1500 > 0.93, (learned, forgotten)


def test_crossed_intervals_cover_with_three_seeds() -> None:
    rng = np.random.default_rng(2)
    for seed_spread in (0.0, 1.0, 3.0, 10.0):
        covered = 0
        for _ in range(1500):
            values = rng.normal(0, seed_spread, (3, 1)) + rng.normal(0, 10, (1, 200))
            values = values + rng.normal(0, 15, (3, 200))
            lower, upper = crossed_difference(values, item_size=0).interval(0.95)
            covered += lower <= 0 <= upper
        assert covered / 1500 > 0.93, seed_spread


def test_blocks_agree_with_the_single_estimate() -> None:
    rng = np.random.default_rng(5)
    gains = 100.0 * rng.integers(-1, 2, (3, 80))
    of = one_run_each(gains, 100.0)
    alone = [crossed_difference(values, item_size=100) for values in gains]
    assert of.mean == pytest.approx([one.value for one in alone])
    assert np.sqrt(np.diagonal(of.covariance)) == pytest.approx([one.stderr for one in alone])
    lead = crossed_difference(gains[0] - gains[2], item_size=100)
    assert lead_variances(of.covariance)[0, 2] == pytest.approx(lead.stderr**2)
    # several tasks, each counting the same: means, and a quarter of the variances of two
    tasks = [Items(100.0 * rng.integers(-1, 2, (3, n)), 100.0) for n in (50, 70)]
    both = StudyEvidence(tasks, tasks, crossed(1, 3))
    assert both.retention is not None
    each = [[crossed_difference(v, item_size=100) for v in task.values] for task in tasks]
    mean = [(one.value + other.value) / 2 for one, other in zip(*each, strict=True)]
    assert both.retention.mean == pytest.approx(mean)
    variance = [(one.stderr**2 + other.stderr**2) / 4 for one, other in zip(*each, strict=True)]
    assert np.diagonal(both.retention.covariance) == pytest.approx(variance)
    assert [part.mean[1] for part in both.tasks] == pytest.approx([part[1].value for part in each])


def test_runs_are_averaged_in_any_number_and_order() -> None:
    """Three runs of the first option, one of the second, mixed: each mean has its own number."""
    rng = np.random.default_rng(16)
    first, second = rng.normal(10.0, 20.0, (3, 60)), rng.normal(12.0, 20.0, (1, 60))
    rows = RunRows(np.array([0, 1, 0, 0]), np.arange(4))
    mixed = np.stack([first[0], second[0], first[1], first[2]])
    of = block([Items(mixed, 0.0)], rows, GAIN_RUNS)
    assert of.rows.counts.tolist() == [3, 1]
    by_item = np.stack([first.mean(axis=0), second[0]])
    assert of.mean == pytest.approx(by_item.mean(axis=1))
    # of these runs the variance is that of their mean, item by item, as if it were one run
    assert of.covariance == pytest.approx(np.cov(by_item) / 60)
    assert of.interaction[1] == 0.0
    # two-way analysis: the residual of run and item has (3 - 1) (60 - 1) degrees of freedom
    residual = first - first.mean(axis=0) - first.mean(axis=1, keepdims=True) + first.mean()
    mean_square = (residual**2).sum() / (2 * 59)
    assert of.interaction[0] == pytest.approx(mean_square / (3 * 60))


def test_the_variance_of_a_run_is_that_of_its_deviations_and_of_the_prior() -> None:
    # runs of 0, 2 and 1, the same on both items; another option has one run
    values = np.repeat([[0.0], [2.0], [1.0], [7.0]], 2, axis=1)
    of = block([Items(values, 0.0)], RunRows(np.array([0, 0, 0, 1]), np.arange(4)), GAIN_RUNS)
    runs = of.run_variances
    # two degrees of freedom with a sum of squares of 2, and 1.6 of 1.3 squared points
    assert runs.freedom == pytest.approx([3.6, 1.6])
    assert runs.variance == pytest.approx([(2.0 + 1.6 * 1.3) / 3.6, 1.3])
    # in another unit the prior is another number of the same points
    nats = block([Items(values / 100, 0.0)], of.rows, GAIN_RUNS.in_unit(0.01)).run_variances
    assert nats.variance == pytest.approx(runs.variance / 1e4)
    # runs that differ by their items alone say that the option's runs are alike
    rng = np.random.default_rng(17)
    seen = [
        block([Items(rng.normal(0.0, 20.0, (3, 100)), 0.0)], crossed(3, 1), LOSS_RUNS)
        for _ in range(400)
    ]
    # means of 100 items have a variance of 4, of which the two deviations keep what is above it
    above = np.mean([4.5 * of.run_variances.variance[0] - 2.5 * 0.6 for of in seen])
    expected = 4.0 * np.maximum(rng.chisquare(2, 200_000) - 2.0, 0.0).mean()
    assert above == pytest.approx(expected, rel=0.25)


def test_leads_have_pseudo_items_of_their_own_size() -> None:
    """Gains of 60 points, which both options have; leads are 1 point at most."""
    rng = np.random.default_rng(13)
    shared = np.repeat([60.0, -60.0], 50)
    values = np.array([shared, shared + rng.choice([-1.0, 1.0], 100)])
    of = one_run_each(values, 61.0)
    lead = values[1] - values[0]
    by_items = (lead.var(ddof=1) + 2 * 1.0**2 / 100) / 100
    assert lead_variances(of.covariance)[1, 0] == pytest.approx(by_items)
    own = (shared.var(ddof=1) + 2 * 61.0**2 / 100) / 100
    assert of.covariance[0, 0] == pytest.approx(own)
    # right and wrong items: a lead may be a whole item, seen or not
    same = 100.0 * rng.integers(-1, 2, (1, 100)).repeat(2, axis=0)
    whole = lead_variances(one_run_each(same, 100.0).covariance)
    assert whole[1, 0] == pytest.approx(2 * 100.0**2 / 100**2)


def test_leads_with_a_tail_are_covered() -> None:
    """One item in 100 is 40 points apart, the others hardly: at 100 items it may be unseen."""
    rng, missed, studies = np.random.default_rng(14), 0, 2000
    quantile = stats.norm.ppf(1 - 0.04 / 4)
    for _ in range(studies):
        apart = np.where(rng.random(100) < 0.01, -40.0, 0.4) + rng.normal(0.0, 2.0, 100)
        gains = rng.normal(20.0, 30.0, 100)
        of = one_run_each(np.array([gains, gains + apart, gains + rng.normal(0.0, 8.0, 100)]), 90.0)
        stderr = math.sqrt(lead_variances(of.covariance)[1, 0])
        lead = of.mean[1] - of.mean[0]
        missed += lead - quantile * stderr > -0.004  # 0.99 * 0.4 - 0.01 * 40
    assert missed / studies <= 0.012


def test_gains_of_several_options_are_covered_at_once() -> None:
    rng = np.random.default_rng(6)
    quantile = stats.norm.ppf(deciding_level(3, 0.04))
    studies, missed = 800, 0
    for _ in range(studies):
        base = rng.random(300) < 0.5
        learned = np.where(base, rng.random((3, 300)) < 0.8, rng.random((3, 300)) < 0.2)
        of = one_run_each(100.0 * (learned.astype(float) - base), 100.0)
        missed += bool((of.mean > quantile * np.sqrt(np.diagonal(of.covariance))).any())
    assert missed / studies < 0.045


def test_identical_options_are_tied_and_not_certain() -> None:
    rng = np.random.default_rng(7)
    gains = np.repeat(100.0 * rng.integers(-1, 2, (1, 100)), 3, axis=0)
    assert lead_variances(one_run_each(gains, 100.0).covariance)[0, 1] > 0.5**2
    nats = one_run_each(gains / 1e4, 0.0)
    assert lead_variances(nats.covariance)[0, 1] == 0.0
    assert np.ptp(nats.mean) == 0.0


def test_runs_that_do_not_agree_are_refused() -> None:
    gains, losses = [Items(np.zeros((2, 9)), 1.0)], [Items(np.zeros((3, 9)), 1.0)]
    with pytest.raises(ValueError, match="same runs"):
        StudyEvidence(gains, losses, crossed(1, 2))
    with pytest.raises(ValueError, match="one must be in-domain"):
        StudyEvidence([], losses, crossed(1, 3))
    with pytest.raises(ValueError, match="1 items give no standard error"):
        StudyEvidence([Items(np.zeros((2, 1)), 1.0)], [], crossed(1, 2))


@pytest.mark.parametrize(
    "module", ["rankwise.findings.stats.estimates", "rankwise.findings.recommendation"]
)
def test_no_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_mean_over_tasks_adds_variances_of_items_and_shares_seeds() -> None:
    one = Items(np.array([[0.0, 4.0], [2.0, 2.0]]), 0.0)
    other = Items(np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]]), 0.0)
    found = mean_over_tasks([one, other])
    # item means 1, 3 and 0.5, 1.5, 2.5; seed means 2, 2 and 2, 1
    parts = [2.0 / 2 / 4, 1.0 / 3 / 4]
    assert found.value == pytest.approx((2.0 + 1.5) / 2)
    assert float(found.spread.item_variance) == pytest.approx(sum(parts))
    assert float(found.spread.seed_variance) == pytest.approx(0.125 / 2)  # of 2 and 1.5
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 1 + parts[1] ** 2 / 2)
    assert float(found.spread.item_freedom) == pytest.approx(freedom)
    weighted = mean_over_tasks([one._replace(weight=2.0), other._replace(weight=3.0)])
    assert weighted.value == pytest.approx((2 * 2.0 + 3 * 1.5) / 5)


def test_a_mean_over_tasks_needs_tasks_of_the_same_seeds() -> None:
    with pytest.raises(ValueError, match="same seeds"):
        mean_over_tasks([Items(np.ones((seeds, 2)), 0.0) for seeds in (1, 2)])
    with pytest.raises(ValueError, match="one task is needed"):
        mean_over_tasks([])


def test_a_p_value_of_zero_is_where_the_interval_ends() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.05, 0.2, -0.3):
        estimate = crossed_difference(rng.normal(shift, 1.0, 100), item_size=0.0)
        p_value = zero_p_value(estimate)
        lower, upper = estimate.interval(1.0 - p_value)
        assert min(abs(lower), abs(upper)) == pytest.approx(0.0, abs=1e-6)
    # symmetric values: Student's test exactly
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0]) - 1.5
    student = stats.ttest_1samp(values, 0.0).pvalue
    assert zero_p_value(crossed_difference(values, item_size=0.0)) == pytest.approx(student)
    assert zero_p_value(crossed_difference([0.0, 0.0], item_size=0.0)) == 1.0
    assert zero_p_value(crossed_difference([1.0, 1.0], item_size=0.0)) == SMALLEST_P_VALUE


def test_a_difference_counts_a_whole_item_only_where_items_are_right_or_wrong() -> None:
    assert item_size([0.0, 100.0, -100.0], in_points=True) == 100.0
    assert item_size(np.zeros(9), in_points=True) == 100.0
    assert item_size(np.zeros(9), in_points=False) == 0.0
    # of 201 differences the quantile is the second largest: one outlier alone is not the law
    values = np.append(np.linspace(-5.0, 5.0, 200), 90.0)
    assert item_size(values, in_points=True) == 5.0
    assert item_size(-values / 100.0, in_points=False) == pytest.approx(0.05)
    assert item_size([0.25, -3.0], in_points=False) == 3.0


def test_a_rare_large_loss_widens_what_is_said_where_it_was_drawn_once() -> None:
    losses = np.append(np.full(49, -0.01), 3.0)  # 49 items gain a little, one loses 3 nats
    size = item_size(losses, in_points=False)
    assert (
        crossed_difference(losses, item_size=size).stderr
        > 1.2 * crossed_difference(losses, item_size=0.0).stderr
    )


def test_holm_levels_are_those_at_which_it_rejects() -> None:
    p_values = [0.04, 0.004, 0.03, 0.011]
    # .004 against .05 / 4, .011 against .05 / 3, .03 against .05 / 2: stop; .04 against the same
    assert holm_levels(p_values, 0.05) == pytest.approx((0.025, 0.0125, 0.025, 0.05 / 3))
    rng = np.random.default_rng(8)
    for _ in range(300):
        drawn = (rng.random(5) ** 3).tolist()
        rejected = [p <= 0.05 for p in holm(drawn)]
        levels = holm_levels(drawn, 0.05)
        assert rejected == [p <= level for p, level in zip(drawn, levels, strict=True)]


def estimate_with(value: float, stderr: float) -> Estimate:
    nothing = np.zeros(())
    return Estimate(
        value, stderr, 0.0, Spread(np.array(stderr**2), nothing + 299, nothing, nothing)
    )


def test_the_deciding_level_is_bonferronis_for_one_more_than_the_options() -> None:
    assert stats.norm.ppf(deciding_level(5, 0.05)) == pytest.approx(2.394, abs=0.001)
    assert deciding_level(1, 0.05) == pytest.approx(0.975)
    # without a base it cannot be preferred by mistake
    assert deciding_level(5, 0.05, has_base=False) == pytest.approx(0.99)


def test_what_is_detectable_follows_its_formula() -> None:
    one, other = TaskSize(300, is_p_right=False), TaskSize(100, is_p_right=True)
    quantiles = stats.norm.ppf(1 - 0.05 / 4) + stats.norm.ppf(0.8)
    # the mean of two tasks: a quarter of the sum of variances, p(right)'s a tenth of accuracy's;
    # two ranks disagree on 7 % of the items, and on two pseudo-items
    variance = (0.07 + 2 / 300) / 300 + 0.1 * (0.07 + 2 / 100) / 100
    able = detectable([one, other], 3, 0.95, 2.0)
    assert able.points == pytest.approx(100 * math.sqrt(variance) / 2 * quantiles)
    assert able.num_items == pytest.approx(400 * (able.points / 2.0) ** 2, rel=0.05)
    # so many items do
    many = detectable([TaskSize(able.num_items // 2, False)] * 2, 3, 0.95, 2.0)
    assert detectable([one], 3, 0.95, 2.0).points > many.points
    assert able.num_items == int(float(f"{able.num_items:.1e}"))
