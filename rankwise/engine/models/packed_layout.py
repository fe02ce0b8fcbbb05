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

    Attributes:
        lengths: of the sequences in tokens, in the order in which they lie in the row.
        attended: of each call of attention with this layout, the caller's ``layer_idx`` (None if it
            has none) and its window.

    Raises:
        DataError: a sequence has no tokens, or there is none.
    """

    lengths: tuple[int, ...]
    attended: list[tuple[int | None, int | None]] = field(
        default_factory=list[tuple[int | None, int | None]], init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if min(self.lengths, default=0) < 1:
            raise DataError(f"cannot pack sequences of {self.lengths} tokens: each needs one.")

    @cached_property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first token of every sequence."""
        return tuple(accumulate(self.lengths[:-1], initial=0))

    @cached_property
    def groups(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Every length with the starts of its sequences, which are multiplied in one batch."""
        groups: dict[int, list[int]] = {}
        for length, start in zip(self.lengths, self.starts, strict=True):
            groups.setdefault(length, []).append(start)
        return tuple((length, tuple(starts)) for length, starts in groups.items())

    def position_ids(self, device: torch.device) -> Int[Tensor, "1 tokens"]:
        """Positions counted from each sequence's first token."""
        positions = torch.cat([torch.arange(length) for length in self.lengths])
        return moved(positions, device)[None]
