"""Looks at a model in training: their numbers, their bounds, and how often they stop wrongly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from rankwise.findings.deployment import LossRule
from rankwise.findings.pairs import pair_items, paired_test
from rankwise.findings.training_looks import TrainingLook, training_look
from rankwise.records.results import ModelResults, TaskItems
from rankwise.records.study import Unit
from tests.support.sentences import Sentences

RULE = LossRule(points=1.0, nats=0.02, confidence=0.95)
RIGHT, WRONG = [1.0] * 100, [0.0] * 100


def results(unit: Unit = "points", **tasks: Sequence[float]) -> ModelResults:
    items = {
        task: TaskItems(
            task=task,
            metric="acc",
            unit=unit,
            higher_is_better=unit == "points",
            doc_ids=tuple(range(len(values))),
            values=tuple(values),
        )
        for task, values in tasks.items()
    }
    return ModelResults(name="model", run=None, evaluations={}, items=items)


def look_at(step: int, base: ModelResults, now: ModelResults, every: int = 10) -> TrainingLook:
    return training_look(step, every, {"retention": base}, {"retention": now}, RULE.confidence)


def test_numbers_and_errors_of_looks() -> None:
    """Look 1 may err in 0.8 of 5 %, look k in 0.2 / (k (k - 1)) of it: by hand."""
    one = results(t=RIGHT)
    looks = [look_at(step, one, one) for step in (10, 20, 30, 35)]
    assert [look.number for look in looks] == [1, 2, 3, 4]
    assert [look.alpha for look in looks] == pytest.approx([0.04, 0.005, 0.01 / 6, 0.01 / 12])


def test_tasks_count_the_same_and_bounds_are_those_of_one_pair() -> None:
    base = results(a=RIGHT, b=RIGHT)
    look = look_at(20, base, results(a=WRONG, b=RIGHT))
    (mean,) = look.retention
    assert (mean.tasks, mean.shown.estimate) == (("a", "b"), pytest.approx(-50.0))
    half = [1.0] * 50 + [0.0] * 50
    (alone,) = look_at(20, results(t=RIGHT), results(t=half)).retention
    pair = pair_items(results(t=RIGHT), results(t=half), "t")
    for bounds, confidence in ((alone.shown, 0.95), (alone.deciding, 0.995)):
        test = paired_test(pair, confidence)
        assert bounds == test.difference
    assert alone.deciding.lower < alone.shown.lower
    assert alone.shown.upper < alone.deciding.upper


def test_a_loss_that_is_shown_stops_and_one_that_may_be_chance_does_not(
    sentence: Sentences,
) -> None:
    base = results(t=RIGHT)
    reason = look_at(10, base, results(t=[1.0] * 80 + [0.0] * 20)).reason_to_stop(RULE)
    assert reason is not None
    sentence(reason, names=("10", "1.0"))
    assert "−20.0 points" in reason
    for kept in (99, 98):
        few = results(t=[1.0] * kept + [0.0] * (100 - kept))
        assert look_at(10, base, few).reason_to_stop(RULE) is None
    assert look_at(10, results(t=WRONG), results(t=RIGHT)).reason_to_stop(RULE) is None


def test_losses_in_nats_have_a_margin_of_their_own() -> None:
    base = results("nats", prose=[1.0 + 0.01 * (n % 7) for n in range(100)])
    worse, same = (
        results("nats", prose=[value + more for value in base.items["prose"].values])
        for more in (0.1, 0.001)
    )
    look = look_at(10, base, worse)
    assert look.logged["retention_change_nats"] == pytest.approx(-0.1)
    assert "above 0.020 nats" in (look.reason_to_stop(RULE) or "")
    assert look_at(10, base, same).reason_to_stop(RULE) is None


def test_what_is_logged() -> None:
    both = {"retention": results(t=RIGHT), "gain": results(u=WRONG)}
    now = {"retention": results(t=RIGHT), "gain": results(u=RIGHT)}
    logged = training_look(10, 10, both, now, 0.95).logged
    assert (logged["retention_change"], logged["gain"]) == (0.0, 100.0)
    assert logged["retention_change_lower"] < 0.0 < logged["retention_change_upper"]
    assert len(logged) == 6


def test_own_sets_are_judged_one_by_one_by_margins_of_their_own() -> None:
    """Two sets of one unit lose 20 and gain 20 points, so their mean would lose nothing."""
    half = [1.0] * 50 + [0.0] * 50
    base = results(tools=RIGHT, other=half)
    now = results(tools=[1.0] * 80 + [0.0] * 20, other=[1.0] * 70 + [0.0] * 30)
    look = training_look(10, 10, {"own": base}, {"own": now}, 0.95)
    assert [(each.tasks, each.score) for each in look.own] == [(("tools",), 80), (("other",), 70)]
    assert look.logged["own/tools/score"] == 80.0
    assert look.logged["own/tools/change"] == pytest.approx(-20.0)
    assert "tools" in (look.reason_to_stop(RULE) or "")
    for margin, stops in ((5.0, True), (40.0, False), (math.inf, False)):
        rule = RULE._replace(clauses={"tools": margin})
        assert (look.reason_to_stop(rule) is not None) == stops
    no_limit = RULE._replace(points=math.inf, clauses={"tools": None})
    assert look.reason_to_stop(no_limit) is None


def test_trainings_that_lose_just_the_margin_are_rarely_stopped() -> None:
    """400 trainings of 8 looks, each at other items of a loss of exactly 1 point."""
    random = np.random.default_rng(0)
    wrongly = at_full_alpha = 0
    for _ in range(400):
        stops = again = False
        for number in range(1, 9):
            base = random.uniform(0.3, 0.7, 60)
            now = base - 0.01 + random.normal(0.0, 0.1, 60)
            look = look_at(10 * number, results(t=base), results(t=now))
            stops = stops or look.reason_to_stop(RULE) is not None
            again = again or look.retention[0].shown.upper < -1.0
        wrongly += stops
        at_full_alpha += again
    assert wrongly <= 20  # 5 %
    assert at_full_alpha > 20  # looking eight times at 95 % each errs more often
