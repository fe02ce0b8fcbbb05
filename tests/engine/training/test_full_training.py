"""Full fine-tuning through the same loop: against plain PyTorch, and its memory measures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from rankwise.engine.models.loading import load_frozen
from rankwise.engine.training import loop as training
from rankwise.engine.training.trainees import FullTrainee
from rankwise.records.config.training import TrainConfig
from tests.support.passes import CPU, Heard, Setting, config


@pytest.fixture
def setting(tiny_model_folder: Path) -> Setting:
    return Setting(tiny_model_folder)


def full(
    setting: Setting,
    train: TrainConfig,
    *,
    weights: Any = "float32",
    optimizer: Any = "adamw",
    heard: Heard | None = None,
    state: Path | None = None,
    **options: Any,
) -> tuple[Heard, Any, FullTrainee]:
    heard = Heard() if heard is None else heard
    model: Any = load_frozen(setting.folder, weights, CPU)
    trainee = setting.full(train, model, optimizer, name="full")
    if state is not None and state.exists():
        trainee.load_state(state)
    settings: dict[str, Any] = {
        "max_tokens": 128,
        "precision": "float32",
        "gradient_checkpointing": False,
    }
    try:
        training.train_pass(model, [trainee], bank=None, observer=heard, **(settings | options))
    except KeyboardInterrupt:
        assert state is not None
        trainee.save_state(state)
    return heard, model, trainee


def test_equals_plain_pytorch(setting: Setting) -> None:
    train = config(epochs=3)
    heard, model, trainee = full(setting, train)
    peer: Any = load_frozen(setting.folder, "float32", CPU)
    peer.requires_grad_(True)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, weight_decay=0.0)
    num_steps, losses = len(trainee.batches), []
    warmup = math.ceil(0.1 * num_steps)
    for step, batch in enumerate(trainee.batches):
        factor = step / warmup if step < warmup else (num_steps - step) / (num_steps - warmup)
        optimizer.param_groups[0]["lr"] = 1e-3 * factor
        count = sum(e.num_loss_tokens for e in batch)
        total = 0.0
        for example in batch:
            tokens = torch.tensor([example.tokens])
            n = example.num_loss_tokens
            logits = peer(tokens).logits[0, -n - 1 : -1]
            loss = cross_entropy(logits, tokens[0, -n:], reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    assert heard.losses["full"] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0] - 0.5
    assert not trainee.is_zero_update
    for (name, ours), theirs in zip(model.named_parameters(), peer.parameters(), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-4, name


def test_bfloat16_weights_learn_as_float32_ones_do(setting: Setting) -> None:
    train = config(epochs=3)
    expected = full(setting, train)[0].losses["full"]
    heard, model, _ = full(setting, train, weights="bfloat16", precision="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert heard.losses["full"][-1] == pytest.approx(expected[-1], rel=0.05)


def test_bfloat16_compute_keeps_float32_weights(setting: Setting) -> None:
    train = config()
    expected = full(setting, train)[0].losses["full"]
    heard, model, _ = full(setting, train, precision="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert heard.losses["full"] == pytest.approx(expected, rel=2e-2)
    assert heard.losses["full"] != expected


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_a_saved_state_goes_on_with_the_same_losses(
    setting: Setting, tmp_path: Path, weights: str
) -> None:
    train, state = config(), tmp_path / "state.pt"
    expected = full(setting, train, weights=weights)[0].losses["full"]
    full(setting, train, weights=weights, heard=Heard(stop_at=2), state=state)
    again, _, _ = full(setting, train, weights=weights, state=state)
    assert again.losses["full"] == expected[2:]


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_8bit_moments_learn_as_float32_ones_do_and_go_on_from_a_saved_state(
    setting: Setting, tmp_path: Path, weights: str
) -> None:
    pytest.importorskip("torchao.optim", exc_type=ImportError)
    train, state = config(), tmp_path / "state.pt"
    exact = full(setting, train, weights=weights)[0].losses["full"]
    eight_bit: dict[str, Any] = {"weights": weights, "optimizer": "adamw_8bit"}
    expected = full(setting, train, **eight_bit)[0].losses["full"]
    assert expected == pytest.approx(exact, rel=0.05)
    assert expected != exact
    full(setting, train, **eight_bit, heard=Heard(stop_at=2), state=state)
    again, _, _ = full(setting, train, **eight_bit, state=state)
    assert again.losses["full"] == expected[2:]


def test_gradient_checkpointing_changes_nothing(setting: Setting) -> None:
    expected = full(setting, config())[0].losses["full"]
    found = full(setting, config(), gradient_checkpointing=True)[0].losses["full"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_model_that_is_not_moved_is_a_zero_update(setting: Setting) -> None:
    model: Any = load_frozen(setting.folder, "float32", CPU)
    trainee = setting.full(config(), model, name="full", learning_rate=1e-45)
    training.train_pass(
        model,
        [trainee],
        bank=None,
        max_tokens=128,
        precision="float32",
        gradient_checkpointing=False,
        observer=Heard(),
    )
    assert trainee.is_zero_update
