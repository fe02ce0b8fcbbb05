"""Attention over sequences that lie one behind the other in one row, without padding.

Decoders of transformers take their attention from its ``AttentionInterface``; ``packed_attention``
gives them this one. No mask function is registered for it, so transformers builds no mask.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from rankwise.engine.models.attention import (
    INSTEAD,
    AttentionTerms,
    attention_of,
    decoder_of,
    refuse_lost_window,
    refuse_unpackable,
)
from rankwise.engine.models.files import unusable
from rankwise.engine.models.packed_kernels import kernel_for
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.errors import ModelError

PACKED_ATTENTION = "rankwise_packed"


@contextmanager
def packed_attention(model: nn.Module) -> Generator[None]:
    """Within the block, a model reads packed rows; afterwards it attends as before.

    Inside, it is called as ``packed_states`` calls it. The backward pass has to be inside too:
    gradient checkpointing computes attention again there.

    Args:
        model: a decoder of transformers, with or without adapters in or around it.

    Raises:
        ModelError: as ``refuse_unpackable``; inside, for what packed attention cannot honour.
    """
    refuse_unpackable(model)
    with attention_of(decoder_of(model), PACKED_ATTENTION):
        yield


def packed_states(
    decoder: Callable[..., Any],
    input_ids: Int[Tensor, "1 tokens"],
    layout: PackedLayout,
    position_ids: Int[Tensor, "1 tokens"] | None = None,
) -> Float[Tensor, "1 tokens hidden"]:
    """The last hidden states of packed sequences.

    Args:
        decoder: of a model that reads packed rows now (``packed_attention``), without its head.
        input_ids: of all sequences, one behind the other.
        layout: where each of them is.
        position_ids: the layout's, where they are on the device already.
    """
    if position_ids is None:
        position_ids = layout.position_ids(input_ids.device)
    states: Tensor = decoder(
        input_ids=input_ids, position_ids=position_ids, packed_layout=layout, use_cache=False
    ).last_hidden_state
    return states.to(input_ids.device)  # a model without a last norm leaves them with its layers


def within_budget(
    lengths: Sequence[int], max_tokens: int, order: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Indices in batches of at most ``max_tokens``; a longer one is a batch alone.

    Without an order the longest are first. Then sequences of equal length meet, which packed
    attention multiplies together.
    """
    batch: list[int] = []
    tokens = 0
    if order is None:
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for index in order:
        if batch and tokens + lengths[index] > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


@torch.no_grad()
def check_packable(model: nn.Module) -> None:
    """Pack two short random sequences, and compare with eager attention to each alone.

    Rounding depends on model and precision, so the tolerance comes from the model itself: packed
    logits must be ten times closer to the right ones than the logits of one long sequence are. One
    of three draws has to pass, since rounding can also make a router choose other experts.

    Args:
        model: with weights, on any device, in any precision; in train or eval mode throughout.

    Raises:
        ModelError: as ``refuse_unpackable``; or sequences see each other, layers do not pack or
            call attention more than once, or a window is in the model's mask alone. Or all-zero or
            huge weights make its logits say nothing.
    """
    refuse_unpackable(model)
    was_training, packed = model.training, PackedLayout((7, 5))
    try:
        model.eval()
        near = far = 0.0
        for seed in range(3):
            packed.attended.clear()
            near, far = _distances(model, packed, seed)
            if near < 0.1 * far:
                break
    finally:
        model.train(was_training)
    name, calls = type(decoder_of(model)).__name__, Counter(layer for layer, _ in packed.attended)
    for layer, times in calls.items():
        if times > 1:
            raise ModelError(
                f"{name} calls attention {times} times in layer {layer}, and keys and values are "
                f"kept once for each layer. {INSTEAD}"
            )
    count = len(calls)
    if count != (layers := decoder_of(model).config.get_text_config().num_hidden_layers):
        raise ModelError(f"{name} packs {count} of its {layers} layers. {INSTEAD}")
    refuse_lost_window(decoder_of(model), (window for _, window in packed.attended))
    if near < 0.1 * far:
        return
    # weights with which a model reads nothing; an all-zero matrix is harmless in others
    if not math.isfinite(far):
        raise ModelError(
            "the model's weights are so large that its logits are not finite: its training has "
            "diverged, or its files are damaged. Save or fetch it again."
        )
    for name_of_weight, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dim() > 1 and not bool(weight.any()):
            raise ModelError(
                f"all weights of {name_of_weight} are zero, and the model gives every text the "
                "same logits. Save or fetch it again."
            )
    raise ModelError(f"{name} mixes the sequences of a packed batch. {INSTEAD}")


def _distances(model: nn.Module, packed: PackedLayout, seed: int) -> tuple[float, float]:
    """Mean distances from the logits of two sequences read alone.

    Returns:
        The distance of the packed logits, and that of the same tokens read as one sequence: the
        latter counts the second part only, as the first sees nothing else either way.
    """
    decoder, first, total = decoder_of(model), packed.lengths[0], packed.num_tokens
    embeddings, random = decoder.get_input_embeddings().weight, torch.Generator().manual_seed(seed)
    tokens = torch.randint(len(embeddings), (1, total), generator=random).to(embeddings.device)
    positions = packed.position_ids(embeddings.device)

    def logits(columns: slice, **layout: PackedLayout) -> Tensor:
        inputs = {"input_ids": tokens[:, columns], "position_ids": positions[:, columns]}
        return model(**inputs, **layout, use_cache=False).logits.float()  # (1, columns, vocab)

    what = f"{type(decoder).__name__} cannot read tokens alone"
    with unusable(what, INSTEAD), attention_of(decoder, "eager"):
        alone = torch.cat([logits(slice(first)), logits(slice(first, None))], dim=1)
    with attention_of(decoder, PACKED_ATTENTION):
        near = logits(slice(None), packed_layout=packed) - alone
        far = logits(slice(None), packed_layout=PackedLayout((total,))) - alone
    return float(near.abs().mean()), float(far[:, first:].abs().mean())


@torch.compiler.disable
def attend_packed(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens width"],
    key: Float[Tensor, "1 kv_heads tokens width"],
    value: Float[Tensor, "1 kv_heads tokens value_width"],
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout | None = None,
    **arguments: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_width"], None]:
    """The attention function that transformers calls in every layer.

    Consecutive query heads share a head of key and value; ``AttentionTerms.of`` reads the other
    arguments. A mask, dropout, and any unknown one that might change the result are refused.

    Raises:
        ModelError: no layout, one of another size, or an argument that is refused.
    """
    name = type(module).__name__
    if packed_layout is None:
        raise ModelError(f"{name} was given no packed_layout by its model. {INSTEAD}")
    terms = AttentionTerms.of(module, query, attention_mask, arguments)
    tokens, sizes = packed_layout.num_tokens, [(len(x), x.shape[2]) for x in (query, key, value)]
    if sizes != [(1, tokens)] * 3:
        raise ModelError(f"{name} got (rows, tokens) of {sizes}, packed is one row of {tokens}.")
    # check_packable counts the layers
    packed_layout.attended.append((getattr(module, "layer_idx", None), terms.window))
    device = query.device.type
    if torch.is_autocast_enabled(device):  # rotary embeddings may have left them in float32
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    with torch.autocast(device, enabled=False):  # it would compute softmax in float32
        kernel = kernel_for(query, value, packed_layout, terms)
        return kernel(query, key, value, packed_layout, terms), None


AttentionInterface.register(PACKED_ATTENTION, attend_packed)
