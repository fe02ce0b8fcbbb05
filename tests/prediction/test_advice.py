"""A rank where a rule was planted, and the reason where there is none."""

from __future__ import annotations

import pytest

from rankwise.prediction.advice import advise
from rankwise.prediction.collected import CollectedStudy
from tests.planted.rank_curves import RANKS, collected, planted_curves

FEATURES = {"train_rows": 200.0, "base_accuracy": 0.5, "model_parameters": 1000.0}


@pytest.fixture(scope="module")
def lawful() -> list[CollectedStudy]:
    """Studies whose best rank follows the base's accuracy: 2 at 0.3, 64 at 0.8."""
    return [collected(curve) for curve in planted_curves(rule=True)]


@pytest.mark.parametrize(("accuracy", "rank"), [(0.4, 4), (0.5, 8), (0.7, 32)])
def test_a_rule_that_is_there_is_followed(
    lawful: list[CollectedStudy], accuracy: float, rank: int
) -> None:
    advice = advise(lawful, {**FEATURES, "base_accuracy": accuracy}, RANKS)
    assert (advice.rank, advice.reasons) == (rank, ())
    assert (advice.num_studies, advice.num_tasks) == (20, 10)
    assert advice.regret is not None
    assert advice.regret.upper < min(each.estimate for each in advice.constants)
    assert advice.new_task_regret is not None
    assert advice.regret.estimate <= advice.new_task_regret
    by_rank = {each.rank: each for each in advice.by_rank}
    assert max(by_rank.values(), key=lambda each: each.gain).rank == rank
    assert by_rank[rank].gain == pytest.approx(20.0, abs=6.0)  # a parabola for every study
    # half a point of retention for each doubling
    kept = [by_rank[each].retention or 0.0 for each in (2, 64)]
    assert kept[0] - kept[1] == pytest.approx(2.5, abs=0.3)


def test_without_a_rule_it_abstains_and_says_what_a_constant_costs() -> None:
    studies = [collected(curve) for curve in planted_curves(rule=False)]
    advice = advise(studies, FEATURES, RANKS)
    assert advice.rank is None
    assert advice.chosen in RANKS
    (reason,) = advice.reasons
    assert reason.startswith("nothing is shown to choose better than a constant")
    assert "always 16" in {each.predictor for each in advice.constants}


@pytest.mark.parametrize(
    ("changed", "ranks", "reason"),
    [
        ({"base_accuracy": 1.2}, RANKS, "base_accuracy is 1.2, and the collection has 0.3"),
        ({"train_rows": 50_000}, RANKS, "train_rows is 50000, and the collection has"),
        ({}, (8, 128), "rank 128 is outside the collection, which has 2 to 64"),
    ],
)
def test_outside_the_collection_it_cannot_say(
    lawful: list[CollectedStudy], changed: dict[str, float], ranks: tuple[int, ...], reason: str
) -> None:
    advice = advise(lawful, FEATURES | changed, ranks)
    assert (advice.rank, advice.chosen) == (None, None)
    assert advice.reasons[0].startswith(reason)


def test_another_base_is_outside(lawful: list[CollectedStudy]) -> None:
    of_base = [
        study.model_copy(update={"features": {**study.features, "model_parameters": 1000.0}})
        for study in lawful
    ]
    assert advise(of_base, FEATURES, RANKS).rank == 8
    advice = advise(of_base, {**FEATURES, "model_parameters": 7e9}, RANKS)
    assert advice.reasons == ("model_parameters is 7e+09, and the collection has 1000 to 1000",)


def test_a_loss_is_not_compared_with_points(lawful: list[CollectedStudy]) -> None:
    advice = advise(lawful, {"train_rows": 200.0, "base_loss": 2.0}, RANKS)
    assert "the study is judged by its loss, and the collection in points" in advice.reasons


def test_few_tasks_are_no_collection(lawful: list[CollectedStudy]) -> None:
    advice = advise(lawful[:6], FEATURES, RANKS)
    assert advice.reasons[0].startswith("the collection has studies of 3 tasks in points")
    assert advise([], FEATURES, RANKS).rank is None


def test_only_features_of_the_question_are_used(lawful: list[CollectedStudy]) -> None:
    """Without the accuracy that the rule is made of, nothing is better than a constant."""
    advice = advise(lawful, {"base_accuracy": 0.5, "train_rows": 200.0}, RANKS)
    assert advice.rank == 8
    blind = [
        study.model_copy(
            update={"features": {k: v for k, v in study.features.items() if k != "base_accuracy"}}
        )
        for study in lawful
    ]
    assert advise(blind, FEATURES, RANKS).rank is None
