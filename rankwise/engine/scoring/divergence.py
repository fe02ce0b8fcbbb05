"""How far a model's next-token distributions are from another's, on right answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rankwise.engine.models.attention import decoder_of
from rankwise.engine.models.devices import in_smaller_steps, moved
from rankwise.engine.models.frozen_adapters import FrozenBank
from rankwise.engine.models.head import CompletionHead
from rankwise.engine.scoring.tree.prefixes import PrefixTree
from rankwise.engine.scoring.tree.reader import TreeReader
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
        model: in eval mode; an adapter is on it already.
        answers: their total size is limited by ``right_answers``.
        max_batch_tokens: of one forward pass.
        advance: receives the number of tokens read; a prefix that answers share is read once.

    Raises:
        ModelError: as ``packed_attention``, ``tree_attention`` and ``CompletionHead``.
    """
    found = _of_answers(model, answers, max_batch_tokens, advance)
    return [of_answer.cpu() for of_answer in found]


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
    items: list[ItemDivergence] = []
    found = _of_answers(model, answers, max_batch_tokens, advance)
    for answer, expected, of_answer in zip(answers, reference, found, strict=True):
        device = of_answer.device
        tokens = moved(torch.tensor(answer.continuation), device)
        items.append(item_divergence(moved(expected, device), of_answer, tokens))
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
    # one read of the device
    kl_nats, agreement, rise_nats = (
        torch.stack([kl, agrees.to(kl.dtype).mean(), rise]).cpu().tolist()
    )
    return ItemDivergence(max(kl_nats, 0.0), agreement, rise_nats)


@torch.inference_mode()
def _of_answers(
    model: nn.Module,
    answers: Sequence[RightAnswer],
    max_batch_tokens: int,
    advance: Advance,
) -> Iterator[Float[Tensor, "_ vocabulary"]]:
    """The log-probabilities of one answer after the other, on the model's device."""
    decoder = decoder_of(model)
    head = CompletionHead(decoder)
    tree = PrefixTree([answer.tokens_read for answer in answers])
    # the last token is not read, so the n tokens of an answer are predicted at its last n places
    paths = [
        tree.path(last)[-len(answer.continuation) :]
        for last, answer in zip(tree.lasts, answers, strict=True)
    ]
    places = np.unique(np.concatenate(paths))
    # one model is read whatever its cache takes
    reader = TreeReader(model, FrozenBank(), max_tokens=max_batch_tokens, cache_bytes=0)

    def read_all(tell: Advance) -> Iterator[Tensor]:
        for read in reader.read(tree, [None]):
            first, last = np.searchsorted(places, [read.start, read.stop])
            rows = moved(torch.from_numpy(places[first:last] - read.start), decoder.device)
            yield read.hidden[0, rows]  # (some places, hidden)
            tell(read.stop - read.start)

    states = in_smaller_steps(
        lambda tell: list(read_all(tell)), reader.shrink, advance, decoder.device
    )
    hidden = torch.cat(states)  # (places, hidden)
    for path in paths:
        rows = moved(torch.from_numpy(np.searchsorted(places, path)), decoder.device)
        yield head.logits(hidden[rows]).float().log_softmax(dim=-1)
