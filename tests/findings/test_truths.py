"""What options may truly be worth, and the rule: against integrals and counts by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from rankwise.findings.decision import (
    Choice,
    Margins,
    Odds,
    choose,
    ends,
    odds,
    shortfall,
    standings,
    states,
    sufficient_margins,
)
from rankwise.findings.odds import worth
from rankwise.findings.stats.blocks import (
    GAIN_RUNS,
    LOSS_RUNS,
    Block,
    RunRows,
    StudyEvidence,
    TaskPart,
    crossed,
)
from rankwise.findings.stats.estimates import crossed_difference, mean_over_tasks
from rankwise.findings.stats.items import Floats, Items
from rankwise.findings.stats.truths import Truths, deciding_level, num_draws, truths_of

GAIN_LAW, LOSS_LAW = (1.6, 1.3), (2.5, 0.6)
"""Degrees of freedom and squared points of a run's variance, as docs/methods/rule.md has them."""

MANY = 60_000


def rows_of(means: list[float], seed: int = 0, size: int = 400, sd: float = 30.0) -> Floats:
    """(R, n) whose means are these, exactly."""
    rng = np.random.default_rng(seed)
    items = rng.normal(0.0, sd / 2.0, size) + rng.normal(0.0, sd, (len(means), size))
    return items - items.mean(axis=1, keepdims=True) + np.array(means)[:, None]


def below(limit: float, mean: float, variance: float, runs: float, law: tuple[float, float]) -> Any:
    """P(truth <= limit): by items ``variance``, and by runs ``runs`` times one's own variance."""
    freedom, scale = law

    def at(share: float) -> float:
        own = freedom * scale / stats.chi2.ppf(share, freedom)
        return float(stats.norm.cdf((limit - mean) / math.sqrt(variance + runs * own)))

    return integrate.quad(at, 0.0, 1.0, limit=200)[0]


def updated(law: tuple[float, float], squares: float, more: int) -> tuple[float, float]:
    """A law after ``more`` degrees of freedom of squared deviations."""
    return law[0] + more, (law[0] * law[1] + squares) / (law[0] + more)


def test_these_adapters_are_known_but_for_their_items() -> None:
    values = rows_of([2.0, 5.0, -1.0])
    truths = truths_of(StudyEvidence([Items(values, 60.0)], [], crossed(1, 3)), "adapters", MANY)
    assert truths.losses is None
    for option in range(3):
        alone = crossed_difference(values[option], item_size=60.0)
        right = stats.norm.cdf(alone.value / alone.stderr)
        assert (truths.gains[:, option] > 0.0).mean() == pytest.approx(right, abs=0.006)
    # the size of a lead that was not seen is that of the distances from the options' mean
    apart = np.abs(values - values.mean(axis=0)) * math.sqrt(2 * 3 / 2)
    size = np.quantile(apart, 0.995, method="higher")
    lead = crossed_difference(values[1] - values[0], item_size=size)
    ahead = (truths.gains[:, 1] > truths.gains[:, 0]).mean()
    assert ahead == pytest.approx(stats.norm.cdf(lead.value / lead.stderr), abs=0.006)


def test_a_loss_that_is_rarely_large_has_a_longer_side_as_its_interval_has() -> None:
    """Two items of a hundred lose 3 nats; of shares nothing is corrected."""
    values = np.array([[0.06] * 980 + [-2.94] * 20])
    parts = [Items(values, 0.0)]
    truths = {
        is_share: truths_of(
            StudyEvidence(parts, [], crossed(1, 1), 0.01, is_share=is_share), "adapters", MANY
        ).gains
        for is_share in (False, True)
    }
    estimate = mean_over_tasks(parts)
    assert estimate.skewness < -0.1
    wanted = estimate.interval(0.98)
    found = ends(truths[False], 0.99)
    assert [found.lower[0], found.upper[0]] == pytest.approx(wanted, abs=0.1 * estimate.stderr)
    plain = ends(truths[True], 0.99)
    assert plain.upper[0] == found.upper[0]
    assert found.lower[0] < plain.lower[0] - 0.2 * estimate.stderr
    assert plain.upper[0] + plain.lower[0] == pytest.approx(0.0, abs=0.1 * estimate.stderr)


