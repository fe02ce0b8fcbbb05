"""Kernels for the attention of packed rows: products of groups, and two of torch for CUDA."""

from __future__ import annotations

import importlib.util
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import flex_attention as flex

from rankwise.engine.models.attention import AttentionTerms, unseen_keys
from rankwise.engine.models.devices import is_out_of_memory, moved
from rankwise.engine.models.files import unusable
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.errors import ModelError, RankwiseError

# About this many queries are multiplied at once with the keys that any of them sees. Larger blocks
# multiply more keys in vain, smaller ones make products too small to be fast.
_BLOCK_TOKENS = 96
# Attention weights are kept for the backward pass up to this many per token (heads * length);
# where there are more they are computed again, as memory would grow with the length's square.
_KEPT_PER_TOKEN = 4096
# Triton multiplies tiles of at least this many columns: flex attention refuses narrower heads.
_FLEX_WIDTH = 16
# Flash attention has kernels for heads up to this width, in steps of 8.
_FLASH_WIDTH = 256
MASK_BLOCK = 128
"""Queries and keys of a block of flex attention's mask: torch's default, which its tiles divide."""

# Kernels of flex attention in one process on one card, by dynamo's count on a CPU: training makes
# 5 of one model in one precision, and reading trees 7 (Llama) to 18 (GPT-OSS); torch's limit is 8.
# Beyond a limit torch would silently compute scores of tokens * tokens.
_FLEX_KERNELS = 64
# Tiles of flex attention's kernels in the order in which they are tried: torch's own, and two kinds
# that take less shared memory. A head of 512 columns in half precision needs some 128 and 96 KiB
# with these, by arithmetic; torch's own take 257 of the 227 that an H100 has.
_TILES: tuple[dict[str, int], ...] = (
    {},
    *(
        {"fwd_BLOCK_M": rows, "fwd_BLOCK_N": 32, "fwd_num_stages": 1, "bwd_num_stages": 1}
        | {f"bwd_BLOCK_{side}": rows // 2 for side in ("M1", "N1", "M2", "N2")}
        for rows in (64, 32)
    ),
)
# Sequences of the trial: blocks of the mask that are full, in part seen, and not full.
_TRIED = PackedLayout((300, 5))

_log = logging.getLogger(__name__)


def kernel_for(
    query: Tensor, value: Tensor, layout: PackedLayout, terms: AttentionTerms
) -> Callable[..., Tensor]:
    """The function that attends; see ``chosen_kernel``."""
    chosen = chosen_kernel(
        query.device.type,
        query.dtype,
        (query.shape[-1], value.shape[-1]),
        is_plain=terms.softcap is None and terms.sinks is None and not any(layout.shared),
        has_flash=query.is_cuda and _has_flash(query.device),
    )
    kernels = {"grouped": grouped_attention, "flex": flex_or_grouped, "varlen": varlen_attention}
    return kernels[chosen]


def chosen_kernel(
    device_type: str,
    dtype: torch.dtype,
    widths: tuple[int, int],
    *,
    is_plain: bool,
    has_flash: bool,
) -> Literal["grouped", "flex", "varlen"]:
    """The kernel for packed rows on a device.

    On CUDA flash attention needs no compiler, and flex attention, where it compiles, has what it
    lacks. Products of groups run everywhere.

    Args:
        device_type: of the tensors.
        dtype: of the tensors.
        widths: of a head's key and value.
        is_plain: there is no softcap, no sink, and no sequence that shares tokens with another.
        has_flash: flash attention is there, and the card can run it.
    """
    width, value_width = widths
    if device_type != "cuda" or min(widths) < _FLEX_WIDTH:
        return "grouped"
    fits = width == value_width and width % 8 == 0 and width <= _FLASH_WIDTH
    if has_flash and is_plain and fits and dtype in (torch.bfloat16, torch.float16):
        return "varlen"
    return "flex"


class FlexCase(NamedTuple):
    """What flex attention's kernels depend on, but for lengths.

    Attributes:
        device: that computes.
        dtype: of query, key and value.
        widths: of a head's key and value.
        per_key: query heads that share a head of key and value.
        window: see ``AttentionTerms``; so is the softcap.
        softcap: see ``window``.
        has_sinks: whether there are sinks.
        is_trained: whether it is followed by a backward pass.
    """

    device: torch.device
    dtype: torch.dtype
    widths: tuple[int, int]
    per_key: int = 1
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    is_trained: bool = True

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> FlexCase:
        """That of an attention; tensors have their heads along the second axis."""
        is_trained = any(x.requires_grad for x in (query, key, value)) and torch.is_grad_enabled()
        return cls(
            *(query.device, query.dtype, (query.shape[-1], value.shape[-1])),
            *(query.shape[1] // key.shape[1], terms.window, terms.softcap),
            has_sinks=terms.sinks is not None,
            is_trained=is_trained,
        )


# By case: tiles that have not failed, of which the first ran in a trial. And heads of which it was
# said that none are left.
_tiles_left: dict[FlexCase, list[dict[str, int]]] = {}
_said: set[tuple[torch.dtype, tuple[int, int]]] = set()


def flex_tiles(case: FlexCase) -> Mapping[str, int] | None:
    """Tiles with which flex attention runs there, as its options; None where products have to.

    They are tried once. Memory that runs out meanwhile says nothing of them: it is an error, and
    nothing is remembered.
    """
    if case not in _tiles_left:
        left = list[dict[str, int]]()
        if importlib.util.find_spec("triton") is not None:
            try:
                left = tried_tiles(case)
            except ModelError as error:
                _say(case, error)
        _tiles_left[case] = left
    return next(iter(_tiles_left[case]), None)


def tried_tiles(case: FlexCase) -> list[dict[str, int]]:
    """The tiles from the first ones on with which flex attention compiles and runs there.

    Triton needs a compiler for C and Python's headers, which small containers lack, and its blocks
    need more shared memory the wider a head is.

    Raises:
        ModelError: with the reason of the last ones; none runs.
    """
    left = [*_TILES]
    while True:
        try:
            check_flex(case, left[0])
            return left
        except ModelError:
            if len(left) == 1:
                raise
        del left[0]


def _say(case: FlexCase, error: BaseException) -> None:
    """Say once that products compute attention, and why."""
    if (heads := (case.dtype, case.widths)) not in _said:
        _said.add(heads)
        dtype, reason = str(case.dtype).removeprefix("torch."), str(error).partition("\n")[0]
        _log.warning(
            "attention with %s columns a head in %s is computed by slower matrix products: %s",
            *(case.widths[0], dtype, reason),
        )


def _refused(case: FlexCase, error: BaseException) -> None:
    """Leave out the first tiles that are left."""
    left = _tiles_left[case]
    del left[0]
    if not left:
        _say(case, error)


def flex_failed(error: Exception) -> bool:
    """Whether flex attention's backward pass may be why a step of training failed.

    If so, its next tiles are used from now on, or products: take the step again. Where something
    else is the reason, it fails again until this is False.
    """
    if is_out_of_memory(error) or isinstance(error, RankwiseError):
        return False
    used = [case for case, left in _tiles_left.items() if left and case.is_trained]
    for case in used:
        _refused(case, error)
    return bool(used)


@cache
def _has_flash(device: torch.device) -> bool:
    """Whether torch's flash attention runs there: NVIDIA cards from compute capability 8.0 on."""
    return (
        torch.version.cuda is not None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, terms: AttentionTerms
) -> Float[Tensor, "1 tokens heads value_width"]:
    """Sequences of equal length in one product, on any device; shapes as ``attend_packed``."""
    heads, kv_heads = query.shape[1], key.shape[1]
    # each (tokens, kv_heads, per_key, width); per_key is heads / kv_heads, and 1 for key and value
    rows = [x[0].transpose(0, 1).unflatten(1, (kv_heads, -1)) for x in (query, key, value)]
    # by sequence: (length, kv_heads, per_key, width)
    queries, *of_keys = ([*x.split(layout.lengths)] for x in rows)
    outputs: dict[int, Tensor] = {}
    for length, shared, indices in layout.groups:
        trunks = [layout.trunks[index] for index in indices]
        pieces = [[queries[index] for index in indices]]
        for of_key in of_keys:
            own = [of_key[index] for index in indices]
            if shared:  # (shared + length, kv_heads, 1, width)
                before = (of_key[trunk][:shared] for trunk in trunks)
                own = [torch.cat(both) for both in zip(before, own, strict=True)]
            pieces.append(own)
        # (sequences * kv_heads, length * per_key, width): the query heads of a token that share a
        # key become neighbouring rows, so that a block of tokens is one range of rows
        q, k, v = (
            torch.stack([x.transpose(0, 1) for x in piece]).flatten(2, 3).flatten(0, 1)
            for piece in pieces
        )
        if terms.softcap is None and terms.sinks is None:
            keep = heads * (shared + length) <= _KEPT_PER_TOKEN
            attended: Any = _GroupAttention.apply(q, k, v, terms, shared, keep)
        else:
            attended = _attend_by_autograd(q, k, v, terms, shared)
        # (sequences, kv_heads, length, per_key, value_width)
        of_sequences = attended.unflatten(0, (-1, kv_heads)).unflatten(2, (length, -1))
        # each (length, kv_heads, per_key, value_width)
        outputs |= zip(indices, of_sequences.transpose(1, 2), strict=True)
    # (1, tokens, heads, value_width)
    return torch.cat([outputs[index] for index in range(len(outputs))]).flatten(1, 2)[None]


def _blocks(
    query: Tensor, key: Tensor, window: int | None, shared: int
) -> list[tuple[int, slice, slice]]:
    """Blocks of neighbouring tokens: how many, the rows of their queries, and the keys they see.

    ``query`` is (batch, length * per_key, width), ``key`` is (batch, shared + length, width): the
    first keys are those of tokens that have no query here.
    """
    length = key.shape[1] - shared
    per_key = query.shape[1] // length
    # blocks of equal size, rounded up to a multiple of 8: whole vectors of the CPU
    step = -(-length // (max(1, round(length / _BLOCK_TOKENS)) * 8)) * 8
    blocks: list[tuple[int, slice, slice]] = []
    for start in range(0, length, step):
        stop = min(start + step, length)
        first = 0 if window is None else max(0, shared + start - window + 1)
        rows, keys = slice(start * per_key, stop * per_key), slice(first, shared + stop)
        blocks.append((stop - start, rows, keys))
    return blocks


@torch.inference_mode(False)
def _unseen(
    rows: int, columns: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "rows 1 columns"]:
    """0 on keys that are seen and -inf elsewhere; the last column is the last row's own key."""
    unseen = unseen_keys(rows, columns, window)
    return moved(torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, -torch.inf), device)


# The masks of blocks are kept, those of whole sequences not: they are as large as a head's scores.
_kept_unseen = lru_cache(maxsize=64)(_unseen)


def _weights(q: Tensor, k: Tensor, block: tuple[int, slice, slice], window: int | None) -> Tensor:
    """Softmax of a block's queries over its keys: (batch, tokens * per_key, keys)."""
    tokens, rows, keys = block
    scores = torch.bmm(q[:, rows], k[:, keys].mT)  # (batch, tokens * per_key, keys)
    columns = scores.shape[2]
    if window is None or columns <= window:
        # all keys before the block are seen: only its own, the last columns, have to be masked
        columns, window = tokens, None
    unseen = _kept_unseen(tokens, columns, window, scores.dtype, scores.device)
    # view (batch, tokens, per_key, columns) + (tokens, 1, columns)
    scores.unflatten(1, (tokens, -1))[..., -columns:].add_(unseen)
    return scores.softmax(dim=-1)


class _GroupAttention(torch.autograd.Function):
    """Causal attention of (batch, tokens * per_key, width) to (batch, shared + tokens, width).

    Written out so that the weights of long sequences are computed again instead of being kept.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, terms: AttentionTerms, shared: int, keep: bool
    ) -> Tensor:
        q, kept = q * terms.scale, list[Tensor]()
        out = v.new_empty((*q.shape[:2], v.shape[-1]))  # (batch, tokens * per_key, value_width)
        for block in _blocks(q, k, terms.window, shared):
            _, rows, keys = block
            weights = _weights(q, k, block, terms.window)
            out[:, rows] = torch.bmm(weights, v[:, keys])
            kept += [weights] if keep else []
        ctx.save_for_backward(q, k, v, *kept)
        ctx.terms, ctx.shared = terms, shared
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, *kept = ctx.saved_tensors
        blocks = _blocks(q, k, ctx.terms.window, ctx.shared)
        # sums over many blocks would lose their last bits in bfloat16
        sums = k.dtype if len(blocks) == 1 else torch.float32
        dq, (dk, dv) = torch.empty_like(q), (torch.zeros_like(x, dtype=sums) for x in (k, v))
        for index, block in enumerate(blocks):
            _, rows, keys = block
            weights = kept[index] if kept else _weights(q, k, block, ctx.terms.window)
            dout = grads[0][:, rows]
            dv[:, keys] += torch.bmm(weights.mT, dout)
            dweights = torch.bmm(dout, v[:, keys].mT)
            # weights * (dweights - sum(dweights * weights)), in one kernel
            dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dq[:, rows] = torch.bmm(dscores, k[:, keys])
            dk[:, keys] += torch.bmm(dscores.mT, q[:, rows])
        # k was multiplied with a q that held the scale already: only dq lacks it
        return dq.mul_(ctx.terms.scale), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _attend_by_autograd(
    query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms, shared: int
) -> Tensor:
    """Attention with softcap or sinks; scores and weights are float32, and all of them are kept."""
    batch, num_keys = key.shape[:2]  # batch is sequences * kv_heads
    length = num_keys - shared
    # (batch, length, per_key, num_keys): query, head of the query, key
    scores = torch.bmm(query, key.mT).float().unflatten(1, (length, -1)) * terms.scale
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    scores = scores + _unseen(length, num_keys, terms.window, scores.dtype, scores.device)
    if terms.sinks is not None:
        sinks = terms.sinks.float().view(-1, 1, scores.shape[2], 1)  # (kv_heads, 1, per_key, 1)
        sinks = sinks.repeat(batch // len(sinks), length, 1, 1)  # (batch, length, per_key, 1)
        scores = torch.cat([scores, sinks], dim=-1)  # one more key, which has no value
    weights = scores.softmax(dim=-1)[..., :num_keys].to(value.dtype)
    return torch.bmm(weights.flatten(1, 2), value)  # (batch, length * per_key, value_width)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, terms: AttentionTerms
) -> Float[Tensor, "1 tokens heads value_width"]:
    """Flash attention of torch, on CUDA only, without softcap and sinks.

    Shapes are as in ``attend_packed``.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, width)
    bounds, longest = _bounds(layout, query.device), max(layout.lengths)
    # tokens that are seen before the token itself; -1 are all
    before = -1 if terms.window is None or terms.window >= longest else terms.window - 1
    out = _varlen()(
        *(q, k, v, bounds, bounds, longest, longest),
        scale=terms.scale,
        window_size=(before, 0),
        enable_gqa=k.shape[1] < q.shape[1],
    )
    return out[None]


@cache
def _varlen() -> Callable[..., Tensor]:
    """``varlen_attn`` of torch, or the operator beneath it.

    torch has ``varlen_attn`` from 2.10 on, and its arguments for scale, window and grouped heads
    came later.
    """
    with suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        known = inspect.signature(varlen_attn).parameters
        if {"scale", "window_size", "enable_gqa"} <= known.keys():
            found: Any = varlen_attn  # which returns more only where it is asked to
            return found
    return _flash_operator


def _flash_operator(
    *tensors_and_lengths: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool
) -> Tensor:
    """Attention as in ``varlen_attn``.

    Heads are grouped by their numbers, with or without ``enable_gqa``.
    """
    del enable_gqa
    before, after = window_size
    dropout, is_causal, return_debug_mask = 0.0, before < 0, False
    return torch.ops.aten._flash_attention_forward(
        *(*tensors_and_lengths, dropout, is_causal, return_debug_mask),
        scale=scale,
        window_size_left=before,
        window_size_right=after,
    )[0]


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _bounds(layout: PackedLayout, device: torch.device) -> Int[Tensor, " bounds"]:
    """Where sequences begin, and where the last one ends; made once for all layers."""
    return moved(torch.tensor((*layout.starts, layout.num_tokens), dtype=torch.int32), device)


def flex_or_grouped(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, terms: AttentionTerms
) -> Float[Tensor, "1 tokens heads value_width"]:
    """Flex attention where its kernels run, else products; shapes as ``attend_packed``."""
    case = FlexCase.of(query, key, value, terms)
    out = where_flex_runs(
        case, lambda tiles: flex_attention(query, key, value, layout, terms, tiles)
    )
    return grouped_attention(query, key, value, layout, terms) if out is None else out


def where_flex_runs(case: FlexCase, attend: Callable[[Mapping[str, int]], Tensor]) -> Tensor | None:
    """What ``attend`` makes with the tiles of ``flex_tiles``; None where there are none.

    Where it fails although their trial did not, the next ones are taken.
    """
    while (tiles := flex_tiles(case)) is not None:
        try:
            return attend(tiles)
        except Exception as error:
            # checkpointing ends the second computation of a layer by an error of its own
            if is_out_of_memory(error) or type(error).__module__ == "torch.utils.checkpoint":
                raise
            _refused(case, error)
    return None


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    terms: AttentionTerms,
    tiles: Mapping[str, int] = _TILES[0],
) -> Float[Tensor, "1 tokens heads value_width"]:
    """Flex attention of torch; shapes as ``attend_packed``."""
    mask = _block_mask(layout, terms.window, query.device)
    return attend_by_flex(query, key, value, mask, terms, tiles)


