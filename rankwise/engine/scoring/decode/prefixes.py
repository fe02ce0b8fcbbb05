"""Common beginnings of prompts, where it pays to keep their keys and values once for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# A segment of fewer tokens costs more, by its own small products in every step, than it saves.
_LEAST_TOKENS = 32


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """Tokens that several prompts have in common, behind an earlier common beginning or none.

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


def shared_prefixes(prompts: Sequence[tuple[int, ...]]) -> list[tuple[SharedPrefix, ...]]:
    """For every prompt the chain of prefixes that it shares with others.

    The last token is never shared: each row reads it itself, for its first logits.

    Args:
        prompts: sorted, so that those with equal beginnings are neighbours; some may be equal.
    """
    chains: list[tuple[SharedPrefix, ...]] = [()] * len(prompts)
    # Ranges of prompts with the same chain so far. Of sorted prompts, what the first and the last
    # of a range have in common, all have.
    open_ranges = [(0, len(prompts))]
    while open_ranges:
        first, last = open_ranges.pop()
        if last - first < 2:
            continue
        common = _common(prompts[first], prompts[last - 1])
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


def _common(first: tuple[int, ...], last: tuple[int, ...]) -> int:
    """How many tokens both begin with, the last of either left out."""
    limit = min(len(first), len(last)) - 1
    pairs = zip(first[:limit], last[:limit], strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), limit)


def _token(prompt: tuple[int, ...], position: int) -> int | None:
    """The token there; None where only the prompt's last token is left."""
    return prompt[position] if position < len(prompt) - 1 else None
