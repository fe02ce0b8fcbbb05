"""Examples that a frozen base reads, packed, in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.engine.models.devices import in_smaller_steps
from rankwise.engine.models.packed_attention import packed_states
from rankwise.engine.training.micro_batches import MicroBatch, Placed, pack, split_by_budget
from rankwise.engine.training.trainees import GradientShare
from rankwise.tasks.questions import RightAnswer
from rankwise.tasks.training_rows import Example

NUM_ROWS = 64
"""Of what is learned, and of what is retained, so many rows are read."""

A = TypeVar("A")


def as_examples(answers: Sequence[RightAnswer]) -> list[Example]:
    """Right answers as rows whose answers are learned."""
    return [
        Example((*answer.context, *answer.continuation), len(answer.continuation), False)
        for answer in answers
    ]


def micro_batches(
    examples: Sequence[Example], max_tokens: int, device: torch.device
) -> Iterator[MicroBatch]:
    """All examples; the weights of their losses are those of the mean over all learned tokens."""
    placed = [Placed(0, place, example) for place, example in enumerate(examples)]
    share = GradientShare(of_loss=1 / sum(example.num_loss_tokens for example in examples))
    for group in split_by_budget(placed, max_tokens, device.type):
        yield pack(group, {0: share}, device)


def hidden_states(base_model: Any, batch: MicroBatch) -> Float[Tensor, "1 tokens hidden"]:
    """The last hidden states; the model reads packed rows (``packed_attention``)."""
    tokens = batch.tokens
    return packed_states(
        base_model.base_model, tokens.input_ids, tokens.layout, tokens.position_ids
    )


def as_memory_allows(
    compute: Callable[[int], A],
    examples: Sequence[Example],
    max_tokens: int,
    device: torch.device,
) -> A:
    """Compute with micro-batches of ``max_tokens`` tokens, halved while memory runs out.

    Args:
        compute: everything, with micro-batches of so many tokens.
        examples: that are read; the longest one has to fit.
        max_tokens: of a micro-batch at first.
        device: that computes.
    """
    budget, least = max_tokens, max(example.num_inputs for example in examples)

    def shrink() -> bool:
        nonlocal budget
        if budget <= least:
            return False
        budget = max(budget // 2, least)
        return True

    return in_smaller_steps(lambda _: compute(budget), shrink, lambda _: None, device)
