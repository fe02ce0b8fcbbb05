"""A first-order screen of heads: what the gradient expects of every intervention, in one go.

Each part of a head is multiplied by a gate that is 1. An intervention turns the head's gates to 0,
so to first order it takes away the derivative of the answers' log-probability by them. One backward
pass has the derivatives by all gates of all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.engine.models.attention import decoder_of
from rankwise.engine.models.base import layers_replaced
from rankwise.engine.models.frozen_adapters import FrozenAdapter
from rankwise.engine.models.head import CompletionHead
from rankwise.engine.models.packed_attention import PackedLayout, packed_attention
from rankwise.heads.interventions import Head, delta_rows
from rankwise.heads.layouts import HeadLayout, Part
from rankwise.tasks.questions import Continuation


class Choice(NamedTuple):
    """An item: options of which one is right; a single option counts per token."""

    options: tuple[Continuation, ...]
    right: int


class Gating(NamedTuple):
    """Which gates there are.

    Attributes:
        is_reversion: gates on the adapter's delta; otherwise on what heads put out.
        means: what a head's output becomes at 0; by default zeros.
        keys_and_values: a reversion's gates on k and v count also where heads share them.
    """

    is_reversion: bool
    means: Mapping[Head, Float[Tensor, " width"]] | None = None
    keys_and_values: bool = False


def expected_effects(
    base_model: nn.Module,
    layouts: Sequence[HeadLayout],
    items: Sequence[Choice],
    adapter: FrozenAdapter | None,
    gating: Gating,
    *,
    max_batch_tokens: int,
) -> dict[Head, float]:
    """The first-order effect of intervening on each head, a mean over items in nats.

    It is on log p(right option | options), as ``head_answers.Question`` has it.

    Args:
        base_model: frozen, in eval mode, without adapters.
        layouts: of its heads.
        items: at least one.
        adapter: the model is the base with it; None is the base.
        gating: what the interventions are.
        max_batch_tokens: of a backward pass; an item has one at least.
    """
    decoder = decoder_of(base_model)
    layers = _gated_layers(base_model, layouts, adapter, gating)
    with packed_attention(base_model):
        head = CompletionHead(decoder)
    with layers_replaced(base_model, layers), packed_attention(base_model):
        for batch in _batches(items, max_batch_tokens):
            _answers(decoder, head, batch).backward()
    return {
        Head(layout.layer, number): -sum(
            layers[part.module].derivative(part, is_input=is_input)
            for part, is_input in _parts(layout, number, gating)
            if part.module in layers
        )
        / len(items)
        for layout in layouts
        for number in range(layout.num_heads)
    }


def _parts(layout: HeadLayout, head: int, gating: Gating) -> Iterator[tuple[Part, bool]]:
    """The parts whose gates a head's intervention turns to 0, and whether they are inputs."""
    yield layout.columns(head), True
    if gating.is_reversion:
        for rows in delta_rows(layout, head, keys_and_values=gating.keys_and_values):
            yield rows, False


class _GatedLayer(nn.Module):
    """A frozen layer, what an adapter adds to it, and gates that are 1.

    Gates on inputs are those of the layer itself where ``resting`` says what it gets at 0, and of
    lora_A alone where it is None.
    """

    def __init__(
        self, base_layer: nn.Module, factors: ScaledFactors | None, resting: Tensor | None
    ) -> None:
        super().__init__()
        self.base_layer, self._factors, self._resting = base_layer, factors, resting
        weight = next(base_layer.parameters())
        self.train(base_layer.training)
        self.inputs: Tensor | None = None
        self.outputs: Tensor | None = None
        if resting is not None:
            self.inputs = torch.ones(len(resting), device=weight.device, requires_grad=True)
        elif factors is not None:
            sizes = factors.lora_A.shape[1], factors.lora_B.shape[0]
            self.inputs, self.outputs = (
                torch.ones(size, device=weight.device, requires_grad=True) for size in sizes
            )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        if self._resting is not None and self.inputs is not None:
            x = self._resting + self.inputs.to(x.dtype) * (x - self._resting)
        y: Tensor = self.base_layer(x)
        if self._factors is None:
            return y
        A, B, scaling = self._factors
        if self._resting is None and self.inputs is not None:
            x = x * self.inputs.to(x.dtype)
        added = scaling * ((x.to(A.dtype) @ A.T) @ B.T)
        if self.outputs is not None:
            added = added * self.outputs.to(added.dtype)
        return y + added.to(y.dtype)

    def derivative(self, part: Part, *, is_input: bool) -> float:
        """The sum over a part's gates; 0 where it has none."""
        gates = self.inputs if is_input else self.outputs
        if gates is None or gates.grad is None:
            return 0.0
        return float(gates.grad[part.span].double().sum())


def _gated_layers(
    base_model: nn.Module,
    layouts: Sequence[HeadLayout],
    adapter: FrozenAdapter | None,
    gating: Gating,
) -> dict[str, _GatedLayer]:
    """Every layer that an adapter or a gate is on, by name."""
    factors = {} if adapter is None else adapter.layers
    outputs = {} if gating.is_reversion else {layout.output: layout for layout in layouts}
    found: dict[str, _GatedLayer] = {}
    for name in dict.fromkeys([*factors, *outputs]):
        layer = base_model.get_submodule(name)
        resting = None
        if name in outputs:
            resting = _resting(outputs[name], gating, next(base_model.parameters()))
        found[name] = _GatedLayer(layer, factors.get(name), resting)
    return found


def _resting(layout: HeadLayout, gating: Gating, like: Tensor) -> Float[Tensor, " heads_width"]:
    if gating.means is None:
        return like.new_zeros(layout.num_heads * layout.width)
    means = gating.means
    return torch.cat([means[Head(layout.layer, n)] for n in range(layout.num_heads)])


def _batches(items: Sequence[Choice], max_tokens: int) -> Iterator[list[Choice]]:
    batch: list[Choice] = []
    tokens = 0
    for item in items:
        own = sum(len(option.tokens_read) for option in item.options)
        if batch and tokens + own > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += own
    if batch:
        yield batch


def _answers(decoder: Any, head: CompletionHead, items: Sequence[Choice]) -> Tensor:
    """The sum over items of the right option's log-probability."""
    options = [option for item in items for option in item.options]
    layout = PackedLayout(tuple(len(option.tokens_read) for option in options))
    device = next(decoder.parameters()).device
    tokens = torch.tensor([[t for option in options for t in option.tokens_read]], device=device)
    hidden: Tensor = decoder.base_model(
        input_ids=tokens,
        position_ids=layout.position_ids(device),
        packed_layout=layout,
        use_cache=False,
    ).last_hidden_state[0]
    nats: list[Tensor] = []
    for start, option in zip(layout.starts, options, strict=True):
        stop = start + len(option.tokens_read)
        rows = hidden[stop - len(option.continuation) : stop]
        wanted = torch.tensor(option.continuation, device=device)
        log_probabilities = head.logits(rows).float().log_softmax(dim=-1)
        nats.append(log_probabilities.gather(1, wanted[:, None]).sum())
    total = hidden.new_zeros((), dtype=torch.float32)
    for item in items:
        own, nats = torch.stack(nats[: len(item.options)]), nats[len(item.options) :]
        if len(own) == 1:
            total = total + own[0] / len(item.options[0].continuation)
        else:
            total = total + own.log_softmax(dim=0)[item.right]
    return total
