"""Grouped adapters on every layout of layers, against PEFT row by row, and on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from rankwise.engine.models import peft_adapters as adapters
from rankwise.engine.models.structure import (
    LinearShape,
    adaptable_shapes,
    matching_modules,
    resolved_targets,
)
from rankwise.engine.models.trained_adapters import Adapter, DroppedSequence, Piece, adapted
from tests.support.tiny_models import tiny

CPU = torch.device("cpu")


def adapter_for(model: nn.Module, targets: tuple[str, ...], rank: int, seed: int) -> Adapter:
    """With a B that is not zero."""
    shapes = adaptable_shapes(model)
    resolved = resolved_targets(shapes, targets)
    names = {n for found in matching_modules(shapes, resolved).values() for n in found}
    adapter = Adapter(
        {name: shapes[name] for name in shapes if name in names},
        rank=rank,
        scaling=2.0,
        dropout=0.0,
        seed=seed,
        device=CPU,
        dtype=torch.float32,
    )
    generator = torch.Generator().manual_seed(seed)
    for factors in adapter.factors.values():
        factors.lora_B.copy_(torch.randn(factors.lora_B.shape, generator=generator) * 0.1)
    adapter.refresh()
    return adapter


def save(adapter: Adapter, folder: Path, model: nn.Module, targets: tuple[str, ...]) -> None:
    shapes = adaptable_shapes(model)
    adapters.save_adapter(
        adapter,
        folder,
        alpha=2.0 * adapter.rank,
        use_rslora=False,
        target_modules=resolved_targets(shapes, targets),
        base_model_name="tiny",
    )


CASES = [
    ("Llama", ("q_proj", "k_proj", "v_proj", "o_proj")),
    ("Llama", ("mlp",)),
    ("GPT2", ("attention",)),
    ("GPT2", ("all-linear",)),
    ("GPTNeoX", ("all-linear",)),
    ("Phi3", ("qkv_proj", "gate_up_proj")),
    ("Gemma2", ("all-linear",)),
    ("Qwen3", ("attention",)),
]


@pytest.mark.parametrize(("family", "targets"), CASES)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_rows_and_gradients_are_peft_s(
    family: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    """Three sequences under two adapters and the bare base, against PEFT on each alone."""
    model = tiny(family)
    model.requires_grad_(False)
    ids = torch.randint(3, 64, (3, 7), generator=torch.Generator().manual_seed(0))
    both = [adapter_for(model, targets, 3, seed=1), adapter_for(model, targets, 8, seed=2)]
    pieces = [Piece(both[0], 0, 7, ()), Piece(both[1], 14, 21, ())]
    for index, adapter in enumerate(both):
        save(adapter, tmp_path / str(index), model, targets)
    with torch.no_grad():
        untouched = model(ids).logits
    with adapted(model, list(both[0].factors)) as bank, bank.rows_of(pieces):
        logits: Tensor = model(ids).logits
        logits.square().sum().backward()
    assert torch.equal(logits[1], untouched[1])
    for index, row in enumerate((0, 2)):
        peer: Any = peft.PeftModel.from_pretrained(
            tiny(family), str(tmp_path / str(index)), is_trainable=True
        )
        theirs = peer(ids[row : row + 1]).logits
        theirs.square().sum().backward()
        assert float((logits[row] - theirs[0]).abs().max()) < 1e-4
        assert float((logits[row] - untouched[row]).abs().max()) > 1e-2
        for name, gradients in both[index].gradients.items():
            layer = peer.get_submodule(f"base_model.model.{name}")
            for found, side in zip(gradients, (layer.lora_A, layer.lora_B), strict=True):
                wanted = side["default"].weight.grad
                assert float((found - wanted).norm() / wanted.norm()) < 1e-4


def test_layers_are_given_back_after_an_error() -> None:
    model = tiny("Llama")
    before = dict(model.named_modules())

    def fail() -> None:
        with adapted(model, ["model.layers.0.self_attn.q_proj"]):
            assert dict(model.named_modules()) != before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert dict(model.named_modules()) == before


def test_initial_weights_of_a_layer_are_no_matter_of_the_other_layers() -> None:
    model = tiny("Llama")
    few = adapter_for(model, ("q_proj",), 4, seed=3)
    many = adapter_for(model, ("all-linear",), 4, seed=3)
    other = adapter_for(model, ("q_proj",), 4, seed=4)
    for name, factors in few.factors.items():
        assert torch.equal(factors.lora_A, many.factors[name].lora_A)
        assert not torch.equal(factors.lora_A, other.factors[name].lora_A)
    first, second, *_ = few.factors.values()
    assert not torch.equal(first.lora_A, second.lora_A)


def test_dropout_gradients_are_those_of_the_masks_that_were_used() -> None:
    """Autograd on the same masks, p = 0.5: gradients of A, of B and of the input."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, bias=False).requires_grad_(False)
    model = nn.Sequential(layer)
    adapter = Adapter(
        {"0": LinearShape(6, 5)},
        rank=2,
        scaling=1.5,
        dropout=0.5,
        seed=0,
        device=CPU,
        dtype=torch.float32,
    )
    adapter.factors["0"].lora_B.copy_(torch.randn(5, 2))
    adapter.refresh()
    x = torch.randn(4, 6, requires_grad=True)
    sequences = (DroppedSequence(0, 3, (0, 0)), DroppedSequence(3, 4, (0, 1)))
    with adapted(model, ["0"]) as bank, bank.rows_of([Piece(adapter, 0, 4, sequences)]):
        y = model(x)
        y.square().sum().backward()
    A, B = (matrix.clone().requires_grad_() for matrix in adapter.factors["0"])
    # an identity in place of A shows which inputs went through
    probe = Adapter(
        {"0": LinearShape(6, 6)},
        rank=6,
        scaling=1.0,
        dropout=0.5,
        seed=0,
        device=CPU,
        dtype=torch.float32,
    )
    for factor in probe.factors["0"]:
        factor.copy_(torch.eye(6))
    probe.refresh()
    zero = nn.Sequential(nn.Linear(6, 6, bias=False).requires_grad_(False))
    zero[0].weight.zero_()
    with adapted(zero, ["0"]) as bank, bank.rows_of([Piece(probe, 0, 4, sequences)]):
        mask = zero(torch.ones(4, 6)).detach()
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    leaf = x.detach().clone().requires_grad_()
    expected = leaf @ layer.weight.T + 1.5 * (leaf * mask) @ A.T @ B.T
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, leaf.grad)
    torch.testing.assert_close(adapter.gradients["0"].lora_A, A.grad)
    torch.testing.assert_close(adapter.gradients["0"].lora_B, B.grad)


def test_saved_adapter_gives_peft_the_same_logits(tmp_path: Path) -> None:
    model, targets = tiny("Llama"), ("q_proj", "v_proj")
    adapter = adapter_for(model, targets, 4, seed=1)
    save(adapter, tmp_path / "adapter", model, targets)
    ids = torch.tensor([[5, 9, 11, 4]])
    with adapted(model, list(adapter.factors)) as bank, torch.no_grad():
        untouched = model(ids).logits
        with bank.rows_of([Piece(adapter, 0, 4, ())]):
            ours = model(ids).logits
        theirs = adapters.load_adapter(tiny("Llama"), tmp_path / "adapter")(ids).logits
    torch.testing.assert_close(ours, theirs)
    assert float((ours - untouched).abs().max()) > 1e-2
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["base_model_name_or_path"]) == (4, 8, "tiny")
