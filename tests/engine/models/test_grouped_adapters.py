"""Products of all adapters at once are those of adapter by adapter; torch loops on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise.engine.models import grouped_adapters, trained_adapters
from rankwise.engine.models.grouped_adapters import WaitingGradients
from rankwise.engine.models.structure import adaptable_shapes, target_shapes
from rankwise.engine.models.trained_adapters import Adapter, Piece, adapted
from tests.support.tiny_models import tiny

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GPT2 = ("c_attn", "c_proj", "c_fc")


@pytest.fixture
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_adapters, "has_grouped_products", lambda *_: True)
    monkeypatch.setattr(trained_adapters, "_copied_rank", lambda rank, *_: -(-rank // 8) * 8)


def adapters_of(
    model: nn.Module,
    ranks: Sequence[int],
    targets: Sequence[str],
    scaling: float = 1.7,
    dtype: torch.dtype = torch.float32,
) -> list[Adapter]:
    shapes = target_shapes(adaptable_shapes(model), targets)
    settings: dict[str, Any] = {"dropout": 0.0, "device": torch.device("cpu"), "dtype": dtype}
    made = [Adapter(shapes, rank=r, seed=r, scaling=scaling / r, **settings) for r in ranks]
    for adapter in made:
        generator = torch.Generator().manual_seed(adapter.rank)
        for factors in adapter.factors.values():
            factors.lora_B.copy_(torch.randn(factors.lora_B.shape, generator=generator))
        adapter.refresh()
    return made


def trained(
    model: nn.Module, adapters: Sequence[Adapter], spans: Sequence[tuple[int, int]], *, stack: bool
) -> tuple[Tensor, list[Tensor], bool]:
    """Hidden states, gradients after two micro-batches, and whether stacks were used."""
    for adapter in adapters:
        adapter.clear_gradients()
    ids = torch.arange(3, 3 + 24)[None] % 60
    both = zip(adapters, spans, strict=True)
    pieces = [Piece(adapter, *span, ()) for adapter, span in both if any(span)]
    names = dict.fromkeys(name for adapter in adapters for name in adapter.factors)
    with adapted(model, list(names)) as bank:
        if stack:
            bank.stack(adapters)
        for _ in range(2):
            with bank.rows_of(pieces):
                was_grouped = bool(bank.stack_rows)
                hidden = model(ids).logits
                hidden.float().square().mean().backward()
    gradients = [x.clone() for a in adapters for pair in a.gradients.values() for x in pair]
    return hidden.detach(), gradients, was_grouped


def same(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        norm = float(other.float().norm())
        assert float((one.float() - other.float()).norm()) <= tolerance * norm


CASES = [
    # of similar rank, some filled up; in two stacks; one without rows, and one that is alone
    ("Llama", ALL, (3, 8, 16), [(0, 9), (9, 10), (10, 24)]),
    ("Qwen2", ALL, (1, 4, 64, 128), [(0, 3), (3, 11), (11, 18), (18, 24)]),
    ("GPT2", GPT2, (2, 8, 200), [(0, 9), (0, 0), (9, 24)]),
]


@pytest.mark.usefixtures("as_on_a_card")
@pytest.mark.parametrize(("family", "targets", "ranks", "spans"), CASES)
def test_outputs_and_gradients_are_those_of_the_loop(
    family: str, targets: Sequence[str], ranks: Sequence[int], spans: Sequence[tuple[int, int]]
) -> None:
    model = tiny(family).requires_grad_(False)
    adapters = adapters_of(model, ranks, targets)
    hidden, expected, _ = trained(model, adapters, spans, stack=False)
    found, gradients, was_grouped = trained(model, adapters, spans, stack=True)
    assert was_grouped
    same([found, *gradients], [hidden, *expected])
    for adapter in adapters:  # after a step
        adapter.weights[0].data.mul_(1.5)
        adapter.refresh()
    found, *_ = trained(model, adapters, spans, stack=True)
    hidden, *_ = trained(model, adapters_like(model, adapters, targets), spans, stack=False)
    same([found], [hidden])


def adapters_like(
    model: nn.Module, adapters: Sequence[Adapter], targets: Sequence[str]
) -> list[Adapter]:
    """The same weights, in no stack."""
    made = adapters_of(model, [adapter.rank for adapter in adapters], targets)
    for new, old in zip(made, adapters, strict=True):
        new.weights[0].data.copy_(old.weights[0].data)
        new.refresh()
    return made


@pytest.mark.usefixtures("as_on_a_card")
def test_layers_that_are_no_plain_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("Llama").requires_grad_(False)
    monkeypatch.setattr(trained_adapters, "plain_weight", lambda _: (None, None))
    adapters = adapters_of(model, (2, 8), ALL)
    spans = [(0, 9), (9, 24)]
    hidden, expected, _ = trained(model, adapters, spans, stack=False)
    found, gradients, was_grouped = trained(model, adapters, spans, stack=True)
    assert was_grouped
    same([found, *gradients], [hidden, *expected])


@pytest.mark.usefixtures("as_on_a_card")
def test_bfloat16_is_as_near_to_float32_as_by_the_loop() -> None:
    model = tiny("Llama").to(torch.bfloat16).requires_grad_(False)
    spans = [(0, 9), (9, 24)]

    def gradients(dtype: torch.dtype, *, stack: bool) -> Tensor:
        adapters = adapters_of(model, (4, 16), ALL, dtype=dtype)
        _, found, was_grouped = trained(model.to(dtype), adapters, spans, stack=stack)
        assert was_grouped == stack
        return torch.cat([x.flatten() for x in found])

    by_loop, grouped = (gradients(torch.bfloat16, stack=stack) for stack in (False, True))
    exact = gradients(torch.float32, stack=False)
    errors = [float((found - exact).norm() / exact.norm()) for found in (grouped, by_loop)]
    assert errors[0] < 1.2 * errors[1] < 0.2


@pytest.mark.usefixtures("as_on_a_card")
def test_rows_of_the_bare_base_are_left_to_the_loop() -> None:
    model = tiny("Llama").requires_grad_(False)
    adapters = adapters_of(model, (2, 8), ALL)
    assert not trained(model, adapters, [(0, 9), (12, 24)], stack=True)[2]


@pytest.mark.usefixtures("as_on_a_card")
def test_adapters_of_other_layers_are_in_another_stack() -> None:
    model = tiny("Llama").requires_grad_(False)
    adapters = [*adapters_of(model, (2, 8), ALL), *adapters_of(model, (8,), ("q_proj",))]
    spans = [(0, 5), (5, 9), (9, 24)]
    hidden, expected, _ = trained(model, adapters, spans, stack=False)
    found, gradients, was_grouped = trained(model, adapters, spans, stack=True)
    assert was_grouped
    same([found, *gradients], [hidden, *expected])


def test_a_rank_that_is_filled_up_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the loop over adapters; with what the base holds already, too."""
    model = tiny("Llama").requires_grad_(False)
    results: list[list[Tensor]] = []
    for step in (1, 8):
        monkeypatch.setattr(
            trained_adapters, "_copied_rank", lambda rank, *_, step=step: -(-rank // step) * step
        )
        for adapters in (adapters_of(model, (1, 4), ALL), adapters_of(model, (2, 3), ALL)):
            if adapters[0].rank == 2:
                start = {n: (A * 0.5, B * 0.5) for n, (A, B) in adapters[0].factors.items()}
                adapters[0].start_from(start, is_in_base=True)
                adapters[0].weights[0].data.mul_(1.3)
                adapters[0].refresh()
            hidden, gradients, _ = trained(model, adapters, [(0, 9), (9, 24)], stack=False)
            results.append([hidden, *gradients])
    same([*results[2], *results[3]], [*results[0], *results[1]], 1e-5)
    assert len(next(iter(adapters[0].copies.values())).lora_A) == 8


def test_gradients_wait_only_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_adapters, "_WAITING_BYTES", 40)
    waiting, into = WaitingGradients(), torch.zeros(2, 3)
    part = torch.ones(2, 8, dtype=torch.bfloat16)
    waiting.add(into, part, 2.0)
    assert not into.any()
    waiting.add(into, part)
    assert bool((into == 3).all())
    waiting.add(into, part)
    waiting.drop()
    waiting.flush()
    assert bool((into == 3).all())
