"""Continuations read one after the other in a packed row, with or without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.engine.models.packed_attention import PackedLayout
from rankwise.tasks.questions import Continuation, RightAnswer


def predicting_states(
    decoder: Any, sequences: Sequence[Continuation | RightAnswer]
) -> list[Float[Tensor, "_ hidden"]]:
    """The last hidden states from which each sequence's continuation is predicted.

    Args:
        decoder: of transformers; reads packed rows now (``packed_attention``).
        sequences: are read in one forward pass.
    """
    layout = PackedLayout(tuple(len(sequence.tokens_read) for sequence in sequences))
    tokens = [token for sequence in sequences for token in sequence.tokens_read]
    hidden: Tensor = decoder.base_model(  # (tokens, hidden): the batch is one row
        input_ids=torch.tensor([tokens], device=decoder.device),
        position_ids=layout.position_ids(decoder.device),
        packed_layout=layout,
        use_cache=False,
    ).last_hidden_state[0]
    # the last token is not read, so the continuation is predicted at a sequence's last rows
    stops = (start + length for start, length in zip(layout.starts, layout.lengths, strict=True))
    return [
        hidden[stop - len(sequence.continuation) : stop]
        for stop, sequence in zip(stops, sequences, strict=True)
    ]


def within_budget(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most ``max_tokens``, longest first; a longer one is a batch alone.

    Sequences of equal length meet: packed attention multiplies them together.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and tokens + lengths[index] > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch
