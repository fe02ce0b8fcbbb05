"""How far a model's next-token distributions are from another's, on right answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.engine.models.attention import decoder_of
from rankwise.engine.models.head import CompletionHead
from rankwise.engine.models.packed_attention import (
    packed_attention,
    predicting_states,
    within_budget,
)
from rankwise.tasks.questions import Advance, RightAnswer


class ItemDivergence(NamedTuple):
    """One answer: how far a model is from the reference, in means over the answer's tokens.

    Attributes:
        kl_nats: KL(reference || model).
        top1_agreement: the share of tokens at which both have the same one on top.
        rise_nats: the model's loss less the reference's, of the answer itself.
    """

    kl_nats: float
    top1_agreement: float
    rise_nats: float


def log_probabilities(
    model: nn.Module,
    answers: Sequence[RightAnswer],
    *,
    max_batch_tokens: int,
    advance: Advance = lambda _: None,
) -> list[Float[Tensor, "_ vocabulary"]]:
    """A model's log-probabilities at every token of every answer, kept in memory in float32.

    bfloat16 would round a log-probability of -10 by 0.03 nats, more than many divergences.

    Args:
        model: in eval mode.
        answers: their total size is limited by ``right_answers``.
        max_batch_tokens: of one forward pass.
        advance: receives the number of tokens read.

    Raises:
        ModelError: as ``packed_attention`` and ``CompletionHead``.
    """
    expected: list[Tensor] = [torch.empty(0)] * len(answers)
    for index, of_answer in _passes(model, answers, max_batch_tokens, advance):
        expected[index] = of_answer.cpu()
    return expected


def divergences(
    model: nn.Module,
    answers: Sequence[RightAnswer],
    reference: Sequence[Float[Tensor, "_ vocabulary"]],
    *,
    max_batch_tokens: int,
    advance: Advance = lambda _: None,
) -> list[ItemDivergence]:
    """How far a model is from the reference, which ``log_probabilities`` gave, on every answer.

    The model has the reference's vocabulary, and the answers are the same in the same order; all
    else is as there.
    """
    items = [ItemDivergence(0.0, 0.0, 0.0)] * len(answers)
    for index, of_answer in _passes(model, answers, max_batch_tokens, advance):
        expected = reference[index].to(of_answer.device)
        tokens = torch.tensor(answers[index].continuation, device=of_answer.device)
        items[index] = item_divergence(expected, of_answer, tokens)
    return items


def item_divergence(
    reference: Float[Tensor, "tokens vocabulary"],
    model: Float[Tensor, "tokens vocabulary"],
    answer: Int[Tensor, " tokens"],
) -> ItemDivergence:
    """Two models' log-probabilities at the tokens of one answer, and these tokens.

    KL is never below zero; where rounding makes it so, it is set to zero.
    """
    kl = (reference.exp() * (reference - model)).sum(dim=-1).mean()
    agrees = reference.argmax(dim=-1) == model.argmax(dim=-1)
    rise = (reference - model).gather(-1, answer[:, None]).mean()
    return ItemDivergence(max(float(kl), 0.0), float(agrees.float().mean()), float(rise))


@torch.inference_mode()
def _passes(
    model: nn.Module, answers: Sequence[RightAnswer], max_batch_tokens: int, advance: Advance
) -> Iterator[tuple[int, Float[Tensor, "_ vocabulary"]]]:
    """The index of an answer and its log-probabilities, on the model's device."""
    decoder = decoder_of(model)
    with packed_attention(model):
        head = CompletionHead(decoder)
    for batch in within_budget([len(answer.tokens_read) for answer in answers], max_batch_tokens):
        with packed_attention(model):
            states = predicting_states(decoder, [answers[index] for index in batch])
        for index, of_answer in zip(batch, states, strict=True):
            yield index, head.logits(of_answer).float().log_softmax(dim=-1)
        advance(sum(len(answers[index].tokens_read) for index in batch))
