"""What the base says of pairs of answers.

The base is frozen, so that never changes: each pair is read once for all runs, epochs and seeds
of a pass, before these begin.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from rankwise.engine.models.devices import in_smaller_steps
from rankwise.engine.models.head import CompletionHead, token_losses
from rankwise.engine.models.packed_attention import packed_attention, packed_states
from rankwise.engine.training.micro_batches import Placed, pack, split_by_budget
from rankwise.engine.training.trainees import Share
from rankwise.tasks.training_rows import Example


@torch.no_grad()
def base_readings(
    model: Any, examples: Iterable[Example], *, max_tokens: int, autocast: bool = False
) -> dict[Example, Example]:
    """Each pair -> the same with what the model, which is the base still, says of both answers.

    Args:
        model: without any adapter.
        examples: pairs; of equal ones, one is read.
        max_tokens: read at once; halved when memory runs out.
        autocast: to bfloat16, as float32 weights are trained.

    Raises:
        torch.OutOfMemoryError: a single pair does not fit (MemoryError, RuntimeError on a CPU).
    """
    pairs = [*dict.fromkeys(examples)]
    placed = [Placed(0, place, pair) for place, pair in enumerate(pairs)]
    least = max(pair.num_inputs for pair in pairs)
    device: torch.device = next(model.parameters()).device
    head, found = CompletionHead(model), dict[Example, Example]()

    def shrink() -> bool:
        nonlocal max_tokens
        can, max_tokens = max_tokens > least, max_tokens // 2
        return can

    def read() -> None:
        for group in split_by_budget(placed, max_tokens, device.type):
            batch = pack(group, {0: Share(1.0)}, device)
            hidden, learned = packed_states(model.base_model, *batch.tokens), batch.learned
            nats = token_losses(head, hidden[0, learned.rows], learned.targets)
            assert batch.pairs is not None
            likelihoods = batch.pairs.log_likelihoods(nats).tolist()
            own = [span.placed.example for span in batch.spans if span.part == 0]
            for pair, (chosen, rejected) in zip(own, likelihoods, strict=True):
                found[pair] = pair._replace(base_nats=(chosen, rejected))

    with packed_attention(model), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        in_smaller_steps(lambda _: read(), shrink, lambda _: None, device)
    return found
