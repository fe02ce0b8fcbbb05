"""How the attention of neighbouring places of a prefix tree is cut into products.

Every token sees its ancestors and itself. The ancestors that many tokens have in common are
*shared keys*: all their queries meet them in one large product, without a mask. What remains is cut
into *blocks* of neighbouring queries, each with the few keys that are left, gathered and masked;
blocks of similar size are multiplied in one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rankwise.engine.scoring.tree.prefixes import Places, PrefixTree

# Queries of a block, and the step in which the number of its keys is rounded up: not tuned yet.
_BLOCK_QUERIES = 64
_KEY_STEP = 64
# Ancestors become shared keys if they are at least so many, for at least so many queries.
_SHARED_KEYS = 96
_SHARED_QUERIES = 128


class SharedKeys(NamedTuple):
    """Queries in a row that all see the first tokens of their sequences.

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
        queries: (blocks, rows) which queries.
        keys: (blocks, columns) which keys of the pool.
        distances: (blocks, rows, columns) how many positions each key is behind each query.
        seen: (blocks, rows, columns) which query sees which key.
    """

    queries: Int[Tensor, "blocks rows"]
    keys: Int[Tensor, "blocks columns"]
    distances: Int[Tensor, "blocks rows columns"]
    seen: Bool[Tensor, "blocks rows columns"]


class GatheredRows(NamedTuple):
    """Row numbers of a layer's (places, kv_heads) matrices.

    Attributes:
        queries: of every group: for block, head and row in this order.
        keys: of every group: for block, head and column.
        back: for query and head: the row among the outputs of all groups.
    """

    queries: list[Int[Tensor, " blocks_heads_rows"]]
    keys: list[Int[Tensor, " blocks_heads_columns"]]
    back: Int[Tensor, " queries_heads"]


class _Block(NamedTuple):
    start: int
    stop: int
    ancestors: Places
    shared: int


@dataclass(eq=False)
class TreeLayout:
    """The places ``start`` to ``stop`` of a tree, read at once behind what is cached.

    The *key pool* of a layer is its cached keys, those of the ancestors of ``start`` in order, and
    behind them those of the places themselves.

    Attributes:
        tree: is read from left to right.
        start: the first place; ``stop`` is the one after the last.
        stop: see ``start``.
        device: of the tensors.
        num_cached: ancestors of ``start``, whose keys and values are cached.
        groups: of blocks; every query is in one.
        shared: what rows of queries see beside; no query is in two.
    """

    tree: PrefixTree
    start: int
    stop: int
    device: torch.device
    num_cached: int = field(init=False)
    groups: list[BlockGroup] = field(init=False)
    shared: list[SharedKeys] = field(init=False)
    _gathered: dict[int, GatheredRows] = field(default_factory=dict[int, GatheredRows], init=False)

    def __post_init__(self) -> None:
        self.num_cached = int(self.tree.depths[self.start])
        self._positions = self._on_device(self.tree.depths[self.start : self.stop])
        blocks = list(self._blocks())
        self.shared = self._shared_of(blocks)
        by_size: dict[int, list[_Block]] = {}
        for block in blocks:
            num_keys = len(block.ancestors) - block.shared + block.stop - block.start
            by_size.setdefault(-(-num_keys // _KEY_STEP), []).append(block)
        self.groups = [self._group(members) for members in by_size.values()]
        self._members = list(by_size.values())

    @property
    def num_queries(self) -> int:
        """Tokens that are read."""
        return self.stop - self.start

    def token_ids(self) -> Int[Tensor, "1 queries"]:
        """What is read."""
        return self._on_device(self.tree.tokens[self.start : self.stop])[None]

    def position_ids(self) -> Int[Tensor, "1 queries"]:
        """Where in their sequences."""
        return self._positions[None]

    def lowest_position(self, shared: SharedKeys) -> int:
        """The first position that any of these queries has."""
        return int(self.tree.depths[self.start + shared.start : self.start + shared.stop].min())

    def gathered(self, kv_heads: int) -> GatheredRows:
        """Which rows to gather in layers of so many key-value heads."""
        found = self._gathered.get(kv_heads)
        if found is None:
            heads = torch.arange(kv_heads, device=self.device)[:, None]
            queries, keys = (
                [(places[:, None] * kv_heads + heads).flatten() for places in of_groups]
                for of_groups in zip(*((g.queries, g.keys) for g in self.groups), strict=True)
            )
            found = self._gathered[kv_heads] = GatheredRows(queries, keys, self._back(kv_heads))
        return found

    def _back(self, kv_heads: int) -> Int[Tensor, " queries_heads"]:
        back = np.empty((self.num_queries, kv_heads), dtype=np.int64)
        offset = 0
        for members, group in zip(self._members, self.groups, strict=True):
            rows = group.queries.shape[1]
            for block in members:
                at = np.arange(block.stop - block.start)[:, None] + np.arange(kv_heads) * rows
                back[block.start - self.start : block.stop - self.start] = offset + at
                offset += rows * kv_heads
        return self._on_device(back.ravel())

    def pool_slices(self, places: Places) -> tuple[slice, ...]:
        """Where ancestors of these places, or they themselves, lie in the key pool."""
        at = self._in_pool(places)
        cuts = np.flatnonzero(np.diff(at) != 1) + 1
        bounds = [0, *cuts.tolist(), len(at)]
        pairs = pairwise(bounds)
        return tuple(slice(int(at[a]), int(at[b - 1]) + 1) for a, b in pairs if a < b)

    def _in_pool(self, places: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """Cached ancestors lie at their depth."""
        own = places - self.start + self.num_cached
        return np.where(places < self.start, self.tree.depths[places], own)

    def _on_device(self, numbers: Int[np.ndarray, "*shape"]) -> Int[Tensor, "*shape"]:
        return torch.from_numpy(numbers).to(self.device)

    def _blocks(self) -> Iterator[_Block]:
        """Cut the places into blocks, and choose which of their ancestors are shared keys."""
        ends, depths = self.tree.ends, self.tree.depths
        shared: list[tuple[int, int]] = []  # how many keys, and behind which query they end
        place = self.start
        while place < self.stop:
            while shared and shared[-1][1] <= place:
                shared.pop()
            count = shared[-1][0] if shared else 0
            ancestors = self.tree.ancestors(place)
            until = np.minimum(ends[ancestors[count:]], self.stop)
            more = int((until - place >= _SHARED_QUERIES).sum())
            if more >= _SHARED_KEYS:
                shared.append((count + more, int(until[more - 1])))
                count += more
            limit = min(place + _BLOCK_QUERIES, shared[-1][1] if shared else self.stop, self.stop)
            # behind its first descendants, a block would drag ancestors along that nobody sees
            back = np.flatnonzero(depths[place + 1 : limit] < depths[place]) + 1
            back = back[back >= _BLOCK_QUERIES // 2]
            stop = place + int(back[0]) if len(back) else limit
            yield _Block(place, stop, ancestors, count)
            place = stop

    def _shared_of(self, blocks: list[_Block]) -> list[SharedKeys]:
        """Neighbouring blocks with the same shared keys are one row of queries."""
        found: list[SharedKeys] = []
        last = -1
        for block in blocks:
            if not block.shared:
                last = -1
                continue
            keys = block.ancestors[: block.shared]
            start, stop = block.start - self.start, block.stop - self.start
            if keys[-1] == last:
                found[-1] = found[-1]._replace(stop=stop)
            else:
                found.append(SharedKeys(start, stop, self.pool_slices(keys), len(keys)))
            last = keys[-1]
        return found

    def _group(self, blocks: list[_Block]) -> BlockGroup:
        keys = [
            np.concatenate([b.ancestors[b.shared :], np.arange(b.start, b.stop)]) for b in blocks
        ]
        rows, columns = max(b.stop - b.start for b in blocks), max(map(len, keys))
        query_places = np.empty((len(blocks), rows), dtype=np.int64)
        key_places = np.empty((len(blocks), columns), dtype=np.int64)
        given = np.arange(columns)[None] < np.array([len(own) for own in keys])[:, None]
        for number, (block, own) in enumerate(zip(blocks, keys, strict=True)):
            # a block is filled up with its last query, which sees itself
            query_places[number] = np.minimum(np.arange(rows) + block.start, block.stop - 1)
            key_places[number, : len(own)] = own
            key_places[number, len(own) :] = own[0]
        q, k = query_places[:, :, None], key_places[:, None, :]
        seen = (k <= q) & (q < self.tree.ends[k]) & given[:, None, :]
        return BlockGroup(
            self._on_device(query_places - self.start),
            self._on_device(self._in_pool(key_places)),
            self._on_device(self.tree.depths[q] - self.tree.depths[k]),
            torch.from_numpy(seen).to(self.device),
        )
