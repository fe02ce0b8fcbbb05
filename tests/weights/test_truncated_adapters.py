"""Adapters that begin with the truncated update of another one: exact, as PEFT applies them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rankwise.engine.models.base import LinearShape
from rankwise.engine.models.peft_adapters import save_adapter
from rankwise.engine.models.trained_adapters import Adapter
from rankwise.weights.lowrank import LowRankUpdate, read_updates

# of the tiny llama, which has 48 features and half as many of keys and values
SHAPES = {
    f"model.layers.{layer}.self_attn.{module}": LinearShape(48, out)
    for layer in range(2)
    for module, out in (("q_proj", 48), ("k_proj", 24))
}
SCALING, RANK = 2.0, 8


def adapter_of(rank: int) -> Adapter:
    return Adapter(
        SHAPES,
        rank=rank,
        scaling=SCALING,
        dropout=0.0,
        seed=0,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def saved(adapter: Adapter, folder: Path) -> Path:
    save_adapter(
        adapter,
        folder,
        alpha=SCALING * adapter.rank,
        use_rslora=False,
        target_modules=["q_proj", "k_proj"],
        base_model_name="tiny",
    )
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An adapter of rank 8 whose update has rank 3, with singular values 4, 2 and 1."""
    adapter = adapter_of(RANK)
    generator = torch.Generator().manual_seed(3)
    values = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    for A, B in adapter.factors.values():
        out, size = len(B), A.shape[1]
        left, _ = torch.linalg.qr(torch.randn(out, 3, generator=generator).double())
        right, _ = torch.linalg.qr(torch.randn(size, 3, generator=generator).double())
        mixed, _ = torch.linalg.qr(torch.randn(RANK, RANK, generator=generator).double())
        # the three directions are spread over all eight columns of B and rows of A
        B.copy_(left * values / SCALING @ mixed[:3])
        A.copy_(mixed[:3].T @ right.T)
    return saved(adapter, tmp_path / "source")


def truncated_to(rank: int, source: Path, folder: Path) -> Path:
    cut = {name: update.truncated(rank).update for name, update in read_updates(source).items()}
    scaled = {name: update.at_scaling(SCALING) for name, update in cut.items()}
    adapter = adapter_of(rank)
    adapter.start_from({name: (each.lora_A, each.lora_B) for name, each in scaled.items()})
    return saved(adapter, folder)


def deltas(model: Path, folder: Path) -> dict[str, Tensor]:
    """The update of every layer, as PEFT makes it."""
    base: Any = AutoModelForCausalLM.from_pretrained(model)
    adapted: Any = peft.PeftModel.from_pretrained(base, str(folder))
    return {
        name: module.get_delta_weight("default")
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }


@pytest.mark.parametrize("rank", [3, 4, RANK])
def test_nothing_is_lost_at_the_rank_of_the_update_and_above(
    rank: int, source: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    before = deltas(tiny_model_folder, source)
    after = deltas(tiny_model_folder, truncated_to(rank, source, tmp_path / "cut"))
    assert len(after) == len(SHAPES)
    for name, delta in before.items():
        torch.testing.assert_close(after[name], delta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rank", "error"), [(2, 1.0), (1, 5.0**0.5)])
def test_below_it_the_tail_of_the_singular_values_is_lost(
    rank: int, error: float, source: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    before = deltas(tiny_model_folder, source)
    after = deltas(tiny_model_folder, truncated_to(rank, source, tmp_path / "cut"))
    for name, delta in before.items():
        assert float((delta - after[name]).norm()) == pytest.approx(error, rel=1e-4)


def test_another_scaling_is_the_same_update_with_both_factors_changed_alike() -> None:
    update = LowRankUpdate(torch.randn(2, 5).double(), torch.randn(4, 2).double(), 3.0)
    other = update.at_scaling(0.5)
    torch.testing.assert_close(
        other.scaling * other.lora_B @ other.lora_A,
        update.scaling * update.lora_B @ update.lora_A,
    )
    torch.testing.assert_close(other.lora_A, 6.0**0.5 * update.lora_A)
    torch.testing.assert_close(other.lora_B, 6.0**0.5 * update.lora_B)


def test_a_rank_beyond_the_layer_leaves_the_rest_of_the_factors_zero() -> None:
    """Keys of 2 features have updates of rank 2 at most, whatever the adapter's rank."""
    shapes = {"k": LinearShape(5, 2)}
    adapter = Adapter(
        shapes,
        rank=4,
        scaling=1.0,
        dropout=0.0,
        seed=0,
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
    )
    # whole numbers, so that float32's product differs from float64's by the truncation alone
    A, B = torch.eye(4, 5), torch.tensor([[2.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    update = LowRankUpdate(A, B).truncated(4).update
    assert update.rank == 2
    adapter.start_from({"k": (update.lora_A.float(), update.lora_B.float())})
    A, B = adapter.factors["k"]
    torch.testing.assert_close((B @ A).double(), update.lora_B @ update.lora_A)
    assert not A[2:].any()
    assert not B[:, 2:].any()
    torch.testing.assert_close(adapter.copies["k"].lora_A, A.bfloat16())
