"""A first-order screen of heads: every ablation's effect by the gradient, all in one pass.

Each output of a head is multiplied by a gate of value 1. An ablation turns the head's gates to 0,
so to first order its effect is minus the derivative of the answers' log-probability by them. One
backward pass gives the derivatives by all gates of all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.engine.models.attention import decoder_of
from rankwise.engine.models.frozen_adapters import FrozenAdapter
from rankwise.engine.models.head import CompletionHead
from rankwise.engine.models.packed_attention import packed_attention, packed_states, within_budget
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.engine.models.structure import layers_replaced
from rankwise.heads.interventions import Head
from rankwise.heads.layouts import HeadLayout, LayerSlice
from rankwise.tasks.questions import Continuation


class ScreenedItem(NamedTuple):
    """An item: its options, and the number of the right one; a single option counts per token."""

    options: tuple[Continuation, ...]
    right: int


def expected_effects(
    base_model: nn.Module,
    layouts: Sequence[HeadLayout],
    items: Sequence[ScreenedItem],
    adapter: FrozenAdapter | None,
    means: Mapping[Head, Float[Tensor, " width"]] | None = None,
    *,
    max_batch_tokens: int,
) -> dict[Head, float]:
    """The first-order effect of ablating each head, a mean over items in nats.

    The effect is on log p(right option | options), as in ``answers.ItemOptions``.

    Args:
        base_model: frozen, in eval mode, without adapters.
        layouts: of its heads.
        items: at least one.
        adapter: the model is the base with it; None is the base.
        means: each head's output when it is ablated; None: zeros.
        max_batch_tokens: of a backward pass; a single item may have more.
    """
    decoder = decoder_of(base_model)
    factors = {} if adapter is None else adapter.layers
    weight = next(base_model.parameters())
    resting: dict[str, Tensor] = {}  # by output projection, (heads_width,) each
    for layout in layouts:
        heads = [Head(layout.layer, number) for number in range(layout.num_heads)]
        zeros = weight.new_zeros(layout.num_heads * layout.width)
        resting[layout.output] = zeros if means is None else torch.cat([means[h] for h in heads])
    layers = {
        name: _GatedLayer(base_model.get_submodule(name), factors.get(name), resting.get(name))
        for name in dict.fromkeys([*factors, *resting])
    }
    head = CompletionHead(decoder)
    with layers_replaced(base_model, layers), packed_attention(base_model):
        sizes = [sum(len(option.tokens_read) for option in item.options) for item in items]
        for batch in within_budget(sizes, max_batch_tokens):
            _answers(decoder, head, [items[index] for index in batch]).backward()
    return {
        Head(layout.layer, number): -layers[layout.output].derivative(layout.columns(number))
        / len(items)
        for layout in layouts
        for number in range(layout.num_heads)
    }


class _GatedLayer(nn.Module):
    """A frozen layer, an adapter's factors, and gates of value 1 on the layer's input.

    ``resting`` is the layer's input at gates of 0; a layer without it has no gates.
    """

    def __init__(
        self, base_layer: nn.Module, factors: ScaledFactors | None, resting: Tensor | None
    ) -> None:
        super().__init__()
        self.base_layer, self._factors, self._resting = base_layer, factors, resting
        weight = next(base_layer.parameters())
        self.train(base_layer.training)
        self.gates: Tensor | None = None
        if resting is not None:
            self.gates = torch.ones(len(resting), device=weight.device, requires_grad=True)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        if self._resting is not None and self.gates is not None:
            # x at gates of 1, the resting value at gates of 0
            x = self._resting + self.gates.to(x.dtype) * (x - self._resting)
        y: Tensor = self.base_layer(x)
        if self._factors is None:
            return y
        A, B, scaling = self._factors
        added = scaling * ((x.to(A.dtype) @ A.T) @ B.T)
        return y + added.to(y.dtype)

    def derivative(self, part: LayerSlice) -> float:
        """The sum of the derivatives by a slice's gates; 0 where it has none."""
        if self.gates is None or self.gates.grad is None:
            return 0.0
        return float(self.gates.grad[part.span].double().sum())


def _answers(decoder: Any, head: CompletionHead, items: Sequence[ScreenedItem]) -> Tensor:
    """The sum over items of the right option's log-probability."""
    options = [option for item in items for option in item.options]
    layout = PackedLayout(tuple(len(option.tokens_read) for option in options))
    tokens = [token for option in options for token in option.tokens_read]
    input_ids = torch.tensor([tokens], device=decoder.device)
    hidden = packed_states(decoder.base_model, input_ids, layout)[0]  # (tokens, hidden)
    nats: list[Tensor] = []
    for option, stop in zip(options, accumulate(layout.lengths), strict=True):
        # the last token is not read, so the continuation is predicted at the option's last rows
        states = hidden[stop - len(option.continuation) : stop]
        right = torch.tensor(option.continuation, device=states.device)
        log_probabilities = head.logits(states).float().log_softmax(dim=-1)  # (tokens, vocabulary)
        nats.append(log_probabilities.gather(1, right[:, None]).sum())
    total = torch.zeros((), dtype=torch.float32, device=decoder.device)
    for item in items:
        of_item, nats = torch.stack(nats[: len(item.options)]), nats[len(item.options) :]
        if len(of_item) == 1:
            total = total + of_item[0] / len(item.options[0].continuation)
        else:
            total = total + of_item.log_softmax(dim=0)[item.right]
    return total
