"""The rows of a decoding batch: which wait, which are active, and their next forward pass."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from rankwise.engine.models.devices import moved_together
from rankwise.engine.scoring.decode.attention import DecodeLayout
from rankwise.engine.scoring.decode.cache import (
    BLOCK_TOKENS,
    BlockCache,
    BlockTable,
    Read,
    Segment,
    SharedUse,
)
from rankwise.engine.scoring.decode.samplers import RowSampling
from rankwise.tasks.questions import Prompt, shared_length

# A common prefix of fewer tokens costs more, by its own small products in every step, than it
# saves.
_LEAST_TOKENS = 32
# Products with a prefix pay where they spare a step the reading of this many keys. On a card their
# 28 launches a layer take as long (arithmetic: 8 heads of width 128, 3 TB/s, 5 us a launch).
_LEAST_KEYS = {"cpu": 0, "cuda": 2**17}


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """Tokens that several prompts have in common, behind an earlier common prefix or none.

    Attributes:
        start: position of the first.
        tokens: token ids.
    """

    start: int
    tokens: tuple[int, ...]

    @property
    def stop(self) -> int:
        """Position behind the last token."""
        return self.start + len(self.tokens)


@dataclass(eq=False)
class Row:
    """A prompt that is continued by a model.

    Attributes:
        model: its number.
        place: of the prompt: sorted by model and place, rows that share a prefix are neighbours.
        prompt: its tokens and settings.
        chain: prefixes that it shares with other rows of the model.
        sampling: how its next token is chosen.
        blocks: of its own tokens and copied ones; none before it is read.
        written: new tokens.
        num_attended: prefixes of the chain that it attends to where they lie. Those behind are
            copied into its blocks when it is read.
    """

    model: int
    place: int
    prompt: Prompt
    chain: tuple[SharedPrefix, ...]
    sampling: RowSampling
    blocks: list[int] = field(default_factory=list[int])
    written: list[int] = field(default_factory=list[int])
    num_attended: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_attended = len(self.chain)

    @property
    def tokens(self) -> list[int]:
        """Those of the prompt and the new ones."""
        return [*self.prompt.tokens, *self.written]

    @property
    def has_stopped(self) -> bool:
        """Whether its text has ended, by an end token or a stop string."""
        sampler = self.sampling.sampler
        return self.written[-1] in sampler.end_tokens or sampler.stops.are_in(self.written)

    @property
    def read_start(self) -> int:
        """Position of the first token that no other row shares."""
        return self.chain[-1].stop if self.chain else 0

    @property
    def own_start(self) -> int:
        """Position of the first token in its blocks."""
        return self.chain[self.num_attended - 1].stop if self.num_attended else 0

    @property
    def position(self) -> int:
        """Position of its newest token."""
        return len(self.prompt.tokens) + len(self.written) - 1

    @property
    def most_blocks(self) -> int:
        """The most blocks that it may need; its last token is never read."""
        tokens = len(self.prompt.tokens) - self.own_start
        return -(-(tokens + self.prompt.settings.max_new_tokens - 1) // BLOCK_TOKENS)


class RowLimits(NamedTuple):
    """How much one forward pass may take.

    Attributes:
        rows: active at once.
        blocks: of the cache, segments included; a single row may have more.
        read_tokens: of prompts in one pass; a single row may have more.
    """

    rows: int
    blocks: int
    read_tokens: int


class RowBatch:
    """Active rows and waiting rows.

    Attributes:
        rows: the active ones, sorted by model and prompt.
    """

    def __init__(self, rows: Sequence[Row], limits: RowLimits, device: torch.device) -> None:
        """Take rows in the order in which they begin."""
        self._waiting, self._limits, self._device = deque(rows), limits, device
        self._users = Counter((row.model, prefix) for row in rows for prefix in row.chain)
        self._copy_prefixes(rows)
        # No more blocks than the largest rows together can need, but enough for a single row.
        needs = sorted((row.most_blocks for row in rows), reverse=True)
        most = max(needs[0], min(limits.blocks, sum(needs[: limits.rows])))
        self._cache = BlockCache(most)
        self._most_rows = max(1, min(limits.rows, limits.blocks // needs[0]))
        self._segments: dict[tuple[int, SharedPrefix], Segment] = {}
        self.rows: list[Row] = []

    def _copy_prefixes(self, rows: Sequence[Row]) -> None:
        """Have prefixes copied that save few keys, if the cache has room for as many rows then."""
        least = _LEAST_KEYS[self._device.type]
        at_once = self._limits.rows / len({row.model for row in rows})
        for row in rows:
            users = [min(self._users[row.model, prefix], at_once) for prefix in row.chain]
            saved = [n * len(prefix.tokens) for n, prefix in zip(users, row.chain, strict=True)]
            pays = [place for place, keys in enumerate(saved, 1) if keys >= least]
            row.num_attended = max(pays, default=0)
        needs = sorted((row.most_blocks for row in rows), reverse=True)
        if sum(needs[: self._limits.rows]) > self._limits.blocks:
            for row in rows:
                row.num_attended = len(row.chain)

    @property
    def places(self) -> int:
        """How many rows could be active: the limit, or all that are left if these are fewer."""
        left = len(self.rows) + len(self._waiting)
        return max(len(self.rows), min(self._most_rows, left))

    def admit(self) -> None:
        """Let rows begin while row, block and token limits allow it.

        A row begins only if there is room for all blocks that it may ever need, so that it never
        has to stop. A row that is alone always begins.
        """
        segments = sum(-(-s.length // BLOCK_TOKENS) for s in self._segments.values())
        taken = segments + sum(row.most_blocks for row in self.rows)
        tokens, coming = 0, set[tuple[int, SharedPrefix]]()
        while self._waiting and len(self.rows) < self._limits.rows:
            row = self._waiting[0]
            new = {(row.model, prefix) for prefix in row.chain} - self._segments.keys() - coming
            shared = [len(prefix.tokens) for _, prefix in new]
            taken += row.most_blocks + sum(-(-length // BLOCK_TOKENS) for length in shared)
            tokens += len(row.prompt.tokens) - row.read_start + sum(shared)
            too_many = taken > self._limits.blocks or tokens > self._limits.read_tokens
            if too_many and self.rows:
                break
            self.rows.append(self._waiting.popleft())
            coming |= new
        self.rows.sort(key=lambda row: (row.model, row.place))

    def forward_pass(self) -> tuple[DecodeLayout, list[tuple[int, int, int]]]:
        """The newest token of each row, or its prompt, and prefixes that are not read yet.

        Returns:
            The tokens, and of every active model its number, first place, and the place behind its
            last.
        """
        tokens: list[int] = []
        positions: list[int] = []
        reads: list[Read] = []
        uses: dict[tuple[int, SharedPrefix], list[int]] = {}
        decoded: list[Row] = []
        places: list[int] = []
        ends: list[int] = []
        ranges: list[tuple[int, int, int]] = []
        begun: list[Row] = []

        def append(row: Row, new: Sequence[int], position: int, depth: int) -> None:
            """Tokens that see the first ``depth`` prefixes of the row's chain.

            Rows that share a prefix are neighbours, so the tokens that see it are one range.
            """
            for prefix in row.chain[:depth]:
                uses.setdefault((row.model, prefix), [len(tokens), 0])[1] = len(tokens) + len(new)
            tokens.extend(new)
            positions.extend(range(position, position + len(new)))

        for row in self.rows:
            first = len(tokens)
            for depth, prefix in enumerate(() if row.written else row.chain):
                if (row.model, prefix) not in self._segments:
                    segment = Segment(prefix.start, len(prefix.tokens))
                    self._segments[row.model, prefix] = segment
                    reads.append(Read(len(tokens), segment.length, segment))
                    append(row, prefix.tokens, prefix.start, depth)
            if row.written:
                if row.position - row.own_start >= len(row.blocks) * BLOCK_TOKENS:
                    row.blocks += self._cache.take(1)  # for the newest token: the last is full
                decoded.append(row)
                places.append(len(tokens))
                append(row, row.written[-1:], row.position, row.num_attended)
            else:
                reads.append(self._read_of(row, len(tokens)))
                append(row, row.prompt.tokens[row.read_start :], row.read_start, len(row.chain))
                begun.append(row)
            ends.append(len(tokens) - 1)
            if ranges and ranges[-1][0] == row.model:  # rows of a model are one range
                first = ranges.pop()[1]
            ranges.append((row.model, first, len(tokens)))
        numbers = [np.array(each, dtype=np.int64) for each in (tokens, positions, places, ends)]
        of_tokens, of_positions, of_rows, of_ends = moved_together(numbers, self._device)
        layout = DecodeLayout(
            cache=self._cache,
            tokens=of_tokens,
            positions=of_positions,
            ends=of_ends,
            rows=of_rows,
            table=self._table(decoded) if decoded else None,
            reads=reads,
            shared=[
                SharedUse(self._segments[key], start, stop, max(positions[start:stop]))
                for key, (start, stop) in uses.items()
            ],
        )
        for row in begun:
            self._leave(row, row.chain[row.num_attended :])
        return layout, ranges

    def _read_of(self, row: Row, start: int) -> Read:
        """How a row begins, whose own tokens stand from ``start`` on; it gets its blocks."""
        size = len(row.prompt.tokens) - row.own_start
        row.blocks = self._cache.take(-(-size // BLOCK_TOKENS))
        copied = [self._segments[row.model, prefix] for prefix in row.chain[row.num_attended :]]
        return Read(start, len(row.prompt.tokens) - row.read_start, row.blocks, copied)

    def _leave(self, row: Row, prefixes: Sequence[SharedPrefix]) -> None:
        """The row needs these no more; what no row needs is freed."""
        for prefix in prefixes:
            self._users[row.model, prefix] -= 1
            if not self._users[row.model, prefix]:
                del self._segments[row.model, prefix]

    def _table(self, rows: Sequence[Row]) -> BlockTable:
        lengths = [row.position - row.own_start + 1 for row in rows]
        return BlockTable([row.blocks for row in rows], lengths, self._cache.used, self._device)

    def remove(self, ended: Sequence[Row]) -> None:
        """Free the blocks of rows that have ended, and prefixes that no row needs any more."""
        if not ended:
            return
        gone = set(map(id, ended))
        self.rows = [row for row in self.rows if id(row) not in gone]
        for row in ended:
            self._cache.give_back(row.blocks)
            self._leave(row, row.chain[: row.num_attended])
        # Attention runs over all blocks up to the last one in use. While rows wait, the next of
        # them fill the gaps; later the blocks are moved together.
        if not self._waiting:
            moved = self._cache.compact()
            for row in self.rows:
                row.blocks = [moved.get(block, block) for block in row.blocks]


def shared_prefixes(prompts: Sequence[tuple[int, ...]]) -> list[tuple[SharedPrefix, ...]]:
    """The chain of prefixes of every prompt that it shares with others.

    The last token is never shared: each row reads it itself, for its first logits.

    Args:
        prompts: sorted, so that those with equal prefixes are neighbours; some may be equal.
    """
    chains: list[tuple[SharedPrefix, ...]] = [()] * len(prompts)
    # Ranges of prompts with the same chain so far. Of sorted prompts, what the first and the last
    # of a range have in common, all have.
    open_ranges = [(0, len(prompts))]
    while open_ranges:
        first, last = open_ranges.pop()
        if last - first < 2:
            continue
        common = shared_length(prompts[first][:-1], prompts[last - 1][:-1])
        chain = chains[first]
        before = chain[-1].stop if chain else 0
        if common - before >= _LEAST_TOKENS:
            prefix = SharedPrefix(before, prompts[first][before:common])
            chains[first:last] = [(*chain, prefix)] * (last - first)
        # split the range where the next token differs
        start = first
        for index in range(first + 1, last + 1):
            if index == last or _token(prompts[index], common) != _token(prompts[start], common):
                # prompts that end here have nothing more to share
                if _token(prompts[start], common) is not None:
                    open_ranges.append((start, index))
                start = index
    return chains


def _token(prompt: tuple[int, ...], position: int) -> int | None:
    """The token there; None where only the prompt's last token is left."""
    return prompt[position] if position < len(prompt) - 1 else None
