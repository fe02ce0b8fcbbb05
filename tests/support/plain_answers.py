"""Items, and a plain loop's answers to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from rankwise.tasks.questions import Continuation, LogLikelihood


def questions(seed: int = 0) -> list[Continuation]:
    """Few-shot questions: most share a prefix; options have one token or several."""
    draw = random.Random(seed)

    def some(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 64) for _ in range(draw.randrange(least, most + 1)))

    prefix, items = some(20, 20), list[Continuation]()
    for _ in range(8):
        context = prefix[: draw.choice([0, 3, 20, 20])] + some(1, 8)
        shared = some(1, 2)
        items += [Continuation(context, (token,)) for token in (5, 6)]
        items += [Continuation(context, shared + some(0, 4)) for _ in range(3)]
    return [*items, items[0], Continuation(items[0].context[:1], items[0].context[1:] or (7,))]


ITEMS = questions()


@torch.no_grad()
def plainly(model: Any, items: Sequence[Continuation] = ITEMS) -> list[LogLikelihood]:
    """The answers by a forward pass of the dense model for every item."""
    found: list[LogLikelihood] = []
    for item in items:
        logits = model(torch.tensor([item.tokens_read])).logits[0, -len(item.continuation) :]
        wanted = torch.tensor(item.continuation)
        log_probabilities = logits.float().log_softmax(-1)
        nats = log_probabilities.gather(1, wanted[:, None]).sum()
        greedy = bool((logits.argmax(-1) == wanted).all())
        found.append(LogLikelihood(float(nats), greedy))
    return found


def assert_equal(
    found: Sequence[LogLikelihood], expected: Sequence[LogLikelihood], within: float = 5e-5
) -> None:
    assert len(found) == len(expected)
    assert [each.is_greedy for each in found] == [each.is_greedy for each in expected]
    assert max(abs(a.nats - b.nats) for a, b in zip(found, expected, strict=True)) < within
