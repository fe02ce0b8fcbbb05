"""The engine for single heads: what a plain model with hooks scores, a head and item at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.frozen_adapters import load_frozen_adapter
from rankwise.heads.interventions import Head, adapted_heads
from rankwise.heads.layouts import head_layouts
from rankwise.heads.scorer import Ablation, HeadScorer
from tests.support.head_adapters import (
    PROJECTIONS,
    adapter_of,
    hooked,
    quiet,
    save_without_heads,
)
from tests.support.plain_answers import ITEMS, assert_equal, plainly
from tests.support.saved_adapters import saved
from tests.support.tiny_models import tiny

FAMILIES = ["Llama", "GPTNeoX", "Phi3", "GPT2", "Gemma3", "Gemma4", "Qwen3"]


def scorer_of(model: Any, **options: Any) -> HeadScorer:
    return HeadScorer(model, **{"max_batch_tokens": 500, **options})


@pytest.mark.parametrize("family", FAMILIES)
def test_ablated_heads_score_what_hooks_score(family: str) -> None:
    model = tiny(family)
    scorer = scorer_of(model)
    assert len(scorer.heads) == 8
    intact, *found = scorer.log_likelihoods(ITEMS, [Ablation(head) for head in scorer.heads])
    assert_equal(intact, plainly(tiny(family)))
    for head, own in zip(scorer.heads, found, strict=True):
        with hooked(tiny(family), head) as peer:
            assert_equal(own, plainly(peer))
        assert max(abs(a.nats - b.nats) for a, b in zip(own, intact, strict=True)) > 1e-3
    assert_equal(plainly(model), plainly(tiny(family)))  # the model is as it was


@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_means_are_over_all_tokens_and_replace_the_head(family: str) -> None:
    scorer = scorer_of(tiny(family))
    means = scorer.mean_outputs(ITEMS)
    head, seen = Head(1, 2), dict[tuple[int, ...], Tensor]()
    layout = scorer.layouts[1]
    peer = tiny(family)
    kept: list[Tensor] = []
    peer.get_submodule(layout.output).register_forward_pre_hook(lambda _, x: kept.append(x[0][0]))
    for item in ITEMS:
        with torch.no_grad():
            peer(torch.tensor([item.tokens_read]))
        for n, row in enumerate(kept.pop()):
            seen[item.tokens_read[: n + 1]] = row[layout.columns(2).span]
    expected = torch.stack(list(seen.values())).mean(0)
    assert torch.allclose(means[head], expected, atol=1e-5)
    _, found = scorer.log_likelihoods(ITEMS, [Ablation(head, means[head])])
    with hooked(tiny(family), head, expected) as model:
        assert_equal(found, plainly(model))


@pytest.mark.parametrize("family", PROJECTIONS)
@quiet
def test_ablated_heads_of_an_adapted_model_score_what_hooks_on_peft_s_model_score(
    family: str, tmp_path: Path
) -> None:
    model, adapter = adapter_of(family, tmp_path)
    scorer = scorer_of(model)
    changes = [Ablation(head) for head in scorer.heads]
    adapted, *found = scorer.log_likelihoods(ITEMS, changes, adapter)

    def whole() -> Any:
        return peft.PeftModel.from_pretrained(tiny(family), str(tmp_path)).merge_and_unload()

    assert_equal(adapted, plainly(whole()))
    for head, own in zip(scorer.heads, found, strict=True):
        with hooked(whole(), head) as peer:
            assert_equal(own, plainly(peer))


@pytest.mark.parametrize("family", ["Llama", "GPTNeoX"])
@quiet
def test_a_saved_adapter_without_a_head_has_no_delta_there_and_all_of_it_elsewhere(
    family: str, tmp_path: Path
) -> None:
    """Rows of k and v go with the head where they are its own: of GPT-NeoX, not of this Llama."""
    saved(tmp_path / "own", family, target_modules=PROJECTIONS[family])
    layout = head_layouts(tiny(family))[1]
    save_without_heads(tmp_path / "own", tmp_path / "less", [layout, layout], [Head(1, 2)])
    weights = [
        peft.PeftModel.from_pretrained(tiny(family), str(folder)).merge_and_unload()
        for folder in (tmp_path / "own", tmp_path / "less")
    ]
    adapted, less = (dict(model.named_parameters()) for model in weights)
    base = dict(tiny(family).named_parameters())
    query, columns = layout.query(2), layout.columns(2)
    rows = [query] if family == "Llama" else [query, layout.key(2), layout.value(2)]
    for name, weight in base.items():
        expected = adapted[name].clone()
        for part in rows:
            if name == f"{part.module}.weight":
                expected[part.span] = weight[part.span]
        if name == f"{columns.module}.weight":
            expected[:, columns.span] = weight[:, columns.span]
        assert torch.allclose(less[name], expected, atol=1e-7), name
        if name.startswith((query.module, columns.module)) and "bias" not in name:
            assert not torch.allclose(less[name], adapted[name], atol=1e-3)


@pytest.mark.parametrize(
    "options", [{"max_batch_tokens": 23}, {"kept_bytes": 20_000}, {"cache_bytes": 1}]
)
def test_budgets_change_nothing(options: dict[str, int]) -> None:
    scorer, other = scorer_of(tiny("Llama"), **options), scorer_of(tiny("Llama"))
    changes = [Ablation(head) for head in scorer.heads]
    for own, expected in zip(
        scorer.log_likelihoods(ITEMS, changes), other.log_likelihoods(ITEMS, changes), strict=True
    ):
        assert_equal(own, expected)
    expected_means = other.mean_outputs(ITEMS)
    for head, mean in scorer.mean_outputs(ITEMS).items():
        assert torch.allclose(mean, expected_means[head], atol=1e-6)


@quiet
def test_every_scored_item_is_told(tmp_path: Path) -> None:
    model, adapter = adapter_of("Llama", tmp_path)
    scorer, told = scorer_of(model), list[int]()
    changes = [Ablation(Head(0, 0)), Ablation(Head(1, 1))]
    scorer.log_likelihoods(ITEMS, changes, adapter, told.append)
    assert sum(told) == 3 * len(ITEMS)


@quiet
def test_heads_that_an_adapter_has_a_part_in(tmp_path: Path) -> None:
    layouts = head_layouts(tiny("Llama"))
    for targets, expected in (
        (["layers.1.self_attn.q_proj"], [Head(1, n) for n in range(4)]),
        (["v_proj"], []),
        (["down_proj"], []),
    ):
        saved(tmp_path / targets[0], target_modules=targets)
        adapter = load_frozen_adapter(
            tiny("Llama"), AdapterFolder(tmp_path / targets[0]), torch.float32
        )
        assert adapted_heads(adapter.layers, layouts) == expected
