"""What is left of a study needs of a disk and of time, before any of it is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rankwise.records.folder import StudyFolder
from rankwise.study.stages import TRAINING_WORK, Stage

CARD_FLOPS = 989e12
"""Multiplications and additions of an H100 SXM in a second, dense bfloat16, by its data sheet."""

CARD_SHARE = 1 / 3
"""Of that, what LoRA training is assumed to reach; not measured. Large products reach two thirds
and more, and what is no product takes about as long."""


class Needs(NamedTuple):
    """What stages need.

    Attributes:
        disk_bytes: that they write, with the states from which training can be resumed.
        seconds: of those that read tokens, without the analysis of weights; None: no rate is known.
        tokens_per_second: of LoRA training, by which the seconds are estimated.
    """

    disk_bytes: int
    seconds: float | None
    tokens_per_second: float | None


def needs_of(
    stages: Sequence[Stage], folder: StudyFolder, tokens_per_second: float | None
) -> Needs:
    """What is left of some stages needs where LoRA training reads so many tokens in a second."""
    shares = [(stage, len(stage.left(folder)) / max(1, len(stage.models))) for stage in stages]
    disk_bytes = round(sum(share * stage.disk_bytes for stage, share in shares))
    if tokens_per_second is None:
        return Needs(disk_bytes, None, None)
    work = sum(share * stage.work for stage, share in shares if stage.num_tokens is not None)
    seconds = work / (tokens_per_second * TRAINING_WORK["lora"])
    return Needs(disk_bytes, seconds, tokens_per_second)


def assumed_rate(num_parameters: int) -> float:
    """Tokens of LoRA training in a second on one H100, by ``CARD_SHARE``.

    A token takes 4 FLOP for each of the base's weights: 2 forward, 2 for the gradients of what its
    layers read. The adapters' own are few. A model of less than a billion weights is slower than
    that: starting its small kernels takes longer than computing them.
    """
    return CARD_FLOPS * CARD_SHARE / (4 * num_parameters)