@pytest.mark.parametrize(("question", "more"), [("rank", 0.0), ("next_run", 1.0)])
@pytest.mark.parametrize(
    ("runs", "squares", "is_repeatable"),
    [
        ([3.0], 0.0, True),
        ([1.0, 3.0, 5.0], 8.0, True),
        ([4.0, 4.4], 0.08, True),
        ([3.0], 0.0, False),
    ],
)
def test_another_run_has_the_variance_of_a_run_and_of_the_mean(
    question: Any, more: float, runs: list[float], squares: float, is_repeatable: bool
) -> None:
    """One option: its mean is known by items and by runs, whose variance is integrated over."""
    items = rows_of([0.0], sd=40.0)[0]
    values = items + np.array(runs)[:, None]
    evidence = StudyEvidence([Items(values, 0.0)], [], crossed(len(runs), 1))
    gains = truths_of(evidence, question, MANY, np.array([is_repeatable])).gains
    # no run differs from another by item, so nothing of what is seen is due to items
    law = updated(GAIN_LAW, squares, len(runs) - 1)
    share = (1 / len(runs) + more) * is_repeatable
    for limit in (0.0, 2.5):
        expected = below(limit, float(np.mean(runs)), items.var(ddof=1) / 400, share, law)
        assert (gains <= limit).mean() == pytest.approx(expected, abs=0.015)
    # in nats a point of the law is what a point counts
    nats = StudyEvidence([Items(values / 100.0, 0.0)], [], evidence.rows, point=0.01)
    in_nats = truths_of(nats, question, MANY, np.array([is_repeatable])).gains
    assert (in_nats <= 0.0).mean() == pytest.approx((gains <= 0.0).mean(), abs=0.004)


@pytest.mark.parametrize("question", ["rank", "next_run"])
def test_options_are_as_alike_as_what_is_known_beforehand_and_seen(question: Any) -> None:
    """Two options, of three runs and of one, that share a seed; the prior is drawn and weighted."""
    rng, number, shared = np.random.default_rng(3), 300_000, 0.3
    runs = np.array([9.0, 11.0, 10.0, 14.0])
    values = rows_of([0.0])[0] + runs[:, None]
    values[3] += rows_of([0.0], seed=1, sd=20.0)[0]
    evidence = StudyEvidence(
        [Items(values, 0.0)], [], RunRows(np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0]))
    )
    gains = truths_of(evidence, question, MANY).gains
    # a fifth of studies are nearly flat, the others have a half-Cauchy spread of 2 points
    spread = 2.0 * np.abs(rng.standard_cauchy(number)).clip(max=20.0)
    spread = np.where(rng.random(number) < 0.2, 0.2, spread)
    level = rng.normal(12.0, 6.0, number)
    log_weight = 0.5 * ((level - 12.0) / 6.0) ** 2 - 0.5 * ((level - 12.0) / 40.0) ** 2
    truths = level[:, None] + spread[:, None] * rng.standard_normal((number, 2))
    both = rng.standard_normal((number, 1)) * math.sqrt(0.5)
    rates = stats.norm.cdf(both + rng.standard_normal((number, 2)) * math.sqrt(0.5))
    # two squared deviations of 1 are seen of the first option's runs
    laws = updated(GAIN_LAW, 2.0, 2), GAIN_LAW
    sd = np.sqrt(
        np.stack([f * v / stats.chi2.ppf(rates[:, k], f) for k, (f, v) in enumerate(laws)], 1)
    )
    of_seed = rng.standard_normal((number, 3))
    own = rng.standard_normal((number, 4))
    noise = math.sqrt(shared) * of_seed[:, [0, 1, 2, 0]] + math.sqrt(1 - shared) * own
    error = sd * np.stack([noise[:, :3].mean(axis=1), noise[:, 3]], axis=1)
    by_items = np.cov(np.stack([values[:3].mean(axis=0), values[3]])) / 400
    apart = np.array([10.0, 14.0]) - truths - error
    log_weight -= 0.5 * np.einsum("ni,ij,nj->n", apart, np.linalg.inv(by_items), apart)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    if question == "next_run":
        later = rng.standard_normal((number, 1)), rng.standard_normal((number, 2))
        truths = truths + sd * (math.sqrt(shared) * later[0] + math.sqrt(1 - shared) * later[1])
    assert gains.mean(axis=0) == pytest.approx(weight @ truths, abs=0.25)
    lead = truths[:, 1] - truths[:, 0]
    for limit in (0.0, 2.0, 4.0):
        said = (gains[:, 1] - gains[:, 0] > limit).mean()
        assert said == pytest.approx(weight @ (lead > limit), abs=0.025)
    assert (gains > 10.0).mean(axis=0) == pytest.approx(weight @ (truths > 10.0), abs=0.025)


