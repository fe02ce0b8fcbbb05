"""Repairs as matrices: each against dense matrices that are computed another way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.frozen_adapters import load_frozen_adapter
from rankwise.errors import ModelError
from rankwise.heads.layouts import head_layouts
from rankwise.records.repairs import AS_IT_IS, COMBINATIONS, METHODS, REPAIR_FAMILIES, Repair
from rankwise.weights import repairs
from rankwise.weights.lowrank import LowRankUpdate, read_updates, save_updates
from rankwise.weights.repairs import (
    DENSITY,
    FAMILIES,
    RepairSources,
    as_frozen,
    averaged,
    derived_updates,
    lines,
    lines_factor,
    reverted_heads,
    scaled,
)
from tests.support.audited_models import adapter
from tests.support.head_adapters import PROJECTIONS
from tests.support.saved_adapters import saved
from tests.support.tiny_models import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

OUT, IN, RANK = 12, 16, 5
NAMES = ("model.layers.0.q_proj", "model.layers.1.q_proj", "model.layers.4.mlp.up_proj")


def updates(
    seed: int, rank: int = RANK, names: tuple[str, ...] = NAMES
) -> dict[str, LowRankUpdate]:
    made: dict[str, LowRankUpdate] = {}
    for number, name in enumerate(names):
        generator = torch.Generator().manual_seed(100 * seed + number)
        A = torch.randn(rank, IN, generator=generator)
        B = torch.randn(OUT, rank, generator=generator)
        made[name] = LowRankUpdate(A, B, 0.5)
    return made


def delta(update: LowRankUpdate) -> Tensor:
    return update.scaling * update.lora_B.double() @ update.lora_A.double()


def sources(*adapters: dict[str, LowRankUpdate], num_layers: int = 5) -> RepairSources:
    return RepairSources(adapters[0], adapters[1:], num_layers, ())


# scale


def test_a_scaled_update_is_that_part_of_delta_and_its_ends_are_exact() -> None:
    own = updates(1)
    none, half, whole = (scaled(own, factor) for factor in (0.0, 0.5, 1.0))
    for name, update in own.items():
        assert not delta(none[name]).any()
        assert torch.equal(delta(whole[name]), delta(update))
        assert torch.equal(delta(half[name]), 0.5 * delta(update))


# LiNeS


def test_the_factors_of_lines_are_those_computed_by_hand() -> None:
    by_hand = [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [lines_factor(layer, 5, 0.2) for layer in range(5)] == pytest.approx(by_hand)
    assert [lines_factor(layer, 3, 0.0) for layer in range(3)] == [0.0, 0.5, 1.0]
    assert [lines_factor(layer, 4, 1.0) for layer in range(4)] == [1.0] * 4
    assert lines_factor(None, 5, 0.2) == lines_factor(0, 1, 0.2) == 1.0


def test_lines_takes_the_depth_from_the_layer_s_name_in_the_whole_model() -> None:
    """Layers 2 and 3 of five are not adapted, and count all the same."""
    own = {**updates(1), **updates(2, names=("score",))}
    found = lines(own, 5, 0.25)
    factors = dict(zip((*NAMES, "score"), (0.25, 0.4375, 1.0, 1.0), strict=True))
    for name, factor in factors.items():
        assert torch.allclose(delta(found[name]), factor * delta(own[name]))


# averages


def test_a_linear_average_is_the_mean_of_the_dense_deltas() -> None:
    many = [updates(1), updates(2, rank=2), updates(3)]
    for name, update in averaged(many, "linear").items():
        mean = torch.stack([delta(each[name]) for each in many]).mean(0)
        assert torch.allclose(delta(update), mean, atol=1e-12)
        assert update.rank == 12


def sparse(values: np.ndarray) -> np.ndarray:
    """The larger half of the entries by size, the others zero."""
    kept = np.sort(np.abs(values).ravel())[::-1][: int(DENSITY * values.size)].min()
    return np.where(np.abs(values) >= kept, values, 0.0)


def cut(dense: np.ndarray, rank: int) -> np.ndarray:
    U, S, Vh = np.linalg.svd(dense)
    return U[:, :rank] * S[:rank] @ Vh[:rank]


def test_ties_trims_elects_signs_and_takes_the_mean_of_those_that_agree() -> None:
    one, two = updates(1), updates(2)
    found = averaged((one, two), "ties")
    for name in NAMES:
        pair = np.stack([sparse(delta(each[name]).float().numpy()) for each in (one, two)])
        sign = np.where(pair.sum(0) >= 0, 1.0, -1.0)
        agrees = np.sign(pair) == sign
        dense = (pair * agrees).sum(0) / np.maximum(agrees.sum(0), 1)
        assert np.allclose(delta(found[name]), cut(dense, 2 * RANK), atol=1e-4)


def test_pruned_averages_are_the_mean_of_what_is_left() -> None:
    one, two = updates(1), updates(2)
    found = averaged((one, two), "magnitude_prune")
    for name in NAMES:
        mean = sum(sparse(delta(each[name]).float().numpy()) for each in (one, two)) / 2
        assert np.allclose(delta(found[name]), cut(mean, 2 * RANK), atol=1e-4)


def test_dare_keeps_a_drawn_half_at_twice_its_size_the_same_at_every_call() -> None:
    """With rank sums above the matrix's, nothing is cut: entries are 0, or sums of doubled ones."""
    one, two = updates(1, rank=8), updates(2, rank=8)
    state = torch.random.get_rng_state()
    first, again = (averaged((one, two), "dare_linear") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in NAMES:
        a, b = (delta(each[name]) / DENSITY / 2 for each in (one, two))
        found = delta(first[name])
        options = torch.stack([torch.zeros_like(a), a, b, a + b])
        distance = (options - found).abs().min(0).values
        assert float(distance.max()) < 1e-4
        nearest = (options - found).abs().argmin(0)
        shares = torch.bincount(nearest.ravel(), minlength=4) / nearest.numel()
        assert torch.allclose(shares, torch.full((4,), 0.25), atol=0.12)
        assert torch.equal(found, delta(again[name]))
    masks = [delta(first[name]).abs() > 1e-4 for name in NAMES[:2]]
    assert not torch.equal(*masks)


def test_averages_are_those_of_peft(tmp_path: Path) -> None:
    """PEFT's own ``add_weighted_adapter`` on the dense deltas, with the same rank and density."""
    saved(tmp_path / "one", target_modules=["q_proj", "down_proj"])
    saved(tmp_path / "two", target_modules=["q_proj", "down_proj"], r=3)
    peer: Any = peft.PeftModel.from_pretrained(tiny("Llama"), str(tmp_path / "one"), "one")
    peer.load_adapter(str(tmp_path / "two"), "two")
    both = [read_updates(AdapterFolder(tmp_path / name)) for name in ("one", "two")]
    for ours, theirs, weight in (
        ("linear", "svd", 0.5),
        ("ties", "ties_svd", 1.0),
        ("magnitude_prune", "magnitude_prune_svd", 0.5),
    ):
        peer.add_weighted_adapter(
            ["one", "two"], [weight] * 2, theirs, theirs, svd_rank=7, density=DENSITY
        )
        for name, update in averaged(both, ours).items():  # type: ignore[arg-type]
            dense = peer.base_model.model.get_submodule(name).get_delta_weight(theirs)
            assert torch.allclose(delta(update), dense.detach().double(), atol=1e-5), (ours, name)


def test_adapters_of_other_layers_have_no_average() -> None:
    with pytest.raises(ModelError, match="adapt different layers"):
        sources(updates(1), updates(2, names=NAMES[:2]))


# heads


def heads_of(family: str, folder: Path, modules: list[str]) -> RepairSources:
    saved(folder, family, target_modules=modules)
    return RepairSources(read_updates(AdapterFolder(folder)), (), 2, head_layouts(tiny(family)))


@pytest.mark.parametrize("family", ["Llama", "GPTNeoX"])
def test_reverted_heads_have_no_delta_on_their_rows_and_columns_and_all_else_stays(
    family: str, tmp_path: Path
) -> None:
    """Under Llama the rows of k and v belong to two heads, and stay."""
    of = heads_of(family, tmp_path, PROJECTIONS[family])
    found = derived_updates(of, ("heads",))
    assert [each.value for each in found] == [1.0, 1.0, 4.0]  # eight heads; the first is as it is
    expected = {name: delta(update) for name, update in of.adapter.items()}
    four = Repair(family="heads", value=4.0)
    for layer, head in reverted_heads(of, four):
        layout = of.layouts[layer]
        own = [layout.query(head)]
        if family == "GPTNeoX":
            own += [layout.key(head), layout.value(head)]
        for part in own:
            expected[part.module][part.span] = 0.0
        expected[layout.output][:, layout.columns(head).span] = 0.0
    for name, update in found[four].items():
        assert torch.equal(delta(update), expected[name]), name
        assert update.rank == of.adapter[name].rank


def test_an_adapter_without_heads_has_none_to_revert(tmp_path: Path) -> None:
    of = heads_of("Llama", tmp_path, ["down_proj"])
    assert list(derived_updates(of, ("heads",))) == [AS_IT_IS]
    assert of.warnings_of(("heads",)) == ()


def test_heads_that_are_not_known_are_said_to_be(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: Any) -> Any:
        raise ModelError("Fish lays its heads out in a way that is not known here.")

    adapter(tiny_model_folder, tmp_path / "a")
    monkeypatch.setattr(repairs, "head_layouts", unknown)
    of = RepairSources.of(tiny_model_folder, read_updates(AdapterFolder(tmp_path / "a")))
    assert list(derived_updates(of, ("heads",))) == [AS_IT_IS]
    assert of.warnings_of(("scale",)) == ()
    (warning,) = of.warnings_of(REPAIR_FAMILIES)
    assert warning.startswith("no heads are reverted: Fish lays")
    with pytest.raises(ModelError, match="Fish lays"):
        derived_updates(of, (Repair(family="heads", value=1),))


# the table


def test_every_family_has_a_row_and_the_grid_is_the_documented_one() -> None:
    assert tuple(FAMILIES) == tuple(METHODS) == REPAIR_FAMILIES
    found = derived_updates(sources(updates(1, rank=8), updates(2)), ("scale", "lines", "energy"))
    by_family: dict[str, list[float | None]] = {}
    for repair in found:
        by_family.setdefault(f"{repair.family} {repair.how or ''}".strip(), []).append(repair.value)
    assert next(iter(found)) == AS_IT_IS
    assert sorted(by_family["scale"]) == [n / 10 for n in range(1, 11)]  # type: ignore[type-var]
    assert by_family["lines"] == [0.0, 0.25, 0.5, 0.75]
    assert by_family["energy"] == by_family["energy global"] == [0.5, 0.75, 0.9, 0.99]
    assert len({repair.label for repair in found}) == len(found)
    assert AS_IT_IS in derived_updates(sources(updates(1)), ("lines",))


@pytest.mark.parametrize(
    ("kind", "value", "repair"),
    [
        ("scale", "0.5", Repair(family="scale", value=0.5)),
        ("lines", ".25", Repair(family="lines", value=0.25)),
        ("energy", "0.9", Repair(family="energy", value=0.9)),
        ("energy-global", "1", Repair(family="energy", value=1.0, how="global")),
        ("average", "dare_ties", Repair(family="average", how="dare_ties")),
    ],
)
def test_a_single_repair_is_tried_at_its_value(kind: str, value: str, repair: Repair) -> None:
    asked = Repair.asked(kind, value)
    assert asked == repair
    found = derived_updates(sources(updates(1), updates(2)), (repair,))
    assert list(found) == [AS_IT_IS, repair]


def test_a_single_repair_without_anything_to_change_is_refused() -> None:
    with pytest.raises(ModelError, match=r"average \(ties\).*Name one more"):
        derived_updates(sources(updates(1)), (Repair(family="average", how="ties"),))
    with pytest.raises(ModelError, match="2 heads cannot be reverted: the adapter changes 0 heads"):
        derived_updates(sources(updates(1)), (Repair(family="heads", value=2),))


def test_averages_are_tried_where_there_are_several_adapters() -> None:
    alone = derived_updates(sources(updates(1)), ("average",))
    assert list(alone) == [AS_IT_IS]
    together = derived_updates(sources(updates(1), updates(2)), ("average",))
    assert [repair.how for repair in together] == [None, *COMBINATIONS]


def test_a_zero_adapter_has_nothing_to_repair() -> None:
    with pytest.raises(ModelError, match="nothing to repair"):
        sources(scaled(updates(1), 0.0))  # type: ignore[arg-type]


def test_every_row_s_repairs_are_scored_as_they_are_read_back(tmp_path: Path) -> None:
    """The contract of a row: updates of the same layers, whose saved folder is what is scored."""
    saved(tmp_path / "a", target_modules=["q_proj", "down_proj"], lora_alpha=7)
    own, base = read_updates(AdapterFolder(tmp_path / "a")), tiny("Llama").to(torch.bfloat16)
    of = RepairSources(
        own,
        (scaled(own, -0.5),),
        2,
        head_layouts(base),
    )
    made = derived_updates(of, REPAIR_FAMILIES)
    assert {repair.family for repair in made} == {*REPAIR_FAMILIES}
    for number, (repair, derived) in enumerate(made.items()):
        assert derived.keys() == own.keys(), repair
        folder = tmp_path / str(number)
        save_updates(derived, folder, source=AdapterFolder(tmp_path / "a"))
        held, read = (
            as_frozen(derived, base),
            load_frozen_adapter(base, AdapterFolder(folder), torch.bfloat16),
        )
        assert held.is_zero_update == read.is_zero_update, repair
        for name, factors in read.layers.items():
            assert torch.equal(held.layers[name].lora_A, factors.lora_A), repair
            assert torch.equal(held.layers[name].lora_B, factors.lora_B), repair
            assert math.isclose(factors.scaling, held.layers[name].scaling)
