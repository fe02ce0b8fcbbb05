"""Margins by hand, and what a planted scorer's answers come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.models.base import load_tokenizer
from rankwise.prediction.margins import Choices, choices, margin
from rankwise.tasks.questions import Continuation, LogLikelihood
from rankwise.tasks.requests import PreparedTask, prepare_task
from rankwise.tasks.resolution import load_tasks

INF = math.inf


@pytest.mark.parametrize(
    ("nats", "right", "expected"),
    [
        ([-1.0, -3.0, -2.5], [0], 1.5),
        ([-1.0, -3.0, -2.5], [1], -2.0),
        ([-1.0, -3.0, -2.5], [1, 2], -1.5),
        ([-1.0, -INF], [0], INF),
        ([-1.0, -INF], [1], -INF),
        ([-INF, -INF], [0], 0.0),
        ([-2.0, -2.0], [1], 0.0),
    ],
)
def test_a_margin_is_right_less_the_best_wrong_one(
    nats: list[float], right: list[int], expected: float
) -> None:
    assert margin(nats, right) == expected


class _Planted:
    """Gives the options of every item these log-likelihoods, the right option first."""

    def __init__(self, task: PreparedTask, nats: Sequence[Sequence[float]]) -> None:
        self._nats: list[float] = []
        items: dict[int, int] = {}
        for request in task.requests:
            instance = task.instances[request.instance]
            place = items.setdefault(instance.doc_id, len(items))
            right, *wrong = nats[place % len(nats)]
            is_right = instance.idx == instance.doc["label"]
            self._nats.append(right if is_right else wrong[0])

    def log_likelihoods(
        self, models: Any, items: Sequence[Continuation], advance: Any
    ) -> list[list[LogLikelihood]]:
        return [[LogLikelihood(nats, is_greedy=False) for nats in self._nats]]


@pytest.fixture
def colours(tasks_folder: Path, tiny_model_folder: Path) -> PreparedTask:
    (loaded,) = load_tasks(["colours"], (tasks_folder,), allow_code=True)["colours"]  # type: ignore
    return prepare_task(
        loaded,
        load_tokenizer(tiny_model_folder),
        max_length=200,
        num_fewshot=0,
        limit=None,
        chat_template=False,
    )


def test_shares_of_planted_answers(colours: PreparedTask) -> None:
    assert colours.num_items == 26
    # in turn: right by 2 nats, right by 0.5, wrong by 0.5, wrong by 3; 7, 7, 6 and 6 items
    planted = _Planted(colours, [(-1, -3), (-1, -1.5), (-2, -1.5), (-5, -2)])
    found = choices(planted, [colours])  # type: ignore[arg-type]
    assert found is not None
    assert found.accuracy == pytest.approx(14 / 26)
    assert found.near_tie_share == pytest.approx(13 / 26)
    assert found.chance == colours.chance


def test_a_mean_over_tasks_and_none_without_options(
    colours: PreparedTask, tasks_folder: Path, tiny_model_folder: Path
) -> None:
    sure = _Planted(colours, [(-1, -1 - math.log(3))])
    (one,) = [choices(sure, [colours])]  # type: ignore[list-item]
    assert one is not None
    shares = [1 / (1 + (n - 1) / 3) for n in colours.num_options.values()]
    assert one.p_right == pytest.approx(sum(shares) / len(shares))
    assert choices(sure, [colours, colours]) == pytest.approx(one)  # type: ignore[arg-type]
    (loaded,) = load_tasks(["sums"], (tasks_folder,), allow_code=True)["sums"]  # type: ignore
    sums = prepare_task(
        loaded,
        load_tokenizer(tiny_model_folder),
        max_length=200,
        num_fewshot=0,
        limit=None,
        chat_template=False,
    )
    assert choices(sure, [sums]) is None  # type: ignore[arg-type]
    assert isinstance(one, Choices)
