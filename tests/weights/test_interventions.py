"""Truncation and scaled intruders: planted answers, exact errors, and what PEFT reads of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.errors import ModelError
from rankwise.weights.decomposition import refined_svd
from rankwise.weights.interventions import Intervened, scaled_intruders, truncated_updates
from rankwise.weights.lowrank import LowRankUpdate, read_updates, save_updates
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


# truncation


def test_the_error_of_a_truncation_is_the_tail_computed_by_hand() -> None:
    updates = {"one": planted([4.0, 2.0, 1.0, 0.5]), "two": planted([3.0, 0.25], seed=7)}
    found = truncated_updates(updates, 2)
    one = math.sqrt((1.0 + 0.25) / (16 + 4 + 1 + 0.25))
    total = math.sqrt((1.0 + 0.25) / (16 + 4 + 1 + 0.25 + 9 + 0.0625))
    assert found.relative_errors["one"] == pytest.approx(one, rel=1e-6)
    assert found.relative_errors["two"] < 1e-7
    assert found.relative_error == pytest.approx(total, rel=1e-6)
    assert [update.rank for update in found.updates.values()] == [2, 2]
    U, S, Vh = np.linalg.svd(delta(updates["one"]).numpy())
    assert np.allclose(delta(found.updates["one"]), U[:, :2] * S[:2] @ Vh[:2], atol=1e-6)


def test_the_error_is_that_of_what_is_written_rounding_included() -> None:
    updates = {"one": planted([4.0, 2.0, 1.0])}
    found = truncated_updates(updates, 64)
    written, wanted = delta(found.updates["one"]), delta(updates["one"])
    measured = float((written - wanted).norm() / wanted.norm())
    assert 0 < found.relative_error < 1e-6
    assert found.relative_error == pytest.approx(measured, rel=1e-3)
    assert found.updates["one"].lora_A.dtype == found.updates["one"].lora_B.dtype == torch.float32


def test_a_rank_above_the_matrix_s_is_the_matrix_s() -> None:
    wide = LowRankUpdate(
        torch.randn(9, 30, generator=generator()), torch.randn(5, 9, generator=generator(1))
    )
    found = truncated_updates({"small": wide}, 7)
    assert found.updates["small"].rank == 5
    assert found.relative_error < 1e-6


def test_a_zero_update_stays_zero_and_has_no_error() -> None:
    zero = LowRankUpdate(torch.randn(4, IN, generator=generator()), torch.zeros(OUT, 4))
    found = truncated_updates({"zero": zero}, 2)
    assert found.relative_error == found.relative_errors["zero"] == 0.0
    assert not delta(found.updates["zero"]).any()


def test_half_precision_factors_are_cut_as_their_exact_values() -> None:
    half = LowRankUpdate(
        torch.randn(8, IN, generator=generator()).bfloat16(),
        torch.randn(OUT, 8, generator=generator(1)).bfloat16(),
        0.5,
    )
    exact = LowRankUpdate(half.lora_A.double(), half.lora_B.double(), 0.5)
    found, expected = (truncated_updates({"x": each}, 3) for each in (half, exact))
    assert found.relative_error == expected.relative_error
    assert torch.equal(delta(found.updates["x"]), delta(expected.updates["x"]))


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_factor_that_is_not_finite_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="is no factor"):
        scaled_intruders({"layer": planted([0.01])}, of(base_matrix()), factor)


@pytest.mark.parametrize("epsilon", [math.nan, -0.1, 1.5])
def test_an_epsilon_that_is_no_cosine_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="is no epsilon"):
        scaled_intruders({"layer": planted([0.01])}, of(base_matrix()), 0.0, epsilon=epsilon)


def test_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="0 is not a rank"):
        truncated_updates({"one": planted([1.0])}, 0)


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


def test_a_planted_intruder_is_found_and_removed() -> None:
    W, update = with_intruder()
    assert intruders(W, W + delta(update)) == 1
    found = scaled_intruders({"layer": update}, of(W), 0.0)
    assert found.num_intruders == {"layer": 1}
    assert found.num_left == {"layer": 0}
    after = W + delta(found.intervened.updates["layer"])
    assert intruders(W, after) == 0
    U, S, Vh = torch.linalg.svd(W + delta(update), full_matrices=False)
    expected = W + delta(update) - S[0] * torch.outer(U[:, 0], Vh[0])
    assert float((after - expected).norm() / expected.norm()) < 1e-5
    assert found.intervened.updates["layer"].rank == update.rank + 1
    assert found.intervened.relative_error < 1e-6


def test_a_factor_of_one_leaves_everything() -> None:
    W, update = with_intruder()
    found = scaled_intruders({"layer": update}, of(W), 1.0)
    assert found.num_intruders == found.num_left == {"layer": 1}
    own = found.intervened.updates["layer"]
    assert own.rank == update.rank
    assert torch.allclose(delta(own), delta(update), atol=1e-5)


def test_a_factor_of_a_half_halves_the_intruder_alone() -> None:
    W, update = with_intruder()
    before = torch.linalg.svdvals(W + delta(update))
    found = scaled_intruders({"layer": update}, of(W), 0.5)
    after = torch.linalg.svdvals(W + delta(found.intervened.updates["layer"]))
    expected = torch.cat([before[1:], before[:1] / 2]).sort(descending=True).values
    assert torch.allclose(after, expected, rtol=1e-5, atol=1e-5)


def test_layers_without_intruders_are_left_alone() -> None:
    W, update = with_intruder()
    calm = planted([0.02, 0.01])
    found = scaled_intruders({"wild": update, "calm": calm}, of(W), 0.0)
    assert found.num_intruders == {"wild": 1, "calm": 0}
    assert found.intervened.updates["calm"].rank == calm.rank
    assert torch.allclose(delta(found.intervened.updates["calm"]), delta(calm), atol=1e-8)


def test_cut_back_to_the_rank_the_error_is_said() -> None:
    W, update = with_intruder()
    exact = scaled_intruders({"layer": update}, of(W), 0.5).intervened
    cut = scaled_intruders({"layer": update}, of(W), 0.5, rank=update.rank - 1).intervened
    own, wanted = cut.updates["layer"], delta(exact.updates["layer"])
    assert own.rank == update.rank - 1
    measured = float((delta(own) - wanted).norm() / wanted.norm())
    assert cut.relative_error == pytest.approx(measured, rel=1e-3)
    assert cut.relative_error > 1e-5


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
    assert found.num_intruders["layer"] == wanted
    if not turned:
        assert wanted == 1
        after = W + delta(found.intervened.updates["layer"])
        U, S, Vh = torch.linalg.svd(W + delta(update), full_matrices=False)
        expected = W + delta(update) - S[0] * torch.outer(U[:, 0], Vh[0])
        assert float((after - expected).norm() / expected.norm()) < 1e-5


def test_a_zero_update_has_no_intruders() -> None:
    zero = LowRankUpdate(torch.zeros(4, IN), torch.zeros(OUT, 4))
    found = scaled_intruders({"zero": zero}, of(base_matrix()), 0.0)
    assert found.num_intruders == {"zero": 0}
    assert found.intervened.relative_error == 0.0


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
        found = truncated_updates(updates, rank)
        save_updates(found.updates, tmp_path / str(rank), source=tmp_path / "whole")
        theirs = peft_deltas(tmp_path / str(rank), family)
        assert theirs.keys() == updates.keys()
        for name, own in found.updates.items():
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
    save_updates(truncated_updates(updates, 2).updates, tmp_path / "cut", source=tmp_path / "whole")
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


def test_intervened_is_what_peft_reads(tmp_path: Path) -> None:
    saved(tmp_path / "whole")
    found: Intervened = truncated_updates(read_updates(tmp_path / "whole"), 2)
    save_updates(found.updates, tmp_path / "cut", source=tmp_path / "whole")
    for name, update in read_updates(tmp_path / "cut").items():
        assert torch.equal(update.lora_A, found.updates[name].lora_A)
        assert torch.equal(update.lora_B, found.updates[name].lora_B)
        assert update.scaling == 1.0
