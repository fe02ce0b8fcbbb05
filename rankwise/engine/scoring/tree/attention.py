"""Attention of tokens in a prefix tree to their ancestors, some of which are cached.

Registered with transformers' ``AttentionInterface``. Rows are models: all of them read the same
places of the tree, each with its own keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from rankwise.engine.models.attention import (
    INSTEAD,
    AttentionTerms,
    capped_,
    score_dtype,
    scores_of,
)
from rankwise.engine.models.packed_kernels import (
    FlexCase,
    attend_by_flex,
    chosen_kernel,
    where_flex_runs,
)
from rankwise.engine.scoring.tree.layout import SharedKeys, TreeLayout
from rankwise.errors import ModelError

TREE_ATTENTION = "rankwise_tree"
# Limit for the scores of queries and shared keys that exist at once, by kind of device.
_SCORE_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
# Columns of a product are rounded up to a multiple of this. 8 bfloat16 are 16 bytes: with that
# alignment a GPU multiplies on its tensor cores, and a CPU loads whole vectors.
_TILE = 8


class KeyValues(NamedTuple):
    """Keys and values of one layer.

    Attributes:
        keys: as attention multiplies them, positions applied.
        values: their values.
    """

    keys: Float[Tensor, "models tokens kv_heads width"]
    values: Float[Tensor, "models tokens kv_heads value_width"]

    def at(self, slices: tuple[slice, ...]) -> KeyValues:
        """Those of some tokens, copied, so that the others can be freed."""
        return KeyValues(*(torch.cat([x[:, part] for part in slices], dim=1) for x in self))


@dataclass(eq=False)
class TreeStep:
    """One forward pass: a layout, its cached keys and values, and those that the layers add.

    Attributes:
        layout: the places that are read.
        cached: layer → keys and values of the layout's cached ancestors; empty if there are none.
        pools: layer → the cached ones and behind them the new ones; filled by the layers.
    """

    layout: TreeLayout
    cached: Mapping[int, KeyValues]
    pools: dict[int, KeyValues] = field(default_factory=dict[int, KeyValues], init=False)
    _seen: dict[tuple[torch.device, int, int | None], Tensor] = field(
        default_factory=dict[tuple[torch.device, int, int | None], Tensor], init=False
    )

    def pool(self, layer: int, new: KeyValues) -> KeyValues:
        """A layer's key pool, from its new keys and values; it is kept in ``pools``."""
        if self.layout.num_cached:
            pairs = zip(self.cached[layer], new, strict=True)
            new = KeyValues(*(torch.cat(pair, dim=1) for pair in pairs))
        self.pools[layer] = new
        return new

    def seen(
        self, layout: TreeLayout, number: int, window: int | None, dtype: torch.dtype
    ) -> Float[Tensor, "blocks 1 rows 1 columns"]:
        """0 where a group's queries see a key and -inf elsewhere; made once for all layers.

        ``layout`` is the step's, on the device of the layer.
        """
        key = layout.device, number, window
        if key not in self._seen:
            seen = layout.groups[number].seen
            if window is not None:
                seen = seen & (layout.distances(number) < window)
            added = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            # axes of size 1 stand for kv_heads and for the queries that share a key
            self._seen[key] = added.masked_fill_(~seen, -torch.inf)[:, None, :, None, :]
        return self._seen[key]


