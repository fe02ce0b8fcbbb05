"""Updates cut to a share of their energy: planted ranks, and what PEFT makes of the folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.errors import ModelError
from rankwise.weights.lowrank import LowRankUpdate, read_updates, save_updates
from rankwise.weights.repairs import RepairSources, Updates, cut_to_energy
from tests.support.saved_adapters import PATTERNS, rewritten, saved
from tests.support.tiny_models import tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore:The following:RuntimeWarning"
)

PLANTED: dict[str, list[float]] = {
    "model.layers.0.self_attn.q_proj": [10.0, 1.0, 1.0, 1.0],  # squares: 100 of 103
    "model.layers.1.self_attn.q_proj": [1.0, 1.0, 1.0, 1.0],
    "model.layers.0.mlp.down_proj": [3.0, 2.0, 1.0, 0.1],  # 9, 13, 14 of 14.01
    "model.layers.1.mlp.down_proj": [0.0, 0.0, 0.0, 0.0],
}
"""Singular values of four updates of the tiny Llama; the squares come to 121.01."""


def orthonormal(size: int, number: int, seed: int) -> Tensor:
    normal = torch.randn(size, number, generator=torch.Generator().manual_seed(seed)).double()
    return torch.linalg.qr(normal).Q


def planted(folder: Path, **options: Any) -> Path:
    """An adapter of rank 4 whose updates have these singular values, mixed over its columns."""
    saved(folder, target_modules=["q_proj", "down_proj"], **options)
    scalings = {
        name: update.scaling for name, update in read_updates(AdapterFolder(folder)).items()
    }

    def plant(tensors: dict[str, Tensor]) -> None:
        for seed, (name, values) in enumerate(PLANTED.items()):
            A, B = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
            mixed = orthonormal(4, 4, seed + 20)
            left = orthonormal(len(B), 4, seed) * torch.tensor(values).double()
            B.copy_(left / scalings[name] @ mixed)
            A.copy_(mixed.T @ orthonormal(A.shape[1], 4, seed + 10).T)

    rewritten(folder, plant)
    return folder


def ranks_of(updates: Updates) -> list[int]:
    return [updates[name].rank for name in PLANTED]


@pytest.mark.parametrize(
    ("share", "is_global", "ranks"),
    [
        (0.5, False, [1, 2, 1, 1]),
        (0.9, False, [1, 4, 2, 1]),
        (0.99, False, [3, 4, 3, 1]),
        (1.0, False, [4, 4, 4, 4]),
        (0.5, True, [1, 1, 1, 1]),
        (0.9, True, [1, 1, 1, 1]),  # 10 and 3: 109 of 121.01
        (0.93, True, [1, 1, 2, 1]),  # and 2: 113
        (0.9999, True, [4, 4, 3, 1]),
        (1.0, True, [4, 4, 4, 4]),
    ],
)
def test_planted_singular_values_give_known_ranks(
    tmp_path: Path, share: float, is_global: bool, ranks: list[int]
) -> None:
    updates = read_updates(AdapterFolder(planted(tmp_path)))
    assert ranks_of(cut_to_energy(updates, share, is_global=is_global)) == ranks


def test_what_is_below_the_threshold_of_all_layers_is_a_zero_update(tmp_path: Path) -> None:
    """Of rank 1, since PEFT takes no layer without a rank."""
    updates = read_updates(AdapterFolder(planted(tmp_path / "whole")))
    found = cut_to_energy(updates, 0.9, is_global=True)
    norms = {name: update.frobenius_norm for name, update in found.items()}
    assert [norms[name] for name in PLANTED] == pytest.approx([10.0, 0.0, 3.0, 0.0], rel=1e-6)
    save_updates(found, tmp_path / "cut", source=AdapterFolder(tmp_path / "whole"))
    deltas = peft_deltas(tmp_path / "cut", tiny("Llama"))
    assert [bool(deltas[name].any()) for name in PLANTED] == [True, False, True, False]


def test_all_of_the_energy_leaves_every_update_as_it_is(tmp_path: Path) -> None:
    updates = read_updates(AdapterFolder(planted(tmp_path)))
    for is_global in (False, True):
        assert cut_to_energy(updates, 1.0, is_global=is_global) == updates


def peft_deltas(folder: Path, base: nn.Module) -> dict[str, Tensor]:
    """What PEFT makes of the folder, (out, in), by the layer's name."""
    model: Any = peft.PeftModel.from_pretrained(base, str(folder))
    return {
        name: _transposed(module, module.get_delta_weight("default").double())
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def _transposed(module: Any, delta: Tensor) -> Tensor:
    return delta.T if module.fan_in_fan_out else delta


def in_bfloat16(tensors: dict[str, Tensor]) -> None:
    tensors |= {name: tensor.bfloat16() for name, tensor in tensors.items()}


OPTIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Llama", {}),
    "rslora": ("Llama", {"use_rslora": True}),
    "patterns": ("Llama", PATTERNS),
    "rslora and patterns": ("Llama", {**PATTERNS, "use_rslora": True}),
    "conv1d": ("GPT2", {"fan_in_fan_out": True}),
}


