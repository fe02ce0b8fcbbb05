"""Keys and values of texts that are written: blocks taken before they are needed, and shared ones.

A row's own tokens lie in blocks of equal size, anywhere in one tensor per layer, so that the keys
of all rows are multiplied in one batch and a short row does not pay for a long one. What several
rows begin with lies in a segment of its own, once for each model.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BLOCK_TOKENS = 64
VOID = 0
"""A block that belongs to nobody and stands where a row has none."""


class BlockCache:
    """Blocks of ``BLOCK_TOKENS`` tokens: keys and values of every layer, made when first written.

    Those in use lie at the front, as far as ``compact`` was called.
    """

    def __init__(self, num_blocks: int) -> None:
        """``num_blocks`` can be taken; memory of a block is touched when it is first used."""
        self._size = num_blocks + 1
        self._free: list[int] = []
        self.used = VOID + 1
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def num_free(self) -> int:
        return len(self._free) + self._size - self.used

    def layer(
        self, layer: int, width: int, like: Float[Tensor, "tokens kv_heads value_width"]
    ) -> tuple[
        Float[Tensor, "blocks kv_heads width block"], Float[Tensor, "blocks kv_heads block value"]
    ]:
        """Keys, each column one token, and values of the blocks in use.

        Args:
            layer: the id of its attention module.
            width: of a key.
            like: values; they decide sizes, dtype and device.
        """
        if layer not in self._layers:
            _, heads, value_width = like.shape
            # zeros: what a row does not use is multiplied by a weight of 0 and must be finite
            keys = like.new_zeros((self._size, heads, width, BLOCK_TOKENS))
            values = like.new_zeros((self._size, heads, BLOCK_TOKENS, value_width))
            self._layers[layer] = keys, values
        keys, values = self._layers[layer]
        return keys[: self.used], values[: self.used]

    def take(self, count: int) -> list[int]:
        """Blocks for a row, the lowest first; what was in them is forgotten."""
        blocks = [heapq.heappop(self._free) for _ in range(min(count, len(self._free)))]
        for _, values in self._layers.values() if blocks else ():
            values[blocks] = 0
        new = range(self.used, self.used + count - len(blocks))
        self.used += len(new)
        if self.used > self._size:
            raise IndexError("no block is free")
        return [*blocks, *new]

    def give_back(self, blocks: Sequence[int]) -> None:
        """Let others have them."""
        for block in blocks:
            heapq.heappush(self._free, block)

    def compact(self) -> Mapping[int, int]:
        """Move the last blocks to where free ones lie; old and new number of what was moved."""
        free = set(self._free)
        used = self.used - len(free)
        into = sorted(block for block in free if block < used)
        moved = [block for block in range(used, self.used) if block not in free]
        if moved:
            for pair in self._layers.values():
                for tensor in pair:
                    tensor[into] = tensor[moved]
        # what lay behind may be taken again without being cleared by ``take``
        for _, values in self._layers.values() if used < self.used else ():
            values[used : self.used] = 0
        self._free, self.used = [], used
        return dict(zip(moved, into, strict=True))


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

    @property
    def size_bytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers.values())


@dataclass(frozen=True, eq=False)
class Read:
    """Tokens side by side that are new: they see each other, and the segments they are under.

    Attributes:
        start: the first one's place in the batch.
        length: number of tokens.
        into: where their keys and values go: a segment, or blocks of a row.
    """

    start: int
    length: int
    into: Segment | Sequence[int]


@dataclass(frozen=True, eq=False)
class SharedUse:
    """A segment, and the places ``start`` to ``stop`` (exclusive) of the tokens that see it."""

    segment: Segment
    start: int
    stop: int


class BlockTable:
    """Which blocks belong to which decoded row, in one forward pass.

    Attributes:
        grid: (rows, columns) the blocks of every row in order; VOID behind the last one.
        row_of: (blocks,) the row of every block of the cache, or 0.
        column_of: (blocks,) its place among the row's blocks, or 0.
        current: (rows,) block of the newest token.
        offset: (rows,) and its place there.
        lengths: (rows,) tokens in the row's blocks, the newest included.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        lengths: Sequence[int],
        used: int,
        device: torch.device,
    ) -> None:
        """``blocks`` and ``lengths`` of the rows; ``used`` blocks there are in the cache."""
        columns = max(map(len, blocks))
        grid = torch.tensor([[*row, *[VOID] * (columns - len(row))] for row in blocks])
        owner = torch.zeros(2, used, dtype=torch.long)
        rows, places = (grid != VOID).nonzero(as_tuple=True)
        owner[:, grid[rows, places]] = torch.stack([rows, places])
        self.grid, (self.row_of, self.column_of) = grid.to(device), owner.to(device)
        self.lengths = torch.tensor(lengths, device=device)
        self.current = torch.tensor([row[-1] for row in blocks], device=device)
        self.offset = (self.lengths - 1) % BLOCK_TOKENS
        self._unseen: dict[int | None, Tensor] = {}

    def unseen(self, window: int | None) -> Bool[Tensor, "rows 1 places"]:
        """True where a row has no token, or one that is out of its window."""
        if window not in self._unseen:
            at = torch.arange(self.grid.shape[1] * BLOCK_TOKENS, device=self.grid.device)
            behind = self.lengths[:, None] - 1 - at
            unseen = behind < 0
            if window is not None:
                unseen |= behind >= window
            self._unseen[window] = unseen[:, None]
        return self._unseen[window]
