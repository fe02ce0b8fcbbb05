"""``benchmarks.search``: its simulated trainings, its judgement, and its summary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import search, search_policies
from benchmarks.search_cells import KINDS, PUBLISHED, RATE, Cell, draw_curve, simulate_searches
from benchmarks.search_curves import RealCurve, read_curves, regrets
from benchmarks.search_policies import Answer, judged
from benchmarks.search_studies import Curve, Simulated
from rankwise.study.searches.policy import Progress, SearchTrial, Terms

EXPECTED = (
    "narrow_agreement", "narrow_cost_share", "ladder_agreement", "ladder_cost_share",
    "until_cost_share", "worst_error_rate_upper95", "real_curve_regret_points",
    "always_32_regret_points",
)  # fmt: skip
TERMS = Terms(delta=3.0, epsilon=2.0, alpha=0.05)


def curve(gain: tuple[float, ...], loss: tuple[float, ...] = (0.0,) * 5) -> Curve:
    return Curve(gain, loss, (3.0,) * 5, (0.0,) * 5, (0.0,) * 5)


def simulated(truth: Curve, seed: int, is_p_right: bool = False) -> Simulated:
    kind = KINDS[0]._replace(is_p_right=is_p_right, num_items=4000)
    return Simulated(truth, kind.size()._replace(run_sd=(0.0, 0.0)), RATE, seed)


@pytest.mark.parametrize("is_p_right", [False, True])
def test_a_trial_shows_its_truth_at_every_step(is_p_right: bool) -> None:
    """Means over 12 x 4,000 items; the standard error of one is below 0.3 points."""
    truth = curve((0.0, 0.0, 20.0, 0.0, 0.0), (0.0, 0.0, 8.0, 0.0, 0.0))
    for share in (0.25, 1.0):
        shown = [
            simulated(truth, seed, is_p_right).shown(Progress(SearchTrial(2, RATE[0], 0), share))
            for seed in range(12)
        ]
        gains = [of.gains[0].mean() for of in shown if of is not None]
        losses = [np.mean(of.losses) for of in shown if of is not None]
        assert np.mean(gains) == pytest.approx(truth.gain_at(2, share), abs=1.2)
        assert np.mean(losses) == pytest.approx(8.0 * share, abs=1.2)
    assert truth.gain_at(2, 1.0) == pytest.approx(20.0)
    assert truth.gain_at(2, 0.25) < 15.0


def test_a_trial_always_shows_the_same_and_p_right_has_a_quarter_of_the_variance() -> None:
    truth = curve((20.0,) * 5)
    progress = [Progress(SearchTrial(place, RATE[0], 0), 1.0) for place in (0, 1)]
    variance: list[float] = []
    for is_p_right in (False, True):
        study = simulated(truth, 0, is_p_right)
        first, second = (study.shown(of) for of in progress)
        again = simulated(truth, 0, is_p_right).shown(progress[0])
        assert first is not None and second is not None and again is not None  # noqa: PT018
        assert (first.gains[0] == again.gains[0]).all()
        variance.append(float((first.gains[0] - second.gains[0]).var()))
    assert variance[0] == pytest.approx(3000.0, rel=0.1)  # 30 % disagree, by 100 points
    assert variance[0] / variance[1] == pytest.approx(4.0, rel=0.1)


def test_large_ranks_that_start_slower_cross() -> None:
    rng = np.random.default_rng(0)
    of = draw_curve(Cell("all equal", KINDS[0]), 1, rng)
    assert of.gain_at(0, 0.25) > of.gain_at(4, 0.25) + 3.0
    assert of.gain_at(0, 1.0) == pytest.approx(of.gain_at(4, 1.0))
    early = draw_curve(Cell("all equal", KINDS[0]), 2, rng)
    assert early.gain_at(4, 0.5) > early.gain_at(0, 0.5) + 3.0


def test_a_rate_far_above_the_best_diverges_and_one_off_it_costs() -> None:
    rates = (1e-5, 1e-4, 1e-3)
    study = Simulated(curve((20.0,) * 5), KINDS[0].size(), rates, 0)
    assert study.truth(0, 1e-4) == pytest.approx((20.0, 0.0))
    assert study.truth(0, 1e-5) == pytest.approx((12.0, 0.0))
    assert study.truth(0, 1e-3) is None


def test_an_answer_is_judged_by_the_truth() -> None:
    truth = curve((0.0, 10.0, 14.0, 20.0, 16.0), (0.0, 0.0, 0.0, 4.0, 0.0))

    def of(place: int | None, cost: float = 1.0) -> Answer:
        return Answer(place, place, cost, (1, 2))

    # worths are 0, 10, 14, 20 - 2 * (4 - 2) = 16, 16
    best = of(4)
    assert judged(of(2), best, truth, TERMS).agrees
    assert judged(of(2), best, truth, TERMS).regret == pytest.approx(2.0)
    assert not judged(of(2), best, truth, TERMS).wrong
    far = judged(of(1, 0.5), best._replace(cost=2.0), truth, TERMS)
    assert not far.agrees
    assert far.wrong
    assert far.wrong_of_trained  # rank 32 was trained, and is 4 better
    assert far.cost_share == pytest.approx(0.25)
    assert not judged(of(1)._replace(trained=(1,)), best, truth, TERMS).wrong_of_trained
    assert judged(of(3), best, truth, TERMS).wrong  # it loses too much
    assert judged(of(3), best, truth, TERMS).agrees
    nothing = judged(of(None), best, truth, TERMS)
    assert not nothing.wrong
    assert nothing.regret == pytest.approx(16.0)


def test_the_cost_counts_steps_and_items() -> None:
    size = KINDS[0].size()  # 400 + 400 validation items, 1,000 + 1,000 test items
    trial = SearchTrial(2, RATE[0], 0)  # rank 32 costs 1.032
    of_items = search_policies.TRAINING_IN_ITEMS
    cost = search_policies.cost_of([Progress(trial, 0.25), Progress(trial, 0.5)], [], size)
    assert cost == pytest.approx(0.5 * 1.032 + 2 * 800 / of_items)
    cost = search_policies.cost_of([Progress(trial, 1.0)], [trial], size, num_scored=0)
    assert cost == pytest.approx(1.032 + 2000 / of_items)


def test_narrow_agrees_with_the_grid_at_six_tenths_of_its_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the largest estimate alone at less than half: METHODS has the figures of all cells."""
    monkeypatch.setattr(search_policies, "has_optuna", lambda: False)
    found = simulate_searches(Cell("published", KINDS[0]), 40, 0)
    assert found["narrow"].mean("agrees") >= found["largest estimate"].mean("agrees") > 0.95
    assert found["narrow"].mean("cost_share") == pytest.approx(0.60, abs=0.02)
    assert found["largest estimate"].mean("cost_share") == pytest.approx(0.456, abs=0.01)


