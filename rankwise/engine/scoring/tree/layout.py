"""How the attention of neighbouring places of a prefix tree is cut into products.

Every token sees its ancestors and itself. Ancestors that many tokens have in common are *shared
keys*: all their queries are multiplied with them in one large product, without a mask. The other
keys are gathered for *blocks* of neighbouring queries and masked; blocks of similar size are
multiplied in one batch. Where flex attention reads the tree, it takes one mask instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from rankwise.engine.models.devices import moved_together
from rankwise.engine.models.packed_kernels import MASK_BLOCK, block_mask
from rankwise.engine.scoring.tree.prefixes import Places, PrefixTree

# Queries of a block. Larger blocks are fewer products, in which more is masked. Not tuned yet.
_BLOCK_QUERIES = 64
# Blocks are grouped by their number of keys, rounded up to this: groups are fewer, padding is more.
_KEY_STEP = 64
# Ancestors become shared keys if there are this many of them, for this many queries: a product of
# fewer costs more than gathering the keys for the queries' blocks. Not tuned yet.
_SHARED_KEYS = 96
_SHARED_QUERIES = 128


class SharedKeys(NamedTuple):
    """Consecutive queries that all see the same first tokens of their sequences.

    Attributes:
        start: the first query; ``stop`` is the one after the last.
        stop: see ``start``.
        slices: of the key pool, from the first token of the sequences on.
        num_keys: their number; they have the positions 0 to num_keys - 1.
    """

    start: int
    stop: int
    slices: tuple[slice, ...]
    num_keys: int


class BlockGroup(NamedTuple):
    """Blocks that are multiplied in one batch; what pads them is masked.

    Attributes:
        queries: (blocks, rows) numbers of the queries.
        keys: (blocks, columns) numbers of the keys in the pool.
        seen: (blocks, rows, columns) which query sees which key.
    """

    queries: Int[Tensor, "blocks rows"]
    keys: Int[Tensor, "blocks columns"]
    seen: Bool[Tensor, "blocks rows columns"]


class GatheredRows(NamedTuple):
    """Row numbers of a layer's queries, keys and outputs, flattened to (places * kv_heads, width).

    Attributes:
        queries: of every group, in the order block, head, row.
        keys: of every group, in the order block, head, column.
        back: in the order query, head: its row among the outputs of all groups.
    """

    queries: list[Int[Tensor, " blocks_heads_rows"]]
    keys: list[Int[Tensor, " blocks_heads_columns"]]
    back: Int[Tensor, " queries_heads"]


class _QueryBlock(NamedTuple):
    """The places ``start`` to ``stop``; the first ``shared`` of ``ancestors`` are shared keys."""

    start: int
    stop: int
    ancestors: Places
    shared: int


class TreeLayout:
    """The places ``start`` to ``stop`` of a tree, read in one pass.

    The *key pool* of a layer holds the cached keys of the ancestors of ``start``, in order, and
    behind them the keys of the places themselves.

    Attributes:
        tree: is read from left to right.
        start: the first place; ``stop`` is the one after the last.
        stop: see ``start``.
        device: of the tensors; ``on`` has them for another one.
        tokens: (queries,) that are read.
        positions: (queries,) of these in their sequences.
        num_queries: tokens that are read.
        num_cached: ancestors of ``start``, whose keys and values are cached.
    """

    def __init__(self, tree: PrefixTree, start: int, stop: int, device: torch.device) -> None:
        self.tree, self.start, self.stop, self.device = tree, start, stop, device
        self.num_queries, self.num_cached = stop - start, int(tree.depths[start])
        numbers = [tree.tokens[start:stop], tree.depths[start:stop]]
        self.tokens, self.positions = moved_together(numbers, device)
        self._gathered: dict[int, GatheredRows] = {}
        self._masks: dict[int | None, BlockMask] = {}
        self._elsewhere: dict[torch.device, TreeLayout] = {}

    def on(self, device: torch.device) -> TreeLayout:
        """The same places for layers on another device."""
        if device == self.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = TreeLayout(self.tree, self.start, self.stop, device)
        return self._elsewhere[device]

    @property
    def groups(self) -> list[BlockGroup]:
        """The groups of blocks; every query is in one."""
        return self._products[0]

    @property
    def shared(self) -> list[SharedKeys]:
        """What queries see besides their block's keys; no query is in two of them."""
        return self._products[1]

    @cached_property
    def _products(self) -> tuple[list[BlockGroup], list[SharedKeys], Int[Tensor, "3 queries"]]:
        """Groups, shared keys, and where each query is among the groups.

        That is: rows of the blocks before its own, its row in it, and the block's rows, where
        blocks are in the order of the groups.
        """
        blocks = list(self._blocks())
        by_size: dict[int, list[_QueryBlock]] = {}
        for block in blocks:
            num_keys = len(block.ancestors) - block.shared + block.stop - block.start
            by_size.setdefault(-(-num_keys // _KEY_STEP), []).append(block)
        of_queries = np.empty((3, self.num_queries), dtype=np.int64)
        numbers, seen = [of_queries], list[Bool[np.ndarray, "blocks rows columns"]]()
        before = 0
        for members in by_size.values():
            queries, keys, seen_keys = self._group(members)
            numbers += [queries - self.start, self._in_pool(keys)]
            seen.append(seen_keys)
            for block in members:
                span = slice(block.start - self.start, block.stop - self.start)
                of_queries[:, span] = [[before], [0], [queries.shape[1]]]
                of_queries[1, span] = np.arange(block.stop - block.start)
                before += queries.shape[1]
        moved = moved_together([*numbers, *seen], self.device)
        outputs, *pairs = moved[: len(numbers)]
        triples = zip(pairs[::2], pairs[1::2], moved[len(numbers) :], strict=True)
        return [BlockGroup(*triple) for triple in triples], self._shared_of(blocks), outputs

    def mask(self, window: int | None) -> BlockMask:
        """Which queries see which keys of the pool, for flex attention; made once for all layers.

        In the order of the walk a place's descendants are the places from it to its end. So each
        key is seen by one range of queries, of which a window leaves those that are near enough.
        """
        if window in self._masks:
            return self._masks[window]
        places = np.concatenate([self.tree.ancestors(self.start), np.arange(self.start, self.stop)])
        # (keys,): the first query that sees a key, and the first behind it that does not
        since = np.maximum(places - self.start, 0)
        until = np.minimum(self.tree.ends[places], self.stop) - self.start
        first = np.arange(0, self.num_queries, MASK_BLOCK)[:, None]  # (query blocks, 1)
        last = np.minimum(first + MASK_BLOCK, self.num_queries)
        # A block's extremes decide, (key blocks,): places in a block have no gap, so where one key
        # is seen since before ``last`` and one until behind ``first``, one key is both.
        starts = np.arange(0, len(places), MASK_BLOCK)
        earliest, latest = (of.reduceat(since, starts) for of in (np.minimum, np.maximum))
        soonest, longest = (of.reduceat(until, starts) for of in (np.minimum, np.maximum))
        is_filled = starts + MASK_BLOCK <= len(places)  # no block is full that is not filled
        # both (query blocks, key blocks)
        is_full = (latest <= first) & (soonest >= last) & is_filled & (window is None)
        is_full &= last - first == MASK_BLOCK
        is_masked = (earliest < last) & (longest > first) & ~is_full
        numbers = [x.astype(np.int32) for x in (since, until, self.tree.depths[places])]
        arrays = [*numbers, is_masked, is_full]
        begin, end, depth, masked, full = moved_together(arrays, self.device)
        lengths, at = (self.num_queries, len(places)), self.positions
        if window is None:
            mask = block_mask(
                masked, full, lambda b, h, q, k: (begin[k] <= q) & (q < end[k]), lengths
            )
        else:
            mask = block_mask(
                masked,
                full,
                lambda b, h, q, k: (begin[k] <= q) & (q < end[k]) & (at[q] - depth[k] < window),
                lengths,
            )
        self._masks[window] = mask
        return mask

    def lowest_position(self, shared: SharedKeys) -> int:
        """The lowest position of these queries."""
        return int(self.tree.depths[self.start + shared.start : self.start + shared.stop].min())

    def gathered(self, kv_heads: int) -> GatheredRows:
        """Which rows to gather in layers with this number of key-value heads."""
        if kv_heads not in self._gathered:
            heads = torch.arange(kv_heads, device=self.device)[:, None]  # (kv_heads, 1)
            # (blocks, 1, rows) * kv_heads + (kv_heads, 1): (blocks, kv_heads, rows), flattened
            queries, keys = (
                [(places[:, None] * kv_heads + heads).flatten() for places in of_groups]
                for of_groups in zip(*((g.queries, g.keys) for g in self.groups), strict=True)
            )
            before, row, rows = self._products[2][:, :, None]  # each (queries, 1)
            # of a block's kv_heads * rows, each head has ``rows``
            back = before * kv_heads + row + heads[:, 0] * rows  # (queries, kv_heads)
            self._gathered[kv_heads] = GatheredRows(queries, keys, back.flatten())
        return self._gathered[kv_heads]

    def distances(self, number: int) -> Int[Tensor, "blocks rows columns"]:
        """How many positions each key of a group is behind each query."""
        group = self.groups[number]
        # the pool's positions: a cached ancestor lies at its own
        cached = torch.arange(self.num_cached, device=self.device)
        of_pool = torch.cat([cached, self.positions])
        return self.positions[group.queries][:, :, None] - of_pool[group.keys][:, None]

    def pool_slices(self, places: Places) -> tuple[slice, ...]:
        """Where these places, in order, lie in the key pool, as few slices as possible."""
        at = self._in_pool(places)
        pieces = np.split(at, np.flatnonzero(np.diff(at) != 1) + 1)
        return tuple(slice(int(piece[0]), int(piece[-1]) + 1) for piece in pieces if len(piece))

    def _in_pool(self, places: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Numbers in the key pool: a cached ancestor lies at its depth, a new place behind them."""
        new = places - self.start + self.num_cached
        return np.where(places < self.start, self.tree.depths[places], new)

    def _blocks(self) -> Iterator[_QueryBlock]:
        """Cut the places into blocks, and choose which of their ancestors are shared keys."""
        ends, depths = self.tree.ends, self.tree.depths
        # A stack: the number of keys, and the place behind the last query that sees all of them.
        shared: list[tuple[int, int]] = []
        place = self.start
        while place < self.stop:
            while shared and shared[-1][1] <= place:
                shared.pop()
            count = shared[-1][0] if shared else 0
            ancestors = self.tree.ancestors(place)
            # An ancestor is seen up to its own end; ends only come nearer from ancestor to
            # ancestor, so the ones that enough queries see are the first ``more``.
            until = np.minimum(ends[ancestors[count:]], self.stop)
            more = int((until - place >= _SHARED_QUERIES).sum())
            if more >= _SHARED_KEYS:
                shared.append((count + more, int(until[more - 1])))
                count += more
            limit = min(place + _BLOCK_QUERIES, shared[-1][1] if shared else self.stop, self.stop)
            # Where the depth falls below the first place's, some of its ancestors are no longer
            # seen: a block that is half full ends there rather than carry masked keys.
            back = np.flatnonzero(depths[place + 1 : limit] < depths[place]) + 1
            back = back[back >= _BLOCK_QUERIES // 2]
            stop = place + int(back[0]) if len(back) else limit
            yield _QueryBlock(place, stop, ancestors, count)
            place = stop

    def _shared_of(self, blocks: list[_QueryBlock]) -> list[SharedKeys]:
        """Shared keys with all their queries: neighbouring blocks with the same keys are joined."""
        rows: list[SharedKeys] = []
        last = -1
        for block in blocks:
            if not block.shared:
                last = -1
                continue
            keys = block.ancestors[: block.shared]
            start, stop = block.start - self.start, block.stop - self.start
            if keys[-1] == last:  # equal last keys have equal ancestors
                rows[-1] = rows[-1]._replace(stop=stop)
            else:
                rows.append(SharedKeys(start, stop, self.pool_slices(keys), len(keys)))
            last = keys[-1]
        return rows

    def _group(
        self, blocks: list[_QueryBlock]
    ) -> tuple[
        Int[np.ndarray, "blocks rows"],
        Int[np.ndarray, "blocks columns"],
        Bool[np.ndarray, "blocks rows columns"],
    ]:
        """A ``BlockGroup`` on the CPU; queries and keys are places."""
        keys = [
            np.concatenate([b.ancestors[b.shared :], np.arange(b.start, b.stop)]) for b in blocks
        ]
        rows, columns = max(b.stop - b.start for b in blocks), max(map(len, keys))
        query_places = np.empty((len(blocks), rows), dtype=np.int64)
        key_places = np.empty((len(blocks), columns), dtype=np.int64)
        is_key = np.arange(columns)[None] < np.array([len(places) for places in keys])[:, None]
        for number, (block, places) in enumerate(zip(blocks, keys, strict=True)):
            # Padding repeats the last query, which sees itself: a row without keys would be NaN.
            query_places[number] = np.minimum(np.arange(rows) + block.start, block.stop - 1)
            key_places[number, : len(places)] = places
            key_places[number, len(places) :] = places[0]
        # (blocks, rows, 1) and (blocks, 1, columns)
        q, k = query_places[:, :, None], key_places[:, None, :]
        # a place's descendants are the places from it to its end
        seen = (k <= q) & (q < self.tree.ends[k]) & is_key[:, None, :]
        return query_places, key_places, seen
