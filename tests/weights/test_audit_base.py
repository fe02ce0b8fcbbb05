"""Which base an adapter belongs to, and which of its layers have lost their factors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rankwise.errors import ModelError
from rankwise.records.audits import AuditRecord
from rankwise.records.files import read_record
from rankwise.report.page import audit_page
from rankwise.report.rendering import rendered
from rankwise.weights.audit import Audited, audit, find_audited
from tests.support.audited_models import adapter, edited, rewritten
from tests.support.command_line import rankwise, words
from tests.support.tiny_models import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def look(base: Path, target: Path, **options: Any) -> Audited:
    return find_audited(str(base), target, **options)


def other_model(base: Path, folder: Path) -> Path:
    """A model of the same architecture with other weights."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    changed = {name: weight + 0.01 for name, weight in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# another base


def small(folder: Path, **options: Any) -> Path:
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **options})).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hidden_layers": 1}, "which the base model does not have"),
        ({"intermediate_size": 80}, r"does not fit model.layers.0.mlp.down_proj"),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    options: dict[str, Any], message: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    base = small(tmp_path / "base", **options)
    with pytest.raises(ModelError, match=message):
        look(base, tmp_path / "a", any_base=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hidden_layers": 1}, "has num_hidden_layers 1"),
        ({"intermediate_size": 80}, r"is no fine-tuning .* matrices of shape"),
    ],
)
def test_a_checkpoint_of_another_base_is_refused(
    options: dict[str, Any], message: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    other = small(tmp_path / "other", **options)
    with pytest.raises(ModelError, match=message):
        audit(look(tiny_model_folder, other), 20, 0)


# the recorded base


def recorded(base: Path, folder: Path, name: str | None) -> Path:
    adapter(base, folder)
    return edited(folder, base_model_name_or_path=name)


def test_a_base_that_is_recorded_by_its_folder(tiny_model_folder: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(tiny_model_folder, copy)
    other_model(tiny_model_folder, other)
    target = recorded(tiny_model_folder, tmp_path / "a", str(tiny_model_folder))
    assert look(tiny_model_folder, target).warnings == ()
    assert look(copy, target).warnings == ()  # the same weights under another name
    with pytest.raises(ModelError, match=r"records .* not .*other.*--any-base"):
        look(other, target)
    assert look(other, target, any_base=True).updates


@pytest.mark.parametrize("name", ["meta/Llama-9", "smollm2-135m-instruct", "llama-9"])
def test_a_base_that_is_recorded_by_another_name(
    name: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    target = recorded(tiny_model_folder, tmp_path / "a", name)
    with pytest.raises(ModelError, match=rf"records {name} as its base"):
        look(tiny_model_folder, target)
    assert look(tiny_model_folder, target, any_base=True).warnings == ()


@pytest.mark.parametrize("name", ["somebody/Tiny-Llama", "tiny-llama", "/elsewhere/tiny-llama/"])
def test_an_organisation_and_case_do_not_matter(
    name: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    assert look(tiny_model_folder, recorded(tiny_model_folder, tmp_path / "a", name)).updates


@pytest.mark.parametrize("name", ["/home/me/llama", "./llama", None])
def test_what_cannot_be_compared_is_said(
    name: str | None, tiny_model_folder: Path, tmp_path: Path
) -> None:
    (warning,) = look(tiny_model_folder, recorded(tiny_model_folder, tmp_path / "a", name)).warnings
    assert ("cannot be told" if name else "does not say") in warning


def two_of_one_name(base: Path, folder: Path) -> tuple[Path, Path]:
    first, second = folder / "x" / "model", folder / "y" / "model"
    shutil.copytree(base, first)
    return first, other_model(base, second)


def test_folders_of_one_name_are_told_apart_by_their_content(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    first, second = two_of_one_name(tiny_model_folder, tmp_path)
    target = recorded(first, tmp_path / "a", str(first))
    assert look(first, target).warnings == ()
    with pytest.raises(ModelError, match=rf"records {first} as its base, not {second}"):
        look(second, target)
    assert look(second, target, any_base=True).updates
    copy = shutil.copytree(first, tmp_path / "z" / "another-name")
    assert look(copy, target).warnings == ()


def test_a_recorded_folder_without_a_model_says_nothing(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "moved").mkdir()
    target = recorded(tiny_model_folder, tmp_path / "a", str(tmp_path / "moved"))
    (warning,) = look(tiny_model_folder, target).warnings
    assert "cannot be told" in warning


# layers without factors


def without(folder: Path, *layers: str) -> Path:
    """The adapter without these layers' factors."""

    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [n for n in tensors if any(layer in n for layer in layers)]:
            del tensors[name]

    return rewritten(folder, drop)


def test_layers_that_lost_their_factors_are_named(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    target = without(tmp_path / "a", "layers.1.")
    found = look(tiny_model_folder, target)
    (warning,) = found.warnings
    assert "targets 2 layers that the adapter has no factors for" in warning
    for name in ("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        assert name in warning
    record = audit(found, 20, 0)
    assert record.warnings == (warning,)
    assert warning in rendered(audit_page(record))
    assert look(tiny_model_folder, target, any_base=True).warnings == (warning,)


def test_many_lost_layers_are_counted(tiny_model_folder: Path, tmp_path: Path) -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    adapter(tiny_model_folder, tmp_path / "a", target_modules=names)
    (warning,) = look(tiny_model_folder, without(tmp_path / "a", "layers.1.")).warnings
    assert "targets 6 layers" in warning
    assert "and 2 more" in warning


def test_the_verb_warns_of_lost_layers(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    target = without(tmp_path / "a", "layers.1.self_attn")
    more = ("--output", tmp_path / "audit", "--null-draws", 0)
    result = rankwise("audit", tiny_model_folder, target, *more)
    assert result.exit_code == 0, result.stderr
    assert "warning: adapter_config.json targets 1 layer" in words(result.stderr)
    assert len(read_record(tmp_path / "audit" / "audit.json", AuditRecord).warnings) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": r".*\.(q_proj|down_proj)"},
        {"layers_to_transform": [0]},
        {"layers_to_transform": 0},
        {"layers_pattern": "layers", "layers_to_transform": [0]},
        {"exclude_modules": ["layers.1.self_attn.q_proj"]},
        {"target_modules": ["layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "x"]},
    ],
    ids=["pattern", "layers", "layer", "layers_pattern", "excluded", "named"],
)
def test_layers_that_were_never_meant_are_not_missed(
    changes: dict[str, Any], tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    without(tmp_path / "a", "layers.1.")
    edited(tmp_path / "a", **changes)
    assert look(tiny_model_folder, tmp_path / "a").warnings == ()


def test_a_conv1d_layer_is_missed_too(tmp_path: Path) -> None:
    base = tmp_path / "gpt2"
    tiny("GPT2").save_pretrained(base)
    options: dict[str, Any] = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    adapter(base, tmp_path / "a", **options)
    assert look(base, tmp_path / "a").warnings == ()
    (warning,) = look(base, without(tmp_path / "a", "h.1.")).warnings
    assert "transformer.h.1.attn.c_attn" in warning
