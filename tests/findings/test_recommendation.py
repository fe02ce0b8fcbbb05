"""The recommendation on planted studies: four outcomes, and everything that may spoil them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks import decision_rule
from rankwise.errors import RecordError
from rankwise.findings.differences import comparisons
from rankwise.findings.odds import EPSILONS
from rankwise.findings.options import OptionGains
from rankwise.findings.recommendation import recommend, recommend_for
from rankwise.findings.statements import headline, next_command, statement
from rankwise.findings.stats.estimates import crossed_difference, mcnemar_exact
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import StudyResults, TrainTaskResults
from rankwise.records.study import PlannedRun
from tests.planted.grid import imported
from tests.planted.results import Key, planted_runs, planted_study, with_plans

MARGINS = RecommendationConfig(delta_points=5.0, epsilon_points=6.0)


def limited(study: TrainTaskResults) -> TrainTaskResults:
    """The same, cut by a limit: there may be more items."""
    evaluations = {
        task: scored.model_copy(update={"limit": scored.num_examples})
        for task, scored in study.base.evaluations.items()
    }
    base = study.base.model_copy(update={"evaluations": evaluations})
    return study.model_copy(update={"base": base})


def test_the_smallest_rank_that_qualifies_is_recommended() -> None:
    answer = recommend_for(planted_runs(recommendation=MARGINS))
    # rank 4 is 11 points below rank 64; rank 16 is 1 point below it, with 13 of 300 discordant
    assert (answer.outcome, answer.rank, answer.alpha) == ("recommended", 16, 32.0)
    assert answer.learning_rate == 2e-4
    assert answer.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert [v.qualifies for v in answer.verdicts] == [False, True, True]
    assert [v.near_the_best for v in answer.verdicts] == ["no", "yes", "yes"]
    assert answer.verdicts[1].gain.estimate == pytest.approx(30.0)
    assert answer.verdicts[1].shortfall.estimate == pytest.approx(1.0)
    assert answer.verdicts[2].shortfall.estimate == pytest.approx(-1.0)
    # all that has to be set besides the rank is said
    assert answer.statement.startswith(
        "Use rank 16 (alpha 32, learning rate 2e-4, q/k/v/o, 2 epochs):"
    )
    assert any("Alternatives that also qualify: rank 64 (+1.0 points" in r for r in answer.reasons)
    assert answer.prospects == ()


def test_the_bounds_are_the_hand_computed_ones() -> None:
    # noise 0: nested outcomes; rank 16 learns 90 of 300 and forgets none
    answer = recommend_for(planted_runs(noise=0.0, recommendation=MARGINS))
    stderr = 100 * math.sqrt((0.3 * 0.7 * 300 / 299 + 2 / 300) / 300)
    row = next(c for c in answer.comparisons if "r016" in c.run and c.task == "kinship")
    assert (row.num_learned, row.num_forgotten) == (90, 0)
    assert (row.num_kept_right, row.num_kept_wrong) == (150, 60)
    assert row.stderr == pytest.approx(stderr)
    assert row.mcnemar_p_value == mcnemar_exact(90, 0)
    gain = answer.verdicts[1].gain
    quantile = stats.norm.ppf(1 - 0.04 / 4)  # one-sided, of three ranks
    # a quantile of 4,096 draws has a standard error of 0.06
    assert (gain.estimate - gain.lower) / stderr == pytest.approx(quantile, abs=0.15)
    assert (gain.upper - gain.estimate) / stderr == pytest.approx(quantile, abs=0.15)


def test_no_evidence() -> None:
    scores = {4: 0.50, 16: 0.51, 64: 0.47}
    answer = recommend_for(limited(planted_runs(scores, recommendation=MARGINS)))
    assert (answer.outcome, answer.rank) == ("no_evidence", None)
    assert answer.statement.startswith("Not shown at 95 % that fine-tuning helps: no rank is shown")
    assert "rank 16, gains 1.0 points of accuracy (" in answer.statement
    assert answer.best_bet is not None
    assert answer.best_bet.choice == "rank 16"  # the only one that is ahead, by one point
    assert max(p.probability for p in answer.prospects if p.add == "retention") == 0.0


def test_no_rank_keeps_enough() -> None:
    lost = {4: 0.70, 16: 0.65, 64: 0.60}
    answer = recommend_for(planted_runs(retention_accuracy=lost, recommendation=MARGINS))
    assert (answer.outcome, answer.rank) == ("none_keeps_enough", None)
    assert [v.keeps_enough for v in answer.verdicts] == ["no", "no", "no"]
    assert "rank 4 loses least, 20.0 points" in answer.statement


def test_cannot_tell_says_what_would_settle_it() -> None:
    # rank 4 is 1 point ahead, but 34 items are discordant and delta is 1 point
    scores = {4: 0.75, 16: 0.74}
    close = RecommendationConfig(delta_points=1.0, epsilon_points=5.0)
    answer = recommend_for(planted_runs(scores, noise=0.1, recommendation=close))
    assert (answer.outcome, answer.rank) == ("cannot_tell", None)
    assert answer.statement.startswith("Not settled at 95 %. Best bet: rank 4 (")
    assert "Rank 4 and rank 16 cannot be told apart." in answer.statement
    # every item of every task was scored: only seeds can be added
    assert {p.add for p in answer.prospects} == {"seeds"}
    assert "rankwise extend DIR --items" not in answer.statement


def test_many_options_that_cannot_be_told_apart_are_counted() -> None:
    close = RecommendationConfig(delta_points=1.0, epsilon_points=5.0)
    ranks = (2, 4, 8, 16, 32, 64, 128)
    for number, named in (
        (7, "7 options"),
        (6, "Rank 2, rank 4, rank 8,"),
    ):
        scores = dict.fromkeys(ranks[:number], 0.75)
        answer = recommend_for(planted_runs(scores, noise=0.1, recommendation=close))
        assert f" {named}" in answer.statement
        assert " cannot be told apart." in answer.statement
    lost = dict.fromkeys(ranks, 0.90) | {1: 0.50}
    scores = dict.fromkeys((*ranks, 1), 0.75)
    answer = recommend_for(planted_runs(scores, lost, noise=0.1, recommendation=close))
    assert [v.label for v in answer.verdicts if v.ruled_out_by == "retention"] == ["rank 1"]
    assert [v.rank for v in answer.left] == list(ranks)
    assert "Rank 1 is ruled out by its retention loss. 7 options cannot be" in answer.statement


def test_what_can_be_done_comes_with_its_command() -> None:
    scores = {4: 0.75, 16: 0.74}
    close = RecommendationConfig(delta_points=1.0, epsilon_points=5.0)
    study = planted_runs(scores, noise=0.1, recommendation=close)
    answer = recommend_for(limited(study))
    assert (
        "10 times the in-domain items of kinship (3,000, if available) would settle"
        in answer.statement
    )
    assert "`rankwise extend DIR --items 2700`" in answer.statement


def test_a_rejected_rival_counts_as_a_way_to_a_decision() -> None:
    # rank 4 keeps enough; rank 16 is far ahead and forgets a little too much, not yet shown
    kept = {4: 0.9, 16: 0.80}
    margins = RecommendationConfig(delta_points=5.0, epsilon_points=7.0)
    study = planted_runs({4: 0.6, 16: 0.8}, kept, recommendation=margins)
    answer = recommend_for(limited(study))
    assert answer.outcome == "cannot_tell"
    by_factor = {
        p.factor: p for p in answer.prospects if p.add == "retention" and len(p.num_items) > 1
    }
    assert by_factor[10.0].probability > 0.5
    # in-domain items cannot do it: rank 4 will stay behind rank 16
    assert max(p.probability for p in answer.prospects if p.add == "in_domain") < 0.02


def test_a_rank_that_forgets_is_no_rival() -> None:
    scores = {4: 0.70, 16: 0.80, 64: 0.90}
    kept = {4: 0.90, 16: 0.90, 64: 0.60}
    answer = recommend_for(planted_runs(scores, kept, recommendation=MARGINS))
    assert answer.rank == 16  # 10 points below rank 64, which was rejected on retention
    assert [v.keeps_enough for v in answer.verdicts] == ["yes", "yes", "no"]
    worst = answer.verdicts[2].worst_retention_loss
    assert worst is not None
    assert worst.estimate == pytest.approx(30.0)


def test_identical_ranks_take_the_smallest() -> None:
    same = {4: 0.8, 16: 0.8, 64: 0.8}
    answer = recommend_for(planted_runs(same, same | {4: 0.9, 16: 0.9, 64: 0.9}, noise=0.0))
    assert answer.rank == 4
    assert answer.verdicts[0].shortfall.upper > 0.0


def test_full_fine_tuning_is_compared_and_never_recommended() -> None:
    answer = recommend_for(planted_runs({4: 0.70, "full": 0.95}, recommendation=MARGINS))
    assert answer.rank == 4
    assert len(answer.verdicts) == 1
    assert answer.verdicts[0].shortfall.upper == 0.0
    rows = [c for c in answer.comparisons if "full" in c.run]
    assert {c.task for c in rows} >= {"kinship", "capitals", "pydoc_topics"}


def test_only_full_fine_tuning() -> None:
    answer = recommend_for(planted_runs({"full": 0.9}))
    assert (answer.outcome, answer.verdicts) == ("cannot_tell", ())
    assert "no LoRA rank has a run that was finished" in answer.statement
    assert len(answer.comparisons) == 5


def test_the_default_margins_are_those_that_are_said_whatever_the_size() -> None:
    for size in (30, 300, 3000):
        answer = recommend_for(planted_runs(num_in_domain=size, num_retention=size))
        margins = answer.delta, answer.epsilon_points, answer.worst_task_points
        assert margins == (5.0, 5.0, 15.0)
    narrower = RecommendationConfig(epsilon_points=2.0)
    answer = recommend_for(planted_runs(recommendation=narrower))
    assert (answer.delta, answer.epsilon_points, answer.worst_task_points) == (5.0, 2.0, 6.0)
    assert answer.reasons[0] == (
        "Judged with δ = 5.0 points of accuracy, ε = 2.0 points of accuracy on average and 6.0 "
        "points on any task, at 95 % confidence."
    )


CAPITALS = {"kinship": 0.5, "capitals": 1.0, "a": 0.62, "b": 0.62, "c": 0.62, "d": 0.62}
"""Of the base: whoever is right on 0.70 of each task loses 30 points on one and gains 8 on four."""


def one_task_lost(ceiling: float | None, num_retention: int = 400) -> Recommendation:
    return recommend_for(
        planted_runs(
            retention_accuracy=dict.fromkeys((4, 16, 64, "full"), 0.7),
            base=CAPITALS,
            retention_tasks=("capitals", "a", "b", "c", "d"),
            num_retention=num_retention,
            recommendation=RecommendationConfig(worst_task_points=ceiling),
        )
    )


def test_a_mean_hides_no_task_that_is_lost() -> None:
    answer = one_task_lost(None)
    assert (answer.outcome, answer.rank) == ("none_keeps_enough", None)
    for verdict in answer.verdicts:
        assert verdict.retention_loss is not None
        assert verdict.retention_loss.estimate == pytest.approx(-0.4)  # (30 - 4 * 8) / 5
        assert verdict.worst_retention_task == "capitals"
    # rank 16 would do for whoever accepts what it loses on capitals
    assert answer.sufficient_epsilon_points == 5.0
    accepted = answer.sufficient_worst_task_points
    assert accepted is not None
    assert 30 < accepted < 40
    assert one_task_lost(accepted).rank == answer.sufficient_rank
    assert one_task_lost(accepted - 0.2).rank is None
    assert f"{accepted:.1f} on any task: `rankwise verdict DIR --epsilon 5" in answer.statement


def test_the_headline_names_the_task_that_loses_most() -> None:
    answer = one_task_lost(40.0)
    assert answer.outcome == "recommended"
    loss, worst = answer.verdicts[1].retention_loss, answer.verdicts[1].worst_retention_loss
    assert loss is not None
    assert worst is not None
    assert answer.verdicts[1].worst_retention_task == "capitals"
    assert (
        f"loses at most {loss.upper:.1f} points of accuracy on average over the 5 retention tasks "
        f"(most on capitals, {worst.estimate:.1f} points; on no task more than {worst.upper:.1f})"
    ) in answer.statement.replace("\u2212", "-")


def test_the_largest_loss_is_that_of_its_task_and_bounded_by_its_own_items() -> None:
    """Losses of 30, -8, -8, -8 and -8: no other task hides that one was lost."""
    answer = one_task_lost(None)
    worst = answer.verdicts[1].worst_retention_loss
    assert worst is not None
    # 120 of 400 items are lost and none is learned, but for the noise of the planted models
    row = next(c for c in answer.comparisons if c.task == "capitals" and "r016" in c.run)
    assert (row.num_learned, row.num_forgotten) == (0, 120)
    assert worst.estimate == pytest.approx(30.0)
    quantile = stats.norm.ppf(1 - 0.04 / 4)
    assert (worst.upper - worst.estimate) / row.stderr == pytest.approx(quantile, abs=0.25)
    assert (worst.estimate - worst.lower) / row.stderr == pytest.approx(quantile, abs=0.25)


def test_without_retention_tasks_forgetting_is_not_measured() -> None:
    answer = recommend_for(planted_runs(retention_tasks=()))
    assert answer.outcome == "recommended"
    assert answer.epsilon_points is None
    assert all(v.keeps_enough is None and v.retention_loss is None for v in answer.verdicts)
    assert "; forgetting was not measured." in answer.statement
    assert any("Forgetting was not measured" in reason for reason in answer.reasons)


def test_losses_in_nats_are_better_lower() -> None:
    losses = {4: 1.60, 16: 1.40, 64: 1.395}
    base = {"kinship": 2.0, "capitals": 0.9, "elements": 0.9}
    answer = recommend_for(planted_runs(losses, base=base, in_domain_unit="nats"))
    assert (answer.outcome, answer.rank, answer.unit) == ("recommended", 16, "nats")
    assert answer.delta == 0.05
    assert answer.verdicts[1].gain.estimate == pytest.approx(0.6)
    assert "gains 0.600 nats" in answer.statement
    row = answer.comparisons[0]
    assert row.mcnemar_p_value is None
    assert row.num_learned is None
    assert row.p_value < 1e-6


def test_several_seeds_are_averaged_and_their_spread_is_in_the_odds_of_another_run() -> None:
    scores = {4: (0.66, 0.70, 0.74), 16: (0.78, 0.80, 0.82), 64: 0.81}
    kept = {4: 0.9, 16: 0.9, 64: 0.9}
    answer = recommend_for(planted_runs(scores, kept, seeds=(0, 1, 2)))
    assert answer.num_seeds == 3
    assert answer.verdicts[0].gain.estimate == pytest.approx(20.0)
    assert len(answer.verdicts[0].runs) == 3
    own = [c for c in answer.comparisons if c.relation == "in_domain"]
    assert len(own) == 9  # each run by itself: McNemar never pools seeds
    same = recommend_for(planted_runs(scores | {4: 0.70}, kept, seeds=(0, 1, 2)))
    # the bounds are about these runs: those of rank 4 differ by items alone
    spread, alike = (v.verdicts[0].gain for v in (answer, same))
    assert spread.upper - spread.lower == pytest.approx(alike.upper - alike.lower, rel=0.1)


def test_a_settled_verdict_is_about_the_adapters_and_another_run_has_its_own_odds() -> None:
    """Two seeds 20 points apart: the adapters gain 20 on average, another run may gain nothing."""
    scores, kept = {16: (0.60, 0.80)}, {16: 0.9}
    runs = planted_runs(scores, kept, seeds=(0, 1), num_in_domain=1000)
    answer = recommend_for(runs)
    assert (answer.outcome, answer.rank) == ("recommended", 16)
    gain = answer.verdicts[0].gain
    assert gain.estimate == pytest.approx(20.0)
    # the mean of the two runs on each item, as if it were one run
    base = np.array(runs.base.items["kinship"].values)
    each = [100.0 * (np.array(run.items["kinship"].values) - base) for run in runs.runs]
    alone = crossed_difference(np.mean(each, axis=0), item_size=100.0)
    quantile = stats.norm.ppf(1 - 0.04 / 2)
    assert (gain.estimate - gain.lower) / alone.stderr == pytest.approx(quantile, abs=0.15)
    # one new run: two runs' deviations with a prior of 1.6 degrees of freedom, 1.3 squared points;
    # equal runs of these items would differ as well, by what run and item do together
    apart = (each[0] - each[1]) / 2.0
    interaction = apart.var(ddof=1) / 1000
    seen = max(2 * 10.0**2 - 2 * interaction, 0.0)
    scale = (1.6 * 1.3 + seen) / 2.6
    new_run = stats.t.cdf(20.0 / math.sqrt(scale * 1.5), 2.6)
    assert 0.85 < new_run < 0.95
    bet = answer.best_bet
    assert bet is not None
    # one option alone: what it keeps is the other condition, and is nearly certain
    assert bet.options[0].right_next_run == pytest.approx(new_run, abs=0.02)
    assert bet.options[0].right > 0.995
    assert bet.options[0].right > bet.options[0].right_on_average > bet.options[0].right_next_run


def test_what_seeds_bring_is_known_beside_what_items_bring() -> None:
    close = RecommendationConfig(delta_points=1.0, epsilon_points=5.0)
    study = planted_runs({4: 0.75, 16: 0.74}, noise=0.1, retention_tasks=(), recommendation=close)
    answer = recommend_for(limited(study))
    assert answer.outcome == "cannot_tell"
    seeds = [p for p in answer.prospects if p.add == "seeds"]
    assert [(p.num_new_seeds, p.num_seeds) for p in seeds] == [(2, 3), (4, 5)]
    assert seeds[0].probability <= seeds[1].probability + 0.05
    by_factor = {p.factor: p.probability for p in answer.prospects if p.add == "in_domain"}
    # rank 16 may be as good or more than a point below: the more items, the sooner that is known
    assert by_factor[2.0] < by_factor[4.0] < by_factor[10.0]


def test_full_fine_tuning_that_is_better_on_both_axes_is_named() -> None:
    answer = recommend_for(
        planted_runs(
            {4: 0.69, 16: 0.88, 64: 0.91, "full": 0.97},
            {4: 0.85, 16: 0.82, 64: 0.75, "full": 0.89},
        )
    )
    assert answer.better_and_kept_by_full == "full fine-tuning"
    rates = "other learning rates of LoRA (`rankwise extend DIR --rate-factors 0.5,2`)"
    layers = "all linear layers first (methods.lora.target_modules: all-linear), then "
    better = "Full fine-tuning gains more and forgets less than every rank, both shown: try "
    assert f"{better}{layers}{rates}" in answer.statement
    every = ("q_proj", "up_proj", "down_proj")
    tried = [v.model_copy(update={"target_modules": every}) for v in answer.verdicts]
    again = statement(answer.model_copy(update={"verdicts": tuple(tried)}))
    assert f"{better}{rates}" in again
    assert next_command(answer) == "rankwise extend DIR --rate-factors 0.5,2"
    assert recommend_for(planted_runs()).better_and_kept_by_full is None


def test_ranks_that_are_ruled_out_are_named_and_those_left_are_not_called_equal() -> None:
    answer = recommend_for(
        planted_runs(
            {4: 0.69, 16: 0.88, 64: 0.91},
            {4: 0.87, 16: 0.83, 64: 0.70},
            recommendation=MARGINS,
        )
    )
    four, sixteen, sixty_four = answer.verdicts
    assert sixty_four.ruled_out_by == "retention"
    assert four.ruled_out_by is None  # rank 16 may forget too much, and then rank 4 is the answer
    assert four.worse_than == ("rank 16", "rank 64")
    assert sixteen.ruled_out_by is None
    assert [verdict.rank for verdict in answer.left] == [4, 16]
    assert "Rank 64 is ruled out by its retention loss" in answer.statement
    assert "Rank 4 scores less than rank 16, which is not shown to keep enough" in answer.statement
    # it is 19 points below, and at least 10
    assert "perhaps by under" not in answer.statement
    assert "cannot be told apart" not in answer.statement


def test_the_odds_follow_epsilon() -> None:
    answer = recommend_for(planted_runs({4: 0.7, 16: 0.9}, {4: 0.88, 16: 0.80}, num_retention=500))
    bet = answer.best_bet
    assert bet is not None
    own = answer.epsilon_points
    assert [row.epsilon_points for row in bet.by_epsilon] == sorted({*EPSILONS, own})
    strict, loose = bet.by_epsilon[3], bet.by_epsilon[-1]  # 4 and 25 points
    assert strict.right[0] > 0.7 > 0.1 > strict.right[1]
    assert loose.right[1] > 0.9 > 0.1 > loose.right[0]
    assert loose.choice == "rank 16"
    for row in bet.by_epsilon:
        assert sum(row.right) < 1.01  # 20 points apart: both are near the best almost never


def test_an_option_of_which_a_run_diverged_is_judged_and_never_recommended() -> None:
    study = planted_runs(seeds=(0, 1), diverged=((16, 1),))
    answer = recommend_for(study)
    assert [v.rank for v in answer.verdicts] == [4, 16, 64]
    assert (answer.outcome, answer.rank) == ("recommended", 64)
    sixteen = answer.verdicts[1]
    assert (sixteen.diverged_seeds, len(sixteen.runs)) == ((1,), 1)
    shown = sixteen.better_than_base, sixteen.keeps_enough, sixteen.near_the_best
    assert (shown, sixteen.qualifies) == (("yes", "yes", "yes"), False)
    assert "Rank 16 diverged with seed 1." in headline(answer)
    assert not any("r016" in c.run and "s1" in c.run for c in answer.comparisons)
    bet = answer.best_bet
    assert bet is not None
    # of two runs one was finished: another is with (1 + 1) / (2 + 2)
    assert bet.options[1].right_next_run < 0.5 < bet.options[1].right_on_average


def test_an_option_of_which_a_run_diverged_is_no_way_to_a_decision() -> None:
    """Rank 16 alone does all that is asked, and one of its two runs diverged."""
    study = planted_runs({16: 0.9}, {16: 0.9}, seeds=(0, 1), diverged=((16, 1),))
    answer = recommend_for(limited(study))
    assert answer.outcome == "cannot_tell"
    assert answer.sufficient_label is None  # no loss that is accepted makes it qualify
    # but that it loses too much may be shown
    assert max((p.probability for p in answer.prospects), default=0.0) < 0.02


def test_a_missing_run_leaves_the_others_as_they_are() -> None:
    study = planted_runs(seeds=(0, 1))
    answer = recommend_for(study.model_copy(update={"models": study.runs[1:]}))
    assert [(v.rank, len(v.runs)) for v in answer.verdicts] == [(4, 1), (16, 2), (64, 2)]
    without = planted_runs()
    answer = recommend_for(without.model_copy(update={"models": without.runs[1:]}))
    assert [v.rank for v in answer.verdicts] == [16, 64]
    assert "Rank 4 has no run, so it is not judged." in answer.reasons


def test_every_run_diverged() -> None:
    answer = recommend_for(planted_runs({4: 0.7, 16: 0.7}, diverged=((4, 0), (16, 0))))
    assert (answer.outcome, answer.comparisons, answer.verdicts) == ("cannot_tell", (), ())
    assert "Rank 4 diverged with seed 0, so it is not judged." in answer.reasons


def _with_items(study: TrainTaskResults, index: int, task: str, **change: Any) -> TrainTaskResults:
    run = study.runs[index]
    items = run.items | {task: run.items[task].model_copy(update=change)}
    runs = list(study.runs)
    runs[index] = run.model_copy(update={"items": items})
    return study.model_copy(update={"models": tuple(runs)})


def test_other_items_are_an_error_that_names_both() -> None:
    study = planted_runs()
    moved = _with_items(study, 1, "capitals", doc_ids=tuple(range(1, 201)))
    with pytest.raises(RecordError, match=r"base was scored on 200 .*r016.* 199 are the same"):
        recommend_for(moved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": (1.0,) * 199 + (math.nan,)}, "r016.* is not a finite number"),
        ({"metric": "acc_norm"}, "scored by acc in points .* by acc_norm in points"),
    ],
)
def test_bad_scores_are_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        recommend_for(_with_items(planted_runs(), 1, "capitals", **change))


def test_one_item_is_an_error() -> None:
    with pytest.raises(RecordError, match="'kinship' has 1 items"):
        recommend_for(planted_runs(num_in_domain=1))


def test_items_are_paired_by_id_in_any_order() -> None:
    study = planted_runs()
    items = study.runs[1].items["kinship"]
    turned = _with_items(
        study, 1, "kinship", doc_ids=items.doc_ids[::-1], values=items.values[::-1]
    )
    assert recommend_for(turned) == recommend_for(study)


def test_a_missing_score_is_an_error() -> None:
    study = planted_runs()
    run = study.runs[0].model_copy(update={"items": {}})
    broken = study.model_copy(update={"models": (run, *study.runs[1:])})
    with pytest.raises(RecordError, match="was not scored on 'kinship'"):
        recommend_for(broken)


def test_compare_has_every_run_and_task_with_signs() -> None:
    rows = tuple(comparisons(OptionGains(planted_runs())))
    assert len(rows) == 4 * 5
    prose = next(c for c in rows if c.relation == "held_out_text" and "r064" in c.run)
    assert prose.unit == "nats"
    assert prose.difference.estimate == pytest.approx(-0.1)  # more loss than the base is worse
    assert prose.difference.lower < prose.difference.estimate < prose.difference.upper
    kept = next(c for c in rows if c.task == "capitals" and "full" in c.run)
    assert kept.difference.estimate == pytest.approx(-10.0)


def test_several_tasks_count_by_their_macro_mean() -> None:
    answer = recommend_for(
        planted_runs(in_domain_tasks=("kinship", "other"), recommendation=MARGINS)
    )
    assert answer.num_items_in_domain == 600
    assert answer.verdicts[1].gain.estimate == pytest.approx(30.0)


def test_the_record_is_reproducible_and_survives_json() -> None:
    first, second = recommend_for(planted_runs()), recommend_for(planted_runs())
    assert first == second
    assert Recommendation.model_validate_json(first.model_dump_json()) == first


def test_wrong_recommendations_are_rare() -> None:
    cells = [cell for cell in decision_rule.edge_cells() if cell.family == decision_rule.PLAIN]
    assert len({cell.edge for cell in cells}) == 5
    for cell in cells:
        few = cell._replace(at=(("adapters", 1, 1000), ("adapters", 3, 300)))
        tally = decision_rule.simulate_edges(few, 25, 0)
        assert max(rate.share for rate in tally.wrong.values()) < 0.17, cell
        assert tally.least_covered > 0.8, cell


PRICED = (
    {4: 0.6, 16: 0.7, 64: 0.95, "full": 0.95},
    {4: 0.9, 16: 0.85, 64: 0.82, "full": 0.9},
    {4: 0.5, 16: 0.5, 64: 0.5, "full": 0.5},
    {4: 2.5, 16: 2.5, 64: 2.5, "full": 2.5},
)


def test_the_price_of_qualifying_is_named_where_margins_conflict() -> None:
    # rank 64 learns most and forgets most; rank 4 keeps all and is far behind
    answer = recommend_for(planted_runs(*PRICED))
    assert answer.outcome == "cannot_tell"
    assert answer.sufficient_rank == 64
    verdict = next(v for v in answer.verdicts if v.rank == 64)
    assert verdict.retention_loss is not None
    # the next tenth above the bound
    needed = math.floor(10 * verdict.retention_loss.upper + 1) / 10
    assert answer.sufficient_epsilon_points == needed
    price = (
        f"Rank 64 would qualify if you accepted a loss of {needed:.1f} points on average and 15.0 "
        "on any task"
    )
    assert price in answer.statement
    full = "Full fine-tuning, for comparison only: gain 45.0 points; retention loss 0.0 points."
    assert full in answer.reasons
    for epsilon, rank in ((needed, 64), (needed - 0.2, None)):
        paid = RecommendationConfig(
            delta_points=answer.delta, epsilon_points=epsilon, worst_task_points=15.0
        )
        assert recommend_for(planted_runs(*PRICED, recommendation=paid)).rank == rank


@pytest.mark.parametrize(
    ("epsilon", "kept"), [(5.0, {4: 0.90, 16: 0.855}), (3.0, {4: 0.96, 16: 0.87})]
)
def test_a_stricter_limit_is_no_price(epsilon: float, kept: dict[Key, float]) -> None:
    """Rank 4 keeps enough and is far behind: at a smaller ε its rival would be rejected."""
    margins = RecommendationConfig(delta_points=5.0, epsilon_points=epsilon)
    answer = recommend_for(
        planted_runs(
            {4: 0.7, 16: 0.9},
            kept,
            num_retention=600,
            noise=0.01,
            recommendation=margins,
        )
    )
    assert answer.outcome == "cannot_tell"
    assert answer.sufficient_rank != 4
    assert answer.sufficient_epsilon_points is None or answer.sufficient_epsilon_points > epsilon


def test_a_lead_that_may_be_below_delta_rules_nothing_out() -> None:
    """The rule takes the smallest rank within δ, so rank 4 may be the answer; at once it is."""
    scores, kept = {4: 0.784, 16: 0.80}, {4: 0.9, 16: 0.9}
    for delta, ruled_out in ((5.0, None), (0.5, "rank 16")):
        margins = RecommendationConfig(delta_points=delta, epsilon_points=6.0)
        answer = recommend_for(
            planted_runs(scores, kept, num_in_domain=4000, noise=0.0, recommendation=margins)
        )
        four = answer.verdicts[0]
        assert four.worse_than == ("rank 16",)
        assert four.ruled_out_by == ruled_out
        assert four.qualifies == (ruled_out is None)
    close = RecommendationConfig(delta_points=1.0, epsilon_points=5.0)
    three = dict.fromkeys((4, 16, 64), 0.9)
    answer = recommend_for(
        planted_runs({4: 0.7, 16: 0.8, 64: 0.8}, three, num_in_domain=1000, recommendation=close)
    )
    assert answer.outcome == "cannot_tell"
    by = answer.verdicts[0].ruled_out_by
    assert by in ("rank 16", "rank 64")
    assert f"Rank 4 is ruled out by {by}, which gains over δ more" in answer.statement


def test_a_task_that_is_whole_does_not_grow() -> None:
    margins = RecommendationConfig(delta_points=8.0, epsilon_points=5.0)
    study = planted_runs(
        {4: 0.70, 16: 0.74}, {4: 0.87, 16: 0.87}, num_retention=100, recommendation=margins
    )

    def with_limits(available: int | None = None, **limits: int) -> TrainTaskResults:
        evaluations = {
            task: scored.model_copy(
                update={"limit": limits.get(task, scored.limit), "num_available": available}
            )
            for task, scored in study.base.evaluations.items()
        }
        base = study.base.model_copy(update={"evaluations": evaluations})
        return study.model_copy(update={"base": base})

    # 100 items each: of capitals there are no more, of elements there may be
    for prospect in recommend_for(with_limits(capitals=200, elements=100)).prospects:
        if prospect.add == "retention":
            assert prospect.num_items == {"elements": 100 * (prospect.factor or 0)}
    assert {p.add for p in recommend_for(with_limits()).prospects} == {"seeds"}

    # 522 items of elements, of which 100 were scored: what is advised is there
    answer = recommend_for(with_limits(522, elements=100))
    grown = [p for p in answer.prospects if p.add == "retention"]
    assert [p.num_items["elements"] for p in grown] == [200, 400, 522]
    assert [p.num_new_items for p in grown] == [100, 300, 422]
    best = grown[-1].model_copy(update={"probability": 0.9})
    said = statement(answer.model_copy(update={"prospects": (best,)}))
    settle = "5.2 times the retention items of elements (all 522) would settle it with probability"
    assert f"{settle} 0.9: `rankwise extend DIR --items 422`" in said


def _imported(study: StudyResults, *ranks: int) -> TrainTaskResults:
    """The runs of these ranks as adapters of somebody else."""

    def changed(plan: PlannedRun) -> PlannedRun:
        theirs = {"seed": None, "role": "imported", "imported": imported(f"theirs{plan.rank}")}
        return plan.model_copy(update=theirs) if plan.rank in ranks else plan

    return with_plans(study, changed).of("kinship")


@pytest.mark.parametrize("imported", [(4, 16), (16,)])
def test_an_imported_adapter_is_an_adapter_and_has_no_seed(imported: tuple[int, ...]) -> None:
    study = planted_study(
        {4: 0.7, 16: 0.8}, {4: 0.9, 16: 0.9}, num_in_domain=2000, noise=0.02,
        num_retention=1000, recommendation=RecommendationConfig(delta_points=5, epsilon_points=5),
    )  # fmt: skip
    answer = recommend_for(_imported(study, *imported))
    assert (answer.outcome, answer.rank) == ("recommended", 16)
    assert answer.verdicts[1].imported_as == "theirs16"
    assert ", imported as theirs16: it gains" in answer.statement
    assert "nother run" not in answer.statement
    assert "seed" not in answer.statement
    bet = answer.best_bet
    assert bet is not None
    # rank 16 is used as it is; rank 4 may be trained again, and come nearer, where it is no import
    own = bet.options[1]
    if len(imported) == 2:
        assert own.right_next_run == pytest.approx(own.right_on_average, abs=0.02)
    else:
        assert own.right_next_run <= own.right_on_average


def test_an_imported_adapter_cannot_be_trained_with_more_seeds() -> None:
    close = RecommendationConfig(delta_points=1.0, epsilon_points=5.0)
    study = planted_study({4: 0.75, 16: 0.74}, noise=0.1, recommendation=close)
    assert "seeds" in {prospect.add for prospect in recommend(study).by_train_task[0].prospects}
    assert "seeds" not in {p.add for p in recommend_for(_imported(study, 16)).prospects}