def test_real_curves_are_judged_by_runs_that_were_not_seen() -> None:
    accuracy = np.full((5, 4), 60.0)
    accuracy[:, 1] = 90.0
    of = regrets([RealCurve("planted", (8, 16, 32, 64), accuracy)], 3, 0)
    assert of.mean("always 32") == pytest.approx(30.0)
    assert of.mean("always 16") == of.mean("narrow") == of.mean("largest of the grid") == 0.0
    assert of.share("largest of the grid") == 1.0
    assert of.share("narrow") < 1.0


def test_the_published_curves_are_those_of_the_file() -> None:
    if not search.CURVES.exists():
        pytest.skip("the file of others' results is not here")
    fits: list[tuple[float, float]] = []
    for real in read_curves(search.CURVES):
        place = np.linspace(-0.5, 0.5, len(real.ranks))
        bend, rise, _ = np.polyfit(place, real.accuracy.mean(axis=0), 2)
        fits.append((round(float(rise), 1), round(float(bend), 1)))
    assert np.allclose(sorted(fits), sorted(PUBLISHED), atol=0.11)


def test_the_pruner_answers() -> None:
    pytest.importorskip("optuna")
    study = Simulated(curve((0.0, 0.0, 40.0, 0.0, 0.0)), KINDS[0].size(), RATE, 0)
    answer = search_policies.wilcoxon_pruner(study, KINDS[0].terms)
    assert answer.choice == 2
    # 8, 16 and 32 with three seeds; 64 and 128 are pruned after one
    assert answer.cost == pytest.approx(11.0, rel=0.15)


def test_the_summary_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["model,task,n,rank,seed,epochs,accuracy"]
    rows += [f"m,t,50,{rank},{seed},3,{0.6 + rank / 1000}" for rank in (8, 16, 32, 64)
             for seed in range(5)]  # fmt: skip
    path = tmp_path / "curves.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    search.main(["--tiny", "--curves", str(path)])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(isinstance(summary[name], float) for name in EXPECTED)
    assert 0.2 < summary["narrow_cost_share"] < 1.0
    assert summary["always_32_regret_points"] == pytest.approx(3.2)
