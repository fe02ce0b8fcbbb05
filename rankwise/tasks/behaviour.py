"""The prompts of ``records.behaviour`` as tokens, asked as the base model expects to be asked."""

from __future__ import annotations

from typing import Any

from rankwise.records.behaviour import MOST_NEW_TOKENS, PROMPTS
from rankwise.tasks.questions import GenerationSettings, Prompt
from rankwise.tasks.training_rows import TextEncoder, render_chat


def behaviour_prompts(tokenizer: Any) -> tuple[Prompt, ...]:
    """Each prompt as a user's turn where the tokenizer has a chat template, else as a line.

    Args:
        tokenizer: the base model's.
    """
    encoder = TextEncoder(tokenizer)
    end_of_text: str = tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=False)
    settings = GenerationSettings(MOST_NEW_TOKENS, (end_of_text,), (("do_sample", False),))

    asked = [
        render_chat(tokenizer, [{"role": "user", "content": each.text}])
        if tokenizer.chat_template
        else f"{each.text}\n"
        for each in PROMPTS
    ]
    return tuple(Prompt(tuple(encoder.encode(text)), settings) for text in asked)
