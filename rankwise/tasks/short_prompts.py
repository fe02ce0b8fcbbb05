"""Short prompts that come with rankwise, asked as the base model expects to be asked."""

from __future__ import annotations

from importlib import resources
from typing import Any

from rankwise.tasks.chat_templates import render_chat
from rankwise.tasks.questions import GenerationSettings, Prompt
from rankwise.tasks.training_rows import TextEncoder

MOST_NEW_TOKENS = 64
"""In one answer: thirty answers of a model cost as much as scoring a small task."""


def short_prompts() -> tuple[str, ...]:
    """Questions, requests with a format, and some in German."""
    file = resources.files("rankwise.tasks") / "short_prompts.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())


def encoded_prompts(tokenizer: Any) -> tuple[Prompt, ...]:
    """Each prompt as a user's turn where the tokenizer has a chat template, else as a line.

    Args:
        tokenizer: the base model's.
    """
    encoder = TextEncoder(tokenizer)
    end_of_text: str = tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=False)
    settings = GenerationSettings(MOST_NEW_TOKENS, (end_of_text,), (("do_sample", False),))

    asked = [
        render_chat(tokenizer, [{"role": "user", "content": text}])
        if tokenizer.chat_template
        else f"{text}\n"
        for text in short_prompts()
    ]
    return tuple(Prompt(tuple(encoder.encode(text)), settings) for text in asked)
