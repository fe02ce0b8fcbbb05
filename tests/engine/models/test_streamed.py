"""Models that are read layer by layer: the numbers of the whole ones, and little in memory."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rankwise.engine.models import placed
from rankwise.engine.models.base import load_frozen, model_skeleton
from rankwise.engine.models.devices import Machine
from rankwise.engine.models.placed import (
    load_streamed,
    load_to_score,
    placement,
    room_for_weights,
)
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.errors import ModelError
from rankwise.tasks.questions import GenerationSettings, Prompt
from tests.support.plain_answers import ITEMS
from tests.support.reads import Reads
from tests.support.saved_adapters import saved
from tests.support.tiny_models import OWN, tiny
from tests.support.tiny_tasks import tiny_tokenizer

CPU = torch.device("cpu")
MIXTURES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2}
}
FAMILIES = {**OWN, **MIXTURES}


def folder_of(path: Path, family: str = "Llama", **changes: Any) -> Path:
    tiny(family, **{**MIXTURES.get(family, {}), **changes}).save_pretrained(path)
    return path


def least_bytes(folder: Path) -> int:
    """With which every layer is read from the files, in float32."""
    skeleton: Any = model_skeleton(folder)
    layers: Any = next(part for part in skeleton.modules() if isinstance(part, nn.ModuleList))
    sizes = [sum(x.numel() for x in layer.parameters()) for layer in layers]
    whole = sum(x.numel() for x in skeleton.parameters())
    return 4 * (whole - sum(sizes) + max(sizes))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The following:RuntimeWarning")
def test_scores_are_those_of_the_whole_model_bit_for_bit(family: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "base", family)
    names: list[str | None] = [None]
    whole = ResidentScorer(load_frozen(folder, "float32", CPU), None, max_batch_tokens=90)
    model = load_streamed(folder, "float32", CPU, least_bytes(folder))
    ours = ResidentScorer(model, None, max_batch_tokens=90)
    if family not in MIXTURES:  # PEFT puts nothing on experts
        saved(tmp_path / "adapter", family)
        for scorer in (whole, ours):
            scorer.put_on("adapter", tmp_path / "adapter")
        names.append("adapter")
    expected = whole.log_likelihoods(names, ITEMS)
    assert ours.log_likelihoods(names, ITEMS) == expected
    assert len(names) == 1 or expected[0] != expected[1]
    held = sum(weight.nbytes for weight in model.parameters() if not weight.is_meta)
    assert 0 < held < sum(weight.nbytes for weight in model.parameters())


def test_texts_are_those_of_the_whole_model(tiny_model_folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    settings = GenerationSettings(max_new_tokens=6)
    prompts = [Prompt(tuple(tokenizer(text).input_ids), settings) for text in ("a b", "2 + 3 =")]
    both = (
        load_frozen(tiny_model_folder, "float32", CPU),
        load_streamed(tiny_model_folder, "float32", CPU, least_bytes(tiny_model_folder)),
    )
    whole, ours = (ResidentScorer(model, tokenizer).generate([None], prompts) for model in both)
    assert ours == whole


def test_a_pass_has_one_matrix_of_the_files_in_memory(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, num_hidden_layers=5)
    skeleton, layer = model_skeleton(folder), 4 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 48 + 2 * 32)
    most = least_bytes(folder) + 2 * layer
    where = placement(skeleton, torch.float32, CPU, most)
    assert (where.num_read, where.num_layers) == (3, 5)
    assert where.read_bytes == 3 * layer
    assert where.held_bytes == most - layer
    model = load_streamed(folder, "float32", CPU, most)
    held = sum(weight.nbytes for weight in model.parameters() if not weight.is_meta)
    assert held == where.held_bytes
    with Reads() as reads, torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]), use_cache=False)
    assert reads.all_bytes == where.read_bytes
    assert reads.most_bytes == 4 * 32 * 48


def test_of_a_gigabyte_what_is_free_decides() -> None:
    assert room_for_weights(10**9, 1_180_000_000) is None  # 85 % are 1.003e9
    assert room_for_weights(10**9, 1_170_000_000) == 585_000_000


def test_what_does_not_fit_is_read_layer_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, num_hidden_layers=5)
    most = least_bytes(folder)
    monkeypatch.setattr(Machine, "available_bytes", lambda _: 2 * most)
    found: Any = load_to_score(folder, "float32", CPU)
    assert found.model.layers[0].mlp.up_proj.weight.is_meta
    assert not found.lm_head.weight.is_meta
    monkeypatch.setattr(Machine, "available_bytes", lambda _: 20 * most)
    assert not any(weight.is_meta for weight in load_to_score(folder, "float32", CPU).parameters())
    monkeypatch.setattr(Machine, "available_bytes", lambda _: 2 * most - 2)
    with pytest.raises(ModelError, match=r"do not fit, and read layer by layer.*more memory"):
        load_to_score(folder, "float32", CPU)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, bad: float) -> None:
    folder, name = folder_of(tmp_path), "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name][1, 2] = bad
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"NaN or infinite weights in {name}"):
        load_streamed(folder, "float32", CPU, least_bytes(folder))


def test_what_transformers_converts_goes_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    folder = folder_of(tmp_path / "base", "Mixtral")
    model: Any = load_streamed(folder, "float32", CPU, least_bytes(folder))
    (converted,) = (tmp_path / "temporary").iterdir()
    assert any(converted.iterdir())
    del model
    gc.collect()
    assert not converted.exists()


def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    folder = folder_of(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its model's weights"):
        placed.load_in_files(folder, torch.float32, {"": placed.IN_FILES})
    assert not list((tmp_path / "temporary").iterdir())
