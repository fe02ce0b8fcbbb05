"""Text to tokens by the rules of lm-eval's Hugging Face back end, for training and scoring."""

from __future__ import annotations

from typing import Any


class TextEncoder:
    """Tokenises prompts and continuations, with one rule for the boundary between them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        bos = tokenizer.bos_token_id
        self.prefix_id: int = tokenizer.eos_token_id if bos is None else bos
        self._prefix_text: str = tokenizer.decode([self.prefix_id])

    def encode(self, text: str) -> list[int]:
        """Token ids, with the tokenizer's special tokens unless the text starts with one."""
        if text.startswith(self._prefix_text):
            return self._tokenizer.encode(text, add_special_tokens=False)
        return self._tokenizer.encode(text)

    def split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Split into tokens that are read and tokens that are scored or learned.

        Spaces at the end of the context belong to the continuation's first word. An empty
        context becomes the beginning-of-text token, or end of text if there is none.
        """
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        if not stripped:
            tokens = self._tokenizer.encode(continuation, add_special_tokens=False)
            if tokens[:1] == [self.prefix_id]:
                return tokens[:1], tokens[1:]
            return [self.prefix_id], tokens
        whole = self.encode(stripped + continuation)
        length = len(self.encode(stripped))
        return whole[:length], whole[length:]
