"""Scaled intruders: planted answers; and what PEFT reads of changed adapters."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.errors import ModelError
from rankwise.weights.decomposition import refined_svd
from rankwise.weights.lowrank import LowRankUpdate, read_updates, save_updates
from rankwise.weights.repairs import scaled_intruders, truncated
from rankwise.weights.spectra import Svd, best_matched, cosines, intruder_indices
from tests.support.saved_adapters import PATTERNS, rewritten, saved
from tests.support.tiny_models import tiny

OUT, IN = 40, 56


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(size: int, number: int, seed: int) -> Tensor:
    normal = torch.randn(size, number, dtype=torch.float64, generator=generator(seed))
    return torch.linalg.qr(normal).Q


def delta(update: LowRankUpdate) -> Tensor:
    return update.scaling * update.lora_B.double() @ update.lora_A.double()


def planted(values: list[float], seed: int = 3) -> LowRankUpdate:
    """An update with these singular values, under a separate scaling."""
    left, right = orthonormal(OUT, len(values), seed), orthonormal(IN, len(values), seed + 1)
    return LowRankUpdate(right.T, left * torch.tensor(values).double() / 0.25, 0.25)


def base_matrix(tail: float = 1.0) -> Tensor:
    left, right = orthonormal(OUT, OUT, 10), orthonormal(IN, OUT, 11)
    values = torch.cat([torch.linspace(20, 5, 12), torch.linspace(tail, 0.1, OUT - 12)]).double()
    return left * values @ right.T


# intruders


def with_intruder(strength: float = 30.0) -> tuple[Tensor, LowRankUpdate]:
    """A base, and an update with one direction that mixes many weak ones of the base, strongly."""
    W = base_matrix()
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    weights = torch.ones(20, dtype=torch.float64) / math.sqrt(20)
    left, right = U[:, 15:35] @ weights, Vh[15:35].T @ weights
    small = planted([0.02, 0.01])
    big = LowRankUpdate(right[None], strength * left[:, None])
    return W, big.plus(small)


def intruders(base: Tensor, adapted: Tensor, k: int = 10, epsilon: float = 0.5) -> int:
    """Counted by dense decompositions in float64."""
    before, after = (torch.linalg.svd(each, full_matrices=False).U for each in (base, adapted))
    return len(intruder_indices(best_matched(cosines(before, after[:, :k])), k, epsilon))


def of(base: Tensor) -> Any:
    found = refined_svd(base.float())
    return lambda name: found


def scaled(update: LowRankUpdate, base: Tensor, factor: float) -> LowRankUpdate:
    found = scaled_intruders({"layer": update}, of(base), factor)
    assert found is not None
    return found["layer"]


def test_a_planted_intruder_is_found_and_removed() -> None:
    W, update = with_intruder()
    assert intruders(W, W + delta(update)) == 1
    found = scaled(update, W, 0.0)
    after = W + delta(found)
    assert intruders(W, after) == 0
    U, S, Vh = torch.linalg.svd(W + delta(update), full_matrices=False)
    expected = W + delta(update) - S[0] * torch.outer(U[:, 0], Vh[0])
    assert float((after - expected).norm() / expected.norm()) < 1e-5
    assert found.rank == update.rank + 1


def test_a_factor_of_a_half_halves_the_intruder_alone() -> None:
    W, update = with_intruder()
    before = torch.linalg.svdvals(W + delta(update))
    after = torch.linalg.svdvals(W + delta(scaled(update, W, 0.5)))
    expected = torch.cat([before[1:], before[:1] / 2]).sort(descending=True).values
    assert torch.allclose(after, expected, rtol=1e-5, atol=1e-5)


def test_layers_without_intruders_are_left_alone() -> None:
    W, update = with_intruder()
    calm = planted([0.02, 0.01])
    found = scaled_intruders({"wild": update, "calm": calm}, of(W), 0.0)
    assert found is not None
    assert found["calm"] is calm
    assert list(found) == ["wild", "calm"]
    assert scaled_intruders({"calm": calm}, of(W), 0.0) is None


@pytest.mark.parametrize("turned", [False, True], ids=["tall", "wide"])
def test_directions_outside_the_span_of_the_base_are_taken_along(turned: bool) -> None:
    """Half of the left (or right) vectors of such a matrix are in no singular vector of it."""
    W = base_matrix()[:, :20].clone()
    outside = torch.linalg.qr(torch.cat([W, torch.eye(OUT).double()], dim=1)).Q[:, 25]
    update = LowRankUpdate(torch.ones(1, 20).double(), 40 * outside[:, None])
    if turned:
        W = W.T.contiguous()
        update = LowRankUpdate(update.lora_B.T, update.lora_A.T)
    wanted = intruders(W, W + delta(update))
    found = scaled_intruders({"layer": update}, of(W), 0.0)
    assert (found is not None) == (wanted > 0)
    if not turned:
        assert wanted == 1
        assert found is not None
        after = W + delta(found["layer"])
        U, S, Vh = torch.linalg.svd(W + delta(update), full_matrices=False)
        expected = W + delta(update) - S[0] * torch.outer(U[:, 0], Vh[0])
        assert float((after - expected).norm() / expected.norm()) < 1e-5


def test_a_zero_update_has_no_intruders() -> None:
    zero = LowRankUpdate(torch.zeros(4, IN), torch.zeros(OUT, 4))
    assert scaled_intruders({"zero": zero}, of(base_matrix()), 0.0) is None


def test_another_base_is_refused() -> None:
    other: Svd = refined_svd(torch.randn(8, 9, generator=generator()))
    with pytest.raises(ValueError, match="shape"):
        scaled_intruders({"layer": planted([1.0])}, lambda name: other, 0.0)


# on disk

FAMILIES = ["Llama", "GPT2"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora and patterns": {**PATTERNS, "use_rslora": True},
    "conv1d": {"fan_in_fan_out": True},
}


def peft_deltas(folder: Path, family: str) -> dict[str, Tensor]:
    """What PEFT makes of the folder, (out, in)."""
    model: Any = peft.PeftModel.from_pretrained(tiny(family), str(folder))
    found: dict[str, Tensor] = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            own = module.get_delta_weight("default").double()
            found[name] = own.T if module.fan_in_fan_out else own
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The following:RuntimeWarning")
@torch.no_grad()
def test_peft_loads_what_was_written_and_has_the_same_delta(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    saved(tmp_path / "whole", family, **options)
    updates = read_updates(tmp_path / "whole")
    for rank in (1, 3):
        found = truncated(updates, rank)
        save_updates(found, tmp_path / str(rank), source=tmp_path / "whole")
        theirs = peft_deltas(tmp_path / str(rank), family)
        assert theirs.keys() == updates.keys()
        for name, own in found.items():
            assert torch.allclose(theirs[name], delta(own), atol=1e-5)
            assert torch.linalg.matrix_rank(theirs[name], rtol=1e-5) <= rank
        again = read_updates(tmp_path / str(rank))
        assert {n: u.rank for n, u in again.items()} == {
            n: min(rank, u.rank) for n, u in updates.items()
        }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::UserWarning")
@torch.no_grad()
def test_ranks_of_their_own_in_every_layer_are_found_by_peft(family: str, tmp_path: Path) -> None:
    saved(tmp_path / "whole", family)
    updates = read_updates(tmp_path / "whole")
    varied = {
        name: update.truncated(1 + number % 4).update
        for number, (name, update) in enumerate(updates.items())
    }
    save_updates(varied, tmp_path / "varied", source=tmp_path / "whole")
    config = json.loads((tmp_path / "varied" / CONFIG_FILE).read_text())
    assert len({config["r"], *config["rank_pattern"].values()}) == 4
    theirs = peft_deltas(tmp_path / "varied", family)
    for name, own in varied.items():
        assert torch.allclose(theirs[name], delta(own), atol=1e-5)


def test_the_config_keeps_what_it_said_of_the_base(tmp_path: Path) -> None:
    saved(tmp_path / "whole", use_rslora=True, lora_dropout=0.25)
    updates = read_updates(tmp_path / "whole")
    save_updates(truncated(updates, 2), tmp_path / "cut", source=tmp_path / "whole")
    before, after = (
        json.loads((tmp_path / name / CONFIG_FILE).read_text()) for name in ("whole", "cut")
    )
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"),
        "eva_config",
    }
    assert (after["r"], after["lora_alpha"], after["use_rslora"]) == (2, 2, False)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    rewritten(tmp_path, lambda tensors: tensors[key].fill_(math.nan))
    with pytest.raises(ModelError, match=r"q_proj: .*NaN or infinite"):
        read_updates(tmp_path)


def test_what_is_written_is_the_rounded_update(tmp_path: Path) -> None:
    saved(tmp_path / "whole")
    found = truncated(read_updates(tmp_path / "whole"), 2)
    save_updates(found, tmp_path / "cut", source=tmp_path / "whole")
    for name, update in read_updates(tmp_path / "cut").items():
        assert torch.equal(update.lora_A, found[name].as_written.lora_A)
        assert torch.equal(update.lora_B, found[name].as_written.lora_B)
        assert update.scaling == 1.0