@torch.compiler.disable
def attend_tree(
    module: nn.Module,
    query: Float[Tensor, "models heads tokens width"],
    key: Float[Tensor, "models kv_heads tokens width"],
    value: Float[Tensor, "models kv_heads tokens value_width"],
    attention_mask: Tensor | None,
    *,
    tree_step: TreeStep | None = None,
    **arguments: Any,
) -> tuple[Float[Tensor, "models tokens heads value_width"], None]:
    """The attention function that transformers calls in every layer; see ``AttentionTerms``.

    Raises:
        ModelError: no step, tokens of another number, or an argument that is refused.
    """
    name, layer = type(module).__name__, getattr(module, "layer_idx", None)
    if tree_step is None or layer is None:
        missing = "tree_step by its model" if tree_step is None else "layer_idx"
        raise ModelError(f"{name} was given no {missing}. {INSTEAD}")
    terms = AttentionTerms.of(module, query, attention_mask, arguments)
    sizes, tokens = [x.shape[2] for x in (query, key, value)], tree_step.layout.num_queries
    if sizes != [tokens] * 3:
        raise ModelError(f"{name} got {sizes} queries, keys and values, and reads {tokens} tokens.")
    layout = tree_step.layout.on(query.device)
    # (models, tokens, kv_heads, width): tokens first, so that the pool grows along one axis
    pool = tree_step.pool(layer, KeyValues(key.transpose(1, 2), value.transpose(1, 2)))
    if _takes_flex(query, value):
        k, v = (x.transpose(1, 2) for x in pool)  # (models, kv_heads, pool, width)
        of_flex = where_flex_runs(
            FlexCase.of(query, k, v, terms),
            lambda tiles: attend_by_flex(query, k, v, layout.mask(terms.window), terms, tiles),
        )
        if of_flex is not None:
            return of_flex, None
    # heads that share a key are neighbours, as in transformers' repeat_kv
    q = (query * terms.scale).transpose(1, 2)  # (models, tokens, heads, width)
    q = q.unflatten(2, (key.shape[1], -1))  # (models, tokens, kv_heads, per_key, width)
    # each query with the keys of its own block, and then with the keys it shares with others
    models, _, kv_heads, per_key, _ = q.shape
    need_sums = bool(layout.shared)
    rows = q.reshape(models, tokens * kv_heads, -1)  # (models, tokens * kv_heads, per_key * width)
    flat_pool = [x.reshape(models, -1, x.shape[-1]) for x in pool]  # (.., pool * kv_heads, width)
    outs: list[Tensor] = []
    sums: list[Tensor] = []
    gathered = layout.gathered(kv_heads)
    for number in range(len(layout.groups)):
        seen = tree_step.seen(layout, number, terms.window, q.dtype)
        block_q = rows.index_select(1, gathered.queries[number])
        k, v = (x.index_select(1, gathered.keys[number]) for x in flat_pool)
        out, log_sum = _attend_in_blocks(block_q, k, v, seen, kv_heads, terms, need_sums)
        outs.append(out)
        sums += [] if log_sum is None else [log_sum]
    # The groups' rows lie in the order of blocks; ``back`` has them in the order of the tokens.
    joined = torch.cat(outs, dim=1) if len(outs) > 1 else outs[0]
    # (models, tokens * kv_heads, per_key * value_width)
    out = joined.index_select(1, gathered.back)
    out = out.view(models, tokens, kv_heads, per_key, -1)
    if need_sums:
        joined = torch.cat(sums, dim=1) if len(sums) > 1 else sums[0]
        log_sum = joined.index_select(1, gathered.back).view(models, tokens, kv_heads, per_key)
        for shared in layout.shared:
            _attend_shared(q, pool, out, log_sum, shared, layout, terms)
    return out.flatten(2, 3), None  # (models, tokens, heads, value_width)


def _takes_flex(query: Tensor, value: Tensor) -> bool:
    """Whether one kernel of flex attention reads the tree, where it runs: half precision on CUDA.

    In float32 the products have all its bits on every card, and no tile is too large for one.
    """
    widths = query.shape[-1], value.shape[-1]
    kernel = chosen_kernel(query.device.type, query.dtype, widths, is_plain=False, has_flash=False)
    return kernel == "flex" and query.dtype != torch.float32


def _attend_in_blocks(
    q: Float[Tensor, "models blocks_kv_heads_rows per_key_width"],
    k: Float[Tensor, "models blocks_kv_heads_columns width"],
    v: Float[Tensor, "models blocks_kv_heads_columns value_width"],
    seen: Float[Tensor, "blocks 1 rows 1 columns"],
    kv_heads: int,
    terms: AttentionTerms,
    need_sums: bool,
) -> tuple[Tensor, Tensor | None]:
    """Queries of a group's blocks over the keys of their blocks.

    Returns:
        (models, blocks * kv_heads * rows, per_key * value_width) outputs; and (models,
        blocks * kv_heads * rows, per_key) logarithms of the sums of the weights, in float32.
    """
    num_blocks, _, num_rows, _, columns = seen.shape
    batch, shape = len(q) * num_blocks * kv_heads, q.shape[:2]
    q = q.view(batch, -1, k.shape[-1])  # (batch, rows * per_key, width)
    k, v = k.view(batch, columns, -1), v.view(batch, columns, -1)  # (batch, columns, width)
    per_key = q.shape[1] // num_rows
    scores = capped_(scores_of(q, k.mT), terms.softcap)  # (batch, rows * per_key, columns)
    scores.view(-1, num_blocks, kv_heads, num_rows, per_key, columns).add_(seen)
    weights = scores.softmax(dim=-1)
    out = torch.bmm(weights.to(v.dtype), v)  # (batch, rows * per_key, value_width)
    log_sum = None
    if need_sums or terms.sinks is not None:
        # weight = exp(score) / sum, so log(sum) = score - log(weight), for any of the keys. That
        # of the greatest weight is rounded least.
        log_sum = scores.amax(dim=-1).float() - weights.amax(dim=-1).float().log()
    if terms.sinks is not None:
        assert log_sum is not None
        # A sink takes part in the softmax and has no value: it scales the output down by
        # sum / (sum + exp(sink)) = sigmoid(log(sum) - sink).
        sinks = terms.sinks.float().view(1, kv_heads, 1, per_key)
        log_sum = log_sum.view(-1, kv_heads, num_rows, per_key)  # (models * blocks, ...)
        share = torch.sigmoid(log_sum - sinks).view(batch, -1, 1)  # (batch, rows * per_key, 1)
        out = (out * share).to(out.dtype)
        log_sum = torch.logaddexp(log_sum, sinks)
    return out.view(*shape, -1), None if log_sum is None else log_sum.view(*shape, -1)


