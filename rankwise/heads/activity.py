"""The attention weights and outputs of a model's heads on one prompt, layer by layer.

Registered with transformers' ``AttentionInterface``: one prompt at a time, all weights in memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from rankwise.engine.models.attention import (
    INSTEAD,
    AttentionTerms,
    attention_of,
    decoder_of,
)
from rankwise.errors import ModelError

WATCHED_ATTENTION = "rankwise_watched"


class HeadActivity(NamedTuple):
    """One layer's heads on one prompt.

    Attributes:
        weights: of attention; rows sum to 1 (to less under a sink logit).
        outputs: the input of the output projection.
    """

    weights: Float[Tensor, "heads tokens tokens"]
    outputs: Float[Tensor, "heads tokens width"]


@torch.inference_mode()
def head_activity(model: nn.Module, tokens: tuple[int, ...]) -> list[HeadActivity]:
    """Read a prompt and keep the activity of every layer's heads.

    Args:
        model: of transformers, in eval mode, also with adapters.
        tokens: at least one.

    Raises:
        ModelError: its attention needs something that is not supported here.
    """
    decoder, watch = decoder_of(model), dict[int, HeadActivity]()
    ids = torch.tensor([tokens], device=decoder.device)
    positions = torch.arange(len(tokens), device=decoder.device)[None]
    with attention_of(decoder, WATCHED_ATTENTION):
        decoder.base_model(input_ids=ids, position_ids=positions, head_watch=watch, use_cache=False)
    return [watch[number] for number in sorted(watch)]


def attend_watched(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens width"],
    key: Float[Tensor, "1 kv_heads tokens width"],
    value: Float[Tensor, "1 kv_heads tokens value_width"],
    attention_mask: Tensor | None,
    *,
    head_watch: dict[int, HeadActivity] | None = None,
    **arguments: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_width"], None]:
    """The attention function that transformers calls in every layer; see ``AttentionTerms``."""
    layer = getattr(module, "layer_idx", None)
    if head_watch is None or layer is None:
        raise ModelError(f"{type(module).__name__} was given no head_watch. {INSTEAD}")
    terms = AttentionTerms.of(module, query, attention_mask, arguments)
    heads, tokens = query.shape[1:3]
    # (1, heads, tokens, width): a key for each head of its group
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    scores = (query @ key.mT).float() * terms.scale  # (1, heads, tokens, tokens)
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    behind = torch.arange(tokens, device=query.device)
    behind = behind[:, None] - behind  # (queries, keys): by how many positions a key is behind
    seen = (behind >= 0) & (behind < (terms.window or tokens))
    scores = scores.masked_fill(~seen, -torch.inf)
    if terms.sinks is not None:
        # a last column without a value, which takes its share of the softmax and is cut off
        sinks = terms.sinks.float().view(1, heads, 1, 1).expand(-1, -1, tokens, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., :tokens].to(value.dtype)
    out = weights @ value  # (1, heads, tokens, value_width)
    head_watch[layer] = HeadActivity(weights[0], out[0])
    return out.transpose(1, 2), None  # (1, tokens, heads, value_width)


AttentionInterface.register(WATCHED_ATTENTION, attend_watched)
