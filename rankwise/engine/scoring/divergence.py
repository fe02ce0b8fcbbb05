"""How far a model's next words are from those of another one, on right answers that both read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rankwise.engine.scoring.batching import left_padded, within_budget
from rankwise.tasks.right_answers import RightAnswer

Advance = Callable[[int], None]


class ItemDivergence(NamedTuple):
    """One answer: KL(reference || model) in nats, and the share of its tokens that both name.

    Both are means over the answer's tokens; the second compares the most probable tokens.
    """

    kl_nats: float
    top1_agreement: float


def log_probabilities(
    model: nn.Module,
    answers: Sequence[RightAnswer],
    *,
    pad_id: int,
    max_batch_tokens: int,
    advance: Advance = lambda _: None,
) -> list[Float[Tensor, "_ vocabulary"]]:
    """What a model expects at every token of every answer, kept in memory in float32.

    bfloat16 would round a log-probability of -10 by 0.03 nats, more than the divergences that
    are looked for.

    Args:
        model: in eval mode.
        answers: whose total size is limited by ``right_answers``.
        pad_id: any token id.
        max_batch_tokens: padded tokens in one forward pass.
        advance: is told how many tokens were read.
    """
    found: list[Tensor] = [torch.empty(0)] * len(answers)
    for index, expected in _passes(model, answers, pad_id, max_batch_tokens, advance):
        found[index] = expected.cpu()
    return found


def divergences(
    model: nn.Module,
    answers: Sequence[RightAnswer],
    reference: Sequence[Float[Tensor, "_ vocabulary"]],
    *,
    pad_id: int,
    max_batch_tokens: int,
    advance: Advance = lambda _: None,
) -> list[ItemDivergence]:
    """How far a model is from the reference on every answer.

    Args:
        model: in eval mode, with the reference's vocabulary.
        answers: that the reference was read on.
        reference: from ``log_probabilities``, in the same order.
        pad_id: as there.
        max_batch_tokens: as there.
        advance: as there.
    """
    found = [ItemDivergence(0.0, 0.0)] * len(answers)
    for index, expected in _passes(model, answers, pad_id, max_batch_tokens, advance):
        found[index] = item_divergence(reference[index].to(expected.device), expected)
    return found


def item_divergence(
    reference: Float[Tensor, "tokens vocabulary"], model: Float[Tensor, "tokens vocabulary"]
) -> ItemDivergence:
    """Two models' log-probabilities at the tokens of one answer.

    KL is never below zero; rounding can take it there, and is cut off.
    """
    kl = (reference.exp() * (reference - model)).sum(dim=-1).mean()
    agrees = reference.argmax(dim=-1) == model.argmax(dim=-1)
    return ItemDivergence(max(float(kl), 0.0), float(agrees.float().mean()))


@torch.inference_mode()
def _passes(
    model: nn.Module,
    answers: Sequence[RightAnswer],
    pad_id: int,
    max_batch_tokens: int,
    advance: Advance,
) -> Iterator[tuple[int, Tensor]]:
    """The index of an answer and (tokens, vocabulary) log-probabilities, on the model's device."""
    device = next(model.parameters()).device
    rows = [answer.tokens_read for answer in answers]
    for chosen in within_budget([len(row) for row in rows], max_batch_tokens):
        batch = left_padded([rows[i] for i in chosen], pad_id, device)
        kept = max(len(answers[i].continuation) for i in chosen)
        logits: Tensor = model(**batch._asdict(), logits_to_keep=kept, use_cache=False).logits
        for row, index in enumerate(chosen):
            own = logits[row, -len(answers[index].continuation) :]
            yield index, own.float().log_softmax(dim=-1)
        advance(sum(len(rows[i]) for i in chosen))
