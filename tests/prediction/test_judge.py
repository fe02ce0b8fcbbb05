"""The judge finds a rule that is there, and none where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from rankwise.prediction.curves import Part, Question, RankCurve
from rankwise.prediction.judge import bound_of_new_task, judge, mean_over_tasks, regrets_of
from rankwise.prediction.learned import RIDGE
from rankwise.prediction.predictors import CONSTANTS, always
from tests.planted.rank_curves import planted_curves

CONSTANT_NAMES = {"always 16", "always 32", "best of the others", "table by data size"}


def test_a_planted_rule_is_recovered() -> None:
    judgement = judge(planted_curves(rule=True), "gain")
    ridge = judgement.of("ridge")
    assert ridge is not None
    assert ridge.beats_the_constants
    assert ridge.regret.value < 1.0
    assert judgement.best_constant.regret.value > 2.0
    assert set(ridge.less_constants) == CONSTANT_NAMES
    # without a probe or rates, their rules say nothing
    assert judgement.not_judged == (
        "90 % energy, probe", "90 % energy, gradient", "forgetting law", "rate alone",
    )  # fmt: skip


def test_an_interval_over_tasks_by_hand() -> None:
    """Mean 2.5, standard error 0.6455, and 3.182 of them at 95 % with 3 degrees of freedom."""
    assert mean_over_tasks([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5, 0.4457, 4.5543), abs=1e-4)


def test_a_feature_that_one_study_lacks_is_left_out_for_all() -> None:
    """Of the task that is left out, too, whose fit would else have it."""
    names = {"train_rows", "train_tokens", "base_accuracy"}
    curves = [curve.with_features(names) for curve in planted_curves(rule=True)]
    partly = [curves[0].with_features(names - {"base_accuracy"}), *curves[1:]]
    blind = [curve.with_features(names - {"base_accuracy"}) for curve in curves]
    found, expected = (judge(each, "gain", (*CONSTANTS, RIDGE)) for each in (partly, blind))
    assert found == expected
    assert judge(curves, "gain", (*CONSTANTS, RIDGE)) != expected


def test_without_one_of_the_constants_nothing_beats_them() -> None:
    curves = [curve.with_features({"base_accuracy"}) for curve in planted_curves(rule=True)]
    ridge = judge(curves, "gain", (*CONSTANTS, RIDGE)).of("ridge")
    assert ridge is not None
    assert all(each.is_below_zero for each in ridge.less_constants.values())
    assert set(ridge.less_constants) == CONSTANT_NAMES - {"table by data size"}
    assert not ridge.beats_the_constants


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_depends_on_a_feature_nothing_beats_the_constants(seed: int) -> None:
    judgement = judge(planted_curves(rule=False, seed=seed), "gain")
    assert [each.name for each in judgement.judged if each.beats_the_constants] == []


def test_a_choice_for_gain_can_be_measured_in_retention() -> None:
    """Every doubling of the rank loses half a point: rank 16 loses 1.5 more than rank 2."""
    judgement = judge(planted_curves(rule=True), "gain", CONSTANTS, measured_on="retention")
    always_16 = judgement.of("always 16")
    assert always_16 is not None
    assert always_16.regret.value == pytest.approx(1.5, abs=0.3)


def _curve(values: list[list[float]], task: str = "a") -> RankCurve:
    return RankCurve(task, task, Question({}, (4, 16)), {"gain": (np.array([values]),)})


def test_regret_by_hand() -> None:
    """Two items: each chooses for the other; the first prefers rank 4, the second rank 16.

    Chosen on the first, measured on the second: rank 4 has 1, so regrets are 1 - (1, 6) = 0, -5.
    Chosen on the second, measured on the first: rank 16 has 2; regrets are 2 - (3, 2) = -1, 0.
    """
    assert regrets_of(_curve([[3.0, 2.0], [1.0, 6.0]]), "gain") == pytest.approx([-0.5, -2.5])


def test_regret_over_seeds_by_hand() -> None:
    """Two seeds of one item: the other seed chooses."""
    curve = RankCurve(
        "a", "a", Question({}, (4, 16)), {"gain": (np.array([[[3.0, 2.0]], [[1.0, 6.0]]]),)}
    )
    assert regrets_of(curve, "gain") == pytest.approx([-0.5, -2.5])


def test_worth_is_gain_plus_retention_and_tasks_count_the_same() -> None:
    parts: dict[Part, tuple[np.ndarray, ...]] = {
        "gain": (np.full((1, 1, 2), 10.0),),
        "retention": (np.full((1, 3, 2), -4.0), np.array([[[0.0, -2.0]]])),
    }
    curve = RankCurve("a", "a", Question({}, (4, 16)), parts)
    assert curve.mean("worth") == pytest.approx([8.0, 7.0])
    assert regrets_of(curve, "worth") == pytest.approx([0.0, 1.0])


def test_one_item_chooses_and_measures() -> None:
    assert regrets_of(_curve([[3.0, 2.0]]), "gain") == pytest.approx([0.0, 1.0])


def test_equal_ranks_have_no_best_one() -> None:
    """All ranks truly alike: a maximum over noise would be above them, regret is not."""
    rng = np.random.default_rng(0)
    curves = [
        RankCurve(
            f"c{n}", "a", Question({}, (2, 4, 8, 16)), {"gain": (rng.normal(0, 30, (2, 50, 4)),)}
        )
        for n in range(200)
    ]
    regrets = np.array([regrets_of(curve, "gain").mean() for curve in curves])
    assert abs(regrets.mean()) < 3 * regrets.std() / np.sqrt(len(regrets))
    naive = np.mean([(c.mean("gain").max() - c.mean("gain")).mean() for c in curves])
    assert naive > 2.0


def test_too_few_tasks_are_refused() -> None:
    curves = [_curve([[1.0, 2.0]], task) for task in "abc"]
    with pytest.raises(ValueError, match="3 tasks"):
        judge(curves, "gain", [always(16)])


def test_the_bound_of_a_new_task() -> None:
    """Of 9 regrets at 90 %, the ninth of ten places: the largest; of 8 there is none."""
    regrets = [float(n) for n in range(1, 10)]
    assert bound_of_new_task(regrets, 0.9) == 9.0
    assert bound_of_new_task(regrets[:8], 0.9) is None
    assert bound_of_new_task(regrets, 0.5) == 5.0