def test_losses_of_runs_move_together_on_all_tasks() -> None:
    """Two tasks with hardly any error by items: what runs differ by is all of it, and shared."""
    values = [Items(rows_of([2.0], seed, sd=0.5), 0.0) for seed in (1, 2)]
    evidence = StudyEvidence([Items(rows_of([5.0]), 0.0)], values, crossed(1, 1))
    truths = truths_of(evidence, "next_run", MANY)
    assert truths.losses is not None
    assert truths.worst is not None
    kept = below(3.0, 2.0, 0.0, 2.0, LOSS_LAW)
    assert (truths.losses <= 3.0).mean() == pytest.approx(kept, abs=0.015)
    # two tasks that are alike lose most together: no more than their errors by items apart
    assert np.median(truths.worst - truths.losses) < 0.1
    assert (LOSS_RUNS.freedom, LOSS_RUNS.variance) == LOSS_LAW


def test_the_worst_task_is_as_sure_as_the_one_that_is_least_so() -> None:
    """Five tasks, of which one loses more: each is below a ceiling by Student's law of its own."""
    losses, sizes = [6.0, 1.0, 1.5, 0.5, 1.0], [40, 300, 300, 300, 300]
    tasks = [
        Items(rows_of([loss, loss], seed, size, sd=8.0), 0.0)
        for seed, (loss, size) in enumerate(zip(losses, sizes, strict=True))
    ]
    evidence = StudyEvidence([Items(rows_of([5.0, 5.0]), 0.0)], tasks, crossed(1, 2))
    truths = truths_of(evidence, "adapters", MANY)
    assert truths.worst is not None
    values = [task.values[0] for task in tasks]
    stderr = [of.std(ddof=1) / math.sqrt(len(of)) for of in values]
    for ceiling in (3.0, 4.0, 6.0):
        each = [
            stats.norm.cdf((ceiling - of.mean()) / e) for of, e in zip(values, stderr, strict=True)
        ]
        said = (truths.worst[:, 0] <= ceiling).mean()
        assert said == pytest.approx(min(each), abs=0.02)
    # with one task it is the loss on average
    alone = truths_of(
        StudyEvidence([Items(rows_of([5.0, 5.0]), 0.0)], tasks[:1], crossed(1, 2)), "rank"
    )
    assert alone.worst is not None
    assert alone.losses is not None
    assert np.array_equal(alone.worst, alone.losses)


def test_the_same_scores_always_give_the_same_draws() -> None:
    evidence = StudyEvidence([Items(rows_of([2.0, 5.0]), 60.0)], [], crossed(1, 2))
    first, again = (truths_of(evidence, "rank").gains for _ in range(2))
    assert np.array_equal(first, again)
    # whole hundredths of a point, which is what a page keeps
    assert np.abs(first * 100 - np.round(first * 100)).max() < 1e-9


def test_a_level_needs_draws_beyond_it() -> None:
    assert num_draws(3, deciding_level(3, 0.04)) == 4096
    assert num_draws(50, deciding_level(50, 0.04)) >= 20 * 51 / 0.04
    # with four draws nothing is certain, whatever they say
    few = odds(Truths(np.full((4, 1), 9.0)), Margins(1.0, None))
    assert few.right[0] == 4 / 5
    assert choose(few, 0.98) == Choice("no_evidence", None)


def drawn(rng: np.random.Generator, number: int, options: int, has_losses: bool) -> Truths:
    """Truths in hundredths, near the margins."""
    gains = np.round(rng.normal(1.0 * rng.integers(0, 4, options), 1.2, (number, options)), 2)
    if not has_losses:
        return Truths(gains)
    losses = np.round(rng.normal(1.0 * rng.integers(0, 4, options), 0.8, (number, options)), 2)
    return Truths(gains, losses, losses + np.round(np.abs(rng.normal(0.0, 1.0, losses.shape)), 2))


def by_hand(truths: Truths, margins: Margins) -> dict[str, Any]:
    """The odds, counted draw by draw."""
    number, options = truths.gains.shape
    hits: dict[str, Any] = {name: [0] * options for name in ("better", "keeps", "near", "right")}
    hits |= {"none": 0, "none_better": 0}
    for at in range(number):
        gains = truths.gains[at]
        kept = [
            truths.losses is None
            or truths.worst is None
            or (
                truths.losses[at, k] <= (margins.epsilon or 0.0) + 1e-9
                and truths.worst[at, k] <= margins.ceiling + 1e-9
            )
            for k in range(options)
        ]
        helps = [not margins.has_base or gains[k] > 0.0 for k in range(options)]
        best = max((gains[k] for k in range(options) if kept[k]), default=-math.inf)
        near = [gains[k] >= best - margins.delta - 1e-9 for k in range(options)]
        for k in range(options):
            hits["better"][k] += helps[k]
            hits["keeps"][k] += kept[k]
            hits["near"][k] += near[k]
            hits["right"][k] += helps[k] and kept[k] and near[k]
        hits["none"] += not any(h and k for h, k in zip(helps, kept, strict=True))
        hits["none_better"] += not any(helps)
    return {name: np.array(count) / (number + 1) for name, count in hits.items()}


