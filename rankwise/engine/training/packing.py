"""Padding-free micro-batches: the sequences of many adapters, one after the other in one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankwise.engine.models.packed_attention import PackedLayout
from rankwise.tasks.training_rows import Example


class Placed(NamedTuple):
    """An example, its trainee's index, and its place in that trainee's effective batch."""

    trainee: int
    place: int
    example: Example


class Span(NamedTuple):
    """The rows ``start`` to ``stop`` (exclusive) of one sequence."""

    placed: Placed
    start: int
    stop: int


class MicroBatch(NamedTuple):
    """Sequences packed into one row, those of a trainee next to each other.

    Attributes:
        input_ids: (1, tokens) ids.
        position_ids: (1, tokens), counted from each sequence's first token.
        layout: which token belongs to which sequence.
        spans: the rows of each sequence, in order.
        loss_rows: (losses,) the rows whose next token is learned, in order.
        targets: (losses,) the learned tokens.
        loss_counts: how many of the losses belong to each span.
    """

    input_ids: Int[Tensor, "1 tokens"]
    position_ids: Int[Tensor, "1 tokens"]
    layout: PackedLayout
    spans: tuple[Span, ...]
    loss_rows: Int[Tensor, " losses"]
    targets: Int[Tensor, " losses"]
    loss_counts: tuple[int, ...]

    def summed_losses(self, losses: Float[Tensor, " losses"]) -> dict[int, float]:
        """The sum of each trainee's losses, in nats, added up in float64."""
        by_span = losses.double().cpu().split(self.loss_counts)
        sums: dict[int, float] = {}
        for span, of_span in zip(self.spans, by_span, strict=True):
            trainee = span.placed.trainee
            sums[trainee] = sums.get(trainee, 0.0) + float(of_span.sum())
        return sums


def split_by_budget(placed: Sequence[Placed], max_tokens: int) -> list[list[Placed]]:
    """Examples in groups of at most ``max_tokens`` read tokens, sorted by length.

    Trainees that read the same example meet in one group, where attention multiplies sequences of
    one length in one batch. An example longer than the budget gets a separate group.
    """
    groups: list[list[Placed]] = []
    used = 0
    in_order = sorted(placed, key=lambda item: (-item.example.num_inputs, item.place, item.trainee))
    for item in in_order:
        if not groups or used + item.example.num_inputs > max_tokens:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += item.example.num_inputs
    return groups


def pack(placed: Sequence[Placed], device: torch.device) -> MicroBatch:
    """Put examples one after the other, trainee by trainee."""
    in_order = sorted(placed, key=lambda item: (item.trainee, -item.example.num_inputs, item.place))
    ids: list[int] = []
    loss_rows: list[int] = []
    targets: list[int] = []
    spans: list[Span] = []
    for item in in_order:
        tokens, count = item.example.tokens, item.example.num_loss_tokens
        start = len(ids)
        ids += tokens[:-1]  # the last token is only learned, never read
        loss_rows += range(len(ids) - count, len(ids))  # each is one before the token it predicts
        targets += tokens[-count:]
        spans.append(Span(item, start, len(ids)))
    layout = PackedLayout(tuple(span.stop - span.start for span in spans))
    return MicroBatch(
        input_ids=torch.tensor([ids]).to(device),  # (1, tokens)
        position_ids=layout.position_ids(device),
        layout=layout,
        spans=tuple(spans),
        loss_rows=torch.tensor(loss_rows).to(device),
        targets=torch.tensor(targets).to(device),
        loss_counts=tuple(item.example.num_loss_tokens for item in in_order),
    )
