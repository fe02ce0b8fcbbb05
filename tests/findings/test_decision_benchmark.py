"""The simulated studies of benchmarks/decision: drawn as they say, and tallied as they say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import decision, decision_odds, decision_repairs, decision_rule
from benchmarks import decision_samples as samples
from benchmarks.decision_rule import FAMILIES, NUM_RANKS, PLAIN
from benchmarks.decision_studies import (
    CURVES,
    NUM_TASKS,
    Family,
    Rate,
    Truth,
    draw_study,
    generator,
    rank_curve,
    right_answers,
)
from rankwise.findings.decision import Margins, ends
from rankwise.findings.stats.items import design_effects


def planted(gain: float, loss: float, *, nats: bool = False) -> Truth:
    """All ranks alike."""
    unit = 0.01 if nats else 1.0
    return Truth(np.full(NUM_RANKS, unit * gain), np.full((NUM_TASKS, NUM_RANKS), loss))


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_items_have_the_truth_that_was_planted(family: Family) -> None:
    truth = planted(0.0 if family.fails else 15.0, 5.0, nats=family.is_nats)
    still = family._replace(run_sd=(0.0, 0.0))
    study = draw_study(still, truth, 6_000, 2, generator(family, 0))
    within = family.point * 2.6 * family.copies**0.5
    gain = np.mean([task.values.mean(axis=2) for task in study.gains], axis=0)
    assert gain == pytest.approx(np.stack([run.gain for run in study.runs]), abs=within)
    for place, task in enumerate(study.losses):
        true = [run.losses[place] for run in study.runs]
        assert task.values.mean(axis=2) == pytest.approx(np.stack(true), abs=6.0)


def test_runs_are_around_their_rank_and_collapses_are_part_of_its_truth() -> None:
    family = next(family for family in FAMILIES if family.collapse == 0.1)
    truth, rng = planted(20.0, 5.0), np.random.default_rng(0)
    runs = [draw_study(family, truth, 10, 1, rng).runs[0] for _ in range(800)]
    losses = np.stack([run.losses for run in runs])
    assert losses.mean() == pytest.approx(5.0, abs=0.6)
    assert (losses > 25.0).mean() == pytest.approx(0.1, abs=0.02)
    assert np.stack([run.gain for run in runs]).std() == pytest.approx(0.7, abs=0.03)


def test_two_models_disagree_on_a_fifth_and_copies_are_alike() -> None:
    study = draw_study(PLAIN, planted(0.0, 0.0), 50_000, 1, np.random.default_rng(0))
    gains = study.gains[0].values
    assert (gains[0, 0] != gains[0, 1]).mean() == pytest.approx(0.205, abs=0.01)
    assert study.gains[0].clusters is None
    copied = draw_study(
        PLAIN._replace(copies=5), planted(0.0, 0.0), 5_000, 1, np.random.default_rng(0)
    ).gains[0]
    assert copied.clusters is not None
    assert design_effects(copied.values[0, 0], copied.clusters) > 2.5


def test_two_adapters_of_a_rank_decide_no_less_than_one() -> None:
    cell = decision_rule.edge_cells()[0]
    truth = planted(20.0, 0.0)
    decided = {}
    for seeds in (1, 2):
        rng = generator(cell, 0)
        decided[seeds] = sum(
            decision_rule.is_decided(
                decision_rule.verdict(
                    decision_rule.evidence_of(
                        draw_study(PLAIN, truth, 1000, 2, rng).first(1000, seeds)
                    ),
                    decision_rule.margins_of(PLAIN),
                    "adapters",
                )
            )
            for _ in range(20)
        )
    assert decided[2] >= decided[1] > 10


def test_a_task_that_is_lost_is_not_recommended() -> None:
    for cell in decision_rule.edge_cells():
        if cell.family == decision_rule.LOST:
            few = cell._replace(at=(("adapters", 1, 1000), ("rank", 3, 300)))
            tally = decision_rule.simulate_edges(few, 10, 0)
            assert not any(rate.number for rate in tally.wrong.values()), cell


def test_rank_curves_are_of_their_family() -> None:
    rng = np.random.default_rng(0)
    spreads = {
        curve: [np.std(rank_curve(curve, 5, rng).gain) for _ in range(400)]
        for curve in (*CURVES, "rough")
    }
    assert max(spreads["flat"]) < 1e-9
    for curve in ("smooth", "saturating", "trade-off", "rough"):
        assert np.median(spreads[curve]) == pytest.approx(1.8, rel=0.2)
    rising = rank_curve("trade-off", 8, rng)
    assert (np.diff(rising.gain) > 0).all()
    assert (np.diff(rising.losses) > 0).all()


def test_every_edge_makes_as_many_ranks_wrong_as_it_can() -> None:
    for cell in decision_rule.edge_cells():
        able = right_answers(cell.truth, decision_rule.margins_of(cell.family))
        assert able.sum() == (1 if "best" in cell.edge or "and" in cell.edge else 0), cell


def test_what_may_be_recommended_is_within_every_margin() -> None:
    losses = np.zeros((NUM_TASKS, 5))
    losses[:, 1], losses[0, 2] = 6.0, 16.0
    truth = Truth(np.array([10.0, 30.0, 30.0, 14.0, -1.0]), losses)
    assert right_answers(truth, Margins(5.0, 5.0, 15.0)).tolist() == [1, 0, 0, 1, 0]
    assert right_answers(truth, Margins(3.0, 5.0, 15.0)).tolist() == [0, 0, 0, 1, 0]
    assert right_answers(truth, Margins(5.0, 5.0, 16.0)).tolist() == [0, 0, 1, 0, 0]


def test_a_rate_has_the_exact_binomial_bound() -> None:
    assert Rate(0, 59).upper == pytest.approx(1 - 0.05 ** (1 / 59))
    assert Rate(3, 3).upper == 1.0


def test_stated_probabilities_are_held_against_what_came_true() -> None:
    stated = decision_odds.Stated(np.array([0.2] * 60 + [0.9] * 40), np.array([0.0, 1.0] * 50))
    assert stated.brier == pytest.approx(0.6 * (0.04 + 0.64) / 2 + 0.4 * (0.81 + 0.01) / 2)
    assert stated.bins == [(pytest.approx(0.2), 0.5, 60), (pytest.approx(0.9), 0.5, 40)]
    assert stated.largest_gap == pytest.approx(0.3)  # the larger gap has too few behind it
    assert decision_odds.brier_over_constant([stated]) == pytest.approx(stated.brier / 0.25)


def test_verdicts_agree_with_the_intervals_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for cell in samples.agreement_cells():
        assert samples.simulate_agreement(cell, 10, 0).contradictions == 0, cell
    # bounds at a lower level than that of the states beside them
    monkeypatch.setattr(samples, "ends", lambda draws, level: ends(draws, 0.8))
    cell = samples.AgreementCell("sd of 5 points", 3, 100)
    assert samples.simulate_agreement(cell, 60, 0).contradictions > 0


def test_a_repair_that_loses_too_much_is_seldom_said_to_do() -> None:
    beyond, half = (
        next(cell for cell in decision_repairs.repair_cells() if cell.name == name)
        for name in ("all beyond", "half beyond")
    )
    assert decision_repairs.simulate_repairs(beyond, 30, 0).wrong.share < 0.12
    found = decision_repairs.simulate_repairs(half._replace(num_items=1000), 5, 0)
    assert found.found.share > found.wrong.share


def test_odds_say_more_than_a_constant() -> None:
    tally = decision_odds.simulate_odds(decision_odds.OddsCell(1000, 3, 5), 25, 0)
    assert decision_odds.brier_over_constant([tally.right]) < 0.9
    assert (tally.regret >= 0.0).all()
    # what is likeliest to be right is right more often than any one rank
    stated, right = (values.reshape(25, 5) for values in tally.right)
    of_bet = right[np.arange(25), stated.argmax(axis=1)].mean()
    assert of_bet > right.mean(axis=0).max()
    assert len({len(stated.outcome) for stated in tally.prospects.values()}) == 1


def test_one_group_gives_its_part_of_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    decision.main(["--studies", "2", "--only", "looks"])
    printed = capsys.readouterr()
    assert printed.err.count("wrong at any of 6 looks") == 6
    assert json.loads(printed.out)["num_cells"] == 6
