"""Base models: what is refused, what a fingerprint sees, and which layers a target names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config

from rankwise.engine.models.base_folder import BaseModel, find_base_model, trained_folder
from rankwise.engine.models.embedded import EMBEDDED_MODELS
from rankwise.engine.models.loading import load_frozen, load_tokenizer
from rankwise.engine.models.structure import (
    adaptable_shapes,
    context_length,
    matching_modules,
    model_skeleton,
    refuse_other_architecture,
)
from rankwise.errors import ModelError
from rankwise.records.config.study import BaseModelConfig

CPU = torch.device("cpu")


def find(name: str | Path, **options: Any) -> BaseModel:
    return find_base_model(BaseModelConfig(name=str(name)), **options)


@pytest.fixture
def copy(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "copy"))


def change_settings(path: Path, **changes: Any) -> None:
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def test_a_hub_name_without_a_network_says_what_to_do() -> None:
    said: list[str] = []
    with pytest.raises(ModelError) as caught:
        find("nobody/no-such-model", report=said.append)
    message = str(caught.value)
    assert message.startswith("base_model 'nobody/no-such-model' is neither an embedded model (")
    for remedy in (*EMBEDDED_MODELS, "Check the name", "hf auth login", "HF_HUB_OFFLINE"):
        assert remedy in message
    assert "\n" not in message
    assert said == ["looking up nobody/no-such-model on the hub"]


@pytest.mark.parametrize("name", ["/no/such/folder", "./models/tiny", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_up(name: str) -> None:
    with pytest.raises(ModelError, match=f"base_model '{name}' is not a folder"):
        find(name)


def test_a_name_that_is_no_name_of_the_hub() -> None:
    with pytest.raises(ModelError, match="base_model 'not a name!' is neither"):
        find("not a name!")


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_folder_that_lacks_a_part(copy: Path, missing: str) -> None:
    (copy / missing).unlink()
    with pytest.raises(ModelError, match=r"needs config\.json and \*\.safetensors"):
        find(copy)


def test_pickled_weights_are_refused(copy: Path, tiny_model_folder: Path) -> None:
    state = load_frozen(tiny_model_folder, "float32", CPU).state_dict()
    torch.save(state, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="not a transformers folder with safetensors"):
        find(copy)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_frozen(copy, "float32", CPU)


def test_code_in_a_model_folder_is_not_run(copy: Path) -> None:
    ran = copy / "ran"
    (copy / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    change_settings(
        copy / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Model"},
    )
    with pytest.raises(ModelError, match="no usable model config"):
        model_skeleton(copy)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_frozen(copy, "float32", CPU)
    assert not ran.exists()


def test_damaged_weights_are_a_model_error(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match=f"{weights} cannot be read.* Save it again"):
        load_frozen(copy, "float32", CPU)


def test_weights_of_another_shape_are_a_model_error(copy: Path) -> None:
    change_settings(copy / "config.json", intermediate_size=64)
    with pytest.raises(ModelError, match="its config asks for"):
        load_frozen(copy, "float32", CPU)


@pytest.mark.parametrize("damage", ["missing", "half"])
def test_a_folder_without_a_usable_tokenizer(copy: Path, damage: str) -> None:
    tokenizer = copy / "tokenizer.json"
    half = tokenizer.read_text()[:100]
    tokenizer.unlink()
    if damage == "half":
        tokenizer.write_text(half)
    with pytest.raises(ModelError, match=f"tokenizer in {copy}"):
        load_tokenizer(copy)


def test_a_fingerprint_stays_when_the_folder_moves(copy: Path, tiny_model_folder: Path) -> None:
    before = find(tiny_model_folder)
    moved = find(copy)
    assert moved.fingerprint == before.fingerprint
    assert moved.fingerprint.startswith("folder:")
    assert (moved.name, moved.folder) == (str(copy), copy)
    (copy / "README.md").write_text("notes")
    assert find(copy).fingerprint == before.fingerprint


def test_a_fingerprint_sees_one_weight(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    before = find(copy).fingerprint
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert find(copy).fingerprint != before


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ],
)
def test_a_fingerprint_sees_config_tokenizer_and_template(copy: Path, file: str) -> None:
    before = find(copy).fingerprint
    assert (copy / file).is_file()
    with (copy / file).open("a") as content:
        content.write(" ")
    assert find(copy).fingerprint != before


def test_a_fingerprint_of_large_weights_reads_samples_of_all_of_it(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text("{}")
    weight = torch.zeros(6 * 2**20)  # 24 MiB: the samples cover a sixth of it
    seen: set[str] = set()
    for start in range(0, len(weight), len(weight) // 8):
        changed = weight.clone()
        changed[start : start + len(weight) // 8] = 1.0
        save_file({"weight": changed}, tmp_path / "model.safetensors")
        seen.add(find(tmp_path).fingerprint)
    assert len(seen) == 8


def test_the_pad_token_is_the_tokenizer_s_own_or_the_end_of_text(copy: Path) -> None:
    own = load_tokenizer(copy)
    assert (own.pad_token, own.pad_token_id) == ("<|im_end|>", own.eos_token_id)
    change_settings(copy / "tokenizer_config.json", pad_token="<|endoftext|>")
    other = load_tokenizer(copy)
    assert (other.pad_token, other.pad_token_id) == ("<|endoftext|>", 0)
    change_settings(copy / "tokenizer_config.json", pad_token=None)
    fallen_back = load_tokenizer(copy)
    assert (fallen_back.pad_token, fallen_back.pad_token_id) == ("<|im_end|>", 2)


def test_a_tokenizer_without_an_end_is_refused(copy: Path) -> None:
    change_settings(copy / "tokenizer_config.json", eos_token=None, pad_token=None)
    with pytest.raises(ModelError, match=r"has no end token; add eos_token"):
        load_tokenizer(copy)


def test_a_loaded_model_is_frozen_and_in_the_precision_asked_for(tiny_model_folder: Path) -> None:
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = load_frozen(tiny_model_folder, precision, CPU)  # type: ignore[arg-type]
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not model.training


def test_a_skeleton_has_the_shapes_and_no_storage(tiny_model_folder: Path) -> None:
    skeleton = model_skeleton(tiny_model_folder)
    model = load_frozen(tiny_model_folder, "float32", CPU)
    assert all(parameter.device.type == "meta" for parameter in skeleton.parameters())
    shapes = {name: parameter.shape for name, parameter in skeleton.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in model.named_parameters()}
    assert adaptable_shapes(skeleton) == adaptable_shapes(model)


def test_adaptable_layers_are_all_linear_ones_below_the_head(tiny_model_folder: Path) -> None:
    shapes = adaptable_shapes(model_skeleton(tiny_model_folder))
    assert len(shapes) == 2 * 7
    assert shapes["model.layers.0.self_attn.k_proj"] == (48, 24)
    assert shapes["model.layers.1.mlp.down_proj"] == (96, 48)
    assert "lm_head" not in shapes


def test_layers_of_gpt2_are_found_with_their_true_sides() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50))
    shapes = adaptable_shapes(model)
    assert shapes["transformer.h.0.attn.c_attn"] == (32, 96)
    assert shapes["transformer.h.0.mlp.c_fc"] == (32, 128)
    assert "lm_head" not in shapes


@pytest.mark.parametrize(
    "targets",
    [
        ("q_proj", "v_proj"),
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        ("mlp.down_proj",),
        ("layers.0.self_attn.q_proj", "gate_proj"),
        ("model.layers.1.mlp.up_proj",),
        ("proj", "q_proj"),  # "proj" is the end of every name, and of none after a dot
    ],
)
def test_targets_match_what_peft_adapts(tiny_model_folder: Path, targets: tuple[str, ...]) -> None:
    import peft

    model = load_frozen(tiny_model_folder, "float32", CPU)
    matches = matching_modules(adaptable_shapes(model), targets)
    config = peft.LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM")
    adapted: Any = peft.get_peft_model(model, config)  # type: ignore[arg-type]
    theirs = {
        name.removeprefix("base_model.model.")
        for name, module in adapted.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }
    assert {name for found in matches.values() for name in found} == theirs
    assert list(matches) == list(targets)
    if "proj" in targets:
        assert matches["proj"] == []


def test_context_length_is_the_model_s(tiny_model_folder: Path) -> None:
    skeleton: Any = model_skeleton(tiny_model_folder)
    tokenizer = load_tokenizer(tiny_model_folder)
    assert context_length(skeleton.config, tokenizer) == 256


def test_longrope_reads_no_text_that_turns_those_beside_it(tiny_model_folder: Path) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = Phi3Config(
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=128,
        original_max_position_embeddings=16,
        rope_scaling={"type": "longrope", **factors},
    )
    tokenizer = load_tokenizer(tiny_model_folder)
    assert context_length(config, tokenizer) == 16
    assert context_length(Phi3Config(max_position_embeddings=128), tokenizer) == 128


def test_a_checkpoint_of_another_depth_is_refused_whatever_its_config_calls_it(
    tmp_path: Path,
) -> None:
    GPT2Config(n_layer=3, n_embd=8, n_head=2).save_pretrained(tmp_path)
    assert "num_hidden_layers" not in json.loads((tmp_path / "config.json").read_text())
    refuse_other_architecture(tmp_path, GPT2Config(n_layer=3, n_embd=8, n_head=4))
    with pytest.raises(ModelError, match="has num_hidden_layers 3 and the base model 2"):
        refuse_other_architecture(tmp_path, GPT2Config(n_layer=2, n_embd=8, n_head=2))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="no usable model config"):
        refuse_other_architecture(tmp_path, GPT2Config())


def test_a_vision_tower_beside_the_text_model_is_not_adapted() -> None:
    """It reads no rows of text: its lora_B would stay zero. Others may have adapted it."""
    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    of_text, of_all = (
        adaptable_shapes(model),
        adaptable_shapes(model, beside_text=True),
    )
    assert {name.split(".")[1] for name in of_text} == {"language_model"}
    assert len(of_text) == 2 * 7
    assert set(of_text) < set(of_all)
    assert any("vision_tower" in name for name in of_all)


def test_a_router_that_is_no_product_is_not_adapted() -> None:
    config = transformers.PhimoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    shapes = adaptable_shapes(transformers.PhimoeForCausalLM(config))
    assert len(shapes) == 4
    assert all("self_attn" in name for name in shapes)


def test_an_adapter_is_a_folder_or_a_repository_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert trained_folder(str(tmp_path)) == tmp_path
    for missing in (str(tmp_path / "none"), "./none", "none", "a/b/c"):
        with pytest.raises(ModelError, match=f"{missing} is not a folder"):
            trained_folder(missing)
    assert asked == []
    assert trained_folder("org/adapter") == tmp_path
    ((name, patterns),) = asked
    assert name == "org/adapter"
    assert "*.safetensors" in patterns
    assert not any(pattern.endswith((".bin", ".py")) for pattern in patterns)
