"""A rank where a rule was planted, and the reason where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rankwise.prediction.advice import Planned, advise, reasons_against
from rankwise.prediction.collected import CollectedStudy
from tests.planted.rank_curves import RANKS, collected, planted_curves

FEATURES = {"train_rows": 200.0, "base_accuracy": 0.5}


def _planned(ranks: Sequence[int] = RANKS, **changed: Any) -> Planned:
    """Of the planted base and modules."""
    return Planned("b" * 64, ("q_proj",), tuple(ranks), True, {})._replace(**changed)


@pytest.fixture(scope="module")
def lawful() -> list[CollectedStudy]:
    """Studies whose best rank follows the base's accuracy: 2 at 0.3, 64 at 0.8."""
    return [collected(curve) for curve in planted_curves(rule=True)]


@pytest.mark.parametrize(("accuracy", "rank"), [(0.4, 4), (0.5, 8), (0.7, 32)])
def test_a_rule_that_is_there_is_followed(
    lawful: list[CollectedStudy], accuracy: float, rank: int
) -> None:
    advice = advise(lawful, _planned(), {**FEATURES, "base_accuracy": accuracy})
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
    advice = advise(studies, _planned(), FEATURES)
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
        (
            {},
            (8, 128),
            "the collection has studies of 0 tasks in points with this base, q adapted, "
            "ranks 8 and 128 and two seeds, and 4 are needed",
        ),
        ({}, (16,), "the study has rank 16 alone, and a choice needs two ranks"),
    ],
)
def test_outside_the_collection_it_cannot_say(
    lawful: list[CollectedStudy], changed: dict[str, float], ranks: tuple[int, ...], reason: str
) -> None:
    advice = advise(lawful, _planned(ranks), FEATURES | changed)
    assert (advice.rank, advice.chosen) == (None, None)
    assert advice.reasons[0].startswith(reason)


@pytest.mark.parametrize(
    "changed", [{"base_fingerprint": "c" * 64}, {"target_modules": ("q_proj", "v_proj")}]
)
def test_another_base_and_other_modules_are_outside(
    lawful: list[CollectedStudy], changed: dict[str, Any]
) -> None:
    """Whatever the number of weights, which the planted studies do not have."""
    advice = advise(lawful, _planned(**changed), FEATURES)
    assert (advice.rank, advice.num_studies) == (None, 0)
    assert advice.reasons[0].startswith("the collection has studies of 0 tasks in points with this")
    assert reasons_against(lawful, _planned(**changed), {}) == advice.reasons


def test_studies_of_another_base_are_not_learned_from(lawful: list[CollectedStudy]) -> None:
    other = [
        study.model_copy(
            update={"base_model": study.base_model.model_copy(update={"fingerprint": "c" * 64})}
        )
        for study in lawful[:4]
    ]
    assert advise([*other, *lawful[4:]], _planned(), FEATURES).num_tasks == 8


def test_the_record_is_that_of_the_ranks_that_are_asked_for(lawful: list[CollectedStudy]) -> None:
    """Of neighbours, the worse one of a parabola costs less than the worst of all ranks."""
    of_all, of_two = (advise(lawful, _planned(ranks), FEATURES) for ranks in (RANKS, (8, 16)))
    assert [each.rank for each in of_two.by_rank] == [8, 16]
    worst = [max(each.estimate for each in of.constants) for of in (of_all, of_two)]
    assert worst[1] < worst[0] - 3.0


def test_a_loss_is_not_compared_with_points(lawful: list[CollectedStudy]) -> None:
    advice = advise(lawful, _planned(is_in_points=False), FEATURES)
    assert advice.reasons == ("the study is judged by its loss, and the collection in points",)


def test_answers_that_are_generated_are_in_points_without_an_accuracy(
    lawful: list[CollectedStudy],
) -> None:
    assert reasons_against(lawful, _planned(), {"train_rows": 200.0}) == ()


def test_few_tasks_are_no_collection(lawful: list[CollectedStudy]) -> None:
    advice = advise(lawful[:6], _planned(), FEATURES)
    assert advice.reasons[0].startswith("the collection has studies of 3 tasks in points")
    assert advise([], _planned(), FEATURES).rank is None


def test_only_features_of_the_question_are_used(lawful: list[CollectedStudy]) -> None:
    """Without the accuracy that the rule is made of, nothing is better than a constant."""
    advice = advise(lawful, _planned(), FEATURES)
    assert (advice.rank, advice.dropped) == (8, ())
    blind = [
        study.model_copy(
            update={"features": {k: v for k, v in study.features.items() if k != "base_accuracy"}}
        )
        for study in lawful
    ]
    assert advise(blind, _planned(), FEATURES).rank is None
    assert advise([*blind[:1], *lawful[1:]], _planned(), FEATURES).dropped == ("base_accuracy",)
