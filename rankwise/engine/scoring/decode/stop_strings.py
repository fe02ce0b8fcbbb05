"""Strings that end a generation, looked for as lm-evaluation-harness looks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# lm-eval looks back this many tokens beyond what a stop string itself takes: the model may have
# written it in other tokens.
_MORE_TOKENS = 2


class StopStrings:
    """Says when a text has ended, and what of it is kept.

    lm-eval decodes the last tokens after each step, special tokens included, and looks for the
    string in them. Decoding is dear, so it is done only where the newest token can be the one
    that completed the string: where its own text has the string's last character.
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
        """Whether the newest of the tokens that were written completes a stop string."""
        return any(
            self._stops[i] in self._tokenizer.decode(new_tokens[-self._reach[i] :])
            for i in self._completed_by(new_tokens[-1])
        )

    def kept(self, text: str) -> str:
        """The text up to where a stop string begins, each in turn; as lm-eval cuts it."""
        for stop in self._stops:
            text = text.split(stop)[0]
        return text

    def _completed_by(self, token: int) -> tuple[int, ...]:
        """Which strings a token can be the last of; in doubt, it can."""
        known = self._may_complete.get(token)
        if known is None:
            # some tokenizers drop a leading space where a text begins, and a part of a character
            # is decoded to a mark of its own
            text = " " + self._tokenizer.decode([token])
            unclear = text == " " or "\N{REPLACEMENT CHARACTER}" in text
            stops = enumerate(self._stops)
            known = tuple(i for i, stop in stops if unclear or stop[-1] in text)
            self._may_complete[token] = known
        return known