@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("has_losses", [True, False])
def test_odds_are_shares_of_draws_and_one_miss_more(has_base: bool, has_losses: bool) -> None:
    rng = np.random.default_rng(2)
    for options in (1, 2, 5):
        truths = drawn(rng, 400, options, has_losses)
        margins = Margins(1.0, 1.5 if has_losses else None, 2.5, has_base)
        found, expected = odds(truths, margins), by_hand(truths, margins)
        for name, share in expected.items():
            assert getattr(found, name) == pytest.approx(share), name
        assert (found.right <= found.shown).all()


def of(better: float, keeps: float, near: float) -> tuple[float, float, float]:
    return better, keeps, near


SURE, NOT, OPEN = 0.999, 0.001, 0.6


@pytest.mark.parametrize(
    ("each", "none", "none_better", "outcome", "option"),
    [
        (
            [of(SURE, SURE, OPEN), of(SURE, SURE, SURE), of(SURE, SURE, SURE)],
            0,
            0,
            "recommended",
            1,
        ),
        ([of(OPEN, SURE, SURE), of(OPEN, SURE, SURE)], 0.2, 0.2, "no_evidence", None),
        ([of(SURE, OPEN, SURE), of(OPEN, SURE, SURE)], 0.2, 0.0, "cannot_tell", None),
        ([of(NOT, SURE, SURE), of(NOT, SURE, SURE)], SURE, SURE, "none_helps", None),
        ([of(SURE, NOT, SURE), of(SURE, NOT, SURE)], SURE, 0.0, "none_keeps_enough", None),
        # of one nothing is gained, the other keeps too little: more often for want of gain
        ([of(NOT, SURE, SURE), of(0.4, NOT, SURE)], SURE, 0.6, "none_helps", None),
        ([of(NOT, SURE, SURE), of(0.6, NOT, SURE)], SURE, 0.4, "none_keeps_enough", None),
    ],
)
def test_the_first_that_is_shown_to_do_all_three(
    each: Any, none: float, none_better: float, outcome: str, option: int | None
) -> None:
    better, keeps, near = np.array(each).T
    now = Odds(better, keeps, near, np.minimum(np.minimum(better, keeps), near), none, none_better)
    assert choose(now, 0.99) == Choice(outcome, option)  # type: ignore[arg-type]
    if option == 1:
        finished = np.array([True, False, True])
        assert choose(now, 0.99, finished) == Choice("recommended", 2)


def test_the_bet_is_what_is_likeliest_to_be_right() -> None:
    shares = np.array([0.31, 0.24, 0.20])
    now = Odds(shares, shares, shares, shares, 0.25, 0.1)
    assert now.bet == 0
    assert now._replace(none=0.32).bet is None
    # 97 and 97.5 % are one number of 4096 draws: the smaller rank
    assert now._replace(right=np.array([0.5, 0.970, 0.975])).bet == 1


def test_states_need_the_level_on_either_side() -> None:
    assert states(np.array([0.99, 0.989, 0.011, 0.01]), 0.99) == (
        "yes", "undecided", "undecided", "no",
    )  # fmt: skip


def test_bounds_say_what_the_odds_say() -> None:
    """A bound is on the right side of a margin exactly where that is shown."""
    rng, compared = np.random.default_rng(3), 0
    for number, level in itertools.product((999, 4096), (0.98, 1 - 0.04 / 3, 0.99)):
        for _ in range(30):
            truths = drawn(rng, number, int(rng.integers(1, 5)), True)
            assert truths.losses is not None
            # at a quantile, where a draw more or less decides
            epsilon = round(float(np.quantile(truths.losses[:, 0], level)), 2)
            margins = Margins(round(float(rng.uniform(0.5, 3.0)), 2), epsilon)
            delta = margins.delta
            now = odds(truths, margins)
            gain, loss = ends(truths.gains, level), ends(truths.losses, level)
            behind = ends(shortfall(truths, margins), level)
            assert np.array_equal(gain.lower > 0.0, now.better >= level)
            assert np.array_equal(loss.upper <= epsilon + 1e-9, now.keeps >= level)
            assert np.array_equal(loss.lower > epsilon + 1e-9, now.keeps <= 1.0 - level)
            assert np.array_equal(behind.upper <= delta + 1e-9, now.near >= level)
            compared += len(now.right)
    assert compared > 300


