"""Adapters that are only read: what PEFT makes of the same folder, or a refusal by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from torch import Tensor

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE, AdapterFolder
from rankwise.engine.models.frozen_adapters import FrozenPiece, carrying, load_frozen_adapter
from rankwise.errors import ModelError
from tests.support.saved_adapters import PATTERNS, rewritten, saved
from tests.support.tiny_models import tiny

IDS = torch.randint(3, 64, (3, 7), generator=torch.Generator().manual_seed(0))


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "o_proj", "c_attn", "query_key_value", "qkv_proj"]},
    "everywhere": {},
    "rslora": {"use_rslora": True},
    "patterns": PATTERNS,
    "patterns under rslora": {**PATTERNS, "use_rslora": True},
}


@pytest.mark.parametrize("family", ["Llama", "GPT2", "GPTNeoX", "Phi3"])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The following:RuntimeWarning")
@torch.no_grad()
def test_logits_are_those_of_peft_on_the_rows_of_the_adapter_alone(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    saved(tmp_path, family, **options)
    peer: Any = peft.PeftModel.from_pretrained(tiny(family), str(tmp_path)).eval()
    base = tiny(family)
    expected, untouched = peer(IDS).logits, base(IDS).logits
    adapter = load_frozen_adapter(base, AdapterFolder(tmp_path), torch.float32)
    assert not adapter.is_zero_update
    with carrying(base, [adapter]) as bank, bank.rows_of([FrozenPiece(adapter, 7, 14)]):
        found = base(IDS).logits
    assert torch.equal(found[::2], untouched[::2])
    assert float((found[1] - expected[1]).abs().max()) < 1e-4
    assert float((expected - untouched).abs().max()) > 1e-1
    assert torch.equal(base(IDS).logits, untouched)


@torch.no_grad()
def test_adapters_of_other_ranks_and_layers_share_a_batch(tmp_path: Path) -> None:
    base = tiny("Llama")
    kinds: list[dict[str, Any]] = [
        {"r": 2, "target_modules": ["q_proj"]},
        {"r": 9, "target_modules": ["q_proj", "down_proj"]},
    ]
    peers = [saved(tmp_path / str(n), **kind) for n, kind in enumerate(kinds)]
    both = [
        load_frozen_adapter(base, AdapterFolder(tmp_path / str(n)), torch.float32) for n in range(2)
    ]
    pieces = [FrozenPiece(adapter, 7 * n, 7 * n + 7) for n, adapter in enumerate(both)]
    with carrying(base, both) as bank, bank.rows_of(pieces):
        found: Tensor = base(IDS).logits
    for row, peer in enumerate(peers):
        assert float((found[row] - peer(IDS).logits[row]).abs().max()) < 1e-4
    assert torch.equal(found[2], base(IDS).logits[2])
    sizes = [sum(a.numel() + b.numel() for a, b, _ in each.layers.values()) for each in both]
    held = [sum(a.nbytes + b.nbytes for a, b, _ in each.layers.values()) for each in both]
    assert held == [4 * size for size in sizes]


def test_factors_have_the_dtype_asked_for_and_none_is_kept_for_gradients(tmp_path: Path) -> None:
    saved(tmp_path)
    base = tiny("Llama").bfloat16()
    adapter = load_frozen_adapter(base, AdapterFolder(tmp_path), torch.bfloat16)
    assert {x.dtype for a, b, _ in adapter.layers.values() for x in (a, b)} == {torch.bfloat16}
    with carrying(base, [adapter]) as bank, bank.rows_of([FrozenPiece(adapter, 0, 21)]):
        states: Tensor = base.get_submodule("model.layers.0.self_attn.q_proj")(
            torch.ones(1, 21, 32, dtype=torch.bfloat16, requires_grad=True)
        )
    assert not states.requires_grad


def test_a_zero_update_is_known_as_one(tmp_path: Path) -> None:
    saved(tmp_path, zero=True)
    assert load_frozen_adapter(tiny("Llama"), AdapterFolder(tmp_path), torch.float32).is_zero_update


# refusals


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


BEYOND: dict[str, Any] = {
    "use_dora": True,
    "lora_bias": True,
    "bias": "all",
    "modules_to_save": ["embed_tokens"],
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "trainable_token_indices": [1],
    "layer_replication": [[0, 2]],
    "alora_invocation_tokens": [1],
    "init_lora_weights": "pissa",
    "something_new": {"rank": 1},
}


@pytest.mark.parametrize(("name", "value"), BEYOND.items())
def test_what_is_more_than_plain_lora_is_refused_by_name(
    name: str, value: Any, tmp_path: Path
) -> None:
    saved(tmp_path)
    edited(tmp_path, lambda config: config.update({name: value}))
    with pytest.raises(ModelError, match=f"more than plain LoRA \\({name}"):
        load_frozen_adapter(tiny("Llama"), AdapterFolder(tmp_path), torch.float32)


def test_dora_weights_are_refused_whatever_the_config_says(tmp_path: Path) -> None:
    saved(tmp_path, use_dora=True)
    edited(tmp_path, lambda config: config.update(use_dora=False))
    with pytest.raises(ModelError, match=r"other weights than pairs .*lora_magnitude_vector"):
        load_frozen_adapter(tiny("Llama"), AdapterFolder(tmp_path), torch.float32)


def test_another_kind_of_adapter_and_no_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        load_frozen_adapter(tiny("Llama"), AdapterFolder(tmp_path), torch.float32)
    saved(tmp_path)
    edited(tmp_path, lambda config: config.update(peft_type="IA3"))
    with pytest.raises(ModelError, match="an adapter of kind IA3"):
        load_frozen_adapter(tiny("Llama"), AdapterFolder(tmp_path), torch.float32)


def test_weights_that_are_missing_or_odd_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    rewritten(tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=r"other weights than pairs .*q_proj.lora_B"):
        load_frozen_adapter(tiny("Llama"), AdapterFolder(tmp_path), torch.float32)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be read"):
        load_frozen_adapter(tiny("Llama"), AdapterFolder(tmp_path), torch.float32)
    safetensors.torch.save_file({}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="none at all"):
        load_frozen_adapter(tiny("Llama"), AdapterFolder(tmp_path), torch.float32)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ModelError, match="not a linear layer below the head of this base model"):
        load_frozen_adapter(tiny("GPT2"), AdapterFolder(tmp_path), torch.float32)
    with pytest.raises(ModelError, match=r"does not fit model.layers.0.mlp.down_proj"):
        load_frozen_adapter(
            tiny("Llama", intermediate_size=64), AdapterFolder(tmp_path), torch.float32
        )


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapted_head_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, target_modules=["q_proj", "lm_head"])
    with pytest.raises(ModelError, match="lm_head"):
        load_frozen_adapter(tiny("Llama"), AdapterFolder(tmp_path), torch.float32)


def test_a_config_of_another_rank_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    edited(tmp_path, lambda config: config.update(r=8))
    with pytest.raises(ModelError, match=r"says rank 8 .*weights have rank 4"):
        load_frozen_adapter(tiny("Llama"), AdapterFolder(tmp_path), torch.float32)
