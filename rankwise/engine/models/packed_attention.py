"""Attention over sequences that lie one behind the other in one row, without padding.

Decoders of transformers take their attention from its ``AttentionInterface``; ``packed_attention``
gives them this one. No mask function is registered for it, so transformers builds no mask.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import flex_attention as flex
from transformers import AttentionInterface

from rankwise.engine.models.attention import (
    INSTEAD,
    AttentionTerms,
    attention_of,
    decoder_of,
    refuse_lost_window,
    refuse_unpackable,
)
from rankwise.errors import DataError, ModelError
from rankwise.tasks.questions import Continuation, RightAnswer

PACKED_ATTENTION = "rankwise_packed"
# About this many queries are multiplied at once with the keys that any of them sees. Larger blocks
# multiply more keys in vain, smaller ones make products too small to be fast.
_BLOCK_TOKENS = 96
# Attention weights are kept for the backward pass up to this many per token (heads * length);
# where there are more they are computed again, as memory would grow with the length's square.
_KEPT_PER_TOKEN = 4096
# torch.compile needs triton for flex attention's CUDA kernels.
_HAS_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class PackedLayout:
    """Which tokens of a row belong together.

    Attributes:
        lengths: of the sequences in tokens, in the order in which they lie in the row.
        attended: window of each attention module that has computed with this layout, by its id.

    Raises:
        DataError: a sequence has no tokens, or there is none.
    """

    lengths: tuple[int, ...]
    attended: dict[int, int | None] = field(
        default_factory=dict[int, int | None], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if min(self.lengths, default=0) < 1:
            raise DataError(f"cannot pack sequences of {self.lengths} tokens: each needs one.")

    @cached_property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first token of every sequence."""
        return tuple(accumulate(self.lengths[:-1], initial=0))

    @cached_property
    def groups(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Every length with the starts of its sequences, which are multiplied in one batch."""
        groups: dict[int, list[int]] = {}
        for length, start in zip(self.lengths, self.starts, strict=True):
            groups.setdefault(length, []).append(start)
        return tuple((length, tuple(starts)) for length, starts in groups.items())

    def position_ids(self, device: torch.device) -> Int[Tensor, "1 tokens"]:
        """Positions counted from each sequence's first token."""
        return torch.cat([torch.arange(length) for length in self.lengths])[None].to(device)


@contextmanager
def packed_attention(model: nn.Module) -> Generator[None]:
    """Within the block, a model reads packed rows; afterwards it attends as before.

    Inside, it is called as ``model(input_ids=..., position_ids=layout.position_ids(device),
    packed_layout=layout, use_cache=False)`` with ids of shape (1, tokens). The backward pass has
    to be inside too: gradient checkpointing computes attention again there.

    Args:
        model: a decoder of transformers, with or without adapters in or around it.

    Raises:
        ModelError: as ``refuse_unpackable``; inside, for what packed attention cannot honour.
    """
    refuse_unpackable(model)
    with attention_of(decoder_of(model), PACKED_ATTENTION):
        yield


def predicting_states(
    decoder: Any, sequences: Sequence[Continuation | RightAnswer]
) -> list[Float[Tensor, "_ hidden"]]:
    """The last hidden states from which each sequence's continuation is predicted.

    Args:
        decoder: of transformers; reads packed rows now (``packed_attention``).
        sequences: are read in one forward pass.
    """
    layout = PackedLayout(tuple(len(sequence.tokens_read) for sequence in sequences))
    tokens = [token for sequence in sequences for token in sequence.tokens_read]
    hidden: Tensor = decoder.base_model(  # (tokens, hidden): the batch is one row
        input_ids=torch.tensor([tokens], device=decoder.device),
        position_ids=layout.position_ids(decoder.device),
        packed_layout=layout,
        use_cache=False,
    ).last_hidden_state[0]
    # the last token is not read, so the continuation is predicted at a sequence's last rows
    stops = (start + length for start, length in zip(layout.starts, layout.lengths, strict=True))
    return [
        hidden[stop - len(sequence.continuation) : stop]
        for stop, sequence in zip(stops, sequences, strict=True)
    ]


def within_budget(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most ``max_tokens``, longest first; a longer one is a batch alone.

    Sequences of equal length meet: packed attention multiplies them together.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
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
        ModelError: as ``refuse_unpackable``; or sequences see each other, layers do not pack, or
            a window is in the model's mask alone. Or all-zero or huge weights make its logits say
            nothing.
    """
    refuse_unpackable(model)
    was_training, packed = model.training, PackedLayout((7, 5))
    try:
        model.eval()
        near = far = 0.0
        for seed in range(3):
            near, far = _distances(model, packed, seed)
            if near < 0.1 * far:
                break
    finally:
        model.train(was_training)
    name, count = type(decoder_of(model)).__name__, len(packed.attended)
    if count != (layers := decoder_of(model).config.get_text_config().num_hidden_layers):
        raise ModelError(f"{name} packs {count} of its {layers} layers. {INSTEAD}")
    refuse_lost_window(decoder_of(model), packed.attended.values())
    if not near < 0.1 * far:
        _refuse_weights_of_no_use(model, far)
        raise ModelError(f"{name} mixes the sequences of a packed batch. {INSTEAD}")


def _refuse_weights_of_no_use(model: nn.Module, distance: float) -> None:
    """Refuse weights with which a model reads nothing; an all-zero matrix is harmless in others."""
    if not math.isfinite(distance):
        raise ModelError(
            "the model's weights are so large that its logits are not finite: its training has "
            "diverged, or its files are damaged. Save or fetch it again."
        )
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dim() > 1 and not bool(weight.any()):
            raise ModelError(
                f"all weights of {name} are zero, and the model gives every text the same logits. "
                "Save or fetch it again."
            )


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

    with attention_of(decoder, "eager"):
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
    packed_layout.attended[id(module)] = terms.window  # check_packable counts the layers
    device = query.device.type
    if torch.is_autocast_enabled(device):  # rotary embeddings may have left them in float32
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    with torch.autocast(device, enabled=False):  # it would compute softmax in float32
        return _kernel_for(query)(query, key, value, packed_layout, terms), None


def _kernel_for(query: Tensor) -> Callable[..., Tensor]:
    """Flex attention where it can be compiled, grouped products everywhere else."""
    return flex_packed_attention if query.is_cuda and _HAS_TRITON else grouped_attention


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, terms: AttentionTerms
) -> Float[Tensor, "1 tokens heads value_width"]:
    """Sequences of equal length in one product, on any device; shapes as ``attend_packed``."""
    heads, kv_heads = query.shape[1], key.shape[1]
    # each (tokens, kv_heads, per_key, width); per_key is heads / kv_heads, and 1 for key and value
    rows = [x[0].transpose(0, 1).unflatten(1, (kv_heads, -1)) for x in (query, key, value)]
    # by the sequence's first token: (length, kv_heads, per_key, width)
    pieces = [dict(zip(layout.starts, x.split(layout.lengths), strict=True)) for x in rows]
    outputs: dict[int, Tensor] = {}
    for length, starts in layout.groups:
        # (sequences * kv_heads, length * per_key, width): the query heads of a token that share a
        # key become neighbouring rows, so that a block of tokens is one range of rows
        q, k, v = (
            torch.stack([piece[start].transpose(0, 1) for start in starts])
            .flatten(2, 3)
            .flatten(0, 1)
            for piece in pieces
        )
        if terms.softcap is None and terms.sinks is None:
            keep = heads * length <= _KEPT_PER_TOKEN
            attended: Any = _GroupAttention.apply(q, k, v, terms, keep)
        else:
            attended = _attend_by_autograd(q, k, v, terms)
        # (sequences, kv_heads, length, per_key, value_width)
        of_sequences = attended.unflatten(0, (-1, kv_heads)).unflatten(2, (length, -1))
        # each (length, kv_heads, per_key, value_width)
        outputs |= zip(starts, of_sequences.transpose(1, 2), strict=True)
    # (1, tokens, heads, value_width)
    return torch.cat([outputs[start] for start in layout.starts]).flatten(1, 2)[None]


def _blocks(query: Tensor, key: Tensor, window: int | None) -> list[tuple[slice, slice]]:
    """Blocks of neighbouring tokens: the rows of their queries, and the keys that any of them sees.

    ``query`` is (batch, length * per_key, width), ``key`` is (batch, length, width).
    """
    length, per_key = key.shape[1], query.shape[1] // key.shape[1]
    # blocks of equal size, rounded up to a multiple of 8: whole vectors of the CPU
    step = -(-length // (max(1, round(length / _BLOCK_TOKENS)) * 8)) * 8
    ends = [(start, min(start + step, length)) for start in range(0, length, step)]
    first_keys = [0 if window is None else max(0, start - window + 1) for start, _ in ends]
    rows = [slice(start * per_key, stop * per_key) for start, stop in ends]
    keys = [slice(first, stop) for first, (_, stop) in zip(first_keys, ends, strict=True)]
    return list(zip(rows, keys, strict=True))


@torch.inference_mode(False)
def _unseen(
    rows: int, columns: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "rows 1 columns"]:
    """0 on keys that are seen and -inf elsewhere; the last column is the last row's own key."""
    # (rows, 1, columns): how many tokens the key is behind the query
    behind = torch.arange(columns - rows, columns)[:, None, None] - torch.arange(columns)
    seen = (behind >= 0) & (behind < (columns if window is None else window))
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf).to(device)


# The masks of blocks are kept, those of whole sequences not: they are as large as a head's scores.
_kept_unseen = lru_cache(maxsize=64)(_unseen)


def _weights(q: Tensor, k: Tensor, rows: slice, keys: slice, window: int | None) -> Tensor:
    """Softmax of a block's queries over its keys: (batch, tokens * per_key, keys)."""
    scores = torch.bmm(q[:, rows], k[:, keys].mT)  # (batch, tokens * per_key, keys)
    tokens, columns = scores.shape[1] * k.shape[1] // q.shape[1], scores.shape[2]
    if window is None or columns <= window:
        # all keys before the block are seen: only its own, the last columns, have to be masked
        columns, window = tokens, None
    unseen = _kept_unseen(tokens, columns, window, scores.dtype, scores.device)
    # view (batch, tokens, per_key, columns) + (tokens, 1, columns)
    scores.unflatten(1, (tokens, -1))[..., -columns:].add_(unseen)
    return scores.softmax(dim=-1)


class _GroupAttention(torch.autograd.Function):
    """Causal attention of (batch, tokens * per_key, width) to (batch, tokens, width).

    Written out so that the weights of long sequences are computed again instead of being kept.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, terms: AttentionTerms, keep: bool
    ) -> Tensor:
        q, kept = q * terms.scale, list[Tensor]()
        out = v.new_empty((*q.shape[:2], v.shape[-1]))  # (batch, tokens * per_key, value_width)
        for rows, keys in _blocks(q, k, terms.window):
            weights = _weights(q, k, rows, keys, terms.window)
            out[:, rows] = torch.bmm(weights, v[:, keys])
            kept += [weights] if keep else []
        ctx.save_for_backward(q, k, v, *kept)
        ctx.terms = terms
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, *kept = ctx.saved_tensors
        blocks = _blocks(q, k, ctx.terms.window)
        # sums over many blocks would lose their last bits in bfloat16
        sums = k.dtype if len(blocks) == 1 else torch.float32
        dq, (dk, dv) = torch.empty_like(q), (torch.zeros_like(x, dtype=sums) for x in (k, v))
        for index, (rows, keys) in enumerate(blocks):
            weights = kept[index] if kept else _weights(q, k, rows, keys, ctx.terms.window)
            dout = grads[0][:, rows]
            dv[:, keys] += torch.bmm(weights.mT, dout)
            dweights = torch.bmm(dout, v[:, keys].mT)
            # weights * (dweights - sum(dweights * weights)), in one kernel
            dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dq[:, rows] = torch.bmm(dscores, k[:, keys])
            dk[:, keys] += torch.bmm(dscores.mT, q[:, rows])
        # k was multiplied with a q that held the scale already: only dq lacks it
        return dq.mul_(ctx.terms.scale), dk.to(k.dtype), dv.to(v.dtype), None, None


def _attend_by_autograd(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    """Attention with softcap or sinks; scores and weights are float32, and all of them are kept."""
    batch, length = key.shape[:2]  # batch is sequences * kv_heads
    # (batch, length, per_key, length): query, head of the query, key
    scores = torch.bmm(query, key.mT).float().unflatten(1, (length, -1)) * terms.scale
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    scores = scores + _unseen(length, length, terms.window, scores.dtype, scores.device)
    if terms.sinks is not None:
        sinks = terms.sinks.float().view(-1, 1, scores.shape[2], 1)  # (kv_heads, 1, per_key, 1)
        sinks = sinks.repeat(batch // len(sinks), length, 1, 1)  # (batch, length, per_key, 1)
        scores = torch.cat([scores, sinks], dim=-1)  # one more key, which has no value
    weights = scores.softmax(dim=-1)[..., :length].to(value.dtype)
    return torch.bmm(weights.flatten(1, 2), value)  # (batch, length * per_key, value_width)


def flex_packed_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, terms: AttentionTerms
) -> Float[Tensor, "1 tokens heads value_width"]:
    """Flex attention of torch, compiled on CUDA; elsewhere a reference without gradients.

    Shapes are as in ``attend_packed``.
    """
    softcap, per_key = terms.softcap, query.shape[1] // key.shape[1]
    if per_key & (per_key - 1):  # for short rows, flex has kernels for powers of two only
        key, value = (x.repeat_interleave(per_key, dim=1) for x in (key, value))
    request: Any = getattr(flex, "AuxRequest", None)  # from torch 2.9
    attend = _compiled_flex() if query.is_cuda else flex.flex_attention
    arguments: dict[str, Any] = {"scale": terms.scale, "enable_gqa": key.shape[1] < query.shape[1]}
    arguments["block_mask"] = _block_mask(layout, terms.window, query.device)
    if softcap is not None:
        arguments["score_mod"] = lambda score, b, h, q, k: softcap * torch.tanh(score / softcap)
    if terms.sinks is None:  # from (1, heads, tokens, value_width)
        return attend(query, key, value, **arguments).transpose(1, 2)
    arguments |= {"return_aux": request(lse=True)} if request else {"return_lse": True}
    out, extra = attend(query, key, value, **arguments)
    lse = extra.lse if request else extra  # (1, heads, tokens): log of the keys' sum of exp
    # e^lse / (e^lse + e^sink): what the keys keep of the weight once the sink takes part
    share = torch.sigmoid(lse - terms.sinks.to(lse.dtype)[:, None])
    return (out * share[..., None].to(out.dtype)).transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex.flex_attention)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _block_mask(layout: PackedLayout, window: int | None, device: torch.device) -> flex.BlockMask:
    """The mask, made once for all layers.

    Uncompiled, torch makes a tensor of tokens * tokens elements on the way.
    """
    tokens = layout.num_tokens
    # (tokens,): the first token that each token sees, in its own sequence and window
    first = torch.tensor(layout.starts).repeat_interleave(torch.tensor(layout.lengths))
    if window is not None:
        first = first.maximum(torch.arange(tokens) - window + 1)
    first = first.to(device)
    return flex.create_block_mask(
        lambda b, h, q, k: (k <= q) & (k >= first[q]),
        B=None,
        H=None,
        Q_LEN=tokens,
        KV_LEN=tokens,
        device=device,
        _compile=device.type == "cuda",
    )


AttentionInterface.register(PACKED_ATTENTION, attend_packed)
