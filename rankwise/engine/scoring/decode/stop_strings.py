"""Strings that end a generation, searched as lm-evaluation-harness searches them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# lm-eval searches this many tokens more than a stop string itself takes: the model may have
# written it in other tokens.
_MORE_TOKENS = 2


class StopStrings:
    """Says when a text has ended, and what of it is kept.

    lm-eval decodes the last tokens after each step, special tokens included, and searches them for
    the string. Decoding is slow, so it is done only where the newest token can have completed the
    string: where its own text contains the string's last character.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        """``stops`` may be of any length and number; empty ones are ignored."""
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._reach = [
            len(tokenizer.encode(stop, add_special_tokens=False)) + _MORE_TOKENS
            for stop in self._stops
        ]
        self._may_complete: dict[int, tuple[int, ...]] = {}

    def are_in(self, new_tokens: Sequence[int]) -> bool:
        """Whether the newest token completes a stop string."""
        return any(
            self._stops[i] in self._tokenizer.decode(new_tokens[-self._reach[i] :])
            for i in self._completed_by(new_tokens[-1])
        )

    def kept(self, text: str) -> str:
        """The text up to the first stop string, as lm-eval cuts it: one string after the other."""
        for stop in self._stops:
            text = text.split(stop)[0]
        return text

    def _completed_by(self, token: int) -> tuple[int, ...]:
        """Numbers of the strings that a token can complete; in doubt, it can."""
        known = self._may_complete.get(token)
        if known is None:
            # Some tokenizers drop a leading space at the beginning of a text, and a part of a
            # character is decoded to the replacement character.
            text = " " + self._tokenizer.decode([token])
            unclear = text == " " or "\N{REPLACEMENT CHARACTER}" in text
            stops = enumerate(self._stops)
            known = tuple(i for i, stop in stops if unclear or stop[-1] in text)
            self._may_complete[token] = known
        return known
