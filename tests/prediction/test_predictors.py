"""Each predictor against an answer that is known beforehand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rankwise.prediction.curves import Part, Question, RankCurve, Trial
from rankwise.prediction.judge import PREDICTORS
from rankwise.prediction.laws import fit_power_law, forgetting_law, memory_law, rate_alone
from rankwise.prediction.learned import RIDGE, Scale, gaussian_process, ridge, shape_of
from rankwise.prediction.predictors import (
    Forecast,
    always,
    at_least,
    best_of,
    by_capacity,
    by_data_size,
    by_feature,
    choose,
    nearest,
)

RANKS = (2, 8, 32)


def _asked(**features: float) -> Question:
    return Question(features, RANKS)


def _curve(name: str, gain: list[float], task: str = "", **features: float) -> RankCurve:
    parts: dict[Part, tuple[np.ndarray, ...]] = {"gain": (np.array(gain)[None, None],)}
    return RankCurve(name, task or name, Question(features, RANKS[: len(gain)]), parts)


@pytest.mark.parametrize(("rank", "chosen"), [(2, 2), (15, 8), (17, 32), (64, 32), (1, 2), (16, 8)])
def test_the_nearest_rank_is_nearest_by_ratio(rank: int, chosen: int) -> None:
    """16 is as far from 8 as from 32: a tie goes to the smaller."""
    assert choose(nearest(rank), _asked()).rank == chosen


@pytest.mark.parametrize(("rank", "chosen"), [(0.3, 2), (2, 2), (2.1, 8), (8, 8), (33, 32)])
def test_at_least_is_the_smallest_that_is_not_below(rank: float, chosen: int) -> None:
    assert choose(at_least(rank), _asked()).rank == chosen


def test_always_asks_nothing() -> None:
    assert choose(always(32).fit([], "gain"), _asked()).rank == 32


def test_studies_of_one_task_share_a_weight() -> None:
    """Three studies of task a prefer rank 2 by 2 points, one of b rank 32 by 3."""
    curves = [_curve(f"a{n}", [2.0, 0.0, 0.0], "a") for n in range(3)]
    curves.append(_curve("b", [0.0, 0.0, 3.0]))
    assert choose(best_of(curves, "gain"), _asked()).rank == 32


def test_studies_with_other_ranks_take_their_nearest() -> None:
    """The first has ranks 2 and 8 alone, and rank 8 is 4 points better; it stands for 32."""
    curves = [_curve("a", [0.0, 4.0]), _curve("b", [1.0, 0.0, 0.0])]
    assert choose(best_of(curves, "gain"), _asked()).rank == 8


def test_the_table_has_a_rank_for_each_size() -> None:
    curves = [
        _curve("a", [5.0, 0.0, 0.0], train_rows=40),
        _curve("b", [0.0, 0.0, 9.0], train_rows=640),
    ]
    table = by_data_size(curves, "gain")
    sizes = (99, 100, 500, 1999, 5000)
    chosen = [choose(table, _asked(train_rows=rows)).rank for rows in sizes]
    assert chosen == [2, 32, 32, 32, 32]  # where no study has that size, the best of all


def test_the_energy_rank_is_what_is_at_least_needed() -> None:
    rule = by_feature("probe_energy_rank_90")
    assert rule.name == "90 % energy, probe"
    forecast = rule.fit([], "gain")
    assert choose(forecast, _asked(probe_energy_rank_90=5.2)).rank == 8
    assert not rule.speaks_of([_curve("a", [0.0, 1.0, 2.0])], "gain")


def test_capacity_by_hand() -> None:
    """100,000 learned tokens are 100,000 bits; a rank of 10,000 parameters holds 20,000: rank 5."""
    forecast = by_capacity([], "gain")
    asked = _asked(train_loss_tokens=1e5, rank_parameters=1e4)
    assert choose(forecast, asked).rank == 8


def test_a_power_law_is_found_again() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(2, 64, 200), rng.uniform(1e3, 1e5, 200)
    law = fit_power_law(x, y, 7.0 * x**0.35 * y**-0.5 - 2.0, np.ones(200))
    assert (law.first, law.second) == pytest.approx((0.35, -0.5))
    assert (law.factor, law.constant) == pytest.approx((7.0, -2.0))


def test_a_law_without_anything_to_explain_is_a_constant() -> None:
    law = fit_power_law(np.array([2.0, 4.0]), np.ones(2), np.array([3.0, 3.0]), np.ones(2))
    assert law.at(np.array([2.0, 64.0]), np.ones(2)) == pytest.approx([3.0, 3.0])


def _lawful(name: str, tokens: float, steps: float) -> RankCurve:
    ranks = np.array(RANKS, dtype=float)
    parts: dict[Part, tuple[np.ndarray, ...]] = {
        "gain": ((50.0 * ranks**0.2 * tokens**-0.1)[None, None],),
        "retention": ((1.0 - 0.5 * (1000 * ranks) ** 0.3 * steps**0.25)[None, None],),
    }
    features = {"train_tokens": tokens, "train_steps": steps, "rank_parameters": 1000.0}
    return RankCurve(name, name, _asked(**features), parts)


def test_published_laws_foretell_what_follows_them() -> None:
    curves = [_lawful(str(n), 1e3 * 3.0**n, 10.0 * 2**n) for n in range(5)]
    unseen = _lawful("unseen", 5e4, 55.0)
    assert memory_law(curves, "gain")(unseen.question) == pytest.approx(unseen.mean("gain"))
    for target in ("retention", "worth"):
        forecast = forgetting_law(curves, target)
        assert forecast(unseen.question) == pytest.approx(unseen.mean(target), rel=1e-6)


def test_the_rate_alone_knows_no_rank() -> None:
    """The gain is best at a rate of 2^-10, whatever the rank; at the rule's rates rank 8 has it."""

    def gain(rate: float) -> float:
        return 10.0 - (np.log2(rate) + 10.0) ** 2

    rates = {2: 2.0**-9, 8: 2.0**-10, 32: 2.0**-11}
    trials = tuple(
        Trial(rank, rate * factor, {"gain": gain(rate * factor)})
        for rank, rate in rates.items()
        for factor in (0.5, 1.0, 2.0)
    )
    curve = _curve("a", [gain(rate) for rate in rates.values()])._replace(trials=trials)
    asked = Question({}, RANKS, tuple(rates.values()))
    assert choose(rate_alone([curve], "gain"), asked).rank == 8
    same = asked._replace(rates=(2.0**-9,) * 3)
    assert choose(rate_alone([curve], "gain"), same).rank == 2  # a tie


