"""Training in lanes: the losses and weights of one lane, up to rounding, and always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.training import loop
from rankwise.engine.training.micro_batches import shared_out, training_lanes
from rankwise.engine.training.trainees import AdapterTrainee
from tests.support.micro_batches import cut, placed
from tests.support.passes import CPU, ROWS, Heard, Setting, config

RUNS: list[dict[str, Any]] = [
    {"rank": 2, "name": "two"},
    {"rank": 64, "name": "other seed", "seed": 7, "learning_rate": 1e-3},
    {"rank": 4, "name": "other data", "rows": ROWS[3:17], "seed": 3},
    {"rank": 5, "name": "two layers", "targets": ("q_proj", "v_proj")},
]


@pytest.fixture
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


def trained(
    setting: Setting, lanes: int, train: dict[str, Any] | None = None, **options: Any
) -> tuple[Heard, list[AdapterTrainee]]:
    settings = config(epochs=3, **(train or {}))
    trainees = [setting.trainee(settings, **run) for run in RUNS]
    options = {"max_tokens": 600, **options}
    return setting.train(*trainees, max_lanes=lanes, **options), trainees


@pytest.mark.parametrize("lanes", [2, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lanes_train_what_one_lane_trains(
    setting: Setting, lanes: int, dropout: float, checkpointing: bool
) -> None:
    """Dropout too: its masks depend on the example, and not on who reads it."""
    options = {"gradient_checkpointing": checkpointing}
    one, alone = trained(setting, 1, {"dropout": dropout}, **options)
    several, beside = trained(setting, lanes, {"dropout": dropout}, **options)
    for name, losses in one.losses.items():
        assert several.losses[name] == pytest.approx(losses, rel=1e-5)
    for ours, theirs in zip(beside, alone, strict=True):
        for a, b in zip(ours.adapter.weights, theirs.adapter.weights, strict=True):
            assert float((a - b).detach().norm() / b.detach().norm()) < 1e-5


def test_lanes_always_train_the_same(setting: Setting) -> None:
    (_, first), (_, second) = trained(setting, 3), trained(setting, 3)
    for ours, theirs in zip(first, second, strict=True):
        for a, b in zip(ours.adapter.weights, theirs.adapter.weights, strict=True):
            assert torch.equal(a, b)


def test_a_lane_without_memory_ends_in_smaller_steps(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other lane has gathered until then does not count twice."""
    expected, _ = trained(setting, 1)
    real, calls = loop.backward_losses, 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        found = real(*arguments)
        if calls in (4, 5):
            raise MemoryError
        return found

    monkeypatch.setattr(loop, "backward_losses", failing)
    found, _ = trained(setting, 2)
    assert found.budgets
    for name, losses in expected.losses.items():
        assert found.losses[name] == pytest.approx(losses, rel=1e-5)


def test_parts_have_about_as_many_tokens() -> None:
    items = placed({0: [4, 9, 5], 1: [9, 4]})
    assert cut(shared_out(items, 2)) == [[(0, 9), (0, 5)], [(0, 4), (1, 9), (1, 4)]]
    assert cut(shared_out(items[:1], 2)) == [[(0, 4)]]


def test_quantised_bases_have_one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert training_lanes(config(), CPU) == 2
    assert training_lanes(config(base_precision="8bit"), CPU) == 1
