"""Weights by layer in one orientation, and updates of adapters that equal PEFT's."""

from __future__ import annotations

import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE, AdapterFolder
from rankwise.engine.models.weights import model_weights, weight_matrices
from rankwise.errors import ModelError
from rankwise.weights.lowrank import LowRankUpdate, read_updates
from tests.support import tiny_models
from tests.support.reads import Reads

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
C_ATTN = "transformer.h.1.attn.c_attn"


def tiny(family: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "gpt2":
            ids = {"bos_token_id": 0, "eos_token_id": 0}
            gpt2 = GPT2Config(vocab_size=64, n_positions=32, n_embd=24, n_layer=2, n_head=4, **ids)
            return GPT2LMHeadModel(gpt2)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        return LlamaForCausalLM(config)


def saved(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Any:
    model = tiny(family).to(dtype)
    model.save_pretrained(folder)
    return model


def output_of(model: Any, name: str, size: int) -> Tensor:
    """The layer's matrix (out, in) by what it does to unit vectors."""
    layer = model.get_submodule(name)
    zero = layer(torch.zeros(1, size))
    with torch.no_grad():
        return (layer(torch.eye(size)) - zero).T


@pytest.mark.parametrize(
    ("family", "shapes"),
    [("llama", {Q: (24, 24), DOWN: (24, 40)}), ("gpt2", {C_ATTN: (72, 24)})],
)
def test_a_matrix_is_what_its_layer_multiplies_with(
    family: str, shapes: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    model = saved(tmp_path, family)
    found = weight_matrices(tmp_path, list(shapes))
    assert {name: tuple(weight.shape) for name, weight in found.items()} == shapes
    for name, weight in found.items():
        assert torch.allclose(weight, output_of(model, name, weight.shape[1]), atol=1e-6)
        assert not weight.requires_grad


def test_layers_come_as_they_were_asked_for(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    assert list(weight_matrices(tmp_path, [DOWN, Q])) == [DOWN, Q]
    assert weight_matrices(tmp_path, []) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    model = saved(tmp_path, "llama", dtype)
    found = weight_matrices(tmp_path, [Q])[Q]
    assert found.dtype == dtype
    assert torch.equal(found, model.get_submodule(Q).weight)


def test_files_are_not_rounded_to_what_the_config_says(tmp_path: Path) -> None:
    model = saved(tmp_path, "llama")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16"}))
    (found,) = weight_matrices(tmp_path, [Q]).values()
    assert found.dtype == torch.float32
    assert torch.equal(found, model.get_submodule(Q).weight)


def test_a_quantised_model_has_no_weights(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    path = tmp_path / "config.json"
    how = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | how))
    with pytest.raises(ModelError, match="quantised"):
        weight_matrices(tmp_path, [Q])


@pytest.mark.parametrize("name", ["model.layers.2.self_attn.q_proj", "model.embed_tokens", ""])
def test_what_is_no_linear_layer_is_named(tmp_path: Path, name: str) -> None:
    saved(tmp_path, "llama")
    with pytest.raises(ModelError, match=f"no linear layer {name}.*same architecture"):
        weight_matrices(tmp_path, [Q, name])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, bad: float) -> None:
    saved(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{DOWN}.weight"][3, 4] = bad
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"NaN or infinite weights in {DOWN}"):
        weight_matrices(tmp_path, [Q, DOWN])
    assert list(weight_matrices(tmp_path, [Q])) == [Q]  # nobody asked for the other


def test_of_a_model_in_several_files_one_matrix_is_in_memory(tmp_path: Path) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with Reads() as reads:
        found = weight_matrices(tmp_path, [Q, DOWN])
        for name, weight in found.items():
            assert torch.equal(weight, model.get_submodule(name).weight)
            del weight
    assert reads.most_bytes == 24 * 40 * 4  # the larger one


def test_what_is_tied_has_two_names(tmp_path: Path) -> None:
    config: Any = tiny("llama").config
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    found = model_weights(tmp_path, [Q])
    embeddings, head = "model.embed_tokens.weight", "lm_head.weight"
    assert found.tied == {head: embeddings}
    assert torch.equal(found.others[head], model.model.embed_tokens.weight)
    assert set(found.others) == {
        name for name, _ in model.named_parameters(remove_duplicate=False)
    } - {f"{Q}.weight"}


def test_a_matrix_of_another_shape_is_named(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{DOWN}.weight"] = torch.zeros(24, 41)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{DOWN}.weight that cannot be used"):
        weight_matrices(tmp_path, [DOWN])


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_folder_that_is_no_model_is_named(tmp_path: Path, lost: str) -> None:
    saved(tmp_path, "llama")
    (tmp_path / lost).unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        weight_matrices(tmp_path, [Q])


# updates of adapters


def adapted(folder: Path, family: str = "llama", **settings: Any) -> Any:
    """An adapter in a folder, with weights everywhere; the model that carries it."""
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | settings
    model: Any = peft.get_peft_model(tiny(family), peft.LoraConfig(**given))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_()
    model.save_pretrained(str(folder))
    return model


def delta(update: LowRankUpdate) -> Tensor:
    return update.scaling * update.lora_B.double() @ update.lora_A.double()


PATTERNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"down_proj": 7, "layers.0.self_attn.q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 3, r"layers\.1\.mlp\.down_proj": 32}},
    "all": {
        "use_rslora": True,
        "rank_pattern": {"down_proj": 9},
        "alpha_pattern": {"down_proj": 5},
    },
}


@pytest.mark.parametrize("kind", PATTERNS)
def test_an_update_is_peft_s(kind: str, tmp_path: Path) -> None:
    model = adapted(tmp_path, **PATTERNS[kind])
    found = read_updates(AdapterFolder(tmp_path))
    assert len(found) == 4
    for name, update in found.items():
        layer = model.base_model.model.get_submodule(name)
        expected = layer.get_delta_weight("default").detach().double()
        assert update.rank == layer.r["default"]
        assert update.shape == tuple(expected.shape)
        assert torch.allclose(delta(update), expected, rtol=1e-4, atol=1e-5)
        assert update.frobenius_norm == pytest.approx(float(expected.norm()), rel=1e-5)


def test_an_update_of_gpt2_has_the_orientation_of_its_matrix(tmp_path: Path) -> None:
    model = adapted(tmp_path, "gpt2", target_modules=["c_attn"], fan_in_fan_out=True)
    saved(tmp_path / "base", "gpt2")
    update = read_updates(AdapterFolder(tmp_path))[C_ATTN]
    weight = weight_matrices(tmp_path / "base", [C_ATTN])[C_ATTN]
    assert update.shape == tuple(weight.shape) == (72, 24)
    merged = model.merge_and_unload()
    expected = output_of(merged, C_ATTN, 24)
    assert torch.allclose(weight.double() + delta(update), expected.double(), atol=1e-5)


def test_half_precision_factors_are_read_as_they_are(tmp_path: Path) -> None:
    adapted(tmp_path)
    path = tmp_path / WEIGHTS_FILE
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    update = read_updates(AdapterFolder(tmp_path))[Q]
    assert update.lora_A.dtype == update.lora_B.dtype == torch.bfloat16


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_factors_that_are_not_finite_are_named(tmp_path: Path, side: str) -> None:
    adapted(tmp_path)
    path = tmp_path / WEIGHTS_FILE
    tensors = load_file(path)
    tensors[f"base_model.model.{DOWN}.{side}.weight"][1, 1] = torch.nan
    save_file(tensors, path)
    with pytest.raises(ModelError, match=f"{DOWN}: the update holds NaN or infinite weights"):
        read_updates(AdapterFolder(tmp_path))


def test_a_config_of_another_adapter_is_refused(tmp_path: Path) -> None:
    adapted(tmp_path)
    path = tmp_path / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 16}))
    with pytest.raises(ModelError, match=r"says rank 16 for .*its weights have rank 4"):
        read_updates(AdapterFolder(tmp_path))


def test_what_transformers_converts_goes_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of a mixture of experts hold each expert, and its model holds all of them in one."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    mixture = tiny_models.tiny("Mixtral", num_local_experts=4, num_experts_per_tok=2)
    mixture.save_pretrained(tmp_path / "base")
    found = weight_matrices(tmp_path / "base", ["lm_head"])
    assert torch.equal(found["lm_head"], mixture.lm_head.weight)
    (converted,) = (tmp_path / "temporary").iterdir()
    assert any(converted.iterdir())
    del found
    gc.collect()
    assert not converted.exists()


def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    saved(tmp_path / "base", "llama")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its model's weights"):
        weight_matrices(tmp_path / "base", [Q])
    assert not list((tmp_path / "temporary").iterdir())
