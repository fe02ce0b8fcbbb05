"""p(right) from logged answers: by hand, as lm-eval has it, and lines that do not tell it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from lm_eval import utils as lm_eval_utils

from rankwise.records.p_right import is_wanted, p_right, p_right_of_items

NAN, INF = math.nan, math.inf


def line(nats: Sequence[float], target: Any, acc: float, **others: Any) -> dict[str, Any]:
    """An item as a study logs it; options are a, b, c ..."""
    texts = "abcdefgh"[: len(nats)]
    return {
        "doc_id": 0,
        "target": target,
        "arguments": [["Question?", f" {text}"] for text in texts],
        "resps": [[[value, False]] for value in nats],
        "metrics": ["acc"],
        "acc": acc,
    } | others


def as_lm_eval_writes(item: dict[str, Any]) -> dict[str, Any]:
    """Targets and answers as texts, arguments by name."""
    arguments = {
        f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(request)}
        for i, request in enumerate(item["arguments"])
    }
    answers = [[[str(part) for part in repeat] for repeat in asked] for asked in item["resps"]]
    return item | {"target": str(item["target"]), "arguments": arguments, "resps": answers}


def test_by_hand() -> None:
    # e^0, e^ln(2) below, e^ln(4) below: 1, 1/2, 1/4 of 7/4
    nats = [-3.0, -3.0 - math.log(2.0), -3.0 - math.log(4.0)]
    assert p_right(nats, {0}) == pytest.approx(4 / 7)
    assert p_right(nats, {2}) == pytest.approx(1 / 7)
    # several right answers
    assert p_right(nats, [1, 2, 2]) == pytest.approx(3 / 7)
    # none of the options, as lm-eval's -100
    assert p_right(nats, [3]) == p_right(nats, [-100]) == p_right(nats, [-1]) == 0.0
    assert p_right([-7.0], {0}) == 1.0


def test_extreme_log_likelihoods() -> None:
    assert p_right([-INF, -1.0], {0}) == 0.0
    assert p_right([-INF, -1.0], {1}) == 1.0
    assert p_right([-2.5] * 4, {1}) == 0.25
    assert p_right([-INF, -INF], {1}) == 0.5
    assert p_right([-1e5, -1e5 - 1.0], {0}) == pytest.approx(1 / (1 + math.exp(-1)))
    assert math.isnan(p_right([NAN, -1.0], {1}))


def test_it_is_the_softmax_of_lm_evals_brier_score() -> None:
    nats = [-12.25, -9.5, -10.0, -31.0]
    theirs = lm_eval_utils.softmax(nats)
    assert [p_right(nats, {place}) for place in range(4)] == pytest.approx(theirs.tolist())


@pytest.mark.parametrize("logged", [lambda item: item, as_lm_eval_writes])
def test_a_target_is_a_place_a_text_or_several_places(logged: Any) -> None:
    low, high = -1.0 - math.log(3.0), -1.0
    assert p_right_of_items([logged(line([low, high], 0, 0.0))]) == pytest.approx([0.25])
    assert p_right_of_items([logged(line([low, high], "b", 1.0))]) == pytest.approx([0.75])
    several = logged(line([low, high, low], [0, 1], 1.0))
    assert p_right_of_items([several]) == pytest.approx([0.8])
    unknown = logged(line([low, high], 5, 0.0))
    assert p_right_of_items([unknown, logged(line([low, high], 1, 1.0))]) == pytest.approx(
        [0.0, 0.75]
    )


def test_a_text_that_looks_like_a_place_is_told_by_the_accuracy() -> None:
    """The options are the numbers 2, 0 and 1; "1" is the third of them, not the second."""
    asked = [["How many?", f" {number}"] for number in (2, 0, 1)]
    first = line([-1.0, -2.0, -0.5], "1", 1.0, arguments=asked)
    second = line([-1.0, -0.5, -2.0], "1", 0.0, arguments=asked)
    values = p_right_of_items([first, second])
    assert values == pytest.approx([p_right([-1.0, -2.0, -0.5], {2}), p_right([-1, -0.5, -2], {2})])


def test_digits_of_which_both_readings_are_always_wrong_are_texts() -> None:
    """The model prefers the first of 2, 0 and 1; "1" is the third by text, the second by place."""
    asked = [["How many?", f" {number}"] for number in (2, 0, 1)]
    nats = ([-0.1, -2.0, -0.5], [-0.2, -0.7, -3.0])
    lines = [line(each, "1", 0.0, arguments=asked) for each in nats]
    shares = [lm_eval_utils.softmax(each) for each in nats]
    for logged in (lines, [as_lm_eval_writes(each) for each in lines]):
        assert p_right_of_items(logged) == pytest.approx([share[2] for share in shares])
    # a number that was logged as a number is a place, as lm-eval judges it
    places = [each | {"target": 1} for each in lines]
    assert p_right_of_items(places) == pytest.approx([share[1] for share in shares])
    # and where an item has no option of that text, all targets are places
    other = line([-0.1, -2.0], "1", 0.0, arguments=[["Q", " 7"], ["Q", " 9"]])
    assert p_right_of_items([*lines, other]) == pytest.approx(
        [*(share[1] for share in shares), lm_eval_utils.softmax([-0.1, -2.0])[1]]
    )


def test_which_of_two_contexts_is_right_is_told_by_the_accuracy() -> None:
    """As lm-eval logs winogrande: one continuation, and the target is its text."""
    asked = [["The cup", " is full."], ["The jug", " is full."]]
    right = line([-1.0, -2.0], "is full.", 1.0, arguments=asked)
    wrong = line([-1.0, -2.0], "is full.", 0.0, arguments=asked)
    first, second = p_right_of_items([right, wrong]) or ()
    assert first == p_right([-1.0, -2.0], {0})
    assert second == pytest.approx(1.0 - first)


def test_options_without_context_are_left_out() -> None:
    item = line([-1.0, -2.0, -0.1, -0.2], 1, 0.0, metrics=["acc", "acc_mutual_info"])
    item["arguments"] = [["Q", " a"], ["Q", " b"], ["", " a"], ["", " b"]]
    assert p_right_of_items([item]) == [p_right([-1.0, -2.0], {1})]


def test_ties_go_to_the_first_option_as_in_lm_eval() -> None:
    assert p_right_of_items([line([-1.0, -1.0], 0, 1.0)]) == [0.5]
    assert p_right_of_items([line([-1.0, -1.0], 1, 0.0)]) == [0.5]
    assert p_right_of_items([line([-1.0, -1.0], 1, 1.0)]) is None  # not lm-eval's accuracy


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([line([-1.0, -2.0], 0, 1.0), line([-1.0, -2.0], 0, 0.0)], id="contradiction"),
        pytest.param([line([-1.0, -2.0], 0, 0.7)], id="acc is no accuracy: truthfulqa_mc2"),
        pytest.param([line([-1.0, -2.0], "z", 0.0)], id="a target that is no option"),
        pytest.param([line([-1.0], 0, 1.0)], id="one option"),
        pytest.param([line([-1.0], "a", 1.0)], id="a continuation"),
        pytest.param([line([], "42", 0.0, resps=[["The answer is 42"]])], id="a generation"),
        pytest.param([line([], "42", 0.0, resps=[["42", "12"], ["42", "7"]])], id="repeats"),
        pytest.param([line([], "prose", 0.0, resps=[[-310.5]])], id="prose"),
        pytest.param([{"doc_id": 0, "target": 0, "acc": 1.0}], id="no answers"),
        pytest.param([], id="no items"),
    ],
)
def test_lines_that_do_not_tell_it(lines: list[dict[str, Any]]) -> None:
    assert p_right_of_items(lines) is None


def test_an_item_with_one_option_among_others_counts_one() -> None:
    items = [line([-1.0], 0, 1.0), line([-1.0, -1.0], 0, 1.0)]
    assert p_right_of_items(items) == [1.0, 0.5]


def test_infinite_log_likelihoods_survive_json() -> None:
    item = json.loads(json.dumps(line([-INF, -1.0], 0, 0.0)))
    assert p_right_of_items([item]) == [0.0]
    values = p_right_of_items([line([NAN, -1.0], 0, 0.0)])
    assert values is not None
    assert math.isnan(values[0])


def test_which_configured_metric_asks_for_it() -> None:
    assert is_wanted(None)
    assert is_wanted("p_right")
    assert is_wanted("p_right,none")
    assert not is_wanted("acc")