def _attend_shared(
    q: Tensor,
    pool: KeyValues,
    out: Float[Tensor, "models tokens kv_heads per_key value_width"],
    log_sum: Float[Tensor, "models tokens kv_heads per_key"],
    shared: SharedKeys,
    layout: TreeLayout,
    terms: AttentionTerms,
) -> None:
    """Let queries also see the keys that they share; ``out`` changes in place."""
    models, _, kv_heads, per_key, width = q.shape
    positions = layout.positions[shared.start : shared.stop]  # (queries,)
    lowest = 0
    if terms.window is not None:
        # the first key that any of these queries still sees
        lowest = max(0, layout.lowest_position(shared) - terms.window + 1)
        if lowest >= shared.num_keys:
            return
    # One column more than there are keys: the softmax over the query's own block, done before,
    # enters as a single key whose score is log(sum of its weights): the online-softmax merge. Its
    # value, ``out``, is another one for each query, so the product has zeros there and ``out`` is
    # added behind it. The columns are rounded up to whole tiles; those left over are -inf.
    num_keys = shared.num_keys - lowest
    num_columns = -(-(num_keys + 1) // _TILE) * _TILE
    # (models * kv_heads, num_columns, width), zeros behind the keys
    k, v = (_shared_block(x, shared.slices, lowest, num_columns) for x in pool)
    query_bytes = models * kv_heads * per_key * num_columns * score_dtype(q).itemsize
    chunk = max(1, _SCORE_BYTES[q.device.type] // query_bytes)
    for start in range(shared.start, shared.stop, chunk):
        span = slice(start, min(start + chunk, shared.stop))
        part = q[:, span].transpose(1, 2)  # (models, kv_heads, queries, per_key, width)
        part = part.reshape(models * kv_heads, -1, width)  # (.., queries * per_key, width)
        # (models * kv_heads, queries * per_key, num_columns)
        scores = capped_(scores_of(part, k.mT), terms.softcap)
        # (models * kv_heads, queries * per_key)
        before = log_sum[:, span].transpose(1, 2).reshape(models * kv_heads, -1)
        scores[..., num_keys] = before
        scores[..., num_keys + 1 :] = -torch.inf
        if terms.window is not None:
            at = positions[span.start - shared.start : span.stop - shared.start]
            keys = torch.arange(lowest, shared.num_keys, device=q.device)
            far = at[:, None] - keys >= terms.window  # (queries, keys)
            # (models * kv_heads, queries, per_key, keys), a view of the scores
            of_queries = scores.unflatten(1, (-1, per_key))[..., :num_keys]
            of_queries.masked_fill_(far[None, :, None], -torch.inf)
        # The score of the earlier softmax was rounded to the dtype when it was written above, which
        # in bfloat16 can be wrong by percents. So its weight is multiplied by what rounding took,
        # and all weights are divided by their new total.
        rounded = scores[..., num_keys].float()
        weights = scores.softmax(dim=-1)
        earlier, exact = weights[..., num_keys].float(), torch.exp(before - rounded)
        total = 1 + earlier * (exact - 1)
        # (models, kv_heads, queries, per_key, value_width)
        added = torch.bmm(weights.to(v.dtype), v)
        added = added.view(models, kv_heads, -1, per_key, v.shape[-1])
        old, new = (
            # (models, queries, kv_heads, per_key, 1), as ``out``
            x.view(models, kv_heads, -1, per_key, 1).transpose(1, 2).to(out.dtype)
            for x in (earlier * exact / total, 1 / total)
        )
        out[:, span] = torch.addcmul(added.transpose(1, 2) * new, out[:, span], old)


def _shared_block(
    pool: Float[Tensor, "models pool kv_heads width"],
    slices: tuple[slice, ...],
    lowest: int,
    rows: int,
) -> Float[Tensor, "models_kv_heads rows width"]:
    """Shared keys or values in order, from position ``lowest`` on, and zeros behind them."""
    models, _, kv_heads, width = pool.shape
    block = pool.new_zeros((models, kv_heads, rows, width))
    position = 0  # of the slice's first token
    for piece in slices:
        length = piece.stop - piece.start
        skipped = max(0, min(lowest - position, length))
        at = position + skipped - lowest
        if length > skipped:
            # (models, kv_heads, tokens, width)
            tokens = pool[:, piece.start + skipped : piece.stop].transpose(1, 2)
            block[:, :, at : at + length - skipped] = tokens
        position += length
    return block.flatten(0, 1)  # (models * kv_heads, rows, width)


AttentionInterface.register(TREE_ATTENTION, attend_tree)
