"""What changed in heads: against eager attention, planted changes, and shares of a built delta."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.frozen_adapters import FrozenPiece, carrying, load_frozen_adapter
from rankwise.heads.changes import (
    HeadActivity,
    HeadChangeTally,
    head_activity,
    heads_by_delta,
    norms_of_factors,
    norms_of_matrices,
    relative_change,
    share_maps,
)
from rankwise.heads.interventions import Head
from rankwise.heads.layouts import head_layouts
from tests.support.saved_adapters import saved
from tests.support.tiny_models import OWN, tiny

PROMPTS = [(5, 9, 11, 40, 3, 7, 8), (3, 4, 5, 6), (60, 13, 22, 31, 9), (8, 8, 8, 8, 30, 2)]


@pytest.mark.parametrize("family", OWN)
def test_activity_is_that_of_eager_attention(family: str) -> None:
    model = tiny(family)
    found = head_activity(model, PROMPTS[0])
    with torch.no_grad():
        expected = model(torch.tensor([PROMPTS[0]]), output_attentions=True).attentions
        logits = model(torch.tensor([PROMPTS[0]])).logits
    for own, weights in zip(found, expected, strict=True):
        assert torch.allclose(own.weights, weights[0], atol=1e-5)
        assert own.outputs.shape[:2] == own.weights.shape[:2]
    with torch.no_grad():
        assert torch.equal(model(torch.tensor([PROMPTS[0]])).logits, logits)


def activity(weights: list[list[list[float]]], outputs: list[list[list[float]]]) -> HeadActivity:
    return HeadActivity(torch.tensor(weights), torch.tensor(outputs))


def test_a_planted_change_is_measured_in_its_head_alone() -> None:
    first = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    moved = [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    before = activity([first, first], [[[1.0], [2.0], [2.0]], [[1.0], [1.0], [1.0]]])
    after = activity([moved, first], [[[1.0], [2.0], [5.0]], [[1.0], [1.0], [1.0]]])
    tally = HeadChangeTally()
    for _ in range(2):
        tally.add([before], [after])
    by_measure = {each.measure: each.values[0] for each in tally.changes()}
    half = math.log(2) / 2
    assert by_measure["entropy"] == pytest.approx([-half, 0.0])
    # halves of (0.5, 0.5) against (1, 0), and of (0, 0, 1) against (1, 0, 0)
    js = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) - half
    assert by_measure["divergence"] == pytest.approx([(js + math.log(2)) / 2, 0.0])
    assert by_measure["first_token_mass"] == pytest.approx([1.0 - 0.25, 0.0])
    assert by_measure["output"] == pytest.approx([3.0 / 3.0, 0.0])
    entropy, mass = tally.base_maps()
    assert entropy[0] == pytest.approx([half, half])
    assert mass[0] == pytest.approx([0.25, 0.25])


def test_prompts_go_into_two_halves_in_turn() -> None:
    model, other = tiny("Llama"), tiny("Llama", initializer_range=0.31)
    whole, first, second = HeadChangeTally(), HeadChangeTally(), HeadChangeTally()
    for number, prompt in enumerate(PROMPTS):
        pair = head_activity(model, prompt), head_activity(other, prompt)
        whole.add(*pair)
        for _ in range(2):
            (second if number % 2 else first).add(*pair)
    for each, one, two in zip(whole.changes(), first.changes(), second.changes(), strict=True):
        for half, alone in zip(each.halves, (one, two), strict=True):
            for row, expected in zip(half, alone.values, strict=True):
                assert row == pytest.approx(expected, abs=1e-9)
        assert each.halves[0] != each.halves[1]


def test_an_adapter_on_one_head_changes_that_head(tmp_path: Path) -> None:
    base = tiny("Llama")
    saved(tmp_path, target_modules=["q_proj"])
    adapter = load_frozen_adapter(base, AdapterFolder(tmp_path), torch.float32)
    for name, (_, B, _) in adapter.layers.items():
        kept = head_layouts(base)[1].query(2)
        for row in range(len(B)):
            if name != kept.module or not kept.span.start <= row < kept.span.stop:
                B[row] = 0
    tally = HeadChangeTally()
    for prompt in PROMPTS:
        before = head_activity(base, prompt)
        with carrying(base, [adapter]) as bank, bank.rows_of([FrozenPiece(adapter, 0, 99)]):
            tally.add(before, head_activity(base, prompt))
    by_measure = {each.measure: each.values for each in tally.changes()}
    for measure in ("divergence", "output"):
        first, second = by_measure[measure]
        assert first == (0.0,) * 4
        assert [n for n, value in enumerate(second) if value > 1e-4] == [2]


@pytest.mark.parametrize("family", ["Llama", "Gemma4", "GPTNeoX", "Phi3", "GPT2"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The following:RuntimeWarning")
def test_shares_are_those_of_delta_built(family: str, tmp_path: Path) -> None:
    saved(tmp_path, family)
    layouts = head_layouts(tiny(family))
    found = {
        e.of: e.values
        for e in share_maps(layouts, norms_of_factors(AdapterFolder(tmp_path).factors))
    }
    merged: Any = peft.PeftModel.from_pretrained(tiny(family), str(tmp_path)).merge_and_unload()
    names = [name for layout in layouts for name in layout.projections]

    def matrices(model: Any) -> dict[str, torch.Tensor]:
        weights = {name: model.get_submodule(name).weight.detach() for name in names}
        return {name: w.T if family == "GPT2" else w for name, w in weights.items()}

    built = norms_of_matrices(matrices(tiny(family)), matrices(merged))
    expected = {each.of: each.values for each in share_maps(layouts, built)}
    values = set() if family == "Gemma4" else {"value"}  # its keys are its values
    assert set(found) == {"query", "key", "output", "all"} | values
    for kind, values in found.items():
        assert sum(map(sum, values)) == pytest.approx(1.0)
        for row, other in zip(values, expected[kind], strict=True):
            assert row == pytest.approx(other, rel=1e-3)


def test_what_is_not_adapted_has_no_share(tmp_path: Path) -> None:
    saved(tmp_path, target_modules=["q_proj", "down_proj"])
    layouts = head_layouts(tiny("Llama"))
    found = share_maps(layouts, norms_of_factors(AdapterFolder(tmp_path).factors))
    assert [each.of for each in found] == ["query", "all"]
    assert found[0].values == found[1].values
    assert share_maps(layouts, lambda part: 0.0) == ()


def test_relative_change_has_a_number_where_nothing_was_or_nothing_moved() -> None:
    moved, size = torch.tensor([0.0, 1.0, 0.0, 2.0]), torch.tensor([2.0, 2.0, 0.0, 0.0])
    assert relative_change(moved, size).tolist() == [0.0, 0.5, 0.0, 1.0]


@pytest.mark.parametrize("family", ["GPTNeoX", "GPT2"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The following:RuntimeWarning")
def test_heads_are_in_the_order_of_their_share_where_none_share_keys(
    family: str, tmp_path: Path
) -> None:
    saved(tmp_path, family)
    layouts, factors = head_layouts(tiny(family)), AdapterFolder(tmp_path).factors
    (share,) = (e.values for e in share_maps(layouts, norms_of_factors(factors)) if e.of == "all")
    found = heads_by_delta(factors, layouts)
    values = [share[layer][head] for layer, head in found]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(found) == 8


def test_a_head_is_as_large_as_what_its_reversion_takes_away(tmp_path: Path) -> None:
    """Llama's heads share keys and values in pairs: these stay, so they do not count."""
    saved(tmp_path, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    layouts, factors = head_layouts(tiny("Llama")), dict(AdapterFolder(tmp_path).factors)
    for layout in layouts:
        for part, times in ((layout.value(3), 100.0), (layout.query(2), 10.0)):
            factors[part.module].lora_B[part.span] *= times
    columns = layouts[1].columns(0)
    factors[columns.module].lora_A[:, columns.span] *= 50.0
    found = heads_by_delta(factors, layouts)
    assert found[0] == Head(1, 0)
    assert {*found[1:3]} == {Head(0, 2), Head(1, 2)}
