"""Attention of generated texts: one new token per row against its cache, and new prompts.

One forward pass has the newest token of every row and the tokens of prompts that are read, in any
order; ``attend_decoded`` keeps them apart. It is registered with transformers'
``AttentionInterface`` without a mask function, so transformers builds no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from rankwise.engine.models.attention import (
    INSTEAD,
    AttentionTerms,
    capped_,
    scores_of,
    unseen_keys,
)
from rankwise.engine.models.devices import moved, moved_together
from rankwise.engine.scoring.decode.cache import (
    BLOCK_TOKENS,
    VOID,
    BlockCache,
    BlockTable,
    Read,
    Segment,
    SharedUse,
)
from rankwise.errors import ModelError

DECODE_ATTENTION = "rankwise_decode"
# Queries of a prompt whose scores are computed at once: scores of a long prompt take memory in
# proportion to the square of its length otherwise.
_QUERY_TOKENS = 256
# Stands for a maximum of -inf, where a row sees nothing of a segment: -inf - -inf would be NaN.
_LEAST = -1e30
# Divides the output of such a row, which is zero, in place of a sum of zero.
_SMALLEST_SUM = 1e-30


@dataclass(frozen=True, eq=False)
class DecodeLayout:
    """Which tokens one forward pass has, and where their keys and values lie.

    Attributes:
        cache: the blocks of all rows.
        tokens: (tokens,) that are read.
        positions: (tokens,) position of every token in its text.
        ends: (ends,) places of the tokens behind which logits are wanted.
        rows: (rows,) places of the decoded rows' newest tokens.
        table: blocks of the decoded rows; None if there is no such row.
        reads: the other tokens.
        shared: segments that were read, now or before; a segment comes behind those that its
            tokens see.
    """

    cache: BlockCache
    tokens: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    ends: Int[Tensor, " ends"]
    rows: Int[Tensor, " rows"]
    table: BlockTable | None
    reads: Sequence[Read]
    shared: Sequence[SharedUse] = ()
    _elsewhere: dict[torch.device, DecodeLayout] = field(
        default_factory=dict[torch.device, "DecodeLayout"], init=False
    )

    def on(self, device: torch.device) -> DecodeLayout:
        """The same pass for layers on another device."""
        if device == self.positions.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = replace(
                self,
                positions=self.positions.to(device),
                rows=self.rows.to(device),
                table=None if self.table is None else self.table.on(device),
            )
        return self._elsewhere[device]

    @cached_property
    def alike(self) -> list[Int[Tensor, "reads tokens"]]:
        """Places of the reads of each length, which are multiplied in one batch."""
        starts: dict[int, list[int]] = {}
        for read in self.reads:
            starts.setdefault(read.length, []).append(read.start)
        places = [
            np.array(firsts)[:, None] + np.arange(length) for length, firsts in starts.items()
        ]
        return moved_together(places, self.positions.device)

    @cached_property
    def copied(self) -> list[Segment]:
        """Segments that are copied into rows' blocks."""
        return [*dict.fromkeys(segment for read in self.reads for segment in read.copied)]

    @cached_property
    def written(self) -> tuple[Int[Tensor, " blocks"], Int[Tensor, "blocks block"]] | None:
        """Blocks of rows whose prompts are read, and the places that go there; None: no row's are.

        Behind the places of this pass come those of ``copied``. Whole blocks are written. Behind
        the last token its key and value are repeated, which are finite if they are: weights there
        are 0, and 0 times infinity would be NaN.
        """
        places: list[Int[np.ndarray, " places"]] = []
        blocks: list[int] = []
        starts, behind = dict[Segment, int](), len(self.positions)
        for segment in self.copied:
            starts[segment] = behind
            behind += segment.length
        for read in self.reads:
            if not isinstance(read.into, Segment):
                spans = [(starts[segment], segment.length) for segment in read.copied]
                spans.append((read.start, read.length))
                own = np.concatenate([np.arange(start, start + size) for start, size in spans])
                size = len(read.into) * BLOCK_TOKENS
                places.append(own[np.minimum(np.arange(size), len(own) - 1)])
                blocks += read.into
        if not blocks:
            return None
        index = np.concatenate(places).reshape(-1, BLOCK_TOKENS)
        of_blocks, index = moved_together([np.array(blocks), index], self.positions.device)
        return of_blocks, index


