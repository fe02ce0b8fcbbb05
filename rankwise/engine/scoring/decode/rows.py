"""The rows that are written: which wait, which are at work, and what a forward pass has of them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from rankwise.engine.scoring.decode.attention import DecodeLayout
from rankwise.engine.scoring.decode.cache import (
    BLOCK_TOKENS,
    BlockCache,
    BlockTable,
    Read,
    Segment,
    SharedUse,
)
from rankwise.engine.scoring.decode.prefixes import SharedPrefix
from rankwise.engine.scoring.decode.samplers import Choice
from rankwise.tasks.questions import Prompt


@dataclass(eq=False)
class Row:
    """A prompt that is continued by a model.

    Attributes:
        order: of the model and of the prompt: rows that share a prefix are neighbours.
        prompt: its tokens and settings.
        chain: prefixes that it shares with other rows of the model.
        choice: how it chooses its tokens.
        blocks: of its own tokens; none before it is read.
        written: new tokens.
    """

    order: tuple[int, int]
    prompt: Prompt
    chain: tuple[SharedPrefix, ...]
    choice: Choice
    blocks: list[int] = field(default_factory=list[int])
    written: list[int] = field(default_factory=list[int])

    @property
    def model(self) -> int:
        return self.order[0]

    @property
    def tokens(self) -> list[int]:
        """Of the prompt, and those written."""
        return [*self.prompt.tokens, *self.written]

    @property
    def own_start(self) -> int:
        """Position of the first token that it does not share."""
        return self.chain[-1].stop if self.chain else 0

    @property
    def position(self) -> int:
        """Of its newest token."""
        return len(self.prompt.tokens) + len(self.written) - 1

    @property
    def most_blocks(self) -> int:
        """That it may need: its last token is not read."""
        tokens = len(self.prompt.tokens) - self.own_start
        return -(-(tokens + self.prompt.settings.max_new_tokens - 1) // BLOCK_TOKENS)


class RowLimits(NamedTuple):
    """How many rows there may be at once.

    Attributes:
        rows: at work.
        blocks: of the cache, segments included; a single row may have more.
        read_tokens: of prompts in one pass; a single row may have more.
    """

    rows: int
    blocks: int
    read_tokens: int


class ForwardPass(NamedTuple):
    """What the model is called with, and whose the logits are.

    Attributes:
        input_ids: (1, tokens).
        layout: of these tokens.
        ends: (rows,) places of the tokens whose logits are wanted.
        ranges: of every model at work: its position, first place, and the place behind its last.
    """

    input_ids: Int[Tensor, "1 tokens"]
    layout: DecodeLayout
    ends: Int[Tensor, " rows"]
    ranges: list[tuple[int, int, int]]


class RowBatch:
    """Rows at work and rows that wait.

    Attributes:
        rows: at work, sorted by model and prompt.
    """

    def __init__(self, rows: Sequence[Row], limits: RowLimits, device: torch.device) -> None:
        """``rows`` in the order in which they begin."""
        self._waiting, self._limits, self._device = deque(rows), limits, device
        needs = sorted((row.most_blocks for row in rows), reverse=True)
        most = max(needs[0], min(limits.blocks, sum(needs[: limits.rows])))
        self._cache = BlockCache(most)
        self._most_rows = max(1, min(limits.rows, limits.blocks // needs[0]))
        self._segments: dict[tuple[int, SharedPrefix], Segment] = {}
        self._users = Counter((row.model, prefix) for row in rows for prefix in row.chain)
        self.rows: list[Row] = []

    @property
    def is_unfinished(self) -> bool:
        return bool(self.rows or self._waiting)

    @property
    def places(self) -> int:
        """For rows: as many as there may be at once, or fewer if fewer are left."""
        left = len(self.rows) + len(self._waiting)
        return max(len(self.rows), min(self._most_rows, left))

    def admit(self) -> None:
        """Let rows begin, as many as there are places, blocks, and tokens to be read."""
        segments = sum(-(-each.length // BLOCK_TOKENS) for each in self._segments.values())
        taken = segments + sum(row.most_blocks for row in self.rows)
        tokens, coming = 0, set[tuple[int, SharedPrefix]]()
        while self._waiting and len(self.rows) < self._limits.rows:
            row = self._waiting[0]
            new = {(row.model, prefix) for prefix in row.chain} - self._segments.keys() - coming
            shared = [len(prefix.tokens) for _, prefix in new]
            taken += row.most_blocks + sum(-(-length // BLOCK_TOKENS) for length in shared)
            tokens += len(row.prompt.tokens) - row.own_start + sum(shared)
            too_many = taken > self._limits.blocks or tokens > self._limits.read_tokens
            if too_many and self.rows:
                break
            self.rows.append(self._waiting.popleft())
            coming |= new
        self.rows.sort(key=lambda row: row.order)

    def forward_pass(self) -> ForwardPass:
        """The newest token of each row, or its prompt, and prefixes that none has read."""
        tokens: list[int] = []
        positions: list[int] = []
        reads: list[Read] = []
        uses: dict[tuple[int, SharedPrefix], list[int]] = {}
        decoded: list[Row] = []
        places: list[int] = []
        ends: list[int] = []
        ranges: list[tuple[int, int, int]] = []

        def append(row: Row, new: Sequence[int], position: int, depth: int) -> None:
            for prefix in row.chain[:depth]:
                uses.setdefault((row.model, prefix), [len(tokens), 0])[1] = len(tokens) + len(new)
            tokens.extend(new)
            positions.extend(range(position, position + len(new)))

        for row in self.rows:
            first = len(tokens)
            for depth, prefix in enumerate(row.chain):
                if (row.model, prefix) not in self._segments:
                    segment = Segment(prefix.start, len(prefix.tokens))
                    self._segments[row.model, prefix] = segment
                    reads.append(Read(len(tokens), segment.length, segment))
                    append(row, prefix.tokens, prefix.start, depth)
            if row.written:
                self._lengthen(row)
                decoded.append(row)
                places.append(len(tokens))
                append(row, row.written[-1:], row.position, len(row.chain))
            else:
                own = row.prompt.tokens[row.own_start :]
                row.blocks = self._cache.take(-(-len(own) // BLOCK_TOKENS))
                reads.append(Read(len(tokens), len(own), row.blocks))
                append(row, own, row.own_start, len(row.chain))
            ends.append(len(tokens) - 1)
            if ranges and ranges[-1][0] == row.model:
                first = ranges.pop()[1]
            ranges.append((row.model, first, len(tokens)))
        layout = DecodeLayout(
            cache=self._cache,
            positions=torch.tensor(positions, device=self._device),
            rows=torch.tensor(places, dtype=torch.long, device=self._device),
            table=self._table(decoded),
            reads=reads,
            shared=[SharedUse(self._segments[key], *places) for key, places in uses.items()],
        )
        input_ids = torch.tensor([tokens], device=self._device)
        return ForwardPass(input_ids, layout, torch.tensor(ends, device=self._device), ranges)

    def remove(self, ended: Sequence[Row]) -> None:
        """Give back the places and the blocks of rows, and prefixes that no row needs any more."""
        if not ended:
            return
        gone = set(map(id, ended))
        self.rows = [row for row in self.rows if id(row) not in gone]
        for row in ended:
            self._cache.give_back(row.blocks)
            for prefix in row.chain:
                self._users[row.model, prefix] -= 1
                if not self._users[row.model, prefix]:
                    del self._segments[row.model, prefix]
        if not self._waiting:  # else the next rows fill the gaps
            moved = self._cache.compact()
            for row in self.rows:
                row.blocks = [moved.get(block, block) for block in row.blocks]

    def _lengthen(self, row: Row) -> None:
        """A block for the newest token, where the last one is full."""
        if row.position - row.own_start >= len(row.blocks) * BLOCK_TOKENS:
            row.blocks += self._cache.take(1)

    def _table(self, rows: Sequence[Row]) -> BlockTable | None:
        if not rows:
            return None
        lengths = [row.position - row.own_start + 1 for row in rows]
        return BlockTable([row.blocks for row in rows], lengths, self._cache.used, self._device)