def attend_by_flex(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    value: Float[Tensor, "batch kv_heads keys value_width"],
    mask: flex.BlockMask,
    terms: AttentionTerms,
    tiles: Mapping[str, int] = _TILES[0],
) -> Float[Tensor, "batch queries heads value_width"]:
    """Flex attention of torch, compiled on CUDA; elsewhere a reference without gradients.

    The mask has the window in it; ``tiles`` are options of the kernel.
    """
    softcap = terms.softcap
    request: Any = getattr(flex, "AuxRequest", None)  # from torch 2.9
    attend = _compiled_flex() if query.is_cuda else flex.flex_attention
    arguments: dict[str, Any] = {"scale": terms.scale, "enable_gqa": key.shape[1] < query.shape[1]}
    arguments["block_mask"] = mask
    # flex's other kernel, for rows of less than 128 tokens, groups heads by powers of two only
    arguments["kernel_options"] = {"FORCE_USE_FLEX_ATTENTION": True, **tiles}
    if softcap is not None:
        arguments["score_mod"] = lambda score, b, h, q, k: softcap * torch.tanh(score / softcap)
    if terms.sinks is not None:
        arguments |= {"return_aux": request(lse=True)} if request else {"return_lse": True}
    # a softcap is a constant of its kernel: flex attention takes no number that changes
    with torch._dynamo.config.patch(  # pyright: ignore[reportPrivateUsage]
        specialize_float=True
    ):
        found = attend(query, key, value, **arguments)
    if terms.sinks is None:  # from (batch, heads, queries, value_width)
        return found.transpose(1, 2)
    out, extra = found
    lse = extra.lse if request else extra  # (batch, heads, queries): log of the keys' sum of exp
    # e^lse / (e^lse + e^sink): what the keys keep of the weight once the sink takes part
    share = torch.sigmoid(lse - terms.sinks.to(lse.dtype)[:, None])
    return (out * share[..., None].to(out.dtype)).transpose(1, 2)