@pytest.mark.parametrize("is_bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("is_global", [False, True], ids=["each", "all"])
@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_peft_loads_the_truncated_decomposition_of_its_own_delta(
    tmp_path: Path, options: str, is_global: bool, is_bfloat16: bool
) -> None:
    """Its rank is the smallest that holds the share, by the singular values of PEFT's delta."""
    family, settings = OPTIONS[options]
    saved(tmp_path / "whole", family, **settings)
    if is_bfloat16:
        rewritten(tmp_path / "whole", in_bfloat16)
    found = cut_to_energy(read_updates(AdapterFolder(tmp_path / "whole")), 0.8, is_global=is_global)
    save_updates(found, tmp_path / "cut", source=AdapterFolder(tmp_path / "whole"))
    whole, cut = (peft_deltas(tmp_path / name, tiny(family)) for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() == found.keys()
    config = json.loads((tmp_path / "cut" / CONFIG_FILE).read_text())
    assert {config["r"], *config["rank_pattern"].values()} == {each.rank for each in found.values()}
    kept: list[tuple[Tensor, int]] = []
    for name, update in found.items():
        U, S, Vh = torch.linalg.svd(whole[name], full_matrices=False)
        rank = 0 if update.frobenius_norm == 0.0 else update.rank
        dense = U[:, :rank] * S[:rank] @ Vh[:rank]
        assert float((cut[name] - dense).norm()) <= 1e-5 * float(S.norm())
        kept.append((torch.linalg.svdvals(whole[name]).square(), rank))
    if is_global:
        kept = [
            (torch.cat([S for S, _ in kept]).sort(descending=True).values, sum(r for _, r in kept))
        ]
    for energy, rank in kept:
        share, less = (float(energy[:number].sum() / energy.sum()) for number in (rank, rank - 1))
        assert less < 0.8 <= share
    if "patterns" in options:
        assert config["rank_pattern"]


@torch.no_grad()
def test_merged_by_peft_the_base_has_what_was_cut(tmp_path: Path) -> None:
    planted(tmp_path / "whole", use_rslora=True)
    found = cut_to_energy(read_updates(AdapterFolder(tmp_path / "whole")), 0.9)
    save_updates(found, tmp_path / "cut", source=AdapterFolder(tmp_path / "whole"))
    adapted: Any = peft.PeftModel.from_pretrained(tiny("Llama"), str(tmp_path / "cut"))
    merged, base = adapted.merge_and_unload(), tiny("Llama")
    for name, values in PLANTED.items():
        change = merged.get_submodule(name).weight - base.get_submodule(name).weight
        S = torch.linalg.svdvals(change.double())[:4]
        expected = [*values[: found[name].rank], *[0.0] * (4 - found[name].rank)]
        assert S.tolist() == pytest.approx(expected, abs=1e-5)


def test_an_adapter_without_an_update_has_no_energy(tmp_path: Path) -> None:
    saved(tmp_path, zero=True)
    with pytest.raises(ModelError, match="zero: there is nothing to repair"):
        RepairSources(read_updates(AdapterFolder(tmp_path)), (), 2, ())


def test_a_wide_adapter_keeps_no_more_than_the_matrix_has() -> None:
    update = LowRankUpdate(torch.randn(9, 5), torch.randn(6, 9))
    for share in (0.999999, 1.0):
        (found,) = cut_to_energy({"layer": update}, share).values()
        delta, own = (u.scaling * u.lora_B.double() @ u.lora_A.double() for u in (update, found))
        assert float((delta - own).norm()) <= 2e-3 * float(delta.norm())
        assert found.rank == {0.999999: 5, 1.0: 9}[share]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "VERA"}, "VERA"),
        ({"peft_type": "ADALORA"}, "ADALORA"),
    ],
)
def test_other_variants_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=named):
        read_updates(AdapterFolder(tmp_path))