def attend_decoded(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens width"],
    key: Float[Tensor, "1 kv_heads tokens width"],
    value: Float[Tensor, "1 kv_heads tokens value_width"],
    attention_mask: Tensor | None,
    *,
    decode_layout: DecodeLayout | None = None,
    **arguments: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_width"], None]:
    """The attention function that transformers calls in every layer; see ``AttentionTerms``.

    Keys and values of the tokens go into the layout's cache and segments.

    Raises:
        ModelError: no layout, one of another size, or an argument that would change the result.
    """
    terms = AttentionTerms.of(module, query, attention_mask, arguments)
    name = type(module).__name__
    if decode_layout is None:
        raise ModelError(f"{name} was given no decode_layout by its model. {INSTEAD}")
    sizes = [(len(x), x.shape[2]) for x in (query, key, value)]
    tokens = len(decode_layout.positions)
    if sizes != [(1, tokens)] * 3:
        raise ModelError(f"{name} got (rows, tokens) of {sizes}, expected one row of {tokens}.")
    q = query[0].transpose(0, 1)  # (tokens, heads, width)
    # heads that share a key are neighbours, as in transformers' repeat_kv
    q = q.unflatten(1, (key.shape[1], -1))  # (tokens, kv_heads, group, width)
    k, v = key[0].transpose(0, 1), value[0].transpose(0, 1)  # (tokens, kv_heads, width)
    return _attend(id(module), q, k, v, decode_layout.on(q.device), terms)[None], None


class _Outputs:
    """The output of all tokens, into which segments are merged one after the other.

    Attributes:
        out: (tokens, heads, value_width), in float32 if anything is merged.
        lse: (tokens, heads) log of the sum of exponentials so far, or None if nothing is merged.
    """

    def __init__(self, q: Tensor, v: Tensor, has_more: bool) -> None:
        tokens, heads = len(q), q.shape[1] * q.shape[2]
        dtype = torch.float32 if has_more else v.dtype
        self.out = v.new_empty((tokens, heads, v.shape[-1]), dtype=dtype)
        self.lse = v.new_empty((tokens, heads), dtype=torch.float32) if has_more else None

    def put(self, places: Tensor | None, out: Tensor, lse: Tensor | None) -> None:
        """The first output of these places; None: of all."""
        if places is None:
            self.out, self.lse = out.to(self.out.dtype), lse
            return
        self.out[places] = out.to(self.out.dtype)
        if self.lse is not None:
            assert lse is not None
            self.lse[places] = lse

    def add(self, places: slice, out: Tensor, lse: Tensor) -> None:
        assert self.lse is not None
        # Online softmax: both outputs are normalised by their own sum of exponentials, exp(lse).
        # Each is weighted by its share of the total, so no score is computed twice.
        before = self.lse[places]
        total = torch.logaddexp(before, lse)
        # (tokens, heads, 1)
        share, more = (before - total).exp_()[..., None], (lse - total).exp_()[..., None]
        self.out[places] = self.out[places].mul_(share).addcmul_(out.to(self.out.dtype), more)
        self.lse[places] = total


def _attend(
    layer: int, q: Tensor, k: Tensor, v: Tensor, layout: DecodeLayout, terms: AttentionTerms
) -> Float[Tensor, "tokens heads value_width"]:
    """The row's own tokens first, then every segment that it sees."""
    parts = _Outputs(q, v, bool(layout.shared) or terms.sinks is not None)
    keep_lse = parts.lse is not None
    # keys and values of prompts and segments are written to where they belong
    for read in layout.reads:
        if isinstance(read.into, Segment):
            span = slice(read.start, read.start + read.length)
            # (kv_heads, width, tokens) and (kv_heads, tokens, value_width), as bmm wants them
            pair = k[span].permute(1, 2, 0).contiguous(), v[span].transpose(0, 1).contiguous()
            read.into.layers[layer] = pair
    if layout.written is not None:
        blocks, index = layout.written
        keys, values = layout.cache.layer(layer, k.shape[-1], v)
        pool_k, pool_v = k, v  # (places, kv_heads, width)
        if layout.copied:
            pairs = [segment.layers[layer] for segment in layout.copied]
            pool_k = torch.cat([k, *(of_keys.permute(2, 0, 1) for of_keys, _ in pairs)])
            pool_v = torch.cat([v, *(of_values.transpose(0, 1) for _, of_values in pairs)])
        keys[blocks] = pool_k[index].permute(0, 2, 3, 1)  # (blocks, kv_heads, width, block)
        values[blocks] = pool_v[index].transpose(1, 2)  # (blocks, kv_heads, block, value_width)
    if layout.table is not None:
        keys, values = layout.cache.layer(layer, k.shape[-1], v)
        table = layout.table
        # mostly no prompt is read, and all tokens are rows in their order
        places = layout.rows if layout.reads else None
        of_rows = (q, k, v) if places is None else (q[places], k[places], v[places])
        # the newest token's key and value go to its place in its row's last block
        keys[table.current, :, :, table.offset] = of_rows[1]  # (rows, kv_heads, width)
        values[table.current, :, table.offset] = of_rows[2]  # (rows, kv_heads, value_width)
        out, lse = _attend_blocks(of_rows[0], keys, values, table, terms, keep_lse)
        parts.put(places, out, lse)
    for places in layout.alike:
        out, lse = _attend_own(q[places], k[places], v[places], terms, keep_lse)
        parts.put(places.flatten(), out, lse)
    for use in layout.shared:
        if use.stop > use.start:
            places = slice(use.start, use.stop)
            segment = use.segment.layers[layer]
            unseen = _out_of_window(layout.positions[places], use, terms.window)
            parts.add(places, *_attend_segment(q[places], *segment, terms, unseen))
    if terms.sinks is not None:
        # A sink takes part in the softmax and has no value: the output is scaled by
        # sum / (sum + exp(sink)).
        assert parts.lse is not None
        parts.out *= torch.sigmoid(parts.lse - terms.sinks.float())[..., None]
    return parts.out.to(v.dtype)


def _attend_blocks(
    q: Float[Tensor, "rows kv_heads group width"],
    keys: Tensor,
    values: Tensor,
    table: BlockTable,
    terms: AttentionTerms,
    keep_lse: bool,
) -> tuple[Float[Tensor, "rows heads value_width"], Tensor | None]:
    """Every block with the query of its row; then softmax over each row's blocks.

    Products run over the cache's blocks as they lie, so that no key or value is gathered: only the
    queries, scores, weights and outputs, which are smaller, go back and forth between blocks and
    rows.
    """
    rows, kv_heads, group, width = q.shape
    blocks, columns, heads = len(keys), table.grid.shape[1], kv_heads * group
    of_blocks = q[table.row_of].view(blocks * kv_heads, group, width)
    products = scores_of(of_blocks, keys.flatten(0, 1))  # (blocks * kv_heads, group, block)
    products = products.view(blocks, heads, BLOCK_TOKENS)
    scores = products.new_empty((rows, heads, columns, BLOCK_TOKENS), dtype=torch.float32)
    scores.copy_(products[table.grid].transpose(1, 2))  # from (rows, columns, heads, block)
    scores = _limited(scores.flatten(2), terms)  # (rows, heads, columns * block)
    scores = scores.masked_fill_(table.unseen(terms.window), -torch.inf)
    lse = scores.logsumexp(dim=-1) if keep_lse else None  # (rows, heads)
    weights = scores.softmax(dim=-1).to(values.dtype).view(rows, heads, columns, BLOCK_TOKENS)
    weights = weights.transpose(1, 2)[table.row_of, table.column_of]  # (blocks, heads, block)
    weights = weights.view(blocks * kv_heads, group, BLOCK_TOKENS)
    out = torch.bmm(weights, values.flatten(0, 1))  # (blocks * kv_heads, group, value_width)
    out = out.view(blocks, heads, -1)
    # The void block fills short rows of the grid. It has got the weights of row 0's first block.
    out[VOID] = 0
    return out[table.grid].sum(dim=1, dtype=torch.float32), lse  # (rows, heads, value_width)


def _attend_own(
    q: Float[Tensor, "reads tokens kv_heads group width"],
    k: Float[Tensor, "reads tokens kv_heads width"],
    v: Float[Tensor, "reads tokens kv_heads value_width"],
    terms: AttentionTerms,
    keep_lse: bool,
) -> tuple[Float[Tensor, "places heads value_width"], Tensor | None]:
    """Prompts of equal length, each token with those before it; a range of queries at a time."""
    reads, tokens, kv_heads, group, _ = q.shape
    keys = k.permute(0, 2, 3, 1).flatten(0, 1)  # (reads * kv_heads, width, tokens)
    values = v.transpose(1, 2).flatten(0, 1)  # (reads * kv_heads, tokens, value_width)
    queries = q.transpose(1, 2).flatten(0, 1)  # (reads * kv_heads, tokens, group, width)
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    for start in range(0, tokens, _QUERY_TOKENS):
        stop = min(start + _QUERY_TOKENS, tokens)
        # the first key that the range's first query still sees
        first = 0 if terms.window is None else max(0, start - terms.window + 1)
        # (reads * kv_heads, queries * group, keys)
        scores = scores_of(queries[:, start:stop].flatten(1, 2), keys[:, :, first:stop])
        # (reads * kv_heads, queries, group, keys)
        scores = _limited(scores.float(), terms).unflatten(1, (stop - start, group))
        unseen = _later(stop - start, stop - first, terms.window, q.device)
        # (reads * kv_heads, queries * group, keys)
        scores = scores.masked_fill_(unseen, -torch.inf).flatten(1, 2)
        if keep_lse:  # (reads * kv_heads, queries, group)
            lses.append(scores.logsumexp(dim=-1).unflatten(1, (-1, group)))
        weights = scores.softmax(dim=-1).to(v.dtype)
        out = torch.bmm(weights, values[:, first:stop])  # (.., queries * group, value_width)
        outs.append(out.unflatten(1, (-1, group)))  # (.., queries, group, value_width)

    def by_place(ranges: list[Tensor]) -> Tensor:
        """(reads * kv_heads, tokens, group, ...) to (reads * tokens, heads, ...)."""
        whole = torch.cat(ranges, dim=1).unflatten(0, (reads, kv_heads))
        return whole.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    return by_place(outs), by_place(lses) if keep_lse else None


def _attend_segment(
    q: Float[Tensor, "tokens kv_heads group width"],
    keys: Float[Tensor, "kv_heads width length"],
    values: Float[Tensor, "kv_heads length value_width"],
    terms: AttentionTerms,
    unseen: Tensor | None,
) -> tuple[Float[Tensor, "tokens heads value_width"], Float[Tensor, "tokens heads"]]:
    """All tokens that see a segment, in one product with its keys."""
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    group = q.shape[2]
    for start in range(0, len(q), _QUERY_TOKENS):
        # (kv_heads, queries, group, width)
        queries = q[start : start + _QUERY_TOKENS].transpose(0, 1)
        queries = queries.flatten(1, 2)  # (kv_heads, queries * group, width)
        scores = _limited(scores_of(queries, keys).float(), terms)
        scores = scores.unflatten(1, (-1, group))  # (kv_heads, queries, group, length)
        if unseen is not None:
            scores = scores.masked_fill_(unseen[start : start + _QUERY_TOKENS, None], -torch.inf)
        # A softmax by hand: a row that sees nothing gets an output of 0 and an lse of -inf, which
        # adds nothing to what it has seen elsewhere; ``softmax`` would return NaN.
        most = scores.amax(dim=-1, keepdim=True).clamp_(min=_LEAST)
        weights = scores.sub_(most).exp_()
        total = weights.sum(dim=-1)  # (kv_heads, queries, group)
        lses.append((most[..., 0] + total.log()).transpose(0, 1).flatten(1))  # (queries, heads)
        # (kv_heads, queries * group, value_width)
        out = torch.bmm(weights.flatten(1, 2).to(values.dtype), values)
        out = out.unflatten(1, (-1, group)) / total.clamp(min=_SMALLEST_SUM)[..., None]
        outs.append(out.transpose(0, 1).flatten(1, 2))  # (queries, heads, value_width)
    return torch.cat(outs), torch.cat(lses)


def _limited(products: Tensor, terms: AttentionTerms) -> Tensor:
    """Scale products, which are in float32, and cap them; in place."""
    return capped_(products.mul_(terms.scale), terms.softcap)


def _out_of_window(
    positions: Int[Tensor, " tokens"], use: SharedUse, window: int | None
) -> Tensor | None:
    """(tokens, length), True where a token no longer sees the segment's; None if all see all."""
    first, length = use.segment.start, use.segment.length
    if window is None or use.last_position - first < window:
        return None
    keys = torch.arange(first, first + length, device=positions.device)
    return positions[:, None] - keys >= window


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _later(
    rows: int, columns: int, window: int | None, device: torch.device
) -> Bool[Tensor, "rows 1 columns"]:
    return moved(unseen_keys(rows, columns, window), device)


AttentionInterface.register(DECODE_ATTENTION, attend_decoded)