def check_flex(case: FlexCase, tiles: Mapping[str, int] = _TILES[0]) -> None:
    """Compute flex attention of a few tokens, which compiles it on CUDA; backward where it trains.

    Raises:
        ModelError: whatever compiler or card raise. Triton, which comes with torch, needs one for
            C.
    """
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(case.is_trained),
        # in a layer that is checkpointed the trial's tensors are not to be computed again
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
        unusable("flex attention failed", "Where a C compiler is missing, install gcc."),
    ):
        heads, (width, value_width) = 2 * case.per_key, case.widths
        query, key, value = (
            torch.ones(
                *(1, count, sum(_TRIED.lengths), columns),
                dtype=case.dtype,
                device=case.device,
                requires_grad=case.is_trained,
            )
            for count, columns in ((heads, width), (2, width), (2, value_width))
        )
        sinks = query.new_zeros(heads, requires_grad=False) if case.has_sinks else None
        terms = AttentionTerms(width**-0.5, case.window, case.softcap, sinks)
        out = flex_attention(query, key, value, _TRIED, terms, tiles)
        if case.is_trained:
            out.sum().backward()


@cache
def _compiled_flex() -> Callable[..., Any]:
    compiled: Any = torch.compile(flex.flex_attention)

    def attend(*tensors: Tensor, **arguments: Any) -> Any:
        with torch._dynamo.config.patch(  # pyright: ignore[reportPrivateUsage]
            recompile_limit=_FLEX_KERNELS * (torch.cuda.device_count() or 1),
            fail_on_recompile_limit_hit=True,
        ):
            return compiled(*tensors, **arguments)

    return attend


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _block_mask(layout: PackedLayout, window: int | None, device: torch.device) -> flex.BlockMask:
    """The mask, made once for all layers; from lengths, without a matrix of all tokens.

    Of its own sequence a token sees from ``first`` of its place to itself, and both only move
    forward from token to token. So the keys that a block of queries sees are one range, and so are
    those that all of its queries see. What sequences share is a range of its own for each token.
    """
    tokens, size = layout.num_tokens, MASK_BLOCK
    lengths = torch.tensor(layout.lengths)

    def of_tokens(numbers: Sequence[int]) -> Int[Tensor, " tokens"]:
        return torch.tensor(numbers).repeat_interleave(lengths, output_size=tokens)

    # (tokens,): the first token that each token sees, in its own sequence and window
    first, places = of_tokens(layout.starts), torch.arange(tokens)
    # (tokens,): those that it shares and sees begin and end there
    shared = of_tokens(layout.shared or (0,) * len(lengths))
    begins = of_tokens([layout.starts[trunk] for trunk in layout.trunks])
    ends = begins + shared
    if window is not None:
        own = places - first + 1
        first = first.maximum(places - window + 1)
        begins = begins.maximum(ends - (window - own).clamp(min=0))
    first, begins, ends = (moved(x, device) for x in (first, begins, ends))
    at = torch.arange(-(-tokens // size), device=device)  # (blocks,), of queries and of keys
    # (blocks, 1): the first block of keys that any query sees, and the first that all see whole;
    # no block of keys is seen whole by a last block of fewer queries
    seen = (first[::size] // size)[:, None]
    whole = torch.full_like(seen, len(at))
    whole[: tokens // size, 0] = (first[size - 1 :: size] + size - 1) // size
    is_before = at < at[:, None]
    is_full = (at >= whole) & is_before
    is_masked = (at >= seen) & (is_before | (at == at[:, None])) & ~is_full
    if not any(layout.shared):
        return block_mask(
            is_masked, is_full, lambda b, h, q, k: (k <= q) & (k >= first[q]), (tokens, tokens)
        )

    def of_blocks(numbers: Tensor, missing: int) -> Int[Tensor, "blocks size"]:
        numbers = numbers.where(begins < ends, missing)
        padding = (0, len(at) * size - tokens)
        return nn.functional.pad(numbers, padding, value=missing).view(-1, size)

    # (blocks, 1): the first and the last block of keys in which a block of queries shares anything
    low = of_blocks(begins, tokens).amin(1, keepdim=True) // size
    high = of_blocks(ends - 1, -1).amax(1, keepdim=True) // size
    is_masked |= (at >= low) & (at <= high) & ~is_full

    return block_mask(
        is_masked,
        is_full,
        lambda b, h, q, k: (k <= q) & (k >= first[q]) | (k >= begins[q]) & (k < ends[q]),
        (tokens, tokens),
    )


def block_mask(
    is_masked: Bool[Tensor, "query_blocks key_blocks"],
    is_full: Bool[Tensor, "query_blocks key_blocks"],
    sees: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    lengths: tuple[int, int],
) -> flex.BlockMask:
    """A mask of all heads.

    Args:
        is_masked: where some query of a block sees some key of another, and ``sees`` says which.
        is_full: where every query sees every key.
        sees: of batch, head, query and key: whether the query sees the key.
        lengths: of queries and of keys.
    """

    def ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
        """How many blocks of keys each block of queries has; and all of them, the chosen first."""
        order = chosen.int().argsort(dim=-1, descending=True, stable=True)
        return chosen.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]

    return flex.BlockMask.from_kv_blocks(
        *(*ordered(is_masked), *ordered(is_full)),
        BLOCK_SIZE=MASK_BLOCK,
        mask_mod=sees,
        seq_lengths=lengths,
    )
