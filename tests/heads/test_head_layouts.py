"""The contract of every kind of layout: a head's rows and columns are what the model says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.errors import ModelError
from rankwise.heads.layouts import LAYOUTS, HeadLayout, LayerSlice, head_layouts
from tests.support.tiny_models import tiny

FAMILIES = {
    "Llama": ("q_proj, k_proj, v_proj", 2),
    "Qwen2": ("q_proj, k_proj, v_proj", 2),
    "Qwen3": ("q_proj, k_proj, v_proj", 2),
    "Gemma3": ("q_proj, k_proj, v_proj", 2),
    "Gemma4": ("q_proj, k_proj, v_proj", 2),
    "GPTNeoX": ("query_key_value", 4),
    "Phi3": ("qkv_proj", 2),
    "GPT2": ("c_attn", 4),
}
IDS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(3))


def projected(model: Any, layout: HeadLayout) -> Tensor:
    """What goes into a layer's output projection: (batch, tokens, heads, width)."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layout.output).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    with torch.no_grad():
        model(IDS)
    handle.remove()
    return seen[0].unflatten(-1, (layout.num_heads, layout.width))


def changed(model: Any, part: LayerSlice, *, outputs: bool, by: float) -> None:
    """Multiply the weights of a part, and its biases, by a number."""
    layer = model.get_submodule(part.module)
    weight: Tensor = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    with torch.no_grad():
        (weight[part.span] if outputs else weight[:, part.span]).mul_(by)
        if outputs and layer.bias is not None:
            layer.bias[part.span].mul_(by)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_resolved_by_one_kind(family: str) -> None:
    model = tiny(family)
    layouts = head_layouts(model)
    kind, groups = FAMILIES[family]
    assert [layout.layer for layout in layouts] == [0, 1]
    assert {layout.kind for layout in layouts} == {kind}
    assert {(each.num_heads, each.num_groups, each.width) for each in layouts} == {(4, groups, 8)}
    with torch.device("meta"):
        meta = type(model)(model.config)
    assert [each.projections for each in head_layouts(meta)] == [e.projections for e in layouts]


def test_every_kind_is_tested() -> None:
    assert {kind for kind, _ in FAMILIES.values()} == set(LAYOUTS)


@pytest.mark.parametrize("head", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_zeroed_value_rows_silence_the_group_and_nobody_else(family: str, head: int) -> None:
    """Without values a head's output is zero: these rows are its own, and its group's."""
    model = tiny(family)
    layout = head_layouts(model)[1]
    changed(model, layout.value(head), outputs=True, by=0.0)
    size = projected(model, layout).abs().amax(dim=(0, 1, 3))
    silent = {number for number in range(4) if float(size[number]) == 0.0}
    assert silent == set(layout.sharers(head))


@pytest.mark.parametrize("head", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_query_and_key_rows_move_the_head_and_its_group_alone(family: str, head: int) -> None:
    layout = head_layouts(tiny(family))[1]
    before = projected(tiny(family), layout)
    whose = {layout.query: {head}, layout.key: set(layout.sharers(head))}
    for part, expected in whose.items():
        model = tiny(family)
        changed(model, part(head), outputs=True, by=-1.0)
        moved = (projected(model, layout) - before).abs().amax(dim=(0, 1, 3))
        assert {number for number in range(4) if float(moved[number]) > 1e-5} == expected


@pytest.mark.parametrize("head", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_zeroed_columns_are_the_head_ablated(family: str, head: int) -> None:
    expected, model = tiny(family), tiny(family)
    layout = head_layouts(model)[1]
    part = layout.columns(head)

    def without(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        hidden = inputs[0].clone()
        hidden.unflatten(-1, (4, 8))[:, :, head] = 0.0
        return (hidden,)

    expected.get_submodule(layout.output).register_forward_pre_hook(without)
    changed(model, part, outputs=False, by=0.0)
    with torch.no_grad():
        found, ablated, intact = model(IDS).logits, expected(IDS).logits, tiny(family)(IDS).logits
    assert float((found - ablated).abs().max()) < 1e-5
    assert float((found - intact).abs().max()) > 1e-3


def test_layouts_that_are_not_known_are_refused_by_name() -> None:
    config: Any = transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(ModelError, match=r"BloomForCausalLM.*BloomAttention.*query_key_value"):
        head_layouts(transformers.BloomForCausalLM(config))


def test_a_c_attn_that_is_laid_out_head_by_head_is_refused() -> None:
    """GPT-BigCode without multi-query attention: a linear layer, unlike GPT-2's Conv1D."""
    config: Any = transformers.GPTBigCodeConfig(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, multi_query=False
    )
    with pytest.raises(ModelError, match=r"GPTBigCode.*c_attn"):
        head_layouts(transformers.GPTBigCodeForCausalLM(config))


def test_queries_that_carry_a_gate_are_refused() -> None:
    model = tiny("Llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj = nn.Linear(32, 64)
    with pytest.raises(ModelError, match="LlamaAttention"):
        head_layouts(model)
