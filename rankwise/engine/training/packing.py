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
    """An example of a trainee's effective batch: which trainee, at which place of its batch."""

    trainee: int
    place: int
    example: Example


class Span(NamedTuple):
    """The rows ``start`` to ``stop`` (exclusive) of what one trainee's sequence takes up."""

    placed: Placed
    start: int
    stop: int


class MicroBatch(NamedTuple):
    """Sequences packed into one row, those of a trainee next to each other.

    Attributes:
        input_ids: (1, tokens) ids.
        position_ids: (1, tokens), counted from each sequence's first token.
        layout: which token belongs to which sequence.
        spans: where each sequence is, in order.
        loss_rows: (losses,) the tokens after which a learned token follows, in order.
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
        in_float64 = losses.double().cpu()
        sums: dict[int, float] = {}
        for span, own in zip(self.spans, in_float64.split(self.loss_counts), strict=True):
            trainee = span.placed.trainee
            sums[trainee] = sums.get(trainee, 0.0) + float(own.sum())
        return sums


def split_by_budget(placed: Sequence[Placed], max_tokens: int) -> list[list[Placed]]:
    """Examples in groups of at most ``max_tokens`` read tokens, equal lengths side by side.

    Trainees that read the same example meet in one group, where attention takes their sequences
    together. An example longer than the budget gets a group of its own.
    """
    groups: list[list[Placed]] = []
    used = 0
    in_order = sorted(placed, key=lambda p: (-p.example.num_inputs, p.place, p.trainee))
    for each in in_order:
        if not groups or used + each.example.num_inputs > max_tokens:
            groups.append([])
            used = 0
        groups[-1].append(each)
        used += each.example.num_inputs
    return groups


def pack(placed: Sequence[Placed], device: torch.device) -> MicroBatch:
    """Put examples one after the other, trainee by trainee."""
    in_order = sorted(placed, key=lambda p: (p.trainee, -p.example.num_inputs, p.place))
    ids: list[int] = []
    loss_rows: list[int] = []
    targets: list[int] = []
    spans: list[Span] = []
    for each in in_order:
        tokens, count = each.example.tokens, each.example.num_loss_tokens
        start = len(ids)
        ids += tokens[:-1]
        loss_rows += range(len(ids) - count, len(ids))
        targets += tokens[-count:]
        spans.append(Span(each, start, len(ids)))
    layout = PackedLayout(tuple(span.stop - span.start for span in spans))
    return MicroBatch(
        input_ids=torch.tensor([ids]).to(device),
        position_ids=layout.position_ids(device),
        layout=layout,
        spans=tuple(spans),
        loss_rows=torch.tensor(loss_rows).to(device),
        targets=torch.tensor(targets).to(device),
        loss_counts=tuple(each.example.num_loss_tokens for each in in_order),
    )
