"""Keys and values of generated texts: a row's own in blocks, common prefixes in segments.

A row's own tokens lie in blocks of equal size, anywhere in one tensor per layer, so that the keys
of all rows are multiplied in one batch and a short row does not pay for a long one. A prefix
that several rows share lies in a separate segment, once for each model.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rankwise.engine.models.devices import moved, moved_together

BLOCK_TOKENS = 64
"""The tokens of a block. Half of a row's last block is unused on average; smaller blocks mean more,
smaller products."""

VOID = 0
"""A block that belongs to no row and fills the table behind a row's last block."""


class BlockCache:
    """Blocks of ``BLOCK_TOKENS`` tokens: keys and values of every layer, allocated when first used.

    Attributes:
        used: blocks from the front that may be in use, the void block included; given back ones
            among them are gaps until ``compact`` is called or they are taken again.
    """

    def __init__(self, num_blocks: int) -> None:
        """``num_blocks`` can be taken; memory of a block is touched when it is first used."""
        self._size = num_blocks + 1  # and the void block
        self._free: list[int] = []
        self.used = VOID + 1
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(
        self, layer: int, width: int, like: Float[Tensor, "tokens kv_heads value_width"]
    ) -> tuple[
        Float[Tensor, "blocks kv_heads width block"], Float[Tensor, "blocks kv_heads block value"]
    ]:
        """Keys, each column one token, and values of the blocks in use.

        Args:
            layer: the id of its attention module.
            width: of a key.
            like: values, for their sizes, dtype and device.
        """
        if layer not in self._layers:
            _, heads, value_width = like.shape
            # zeros: places that a row does not use get a weight of 0, and must be finite for that
            keys = like.new_zeros((self._size, heads, width, BLOCK_TOKENS))
            values = like.new_zeros((self._size, heads, BLOCK_TOKENS, value_width))
            self._layers[layer] = keys, values
        keys, values = self._layers[layer]
        return keys[: self.used], values[: self.used]

    def take(self, count: int) -> list[int]:
        """Blocks for a row, the lowest free ones first, so that those in use stay at the front.

        Raises:
            IndexError: fewer are free.
        """
        blocks = [heapq.heappop(self._free) for _ in range(min(count, len(self._free)))]
        # Keys of another row may stay: their scores are masked. Its values are multiplied by the
        # masked weights, which are 0, and could be infinite.
        if blocks and self._layers:
            index = self._index(blocks)
            for _, values in self._layers.values():
                values[index[values.device]] = 0
        new = range(self.used, self.used + count - len(blocks))
        self.used += len(new)
        if self.used > self._size:
            raise IndexError("no block is free")
        return [*blocks, *new]

    def give_back(self, blocks: Sequence[int]) -> None:
        """Free a row's blocks."""
        for block in blocks:
            heapq.heappush(self._free, block)

    def compact(self) -> Mapping[int, int]:
        """Move the last blocks into the gaps; returns old number -> new number of moved blocks."""
        free = set(self._free)
        used = self.used - len(free)
        into = sorted(block for block in free if block < used)
        last = [block for block in range(used, self.used) if block not in free]
        if last and self._layers:
            to, of = self._index(into), self._index(last)
            for pair in self._layers.values():
                for tensor in pair:
                    tensor[to[tensor.device]] = tensor[of[tensor.device]]
        # blocks behind ``used`` are taken without being cleared by ``take``
        for _, values in self._layers.values() if used < self.used else ():
            values[used : self.used] = 0
        self._free, self.used = [], used
        return dict(zip(last, into, strict=True))

    def _index(self, blocks: Sequence[int]) -> dict[torch.device, Int[Tensor, " blocks"]]:
        """The index on each device that has layers."""
        devices = {keys.device for keys, _ in self._layers.values()}
        return {device: moved(torch.tensor(blocks), device) for device in devices}


@dataclass(eq=False)
class Segment:
    """Tokens that several rows of one model begin with.

    Attributes:
        start: position of the first.
        length: number of tokens.
        layers: keys (kv_heads, width, tokens) and values (kv_heads, tokens, value_width) by the
            id of the attention module.
    """

    start: int
    length: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)


class Read(NamedTuple):
    """Consecutive new tokens: they see each other, and the segments before them.

    Attributes:
        start: the first one's place in the batch.
        length: number of tokens.
        into: where their keys and values go: a segment, or a row's blocks.
        copied: segments whose keys and values come before theirs in the row's blocks.
    """

    start: int
    length: int
    into: Segment | Sequence[int]
    copied: Sequence[Segment] = ()


class SharedUse(NamedTuple):
    """A segment, and the tokens that see it.

    Attributes:
        segment: is seen.
        start: place of the first token; ``stop`` is the one after the last.
        stop: see ``start``.
        last_position: the highest position of these tokens.
    """

    segment: Segment
    start: int
    stop: int
    last_position: int


class BlockTable:
    """Which blocks belong to which decoded row, in one forward pass.

    Attributes:
        grid: (rows, columns) the blocks of every row in order; VOID behind the last one.
        row_of: (blocks,) the row of every block of the cache; 0 of a block that no row has.
        column_of: (blocks,) its place among the row's blocks; 0 likewise.
        current: (rows,) block of the newest token.
        offset: (rows,) the newest token's place in that block.
        lengths: (rows,) tokens in the row's blocks, the newest included.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        lengths: Sequence[int],
        used: int,
        device: torch.device,
    ) -> None:
        """Blocks and lengths of the rows, and ``BlockCache.used``."""
        columns = max(map(len, blocks))
        grid = np.array([[*row, *[VOID] * (columns - len(row))] for row in blocks])
        owner = np.zeros((2, used), dtype=np.int64)  # of every block: its row and its column there
        owner[:, grid[grid != VOID]] = (grid != VOID).nonzero()
        current = np.array([row[-1] for row in blocks])
        self.grid, of_blocks, self.lengths, self.current = moved_together(
            [grid, owner, np.array(lengths), current], device
        )
        self.row_of, self.column_of = of_blocks
        self.offset = (self.lengths - 1) % BLOCK_TOKENS
        self._unseen: dict[int | None, Tensor] = {}

    def on(self, device: torch.device) -> BlockTable:
        """The same table on another device."""
        table = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(table, name, value.to(device))
        table._unseen = {}
        return table

    def unseen(self, window: int | None) -> Bool[Tensor, "rows 1 places"]:
        """True where a row has no token, or one outside its window; made once per window."""
        if window not in self._unseen:
            at = torch.arange(self.grid.shape[1] * BLOCK_TOKENS, device=self.grid.device)
            # (rows, columns * block): positions behind the newest token; below 0 there is no token
            behind = self.lengths[:, None] - 1 - at
            unseen = behind < 0
            if window is not None:
                unseen |= behind >= window
            self._unseen[window] = unseen[:, None]
        return self._unseen[window]