def test_the_bounds_are_draws_by_their_order() -> None:
    draws = np.random.default_rng(4).permutation(np.arange(1.0, 1000.0))[:, None]
    # of 999 draws and one more, a hundredth is 10
    found = ends(draws, 0.99)
    assert (found.lower[0], found.upper[0]) == (10.0, 990.0)


def part_of(errors: Floats) -> TaskPart:
    """A task whose means have these standard errors, independent of each other."""
    nothing = np.zeros(len(errors))
    return TaskPart(np.diag(errors**2), nothing, np.diag(nothing), (0,), 100_000, 0.0 * errors)


def test_who_scores_more_and_who_rules_out() -> None:
    rng, level = np.random.default_rng(5), 0.98
    margins = Margins(1.0, 1.5)
    seen = set[str]()
    for _ in range(200):
        truths = drawn(rng, 499, int(rng.integers(2, 5)), True)
        truths = truths._replace(
            gains=truths.gains + 2.0 * rng.integers(0, 4, truths.gains.shape[1])
        )
        assert truths.losses is not None
        assert truths.worst is not None
        now, gains = odds(truths, margins), truths.gains
        kept = truths.losses <= 1.5 + 1e-9
        means = gains.mean(axis=0)
        errors = rng.uniform(0.5, 2.0, len(means))
        block = Block(means, means, crossed(1, len(means)), (part_of(errors),), GAIN_RUNS)
        for own, standing in enumerate(standings(block, truths, now, margins, level)):
            ahead = [
                stats.norm.cdf((means[k] - means[own]) / math.hypot(errors[k], errors[own]))
                for k in range(len(means))
            ]
            assert standing.worse_than == tuple(k for k, p in enumerate(ahead) if p > level)
            if now.keeps[own] <= 1 - level:
                expected: int | None = own
            elif now.near[own] <= 1 - level:
                over = [
                    int((kept[:, k] & (gains[:, k] > gains[:, own] + 1.0)).sum())
                    for k in range(gains.shape[1])
                ]
                expected = over.index(max(over))
                assert expected != own
            else:
                expected = None
            assert standing.ruled_out_by == expected
            seen.add("open" if expected is None else "loss" if expected == own else "gain")
            # what is recommended is not ruled out
            assert expected is None or now.shown[own] < level
    assert seen == {"open", "loss", "gain"}


def test_the_losses_that_would_do_are_the_next_tenths() -> None:
    rng, level = np.random.default_rng(6), 0.98
    margins, found = Margins(1.0, 1.0, 3.0), 0
    for _ in range(60):
        truths = drawn(rng, 499, int(rng.integers(1, 4)), True)
        truths = truths._replace(gains=truths.gains + 5.0)
        finished = rng.random(truths.gains.shape[1]) < 0.8
        enough = sufficient_margins(truths, margins, level, finished)
        if enough is None or choose(odds(truths, margins), level, finished).option is not None:
            continue
        found += 1
        accepted = margins._replace(epsilon=enough.epsilon, ceiling=enough.ceiling)
        assert finished[enough.option]
        assert odds(truths, accepted).shown[enough.option] >= level
        assert enough.epsilon >= 1.0
        assert enough.ceiling >= 3.0
        # a tenth less on either does not do
        less = [accepted._replace(epsilon=enough.epsilon - 0.11)] * (enough.epsilon > 1.0)
        less += [accepted._replace(ceiling=enough.ceiling - 0.11)] * (enough.ceiling > 3.0)
        tight = [odds(truths, each).keeps[enough.option] < level for each in less]
        assert all(tight) or enough.epsilon - 1.0 > 0.1
    assert found > 15
    assert sufficient_margins(Truths(np.zeros((9, 1))), margins, level, np.array([True])) is None


def test_the_price_of_a_loss_beyond_what_is_acceptable() -> None:
    """Gains 20, and loses 8 on average and 30 on one of two tasks, ε = 5 and 15."""
    margins = Margins(5.0, 5.0, 15.0)
    # 20 - 2 max(8 - 5, 30 - 15) = -10: on average alone it would be 14
    assert worth(20.0, 8.0, margins, 1.0, worst=30.0) == pytest.approx(-10.0)
    assert worth(20.0, 8.0, margins, 1.0) == pytest.approx(14.0)
