"""Computing again in smaller steps when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from rankwise.engine.models.devices import give_back_memory, is_out_of_memory
from rankwise.tasks.questions import Advance

A = TypeVar("A")


def in_smaller_steps(
    answer: Callable[[Advance], A],
    shrink: Callable[[], bool],
    advance: Advance,
    device: torch.device,
) -> A:
    """Compute something, in smaller and smaller steps while memory runs out.

    Args:
        answer: computes everything; tells of what it has finished.
        shrink: makes the steps smaller; False where they cannot be.
        advance: hears of everything once.
        device: that computes.
    """
    done = told = 0

    def tell(count: int) -> None:
        nonlocal done, told
        done += count
        if done > told:
            advance(done - told)
            told = done

    while True:
        done = 0
        try:
            return answer(tell)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not shrink():
                raise
        # outside of the handler: inside, the error's frames would keep the step's tensors alive
        give_back_memory(device)
