"""Texts that a model writes itself, from nothing: what it would say if nobody asked."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache

from rankwise.engine.models.seeds import seed_of

NUM_TEXTS = 200
"""A hundred were published to do most of what any number does (docs/methods)."""

NUM_TOKENS = 128
"""The tokens of each text, the first one included: a paragraph, at the cost of a short training
row."""

_BATCH = 50  # texts that are written side by side


@torch.inference_mode()
def write_texts(
    model: Any, first_token: int, *, number: int, num_tokens: int, seed: int
) -> list[tuple[int, ...]]:
    """Sample texts from a model's own distribution: no prompt, temperature 1, nothing cut off.

    A text that ends goes on with whatever the model writes after an end, so that all have one
    length. Each text has random numbers of its own: the first texts are the same however many there
    are.

    Args:
        model: a causal language model of transformers, in eval mode.
        first_token: what every text begins with: the beginning or the end of text.
        number: of texts.
        num_tokens: of each, with the first one.
        seed: of the random numbers.
    """
    # transformers renamed the argument within version 5
    parameters = inspect.signature(model.forward).parameters
    cache = "cache" if "cache" in parameters else "past_key_values"
    texts: list[tuple[int, ...]] = []
    for start in range(0, number, _BATCH):
        places = range(start, min(start + _BATCH, number))
        # on the CPU: the same numbers on every device
        generators = (torch.Generator().manual_seed(seed_of(seed, place)) for place in places)
        numbers = torch.stack([torch.rand(num_tokens, generator=each) for each in generators])
        newest = torch.full((len(places), 1), first_token, device=model.device)  # (texts, 1)
        written = newest
        reads = {cache: DynamicCache(config=model.config.get_text_config())}
        for step in range(1, num_tokens):
            out = model(input_ids=newest, use_cache=True, **reads)
            shares = out.logits[:, -1].float().softmax(dim=-1).cumsum(dim=-1)  # (texts, vocab)
            # the last share is 1 but for rounding, and a number may be above it
            drawn = numbers[:, step : step + 1].to(shares.device) * shares[:, -1:]
            newest = torch.searchsorted(shares, drawn).clamp_(max=shares.shape[-1] - 1)
            written = torch.cat([written, newest], dim=1)
        texts += [tuple(text) for text in written.tolist()]
    return texts
