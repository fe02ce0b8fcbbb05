"""The simulated studies of benchmarks/decision: drawn as they say, and tallied as they say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import decision, decision_items, decision_odds, decision_rule, decision_runs
from benchmarks import decision_samples as samples
from benchmarks.decision_studies import (
    FAMILIES,
    Cell,
    Rate,
    Truth,
    draw_items,
    generator,
    rank_curve,
)


@pytest.mark.parametrize("best", [0.0, 20.0, 40.0])
def test_items_have_the_truth_that_was_planted(best: float) -> None:
    truth = Truth((best, best, best - 12.0), (0.0, 8.0, -3.0))
    cell = Cell("drawn", truth, 1.0, 1.0, 0.3, 200_000, 200_000, 1)
    study = draw_items(cell, np.asarray([truth.gain]), np.asarray([truth.loss]), generator(cell, 0))
    assert study.gains.mean(axis=2)[0] == pytest.approx(truth.gain, abs=0.7)
    for task in study.losses:
        assert task.mean(axis=2)[0] == pytest.approx(truth.loss, abs=0.8)
    differ = (study.gains[0, 0] != study.gains[0, 1]).mean()
    # where a model is right on 90 % of the items, another one cannot differ on 30 %
    assert differ == pytest.approx(0.3 if best < 40.0 else 2 * 0.9 * 0.1, abs=0.005)


def test_rank_curves_are_of_their_family() -> None:
    rng = np.random.default_rng(0)
    spreads = {
        family: [np.std(rank_curve(family, 5, rng).gain) for _ in range(400)] for family in FAMILIES
    }
    assert max(spreads["flat"]) < 1e-9
    for family in ("smooth", "saturating", "trade-off"):
        assert np.median(spreads[family]) == pytest.approx(1.8, rel=0.15)
    rising = rank_curve("trade-off", 8, rng)
    assert (np.diff(rising.gain) > 0).all()
    assert (np.diff(rising.loss) > 0).all()


def test_a_rate_has_the_exact_binomial_bound() -> None:
    assert Rate(0, 59).upper == pytest.approx(1 - 0.05 ** (1 / 59))
    assert Rate(3, 3).upper == 1.0


def test_stated_probabilities_are_held_against_what_came_true() -> None:
    stated = decision_odds.Stated(np.array([0.2] * 60 + [0.9] * 40), np.array([0.0, 1.0] * 50))
    assert stated.brier == pytest.approx(0.6 * (0.04 + 0.64) / 2 + 0.4 * (0.81 + 0.01) / 2)
    assert stated.bins == [(pytest.approx(0.2), 0.5, 60), (pytest.approx(0.9), 0.5, 40)]
    assert stated.largest_gap == pytest.approx(0.3)  # the larger gap has too few behind it
    assert decision_odds.brier_over_constant([stated]) == pytest.approx(stated.brier / 0.25)


def test_clusters_are_seen_where_independence_would_err() -> None:
    cell = next(
        c for c in decision_items.cluster_cells() if (c.per_cluster, c.num_items) == (20, 300)
    )
    tally = decision_items.simulate_clusters(cell, 200, 0)
    assert tally.wrong.share < 0.06
    assert tally.covered.share > 0.90
    assert tally.wrong_without.share > 0.12
    assert tally.covered_without.share < 0.80


@pytest.mark.parametrize("law", decision_items.LAWS)
def test_rare_losses_in_nats_seldom_mislead(law: str) -> None:
    cell = decision_items.NatsCell(law, 5, 100)
    assert decision_items.simulate_nats(cell, 150, 0).wrong.share < 0.08


def test_six_looks_keep_the_promise_of_one() -> None:
    for cell in decision_rule.look_cells():
        if cell.num_items == 100 and cell.num_seeds == 1:
            tally = decision_rule.simulate_looks(cell, 40, 0)
            assert tally.wrong.share < 0.15, cell
            assert tally.decided.share > 0.8 or "base best" in cell.name
    files = samples.simulate_files(samples.FilesCell(100, 0.20), 300, 0)
    assert files.wrong.share < 0.05
    assert files.wrong_of_one_look.share > 0.08


def test_verdicts_agree_with_the_intervals_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for cell in samples.agreement_cells():
        assert samples.simulate_agreement(cell, 20, 0).contradictions == 0, cell
    # intervals at the plain level beside verdicts that are corrected for three files
    monkeypatch.setattr(samples, "holm_levels", lambda p_values, alpha: [alpha] * len(p_values))
    cell = samples.AgreementCell("sd of 5 points", 3, 100)
    assert samples.simulate_agreement(cell, 60, 0).by_files > 0


def test_one_seed_speaks_of_its_run_and_not_of_the_rank() -> None:
    cell = decision_runs.one_seed_cells()[-1]  # losses at the edge, runs that differ by 2 points
    tally = decision_runs.simulate_one_seed(cell, 40, 0)
    assert tally.wrong_run.share < 0.15
    assert tally.wrong_rank.share > 0.15


def test_a_collapse_that_was_not_seen_misleads_every_rule() -> None:
    cell = decision_runs.CollapseCell("loss", 0.1, 3, 1)
    tally = decision_runs.simulate_collapse(cell, 60, 0)
    assert tally.wrong.share > 0.3
    assert tally.wrong_with_double_count.share > 0.3


def test_odds_say_more_than_a_constant() -> None:
    tally = decision_odds.simulate_odds(decision_odds.OddsCell(1000, 1000, 3, 5), 40, 0)
    assert decision_odds.brier_over_constant([tally.right]) < 0.9
    assert (tally.regret >= 0.0).all()
    assert tally.mean_regret["best bet"] < tally.mean_regret["always 16"]
    assert len({len(stated.outcome) for stated in tally.prospects.values()}) == 1
    by_factor = [stated.outcome.mean() for stated in tally.prospects.values()]
    assert by_factor == sorted(by_factor)


def test_most_studies_of_three_seeds_are_decided() -> None:
    tally = decision_odds.simulate_decided(decision_odds.DecidedCell("equal"), 60, 0)
    assert tally.decided.share > 0.5
    assert tally.wrong.number == 0


def test_a_growth_as_advised_mostly_decides() -> None:
    tally = decision_odds.simulate_growth(decision_odds.GrowthCell(300, 1), 60, 0)
    assert tally.stated.probability.min() >= 0.5
    assert tally.stated.outcome.mean() > 0.5


def test_one_group_gives_its_part_of_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    decision.main(["--studies", "2", "--only", "files"])
    printed = capsys.readouterr()
    assert printed.err.count("wrong at any of 6 looks") == 4
    assert json.loads(printed.out)["num_cells"] == 4
