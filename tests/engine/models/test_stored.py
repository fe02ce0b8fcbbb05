"""What is said of a model's files before they are loaded, beside what transformers says then."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankwise.engine.models.files import check_stored
from rankwise.engine.models.loading import load_model
from rankwise.engine.models.structure import model_skeleton
from rankwise.engine.models.weights import weight_matrices
from rankwise.errors import ModelError, PlanError
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from tests.support.tiny_models import tiny

Weights = dict[str, Tensor]
Change = Callable[[Weights], Any]
MLP = "model.layers.1.block_sparse_moe"
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}


def folder_of(path: Path, family: str, change: Change, **changes: Any) -> Path:
    """A tiny model whose file is changed."""
    tiny(family, **changes).save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def further_tokens(weights: Weights) -> None:
    """A layer more that predicts the token after the next one, as DeepSeek-V3's and GLM's."""
    for name in [name for name in weights if ".layers.1." in name]:
        weights[name.replace(".1.", ".2.", 1)] = weights[name].clone()
    weights["model.layers.2.eh_proj.weight"] = torch.ones(32, 64)


def buffers(name: str) -> Change:
    return lambda weights: weights.update({name.format(i): torch.ones(4) for i in range(2)})


def head(weights: Weights) -> None:
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()


def short_names(weights: Weights) -> None:
    for name in list(weights):
        weights[name.removeprefix("transformer.")] = weights.pop(name)


@pytest.mark.parametrize(
    ("family", "change", "num_beside"),
    [
        ("Llama", lambda _: None, 0),
        ("Llama", further_tokens, 10),
        ("Llama", buffers("mtp.layers.{}.self_attn.q_proj.weight"), 2),
        ("Llama", buffers("model.visual.blocks.{}.attn.qkv.weight"), 2),
        ("Llama", buffers("model.layers.{}.self_attn.rotary_emb.inv_freq"), 0),
        ("Llama", buffers("model.layers.{}.self_attn.k_scale"), 2),
        ("GPT2", buffers("transformer.h.{}.attn.masked_bias"), 2),
        ("GPT2", buffers("transformer.h.{}.attn.bias"), 0),
        ("GPT2", short_names, 0),
        ("Gemma2", head, 0),  # tied
        ("Mixtral", lambda _: None, 0),  # its file has one tensor for each expert
        ("GptOss", lambda _: None, 0),
    ],
)
def test_what_makes_no_difference_is_accepted(
    family: str, change: Change, num_beside: int, tmp_path: Path
) -> None:
    changes = MOE if family == "Mixtral" else {}
    folder = folder_of(tmp_path, family, change, **changes)
    beside = check_stored(folder, model_skeleton(folder))
    assert [sentence.count(f"holds {num_beside} tensors beside") for sentence in beside] == (
        [1] if num_beside else []
    )
    loaded = load_model(folder, torch.float32).state_dict()
    for name, weight in tiny(family, **changes).state_dict().items():
        assert torch.equal(loaded[name], weight), name


def compiled(weights: Weights) -> None:
    for name in list(weights):
        weights[f"_orig_mod.{name}"] = weights.pop(name)


def sharded(weights: Weights) -> None:
    for name in list(weights):
        inner = re.sub(r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module._orig_mod.", name)
        weights[f"_fsdp_wrapped_module.{inner}"] = weights.pop(name)


@pytest.mark.parametrize("change", [compiled, sharded])
@pytest.mark.parametrize(("family", "changes"), [("Llama", {}), ("Mixtral", MOE)])
def test_names_of_wrapped_modules_are_read(
    family: str, changes: dict[str, Any], change: Change, tmp_path: Path
) -> None:
    folder, expected = folder_of(tmp_path / "a", family, change, **changes), tiny(family, **changes)
    assert check_stored(folder, model_skeleton(folder)) == []
    loaded, layer = load_model(folder, torch.float32), "model.layers.1.self_attn.q_proj"
    loaded.save_pretrained(tmp_path / "b")
    for model in (loaded, load_model(tmp_path / "b", torch.float32)):
        for name, weight in expected.state_dict().items():
            assert torch.equal(model.state_dict()[name], weight), name
    assert torch.equal(
        weight_matrices(folder, [layer])[layer], expected.get_submodule(layer).weight
    )


def garbage(weights: Weights) -> None:
    drawn = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        size = (*weight.shape[:-1], 2 * weight.shape[-1])
        numbers = torch.randint(0, 256, size, dtype=torch.uint8, generator=drawn)
        weights[name] = numbers.view(torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (garbage, "holds NaN or infinite weights in"),
        (
            lambda w: w.pop(f"{MLP}.experts.2.w1.weight"),
            "cannot be loaded",
        ),
        (
            lambda w: w.pop(f"{MLP}.gate.weight"),
            "lacks 1 of its model's weights",
        ),
    ],
)
def test_what_is_no_model_is_refused_by_its_headers(
    change: Change, sentence: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, "Mixtral", change, **MOE)
    with pytest.raises(ModelError, match=f"^{folder} {sentence}"):
        check_stored(folder, model_skeleton(folder))


def test_a_layer_of_another_kind_than_those_of_the_config_is_refused(tmp_path: Path) -> None:
    """DeepSeek's first layer is dense: a config of that layer alone knows of no experts."""
    folder = folder_of(
        tmp_path, "DeepseekV2", lambda _: None, n_routed_experts=4, first_k_dense_replace=1,
        moe_intermediate_size=16, kv_lora_rank=8, q_lora_rank=None, qk_nope_head_dim=4,
        qk_rope_head_dim=4, v_head_dim=8, n_group=1, topk_group=1,
    )  # fmt: skip
    assert check_stored(folder, model_skeleton(folder)) == []
    config = folder / "config.json"
    config.write_text(config.read_text().replace('hidden_layers": 2', 'hidden_layers": 1'))
    with pytest.raises(ModelError, match=r"holds model\.layers\.1\..* makes a model without it"):
        check_stored(folder, model_skeleton(folder))


def test_a_study_of_a_damaged_base_is_not_planned(study_file: Path, tmp_path: Path) -> None:
    folder = Path(load_config(study_file).base_model.name)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        text = path.read_bytes().replace(b'hidden_layers": 2', b'hidden_layers": 1')
        (copy / path.name).write_bytes(text)
    with pytest.raises(PlanError, match=r"base_model: .* makes a model without it"):
        plan_study(load_config(study_file, [f"base_model={copy}"]))
