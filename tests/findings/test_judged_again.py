"""A study that is judged more than once: which looks count, and which margins."""

from __future__ import annotations

import pytest

from rankwise.findings.recommendation import looks_of, recommend
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.study import PlannedRun
from tests.planted.results import planted_study, with_plans

MARGINS = RecommendationConfig(delta_points=5.0, epsilon_points=6.0)


def test_looks_share_what_may_be_wrong() -> None:
    first = recommend(planted_study(num_in_domain=100))
    again = recommend(planted_study(num_in_domain=100), looks_of(first))
    assert again == first  # the same data are the same look
    grown = recommend(planted_study(num_in_domain=300), looks_of(first))
    third = recommend(planted_study(num_in_domain=300, seeds=(0, 1)), looks_of(grown))
    (part,) = third.by_train_task
    assert [look.number for look in part.looks] == [1, 2, 3]
    assert [look.alpha for look in part.looks] == pytest.approx([0.04, 0.005, 0.01 / 6])
    assert [look.num_items["kinship"] for look in part.looks] == [100, 300, 300]
    # 0.01 / 6 of the studies, and 5 % of them over all
    said = "Verdict 3 on this study: it recommends a wrong option in at most 0.17 % of studies (5 %"
    assert any(reason.startswith(said) for reason in part.reasons)


def test_looks_at_a_task_that_comes_back_count() -> None:
    first = looks_of(recommend(planted_study()))
    elsewhere = first.model_copy(
        update={"by_train_task": (first.by_train_task[0].model_copy(update={"train_task": "b"}),)}
    )
    kept = elsewhere.with_others(first)
    assert [looks.train_task for looks in kept.by_train_task] == ["b", "kinship"]
    assert first.with_others(kept).of("b") == elsewhere.of("b")
    assert first.with_others(None) == first
    (again,) = recommend(planted_study(num_in_domain=400), kept).by_train_task
    assert [look.number for look in again.looks] == [1, 2]


def test_runs_with_other_settings_are_another_look() -> None:
    def trained_at(rate: float) -> StudyResults:
        def changed(plan: PlannedRun) -> PlannedRun:
            return plan.model_copy(update={"learning_rate": rate, "name": f"{plan.name}-{rate:g}"})

        return with_plans(planted_study(num_in_domain=100), changed)

    first = looks_of(recommend(trained_at(1e-4)))
    (part,) = recommend(trained_at(2e-4), first).by_train_task
    assert [look.number for look in part.looks] == [1, 2]
    assert part.looks[1].alpha == pytest.approx(0.005)


def test_margins_are_narrower_where_p_right_decides() -> None:
    """And where it decides on one of two tasks only, they are accuracy's."""
    study = planted_study()

    def by_p_right(model: ModelResults, tasks: set[str]) -> ModelResults:
        items = {
            task: its.model_copy(update={"metric": "p_right", "accuracy": its})
            if task in tasks
            else its
            for task, its in model.items.items()
        }
        return model.model_copy(update={"items": items})

    def margins(*tasks: str) -> tuple[float, float | None, float | None]:
        runs = tuple(by_p_right(run, set(tasks)) for run in study.runs)
        base = by_p_right(study.base, set(tasks))
        (part,) = recommend(study.model_copy(update={"base": base, "models": runs})).by_train_task
        return part.delta, part.epsilon_points, part.worst_task_points

    assert margins("kinship", "capitals", "elements") == (3.0, 3.0, 9.0)
    assert margins("kinship", "capitals") == (3.0, 5.0, 15.0)


def test_a_margin_that_is_set_counts_from_then_on() -> None:
    first = recommend(planted_study())
    (again,) = recommend(planted_study(recommendation=MARGINS), looks_of(first)).by_train_task
    assert (again.delta, again.epsilon_points) == (5.0, 6.0)
    assert [look.number for look in again.looks] == [1]  # the same data: no other look
