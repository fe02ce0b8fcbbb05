"""Attention of tokens in a prefix tree to their ancestors, some of which are cached.

Registered with transformers' ``AttentionInterface``. Rows are models: all of them read the same
places of the tree, each with its own keys and values.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    refuse_arguments,
)
from rankwise.engine.scoring.tree.layout import SharedKeys, TreeLayout
from rankwise.errors import ModelError

TREE_ATTENTION = "rankwise_tree"
# Of the scores of queries and shared keys that are computed at once, by kind of device.
_SCORE_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
_WHOLE = 8  # columns of a product are rounded up to whole vectors


class KeyValues(NamedTuple):
    """Keys and values of one layer.

    Attributes:
        keys: as attention multiplies them, positions applied.
        values: their values.
    """

    keys: Float[Tensor, "models tokens kv_heads width"]
    values: Float[Tensor, "models tokens kv_heads value_width"]

    def at(self, slices: tuple[slice, ...]) -> KeyValues:
        """Those of some tokens, copied."""
        return KeyValues(*(torch.cat([x[:, own] for own in slices], dim=1) for x in self))


@dataclass(eq=False)
class TreeStep:
    """One forward pass: a layout, what was cached for it, and what the layers add.

    Attributes:
        layout: which places are read.
        cached: by layer, keys and values of the layout's cached ancestors; empty if none.
        pools: filled by the layers, by their index: what is cached and behind it what is new.
    """

    layout: TreeLayout
    cached: Mapping[int, KeyValues]
    pools: dict[int, KeyValues] = field(default_factory=dict[int, KeyValues], init=False)
    _seen: dict[tuple[int, int | None], Tensor] = field(
        default_factory=dict[tuple[int, int | None], Tensor], init=False
    )

    def pool(self, layer: int, new: KeyValues) -> KeyValues:
        """The key pool of a layer, which is kept."""
        if self.layout.num_cached:
            pairs = zip(self.cached[layer], new, strict=True)
            new = KeyValues(*(torch.cat(pair, dim=1) for pair in pairs))
        self.pools[layer] = new
        return new

    def seen(
        self, number: int, window: int | None, dtype: torch.dtype
    ) -> Float[Tensor, "blocks 1 rows 1 columns"]:
        """0 where queries of a group of blocks see a key and -inf elsewhere; for all layers."""
        found = self._seen.get((number, window))
        if found is None:
            group = self.layout.groups[number]
            seen = group.seen if window is None else group.seen & (group.distances < window)
            found = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            found = found.masked_fill_(~seen, -torch.inf)[:, None, :, None, :]
            self._seen[number, window] = found
        return found


@contextmanager
def tree_attention(model: nn.Module) -> Generator[None]:
    """Within the block, a model reads places of a prefix tree; afterwards it is as before.

    It is called as ``model(input_ids=..., position_ids=..., tree_step=step, use_cache=False)``
    with ids and positions of the step's layout, one row for each model.
    """
    with attention_of(decoder_of(model), TREE_ATTENTION):
        yield


@torch.compiler.disable
def attend_tree(
    module: nn.Module,
    query: Float[Tensor, "models heads tokens width"],
    key: Float[Tensor, "models kv_heads tokens width"],
    value: Float[Tensor, "models kv_heads tokens value_width"],
    attention_mask: Tensor | None,
    *,
    tree_step: TreeStep | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "models tokens heads value_width"], None]:
    """The attention function that transformers calls in every layer; terms as ``attend_packed``.

    Raises:
        ModelError: no step, tokens of another number, or an argument that is refused.
    """
    name, layer = type(module).__name__, getattr(module, "layer_idx", None)
    if tree_step is None or layer is None:
        missing = "tree_step by its model" if tree_step is None else "layer_idx"
        raise ModelError(f"{name} was given no {missing}. {INSTEAD}")
    others |= {"is_causal": is_causal, "dropout": dropout, "attention_mask": attention_mask}
    refuse_arguments(module, others)
    sizes, tokens = [x.shape[2] for x in (query, key, value)], tree_step.layout.num_queries
    if sizes != [tokens] * 3:
        raise ModelError(f"{name} got {sizes} queries, keys and values, and reads {tokens} tokens.")
    terms = AttentionTerms.of(query, scaling, sliding_window, softcap, s_aux)
    pool = tree_step.pool(layer, KeyValues(key.transpose(1, 2), value.transpose(1, 2)))
    q = (query * terms.scale).transpose(1, 2).unflatten(2, (key.shape[1], -1))
    return _attend(q, pool, tree_step, terms), None


def _attend(
    q: Float[Tensor, "models tokens kv_heads per_key width"],
    pool: KeyValues,
    step: TreeStep,
    terms: AttentionTerms,
) -> Float[Tensor, "models tokens heads value_width"]:
    """Each query with the keys of its own block, and then with the keys it shares with others."""
    models, tokens, kv_heads, per_key, _ = q.shape
    need_sums = bool(step.layout.shared)
    rows = q.reshape(models, tokens * kv_heads, -1)
    flat_pool = [x.reshape(models, -1, x.shape[-1]) for x in pool]
    found: list[Tensor] = []
    sums: list[Tensor] = []
    gathered = step.layout.gathered(kv_heads)
    for number in range(len(step.layout.groups)):
        seen = step.seen(number, terms.window, q.dtype)
        block_q = rows.index_select(1, gathered.queries[number])
        k, v = (x.index_select(1, gathered.keys[number]) for x in flat_pool)
        out, log_sum = _attend_in_blocks(block_q, k, v, seen, kv_heads, terms, need_sums)
        found.append(out)
        sums += [] if log_sum is None else [log_sum]
    joined = torch.cat(found, dim=1) if len(found) > 1 else found[0]
    out = joined.index_select(1, gathered.back).view(models, tokens, kv_heads, per_key, -1)
    if need_sums:
        joined = torch.cat(sums, dim=1) if len(sums) > 1 else sums[0]
        log_sum = joined.index_select(1, gathered.back).view(models, tokens, kv_heads, per_key)
        for shared in step.layout.shared:
            _attend_shared(q, pool, out, log_sum, shared, step, terms)
    return out.flatten(2, 3)


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
    q, k, v = q.view(batch, -1, k.shape[-1]), k.view(batch, columns, -1), v.view(batch, columns, -1)
    per_key = q.shape[1] // num_rows
    scores = _capped(torch.bmm(q, k.mT), terms.softcap)
    scores.view(-1, num_blocks, kv_heads, num_rows, per_key, columns).add_(seen)
    weights = scores.softmax(dim=-1)
    out = torch.bmm(weights, v)
    log_sum = None
    if need_sums or terms.sinks is not None:
        # a score over its weight is the sum; that of the greatest is rounded least
        log_sum = scores.amax(dim=-1).float() - weights.amax(dim=-1).float().log()
    if terms.sinks is not None:
        assert log_sum is not None
        sinks = terms.sinks.float().view(1, kv_heads, 1, per_key)
        own = log_sum.view(-1, kv_heads, num_rows, per_key)
        share = torch.sigmoid(own - sinks).view(batch, -1, 1)
        out = (out * share).to(out.dtype)
        log_sum = torch.logaddexp(own, sinks)
    return out.view(*shape, -1), None if log_sum is None else log_sum.view(*shape, -1)


def _attend_shared(
    q: Tensor,
    pool: KeyValues,
    out: Float[Tensor, "models tokens kv_heads per_key value_width"],
    log_sum: Float[Tensor, "models tokens kv_heads per_key"],
    shared: SharedKeys,
    step: TreeStep,
    terms: AttentionTerms,
) -> None:
    """Let queries see the keys that they share too; ``out`` changes in place.

    What a query has found so far takes part in the softmax as one more key, whose score is the
    logarithm of its sum, and whose value is its output.
    """
    models, _, kv_heads, per_key, width = q.shape
    positions = step.layout.position_ids()[0, shared.start : shared.stop]
    lowest = 0
    if terms.window is not None:
        lowest = max(0, step.layout.lowest_position(shared) - terms.window + 1)
        if lowest >= shared.num_keys:
            return
    count = shared.num_keys - lowest
    padded = -(-(count + 1) // _WHOLE) * _WHOLE
    k, v = (_shared_block(x, shared.slices, lowest, padded) for x in pool)
    size = models * kv_heads * per_key * padded * q.element_size()
    chunk = max(1, _SCORE_BYTES[q.device.type] // size)
    for start in range(shared.start, shared.stop, chunk):
        own = slice(start, min(start + chunk, shared.stop))
        part = q[:, own].transpose(1, 2).reshape(models * kv_heads, -1, width)
        scores = _capped(torch.bmm(part, k.mT), terms.softcap)
        before = log_sum[:, own].transpose(1, 2).reshape(models * kv_heads, -1)
        scores[..., count] = before
        scores[..., count + 1 :] = -torch.inf
        if terms.window is not None:
            at = positions[own.start - shared.start : own.stop - shared.start]
            keys = torch.arange(lowest, shared.num_keys, device=q.device)
            far = at[:, None] - keys >= terms.window
            of_rows = scores.unflatten(1, (-1, per_key))[..., :count]
            of_rows.masked_fill_(far[None, :, None], -torch.inf)
        rounded = scores[..., count].float()
        weights = scores.softmax(dim=-1)
        # the score of what was found before is rounded to the dtype, its weight is set right
        earlier, exact = weights[..., count].float(), torch.exp(before - rounded)
        total = 1 + earlier * (exact - 1)
        found = torch.bmm(weights, v).view(models, kv_heads, -1, per_key, v.shape[-1])
        old, new = (
            x.view(models, kv_heads, -1, per_key, 1).transpose(1, 2).to(out.dtype)
            for x in (earlier * exact / total, 1 / total)
        )
        out[:, own] = torch.addcmul(found.transpose(1, 2) * new, out[:, own], old)


def _shared_block(
    pool: Tensor, slices: tuple[slice, ...], lowest: int, rows: int
) -> Float[Tensor, "models_kv_heads rows width"]:
    """Shared keys or values from position ``lowest`` on in order, and zeros behind them."""
    models, _, kv_heads, width = pool.shape
    block = pool.new_zeros((models, kv_heads, rows, width))
    position = 0
    for piece in slices:
        skipped = max(0, min(lowest - position, piece.stop - piece.start))
        first, size = piece.start + skipped, piece.stop - piece.start - skipped
        at = position + skipped - lowest
        position += piece.stop - piece.start
        if size > 0:
            block[:, :, at : at + size] = pool[:, first : piece.stop].transpose(1, 2)
    return block.flatten(0, 1)


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)


AttentionInterface.register(TREE_ATTENTION, attend_tree)
