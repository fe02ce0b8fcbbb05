"""Token sequences as a tree that holds each common prefix once.

Sequences are sorted. The tree's tokens are numbered in the order in which they are first met, so
that a token comes behind its ancestors and directly before its descendants. Its number is called
its *place*. A reader that goes from left to right, in steps of any size, has to keep the ancestors
of the next token and nothing else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rankwise.errors import DataError
from rankwise.tasks.questions import shared_length

Places = Int[np.ndarray, " places"]


class Branch(NamedTuple):
    """Neighbouring places that each continue the one before.

    Attributes:
        start: the first place; ``stop`` is the one after the last.
        stop: see ``start``.
        parent: the place that the first one continues; -1 if a sequence begins here.
    """

    start: int
    stop: int
    parent: int


class PrefixTree:
    """The distinct tokens behind distinct prefixes, and where each sequence lies.

    Attributes:
        tokens: (places,) token ids.
        depths: (places,) how many tokens come before each in its sequences: its position.
        ends: (places,) for every place, the one after its last descendant.
        branches: in order; together they cover every place once.
        lasts: the place of every sequence's last token, in the order in which they were given.
        longest: number of tokens of the longest sequence: a reader keeps at most that many.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        """Sort the sequences and lay their tokens out.

        Raises:
            DataError: a sequence has no tokens.
        """
        rows = [tuple(sequence) for sequence in sequences]
        if not all(rows):
            raise DataError("cannot read a sequence of no tokens; each needs one at least.")
        self.longest = max(map(len, rows), default=0)
        self.lasts = [-1] * len(rows)
        self.branches: list[Branch] = []
        tokens: list[int] = []
        depths: list[int] = []
        ends = np.zeros(sum(map(len, rows)), dtype=np.int64)
        # In sorted order a sequence shares most with the one before it; ``path`` has the places of
        # that one's tokens.
        path = np.zeros(self.longest, dtype=np.int64)
        before: tuple[int, ...] = ()
        for index in sorted(range(len(rows)), key=rows.__getitem__):
            row = rows[index]
            shared, start = shared_length(before, row), len(tokens)
            if shared < len(row):
                # the tokens that this sequence does not share have no further descendants
                ends[path[shared : len(before)]] = start
                parent = int(path[shared - 1]) if shared else -1
                self.branches.append(Branch(start, start + len(row) - shared, parent))
                tokens += row[shared:]
                depths += range(shared, len(row))
                path[shared : len(row)] = np.arange(start, len(tokens))
            self.lasts[index] = int(path[len(row) - 1])
            before = row
        ends[path[: len(before)]] = len(tokens)
        self.tokens = np.asarray(tokens, dtype=np.int64)
        self.depths = np.asarray(depths, dtype=np.int64)
        self.ends = ends[: len(tokens)]
        self._starts = [branch.start for branch in self.branches]

    def __len__(self) -> int:
        """The number of places."""
        return len(self.tokens)

    def path(self, place: int) -> Places:
        """The place and all that come before it in its sequences, from the first token on."""
        pieces: list[Places] = []
        while place >= 0:
            branch = self.branches[bisect_right(self._starts, place) - 1]
            pieces.append(np.arange(branch.start, place + 1))
            place = branch.parent
        return np.concatenate(pieces[::-1])

    def ancestors(self, place: int) -> Places:
        """The places before this one in its sequences, from the first token on."""
        return self.path(place)[:-1]


def side_by_side(
    sequences: Sequence[tuple[int, ...]], most: int, least_tokens: int
) -> list[list[int]]:
    """The numbers of the sequences in up to ``most`` parts of about as many distinct tokens.

    Sequences with a common prefix are neighbours, so that few tokens are in two parts.

    Args:
        sequences: of tokens.
        most: parts.
        least_tokens: of a part, on average; with fewer there are fewer parts.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    pairs = pairwise([(), *(sequences[number] for number in order)])
    # of each sequence, the distinct tokens up to its own
    ends = [*accumulate(len(row) - shared_length(before, row) for before, row in pairs)]
    count = max(1, min(most, ends[-1] // least_tokens))
    parts: list[list[int]] = [[] for _ in range(count)]
    for number, end in zip(order, ends, strict=True):
        parts[(end - 1) * count // ends[-1]].append(number)
    return [sorted(part) for part in parts if part]
