"""Merging in memory: PEFT's numbers, shares by hand, and a base that is as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.loading import load_frozen, load_tokenizer
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.errors import ModelError
from rankwise.tasks.questions import Continuation
from rankwise.weights.forms import find_forms
from rankwise.weights.lowrank import LowRankUpdate, read_updates
from rankwise.weights.merging import Rounding, merged_as, rounding
from tests.planted.rounded import KEPT, LAST, LOST, deciding_adapter, undecided_base
from tests.support.audited_models import adapter, load
from tests.support.saved_adapters import saved
from tests.support.tiny_models import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

W = torch.tensor([[1.0, 2.0], [0.5, 4.0]])
DELTA = torch.tensor([[0.001, 0.0], [0.25, 0.005]])


def form(name: str) -> Any:
    return find_forms([name])[0]


def frozen(folder: Path) -> Any:
    return load_frozen(folder, "float32", torch.device("cpu"))


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_a_matrix_by_hand() -> None:
    """At 1 bfloat16 has steps of 2^-7, at 4 of 2^-5: 0.001 and 0.005 are lost, 0.25 is not."""
    model = nn.ModuleDict({"layer": nn.Linear(2, 2, bias=False)})
    model["layer"].weight.data = W.clone()
    update = LowRankUpdate(torch.eye(2), DELTA)
    with merged_as(model, form("merged-bf16"), {"layer": update}) as merged:
        assert torch.equal(model["layer"].weight, torch.tensor([[1.0, 2.0], [0.75, 4.0]]))
    assert torch.equal(model["layer"].weight, W)
    (module,), total = merged.weights.modules, merged.weights.delta
    assert total is not None
    size = 0.001**2 + 0.25**2 + 0.005**2
    assert module.module == "layer"
    assert module.delta_norm == pytest.approx(size**0.5)
    assert module.relative_error == pytest.approx(((0.001**2 + 0.005**2) / size) ** 0.5)
    assert module.unchanged_share == pytest.approx(2 / 3)
    assert module.kept_share == pytest.approx(0.25**2 / size)
    assert total == module.model_copy(update={"module": "all"})
    assert merged.weights.num_bytes == 8


def test_shares_of_several_modules_are_of_all_entries() -> None:
    one = rounding(W, DELTA, W + DELTA, W)  # nothing is lost
    other = rounding(W, DELTA, W, W)  # all is
    both = Rounding(*map(sum, zip(one, other, strict=True))).record("all")
    assert both.relative_error == pytest.approx(0.5**0.5, rel=1e-4)
    assert both.kept_share == pytest.approx(0.5, rel=1e-4)
    assert (other.record("b").relative_error, other.record("b").unchanged_share) == (1.0, 1.0)
    assert one.record("a").unchanged_share == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_are_peft_s(
    dtype: torch.dtype, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Bit by bit; a base that is stored in bfloat16 is rounded once, after the sum."""
    adapter(tiny_model_folder, tmp_path / "a", std=0.02)
    stored = load(tiny_model_folder).to(dtype)
    expected = peft.PeftModel.from_pretrained(stored, tmp_path / "a").merge_and_unload()
    model = load(tiny_model_folder).to(dtype).float()
    name = {torch.float32: "merged-fp32", torch.bfloat16: "merged-bf16"}[dtype]
    with merged_as(model, form(name), read_updates(AdapterFolder(tmp_path / "a"))):
        for (key, ours), (other, theirs) in zip(
            model.named_parameters(), expected.named_parameters(), strict=True
        ):
            assert key == other
            assert torch.equal(ours, theirs.float()), key


def test_transposed_layers_are_merged_too(tmp_path: Path) -> None:
    adapted = saved(tmp_path / "a", "GPT2")
    expected = adapted.merge_and_unload()
    model = tiny("GPT2")
    with merged_as(model, form("merged-fp32"), read_updates(AdapterFolder(tmp_path / "a"))):
        for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-7)


def test_experts_are_stored_by_the_rows_that_one_output_is_computed_from() -> None:
    """GPT-OSS keeps them as (experts, in, out); the oracle is gguf's round trip of each."""
    model = tiny("GptOss", intermediate_size=64)
    own = {name: weight for name, weight in copies(model).items() if ".mlp.experts." in name}
    with merged_as(model, form("gguf:q4_0"), {}):
        for name, before in own.items():
            stored = model.get_parameter(name).detach()
            if name.endswith("_bias"):
                assert torch.equal(stored, before)
                continue
            for expert, weight in zip(stored, before, strict=True):
                kind = gguf.GGMLQuantizationType.Q4_0
                blocks = gguf.quants.quantize(np.ascontiguousarray(weight.T.numpy()), kind)
                assert np.array_equal(expert.T.numpy(), gguf.quants.dequantize(blocks, kind))
    assert all(torch.equal(model.get_parameter(name), before) for name, before in own.items())


def test_a_form_of_linear_layers_leaves_experts_and_routers() -> None:
    """As bitsandbytes does in transformers."""
    model = tiny("GptOss")
    own = copies(model)
    of_layers = form("gguf:q8_0")._replace(is_of_linear_layers=True)
    with merged_as(model, of_layers, {}):
        rounded = {
            n for n, before in own.items() if not torch.equal(model.get_parameter(n), before)
        }
    linear = {f"{name}.weight" for name, each in model.named_modules() if type(each) is nn.Linear}
    assert rounded == linear | {"model.embed_tokens.weight"}