def test_features_that_a_study_lacks_are_left_out_for_all() -> None:
    curves = [
        _curve("a", [0.0, 1.0, 2.0], train_rows=50, base_accuracy=0.3, probe_loss_drop=0.1),
        _curve("b", [0.0, 1.0, 2.0], train_rows=200, base_accuracy=0.3),
    ]
    scale = Scale.of(curves)
    assert scale.names == ("train_rows",)  # the accuracy does not vary
    assert scale.row(_asked(train_rows=100)) == pytest.approx([0.0])
    assert scale.row(_asked()) == pytest.approx([0.0])


@pytest.mark.parametrize("fit", [ridge, gaussian_process])
def test_ours_follow_a_feature(fit: Callable[..., Forecast]) -> None:
    """Small data gain by small ranks, large data by large ones."""
    curves = [
        _curve(f"{n}{slope}", [-slope + 0.1 * n, 0.0, slope], train_rows=rows)
        for rows, slope in ((50, -5.0), (150, -2.0), (450, 2.0), (1350, 5.0))
        for n in range(2)
    ]
    forecast = fit(curves, "gain")
    chosen = [choose(forecast, _asked(train_rows=rows)).rank for rows in (60.0, 1200.0)]
    assert chosen == [2, 32]


def test_without_features_the_ridge_is_the_mean_curve() -> None:
    curves = [_curve("a", [0.0, 4.0, 2.0]), _curve("b", [2.0, 8.0, 4.0])]
    assert RIDGE.fit(curves, "gain")(_asked()) == pytest.approx([1.0, 6.0, 3.0])


def test_a_flat_study_of_two_ranks_has_no_slope() -> None:
    curves = [
        RankCurve(name, name, Question({}, (8, 64)), {"gain": (np.full((1, 1, 2), 22.0),)})
        for name in "abcde"
    ]
    assert RIDGE.fit(curves, "gain")(Question({}, (2, 8, 64))) == pytest.approx([22.0] * 3)


def test_the_shape_of_a_parabola_is_its_own() -> None:
    """Level 5 at rank 16, slope 2 and bend -3 at x = -1.5, -0.5, 0.5, 1.5."""
    ranks = (2, 4, 32, 64)
    x = (np.log2(ranks) - 4) / 2
    gain = (5 + 2 * x - 3 * x**2)[None, None]
    curve = RankCurve("a", "a", Question({}, ranks), {"gain": (gain,)})
    assert shape_of(curve, "gain") == pytest.approx([5.0, 2.0, -3.0])


def test_names_are_told_apart() -> None:
    names = [each.name for each in PREDICTORS]
    assert len(set(names)) == len(names)
