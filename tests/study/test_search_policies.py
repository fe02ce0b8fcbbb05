"""The policies of searches on planted trainings: what is obvious is found, and found again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from rankwise.records.judgement import Prospect
from rankwise.study.growing import Offer, next_growth
from rankwise.study.searches.policies import Ladder, Narrow
from rankwise.study.searches.policy import (
    Decision,
    Policy,
    Progress,
    SearchTrial,
    Setting,
    Terms,
    TrialResult,
)
from rankwise.study.searches.tuning import FACTOR, best_rate, better_half, grid
from tests.support.sentences import Sentences

RANKS = (8, 16, 32, 64, 128)
TERMS = Terms(delta=4.0, epsilon=4.0, alpha=0.05)
NUM_ITEMS = 400
RATE = (2e-4,)

Truth = Callable[[SearchTrial, float], tuple[float, float] | None]
"""Of a trial after a share of its steps: gain and loss in points; None where it diverged."""


def settings(rates: Sequence[float] = RATE, ranks: Sequence[int | None] = RANKS) -> list[Setting]:
    return [Setting(f"rank {rank}" if rank else "full", rank, tuple(rates)) for rank in ranks]


def planted(truth: Truth, progress: Progress) -> TrialResult | None:
    """Items with a standard deviation of 20 points around the truth, whose mean is the truth."""
    expected = truth(progress.trial, progress.share)
    if expected is None:
        return None
    key = [progress.trial.setting, progress.trial.seed, round(progress.trial.learning_rate * 1e7)]
    noise = np.random.default_rng(key).normal(0.0, 20.0, (3, NUM_ITEMS))
    noise -= noise.mean(axis=1, keepdims=True)
    gain, loss = expected
    return TrialResult((gain + noise[0],), (loss + noise[1], loss + noise[2]))


def search(
    policy: Policy, truth: Truth
) -> tuple[list[Decision], dict[Progress, TrialResult | None]]:
    """Do what is wanted to the end; at most 60 decisions."""
    known: dict[Progress, TrialResult | None] = {}
    decisions: list[Decision] = []
    for _ in range(60):
        decisions.append(policy(known))
        if not decisions[-1].wanted:
            return decisions, known
        for progress in decisions[-1].wanted:
            assert progress not in known
            known[progress] = planted(truth, progress)
    raise AssertionError("the search does not end")


def ruled_out(decisions: Sequence[Decision]) -> dict[int, str]:
    """Settings with their reasons."""
    return {
        of.setting: of.reason
        for decision in decisions
        for of in decision.ruled_out
        if of.learning_rate is None
    }


def left(decisions: Sequence[Decision]) -> set[int]:
    return {trial.setting for trial, _ in decisions[-1].finalists}


def by_rank(gains: Sequence[float], losses: Sequence[float] = (0.0,) * 5) -> Truth:
    return lambda trial, share: (share * gains[trial.setting], share * losses[trial.setting])


def ends(known: dict[Progress, TrialResult | None]) -> set[tuple[int, int]]:
    return {(of.trial.setting, of.trial.seed) for of in known if of.share == 1.0}


def test_the_obviously_best_rank_alone_gets_more_seeds() -> None:
    decisions, known = search(Narrow(settings(), (7, 8, 9), TERMS), by_rank((0, 0, 30, 0, 0)))
    assert left(decisions) == {2}
    assert {trial.seed for trial, _ in decisions[-1].finalists} == {7, 8, 9}
    assert ends(known) == {(place, 7) for place in range(5)} | {(2, 8), (2, 9)}
    assert {of.share for of in known} == {1.0}  # no rate is tuned: nothing stops at a rung
    said = "it was worth 30.0 points less than rank 32 with the first seed"
    assert ruled_out(decisions) == dict.fromkeys((0, 1, 3, 4), said)


def test_the_nearest_rival_within_delta_gets_more_seeds_too() -> None:
    """4.0 points: rank 64 is 3.9 behind rank 128, and 4.1 in the second case."""
    decisions, known = search(Narrow(settings(), (0, 1), TERMS), by_rank((0, 0, 16, 16.1, 20)))
    assert left(decisions) == {3, 4}
    assert {(3, 1), (4, 1)} <= ends(known)
    decisions, _ = search(Narrow(settings(), (0, 1), TERMS), by_rank((0, 0, 15, 15.9, 20)))
    assert left(decisions) == {4}


def test_of_equal_ranks_the_two_smallest_are_left() -> None:
    decisions, _ = search(Narrow(settings(), (0, 1, 2), TERMS), by_rank((20,) * 5))
    assert left(decisions) == {0, 1}


def test_an_obvious_forgetter_is_ruled_out_though_it_gains_most() -> None:
    """Its gain of 40 less twice the loss beyond 4 points is worth less than 10."""
    truth = by_rank((10, 10, 10, 10, 40), (0, 0, 0, 0, 30))
    decisions, _ = search(Narrow(settings(), (0, 1), TERMS), truth)
    assert 4 not in left(decisions)


def test_one_seed_alone_rules_nothing_out() -> None:
    decisions, known = search(Narrow(settings(), (3,), TERMS), by_rank((0, 0, 30, 0, 0)))
    assert left(decisions) == set(range(5))
    assert len(known) == 5


def test_full_fine_tuning_goes_on_and_rules_out_nothing() -> None:
    options = settings(ranks=(8, 16, None))
    decisions, known = search(Narrow(options, (0, 1), TERMS), by_rank((10, 10, 60)))
    assert left(decisions) == {0, 1, 2}
    assert {(2, 0), (2, 1)} <= ends(known)
    # worse than every rank, it stays
    decisions, _ = search(Narrow(options, (0, 1), TERMS), by_rank((30, 10, -30)))
    assert left(decisions) == {0, 2}


def test_without_narrowing_every_setting_is_trained_with_every_seed() -> None:
    policy = Narrow(settings(), (0, 1), TERMS, narrows=False)
    decisions, known = search(policy, by_rank((0, 0, 50, 0, 0)))
    assert left(decisions) == set(range(5))
    assert len(known) == 10


def tuned(best: float, diverges_above: float = math.inf) -> Truth:
    """20 points less a decade off the best rate."""

    def truth(trial: SearchTrial, share: float) -> tuple[float, float] | None:
        if trial.learning_rate > diverges_above:
            return None
        off = math.log10(trial.learning_rate / best)
        return share * (20.0 - 20.0 * off**2), 0.0

    return truth


def test_the_best_rate_is_found_between_the_given_ones() -> None:
    policy = Narrow(settings((1e-4, 3e-4, 1e-3), (8, 16)), (0, 1), TERMS, narrows=False)
    decisions, known = search(policy, tuned(5.4e-4))
    assert {trial.learning_rate for trial, _ in decisions[-1].finalists} == {5.33e-4}
    rungs = [{of.trial.learning_rate for of in known if of.share == share and of.trial.setting == 0}
             for share in (0.25, 0.5, 1.0)]  # fmt: skip
    assert rungs[0] == {1e-4, 1.69e-4, 3e-4, 5.33e-4, 1e-3}
    assert [len(rates) for rates in rungs] == [5, 3, 2]
    # the other seed trains one rate
    assert {of.trial.learning_rate for of in known if of.trial.seed == 1} == {5.33e-4}


def test_a_best_rate_at_the_edge_widens_the_grid_twice_and_is_named(sentence: Sentences) -> None:
    policy = Narrow(settings((1e-5, 3e-5), (8, 16)), (0,), TERMS, narrows=False)
    decisions, known = search(policy, tuned(1.0))
    tried = sorted({of.trial.learning_rate for of in known if of.trial.setting == 0})
    assert tried == pytest.approx([1e-5, 3e-5, 9.49e-5, 1.69e-4, 3e-4, 5.33e-4], rel=0.01)
    (said,) = [of.statement for of in decisions if "5.33e-4" in of.statement]
    sentence(said, names=("rank 8",))
    # an optimum one step beyond is found and is no edge
    decisions, _ = search(policy, tuned(9.5e-5))
    assert not any("edge" in of.statement for of in decisions)


def test_a_diverged_rate_and_a_setting_whose_every_rate_diverged_are_ruled_out(
    sentence: Sentences,
) -> None:
    def truth(trial: SearchTrial, share: float) -> tuple[float, float] | None:
        limit = 0.0 if trial.setting == 1 else 5e-4
        return tuned(3e-4, limit)(trial, share)

    decisions, known = search(Narrow(settings((1e-4, 3e-4, 1e-3), (8, 16)), (0, 1), TERMS), truth)
    assert left(decisions) == {0}
    (said,) = ruled_out(decisions).values()
    sentence(said, "setting")
    reasons = {of.learning_rate: of.reason for each in decisions for of in each.ruled_out}
    sentence(reasons[1e-3], "rate")
    assert not any(of.share > 0.25 and of.trial.learning_rate == 1e-3 for of in known)


def test_a_setting_that_diverges_with_a_later_seed_is_ruled_out(sentence: Sentences) -> None:
    def truth(trial: SearchTrial, share: float) -> tuple[float, float] | None:
        return None if trial == SearchTrial(0, 2e-4, 1) and share == 1.0 else (20.0, 0.0)

    decisions, _ = search(Narrow(settings(ranks=(8,)), (0, 1), TERMS), truth)
    assert decisions[-1].finalists == ()
    sentence(decisions[-1].statement)


@pytest.mark.parametrize("policy", [
    Narrow(settings((1e-4, 3e-4, 1e-3)), (0, 1, 2), TERMS),
    Narrow(settings(), (0, 1, 2), TERMS),
    Ladder(settings((1e-4, 3e-4, 1e-3)), (0, 1), TERMS),
])  # fmt: skip
def test_a_replay_decides_the_same(policy: Policy) -> None:
    """Asked again with less or the same knowledge, in another order; and with a part of it."""

    def truth(trial: SearchTrial, share: float) -> tuple[float, float]:
        off = math.log10(trial.learning_rate / 3e-4)
        return share * (10.0 + 3.0 * trial.setting - 10.0 * off**2), 1.0 * trial.setting

    decisions, known = search(policy, truth)
    so_far: dict[Progress, TrialResult | None] = {}
    for decision in decisions:
        shuffled = dict(sorted(so_far.items(), reverse=True))
        assert policy(shuffled) == decision
        for progress in decision.wanted[:-1]:
            so_far[progress] = known[progress]
        if len(decision.wanted) > 1:
            again = policy(so_far)
            assert again == decision._replace(wanted=decision.wanted[-1:])
        so_far |= {progress: known[progress] for progress in decision.wanted}
    rulings = [of for decision in decisions for of in decision.ruled_out]
    assert len(rulings) == len(set(rulings))


def test_searches_that_cannot_be_run_are_refused() -> None:
    for bad in (
        lambda: Narrow([], (0,), TERMS),
        lambda: Narrow(settings(), (), TERMS),
        lambda: Ladder(settings(ranks=(None,)), (0,), TERMS),
    ):
        with pytest.raises(ValueError, match=r"."):
            bad()


def test_worth_is_paid_for_with_retention_beyond_epsilon_when_rates_are_compared() -> None:
    def truth(trial: SearchTrial, share: float) -> tuple[float, float]:
        is_high = trial.learning_rate > 2e-4
        return (30.0, 24.0) if is_high else (10.0, 0.0)  # 30 - 2 (24 - 4) is below 10

    policy = Narrow(settings((1e-4, 3e-4), (8,)), (0,), TERMS, narrows=False)
    decisions, _ = search(policy, truth)
    assert all(trial.learning_rate < 2e-4 for trial, _ in decisions[-1].finalists)


def test_equal_rates_are_a_tie_for_the_smaller_one() -> None:
    assert best_rate({1e-3: 5.0, 1e-4: 5.0, 1e-5: 4.0, 1e-2: None}) == 1e-4
    assert best_rate({1e-3: None}) is None
    assert better_half({1.0: 5.0, 2.0: 5.0, 3.0: 5.0}) == (1.0, 2.0)
    assert better_half({1.0: None, 2.0: 5.0, 3.0: None}) == (2.0,)


def test_a_grid_asks_for_one_rate_beyond_at_a_time() -> None:
    worths = {1e-4: 1.0, 3e-4: 2.0}
    of = grid((3e-4, 1e-4), worths.__getitem__)
    assert next(of) == (1e-4, 3e-4)
    assert next(of) == (pytest.approx(3e-4 * FACTOR, rel=1e-3),)
    assert list(grid((1e-4,), worths.__getitem__)) == [(1e-4,)]


def test_the_ladder_stops_at_32_where_64_is_no_better(sentence: Sentences) -> None:
    decisions, known = search(Ladder(settings(), (0, 1, 2), TERMS), by_rank((0, 0, 20, 20, 20)))
    assert [len(decision.wanted) for decision in decisions] == [3, 3, 0]
    assert ends(known) == set(itertools.product((2, 3), (0, 1, 2)))
    sentence(decisions[-1].statement, "stop", names=("rank 32",))
    assert left(decisions) == {2}
    sentence(ruled_out(decisions)[3], "64", names=("4.0 points",))


def test_the_ladder_begins_at_the_nearest_rank_to_that_it_is_given() -> None:
    truth = by_rank((0, 0, 0, 0, 0))
    for first_rank, place in ((8, 0), (20, 1), (1024, 4)):
        decisions, _ = search(Ladder(settings(), (0, 1), TERMS, (), first_rank), truth)
        assert {trial.setting for trial, _ in decisions[0].wanted} == {place}


def test_the_ladder_climbs_while_the_rank_underfits() -> None:
    """With three seeds: of two, a lead of 20 points may still be the luck of the runs."""
    decisions, _ = search(Ladder(settings(), (0, 1, 2), TERMS), by_rank((0, 0, 0, 20, 40)))
    assert left(decisions) == {4}
    assert all("it underfits" in ruled_out(decisions)[place] for place in (2, 3))


def test_the_ladder_descends_while_the_rank_forgets(sentence: Sentences) -> None:
    truth = by_rank((20,) * 5, (0, 0, 30, 30, 30))
    decisions, known = search(Ladder(settings(), (0, 1), TERMS), truth)
    assert left(decisions) == {1}
    assert {place for place, _ in ends(known)} == {1, 2}
    sentence(ruled_out(decisions)[2], "32")
    decisions, _ = search(Ladder(settings(), (0, 1), TERMS), by_rank((20,) * 5, (30,) * 5))
    assert left(decisions) == {0}
    sentence(decisions[-1].statement, "8", names=("rank 8",))


def test_the_ladder_does_not_climb_to_a_rank_that_forgets() -> None:
    truth = by_rank((0, 0, 10, 40, 40), (0, 0, 0, 40, 40))
    decisions, _ = search(Ladder(settings(), (0, 1), TERMS), truth)
    assert left(decisions) == {2}
    assert "it forgets" in ruled_out(decisions)[3]


def test_the_ladder_says_what_it_lacks_evidence_for(sentence: Sentences) -> None:
    """A lead of just delta is neither shown nor excluded; nor is a loss of just epsilon."""
    decisions, _ = search(Ladder(settings(), (0, 1), TERMS), by_rank((0, 0, 20, 24, 24), (4,) * 5))
    sentence(decisions[-1].statement, names=("rank 64", "4.0 points"))
    assert left(decisions) == {2, 3}  # the test items compare them


def test_the_ladder_compares_with_the_base(sentence: Sentences) -> None:
    decisions, _ = search(Ladder(settings(), (0, 1), TERMS), by_rank((0,) * 5))
    sentence(decisions[-1].statement, "no gain")
    decisions, _ = search(Ladder(settings(), (0, 1), TERMS), by_rank((10,) * 5))
    sentence(decisions[-1].statement, "a gain")


def test_the_ladder_starts_at_the_rank_nearest_to_32() -> None:
    for ranks, first in (((8, 16, 128), 1), ((4, 8), 1), ((64, 256), 0), ((16, 64), 0)):
        assert Ladder(settings(ranks=ranks), (0,), TERMS).start == first


def test_each_step_of_the_ladder_is_tuned() -> None:
    policy = Ladder(settings((1e-4, 3e-4, 1e-3), (16, 32)), (0, 1), TERMS)
    decisions, known = search(policy, tuned(5.4e-4))
    assert {trial.learning_rate for trial, _ in decisions[-1].finalists} == {5.33e-4}
    assert {of.trial.learning_rate for of in known if of.trial.seed == 1} == {5.33e-4}


def test_a_rank_of_the_ladder_that_diverges_is_left() -> None:
    def truth(trial: SearchTrial, share: float) -> tuple[float, float] | None:
        return None if trial.setting in (2, 3) else (20.0, 0.0)

    decisions, _ = search(Ladder(settings(), (0, 1), TERMS), truth)
    assert left(decisions) == {1}


def prospect(probability: float, seeds: int = 0) -> Prospect:
    return Prospect(
        add="seeds" if seeds else "items", factor=None if seeds else 2.0,
        num_items={} if seeds else {"arc": 200}, num_available=None, num_new_items=100,
        num_seeds=1 + seeds, num_new_seeds=seeds, probability=probability,
    )  # fmt: skip


def test_the_next_growth_is_the_likeliest_to_decide_for_its_cost(sentence: Sentences) -> None:
    items, seeds = Offer(prospect(0.3), 1.0), Offer(prospect(0.9, seeds=2), 10.0)
    offer, statement = next_growth([seeds, items])
    assert offer is items
    sentence(statement, names=("2 times", "arc"))
    assert next_growth([seeds])[0] is seeds


def test_a_study_stops_growing_where_nothing_decides_or_the_budget_is_spent() -> None:
    offer, statement = next_growth([Offer(prospect(0.05), 1.0)])
    assert offer is None
    assert "0.05" in statement
    assert next_growth([])[0] is None
    dear, cheap = Offer(prospect(0.9), 5.0), Offer(prospect(0.1), 2.0)
    assert next_growth([dear, cheap], budget=3.0)[0] is cheap
    offer, statement = next_growth([dear, cheap], budget=1.0)
    assert offer is None
    assert "budget" in statement
