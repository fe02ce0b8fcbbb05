"""How far a model's next words are from those of another one, on right answers that both read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.tasks.questions import RightAnswer

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


class Batch(NamedTuple):
    """Rows padded on the left, so that all of them end at the last column.

    Attributes:
        input_ids: (rows, length) token ids.
        attention_mask: (rows, length), 1 on tokens and 0 on padding.
        position_ids: (rows, length), counted from each row's first token.
    """

    input_ids: Int[Tensor, "rows length"]
    attention_mask: Int[Tensor, "rows length"]
    position_ids: Int[Tensor, "rows length"]


def left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Batch:
    """Pad on the left. Masks go by length, so a pad id that is also a real token stays real."""
    length = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, length - len(row) :] = torch.tensor(row, dtype=torch.long)
        attention_mask[index, length - len(row) :] = 1
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return Batch(input_ids.to(device), attention_mask.to(device), position_ids.to(device))


def within_budget(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, at most ``max_tokens`` when padded.

    A row longer than the budget gets a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