@pytest.mark.parametrize("name", ["beside-4bit", "beside-8bit"])
def test_an_adapter_beside_a_quantised_base_by_hand(
    name: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Weights that transformers quantised, plus scaling * B @ A, give the same log-likelihoods."""
    bits: Any = pytest.importorskip("bitsandbytes.functional", exc_type=ImportError)
    adapter(tiny_model_folder, tmp_path / "a", std=0.2)
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    factors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    quantised: Any = AutoModelForCausalLM.from_pretrained(
        tiny_model_folder,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=name == "beside-4bit",
            load_in_8bit=name == "beside-8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
        device_map={"": "cpu"},
    )
    by_hand: Any = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    adapted = set[str]()
    for path, layer in by_hand.named_modules():
        if isinstance(layer, nn.Linear) and path != "lm_head":
            held = quantised.get_submodule(path).weight
            if name == "beside-4bit":
                layer.weight.data = bits.dequantize_4bit(held.data, held.quant_state).float()
            else:
                layer.weight.data = held.CB.float() * held.SCB[:, None] / 127
            key = f"base_model.model.{path}.lora_%s.weight"
            if key % "A" in factors:
                delta = factors[key % "B"] @ factors[key % "A"]
                layer.weight.data += settings["lora_alpha"] / settings["r"] * delta
                adapted.add(path)
        elif isinstance(layer, nn.Linear | nn.Embedding) or "norm" in path:
            layer.weight.data = layer.weight.data.bfloat16().float()
    assert len(adapted) == len(factors) // 2
    texts = [tuple(range(3, 12)), (5, 40, 7, 21)]
    model = frozen(tiny_model_folder)
    own = AdapterFolder(tmp_path / "a")
    with merged_as(model, form(name), read_updates(own)) as merged:
        scorer = ResidentScorer(model, load_tokenizer(tiny_model_folder))
        scorer.put_on("a", own)
        items = [Continuation(text[:2], text[2:]) for text in texts]
        (found,) = scorer.log_likelihoods(["a"], items)
    assert merged.weights.delta is None
    for text, answer in zip(texts, found, strict=True):
        logits = by_hand(torch.tensor([text])).logits[0, 1:-1].log_softmax(-1)
        wanted = logits[range(len(text) - 2), text[2:]].sum()
        assert answer.nats == pytest.approx(float(wanted), abs=1e-4)


def test_beside_a_rounded_base_a_weak_adapter_is_whole(tmp_path: Path) -> None:
    """A merge loses it in bfloat16; the base is stored in bfloat16, so its rounding is nothing."""
    base = undecided_base(tmp_path / "base", LOST)
    deciding_adapter(base, tmp_path / "a", LOST)
    model, own = frozen(base), AdapterFolder(tmp_path / "a")
    before = copies(model)
    beside = form("merged-bf16")._replace(is_beside=True)
    with merged_as(model, beside, read_updates(own)) as merged:
        assert all(torch.equal(each, before[key]) for key, each in model.named_parameters())
    factors = 4 * 2 * (64 + 96)
    assert merged.weights.num_bytes == 2 * sum(each.numel() for each in before.values()) + factors


@pytest.mark.parametrize("name", ["merged-bf16", "merged-fp16", "gguf:q8_0", "gguf:q4_0"])
def test_the_base_is_restored_bit_by_bit(name: str, tmp_path: Path) -> None:
    base = undecided_base(tmp_path / "base", KEPT)
    deciding_adapter(base, tmp_path / "a", KEPT)
    model = frozen(base)
    before = copies(model)
    with merged_as(model, form(name), read_updates(AdapterFolder(tmp_path / "a"))) as merged:
        assert not torch.equal(model.get_submodule(LAST).weight, before[f"{LAST}.weight"])
    assert merged.num_instead == 0
    assert all(torch.equal(after, before[key]) for key, after in model.named_parameters())


def test_it_is_restored_after_an_error_too(tiny_model_folder: Path, tmp_path: Path) -> None:
    """1e5 is not a float16."""
    model = frozen(tiny_model_folder)
    before = copies(model)
    update = LowRankUpdate(torch.full((1, 48), 1e5), torch.ones(48, 1))
    layer = "model.layers.1.self_attn.q_proj"
    with (
        pytest.raises(ModelError, match=f"merged-fp16: {layer}.weight .* too large"),
        merged_as(model, form("merged-fp16"), {layer: update}),
    ):
        pass
    assert all(torch.equal(after, before[key]) for key, after in model.named_parameters())


def test_a_small_delta_vanishes_in_bfloat16_and_a_large_one_does_not(tmp_path: Path) -> None:
    base = undecided_base(tmp_path / "base", LOST)
    model = frozen(base)
    for size, error, unchanged, kept in ((LOST, 1.0, 1.0, 0.0), (KEPT, 0.0, 0.0, 1.0)):
        folder = deciding_adapter(base, tmp_path / str(size), size)
        with merged_as(model, form("merged-bf16"), read_updates(AdapterFolder(folder))) as merged:
            pass
        delta = merged.weights.delta
        assert delta is not None
        assert delta.relative_error == pytest.approx(error, abs=0.01)
        assert (delta.unchanged_share, delta.kept_share) == (
            unchanged, pytest.approx(kept, abs=0.01),
        )  # fmt: skip
        assert [each.module for each in merged.weights.modules] == [LAST]


def test_noise_that_is_larger_than_delta_keeps_it(tmp_path: Path) -> None:
    """Entries of 1/1024 on steps of about 1/127: most do not move by a step, and some do.

    What moves does so in delta's direction, so that delta is there, and much noise besides.
    """
    base = undecided_base(tmp_path / "base", LOST)
    folder = deciding_adapter(base, tmp_path / "a", LOST)
    with merged_as(frozen(base), form("gguf:q8_0"), read_updates(AdapterFolder(folder))) as merged:
        pass
    delta = merged.weights.delta
    assert delta is not None
    assert delta.relative_error > 2.0
    assert 0.5 < delta.kept_share < 1.5
