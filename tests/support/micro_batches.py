"""Examples of trainees, placed in a step, and how a step was cut."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.engine.training.micro_batches import Placed
from rankwise.tasks.training_rows import Example


def example(tokens: Sequence[int], num_loss_tokens: int) -> Example:
    return Example(tuple(tokens), num_loss_tokens, False)


def placed(lengths: dict[int, Sequence[int]]) -> list[Placed]:
    """Of each trainee, examples that read so many tokens."""
    return [
        Placed(trainee, place, example(range(length + 1), 1))
        for trainee, of_trainee in lengths.items()
        for place, length in enumerate(of_trainee)
    ]


def cut(groups: Sequence[Sequence[Placed]]) -> list[list[tuple[int, int]]]:
    return [[(item.trainee, item.example.num_inputs) for item in group] for group in groups]
