"""Which tokens of a row of packed sequences belong together."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Int
from torch import Tensor

from rankwise.engine.models.devices import moved
from rankwise.errors import DataError


@dataclass(frozen=True)
class PackedLayout:
    """Which tokens of a row belong together.

    A sequence may share its first tokens with one that lies before it. These are there once, and
    the later sequence has only its own tokens in the row; it sees both. ::

        row          0  1  2  3    4  5      lengths (4, 2), shared (0, 3)
        position     0  1  2  3    3  4      the second sequence sees 0 to 2, then its own

    Attributes:
        lengths: of the sequences in tokens, in the order in which they lie in the row.
        shared: how many tokens each sees before its own: the first ones of the last sequence before
            it that shares none; empty: none shares any.
        attended: of each call of attention with this layout, the caller's ``layer_idx`` (None if it
            has none) and its window.

    Raises:
        DataError: a sequence has no tokens, or there is none; or the tokens that one shares are not
            there.
    """

    lengths: tuple[int, ...]
    shared: tuple[int, ...] = ()
    attended: list[tuple[int | None, int | None]] = field(
        default_factory=list[tuple[int | None, int | None]], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if min(self.lengths, default=0) < 1:
            raise DataError(f"cannot pack sequences of {self.lengths} tokens: each needs one.")
        if self.shared and (
            self.shared[0] > 0
            or not all(
                0 <= shared <= self.lengths[trunk]
                for shared, trunk in zip(self.shared, self.trunks, strict=True)
            )
        ):
            raise DataError(f"cannot share {self.shared} tokens of sequences of {self.lengths}.")

    @cached_property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first token of every sequence."""
        return tuple(accumulate(self.lengths[:-1], initial=0))

    @cached_property
    def trunks(self) -> tuple[int, ...]:
        """Of every sequence the one whose first tokens it shares; itself where it shares none."""
        if not self.shared:
            return tuple(range(len(self.lengths)))
        own = (0 if shared else index for index, shared in enumerate(self.shared))
        return tuple(accumulate(own, max))

    @cached_property
    def groups(self) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
        """Every length and number of shared tokens, with the sequences that have both.

        They are multiplied in one batch.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        shared = self.shared or (0,) * len(self.lengths)
        for index, sizes in enumerate(zip(self.lengths, shared, strict=True)):
            groups.setdefault(sizes, []).append(index)
        return tuple((*sizes, tuple(indices)) for sizes, indices in groups.items())

    def position_ids(self, device: torch.device) -> Int[Tensor, "1 tokens"]:
        """Positions counted from each sequence's first token, be it shared or its own."""
        shared = self.shared or (0,) * len(self.lengths)
        ranges = (
            torch.arange(first, first + length)
            for first, length in zip(shared, self.lengths, strict=True)
        )
        return moved(torch.cat([*ranges]), device)[None]
