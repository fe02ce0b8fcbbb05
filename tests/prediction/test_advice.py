"""A rank where a rule was planted, and the reason where there is none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rankwise.prediction.advice import Planned, advise, reasons_against
from rankwise.prediction.collected import CollectedStudy
from tests.planted.rank_curves import RANKS, collected, planted_curves

FEATURES = {"train_rows": 200.0, "base_accuracy": 0.5}


def _planned(ranks: Sequence[int] = RANKS, **changed: Any) -> Planned:
    """Of the planted base and modules."""
    rates, alphas = (2e-4,) * len(ranks), tuple(2.0 * rank for rank in ranks)
    planned = Planned("b" * 64, ("q_proj",), tuple(ranks), rates, alphas, True, {})
    return planned._replace(**changed)


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
    below = {each.rank: each.below_chosen for each in advice.by_rank}
    assert [each for each in below if below[each] == 0.0] == [rank]
    # the parabola of every study: 3 points for a doubling, 12 for two
    best = 1.0 + 5.0 * (accuracy - 0.3) / 0.5
    planted = {each: 3.0 * (np.log2(each) - best) ** 2 for each in RANKS}
    for each in RANKS:
        assert below[each] == pytest.approx(planted[each] - planted[rank], abs=6.0)


def test_without_a_rule_it_abstains_and_says_what_a_constant_costs() -> None:
    studies = [collected(curve) for curve in planted_curves(rule=False)]
    advice = advise(studies, _planned(), FEATURES)
    assert (advice.rank, advice.by_rank) == (None, ())
    assert advice.chosen in RANKS
    (reason,) = advice.reasons
    assert reason.startswith("nothing is shown to choose better than a constant")
    assert re.search(r"which is rank (2|4|8|16|32|64) here, \d", reason)
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
            "ranks 8 and 128 with rates and alphas in the same proportions, and two seeds, and 4 "
            "are needed",
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


@pytest.mark.parametrize(
    "changed",
    [
        {"rates": tuple(2e-4 * rank**-0.5 for rank in RANKS)},
        {"alphas": (16.0,) * len(RANKS)},
    ],
)
def test_other_proportions_of_rates_and_alphas_are_outside(
    lawful: list[CollectedStudy], changed: dict[str, Any]
) -> None:
    """What looks like rank is step size there."""
    advice = advise(lawful, _planned(**changed), FEATURES)
    assert (advice.rank, advice.num_studies) == (None, 0)


@pytest.mark.parametrize(("factor", "is_outside"), [(0.6, False), (1.9, False), (2.1, True)])
def test_one_factor_of_all_rates_may_be_two(
    lawful: list[CollectedStudy], factor: float, is_outside: bool
) -> None:
    advice = advise(lawful, _planned(rates=(factor * 2e-4,) * len(RANKS)), FEATURES)
    assert advice.num_studies == 20
    found = [reason.startswith("the learning rate of rank 2 is") for reason in advice.reasons]
    assert found == [True] * is_outside


def test_a_probe_of_another_rank_is_not_compared(lawful: list[CollectedStudy]) -> None:
    probed = [study.with_features({"probe_rank": 64.0, "probe_loss_drop": 0.5}) for study in lawful]
    own = {**FEATURES, "probe_loss_drop": 0.5}
    assert advise(probed, _planned(), {**own, "probe_rank": 64.0}).dropped == ()
    assert advise(probed, _planned((2, 4)), {**own, "probe_rank": 4.0}).dropped == (
        "probe_loss_drop",
    )


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


@pytest.mark.parametrize(("factor", "is_outside"), [(0.6, False), (1.9, False), (8.0, True)])
def test_one_factor_of_all_alphas_may_be_two(
    lawful: list[CollectedStudy], factor: float, is_outside: bool
) -> None:
    """The update grows with alpha as it does with the rate."""
    alphas = tuple(factor * 2.0 * rank for rank in RANKS)
    advice = advise(lawful, _planned(alphas=alphas), FEATURES)
    found = [reason.startswith("the alpha of rank 2 is") for reason in advice.reasons]
    assert found == [True] * is_outside


def test_a_feature_that_never_varied_excludes_nothing(lawful: list[CollectedStudy]) -> None:
    """The ridge leaves it out."""
    alike = [study.with_features({"near_tie_share": 0.2}) for study in lawful]
    for share in (0.2, 0.21):
        advice = advise(alike, _planned(), {**FEATURES, "near_tie_share": share})
        assert (advice.rank, advice.reasons) == (8, ())
