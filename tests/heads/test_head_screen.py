"""The first-order screen: the derivative that a plain model has by finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from rankwise.heads.interventions import Head
from rankwise.heads.layouts import head_layouts
from rankwise.heads.scorer import HeadScorer
from rankwise.heads.screen import ScreenedItem, expected_effects
from rankwise.tasks.questions import Continuation
from tests.support.head_adapters import PROJECTIONS, adapter_of, hooked, quiet
from tests.support.plain_answers import plainly
from tests.support.tiny_models import tiny

STEP = 1e-2


def choices() -> list[ScreenedItem]:
    draw = torch.Generator().manual_seed(5)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 64, (count,), generator=draw).tolist())

    items: list[ScreenedItem] = []
    for number in range(5):
        context = some(6 + number)
        options = tuple(Continuation(context, some(1 + n % 3)) for n in range(3))
        items.append(ScreenedItem(options, number % 3))
    return [*items, ScreenedItem((Continuation(some(5), some(4)),), 0)]


def value(model: Any, items: list[ScreenedItem]) -> float:
    """The mean log-probability of the right answers, one forward pass for each option."""
    total = 0.0
    for item in items:
        nats = torch.tensor([each.nats for each in plainly(model, item.options)]).double()
        if len(nats) == 1:
            total += float(nats[0]) / len(item.options[0].continuation)
        else:
            total += float(nats.log_softmax(0)[item.right])
    return total / len(items)


def gated(model: Any, head: Head, gate: float, mean: Tensor | None) -> Any:
    layout = head_layouts(model)[head.layer]
    span = layout.columns(head.head).span

    def change(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        hidden = inputs[0].clone()
        rest = torch.zeros(layout.width) if mean is None else mean
        hidden[..., span] = rest + gate * (hidden[..., span] - rest)
        return (hidden,)

    model.get_submodule(layout.output).register_forward_pre_hook(change)
    return model


@pytest.mark.parametrize("by_mean", [False, True])
@pytest.mark.parametrize("family", ["Llama", "GPTNeoX", "Phi3", "GPT2"])
def test_ablations_are_expected_to_do_what_the_slope_says(family: str, by_mean: bool) -> None:
    items = choices()
    model = tiny(family).requires_grad_(False)
    scorer = HeadScorer(model, max_batch_tokens=100)
    means = scorer.mean_outputs([o for item in items for o in item.options]) if by_mean else None
    found = expected_effects(model, scorer.layouts, items, None, means, max_batch_tokens=40)
    assert set(found) == set(scorer.heads)
    for head in (Head(0, 1), Head(1, 3)):
        mean = None if means is None else means[head]
        high, low = (value(gated(tiny(family), head, 1 + s, mean), items) for s in (STEP, -STEP))
        assert found[head] == pytest.approx(-(high - low) / (2 * STEP), rel=2e-2, abs=2e-4)
    assert value(model, items) == pytest.approx(value(tiny(family), items))


@pytest.mark.parametrize("family", PROJECTIONS)
@quiet
def test_ablations_of_an_adapted_model_are_expected_to_do_what_the_slope_says(
    family: str, tmp_path: Path
) -> None:
    items = choices()
    model, adapter = adapter_of(family, tmp_path)
    model.requires_grad_(False)
    layouts = head_layouts(model)
    found = expected_effects(model, layouts, items, adapter, max_batch_tokens=64)

    def at(head: Head, gate: float) -> float:
        whole = peft.PeftModel.from_pretrained(tiny(family), str(tmp_path)).merge_and_unload()
        return value(gated(whole, head, gate, None), items)

    for head in (Head(0, 0), Head(1, 2)):
        slope = (at(head, 1 + STEP) - at(head, 1 - STEP)) / (2 * STEP)
        assert found[head] == pytest.approx(-slope, rel=2e-2, abs=2e-4)


def test_a_head_that_says_nothing_is_expected_to_do_nothing() -> None:
    model = tiny("Llama").requires_grad_(False)
    layouts = head_layouts(model)
    with torch.no_grad():
        part = layouts[0].columns(2)
        model.get_submodule(part.module).weight[:, part.span] = 0
    found = expected_effects(model, layouts, choices(), None, max_batch_tokens=500)
    assert found[Head(0, 2)] == 0.0
    with hooked(model, Head(0, 2)) as peer:
        assert value(peer, choices()) == pytest.approx(value(model, choices()))
    assert min(abs(found[head]) for head in found if head != Head(0, 2)) > 1e-5
