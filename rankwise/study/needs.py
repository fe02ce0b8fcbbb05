"""What is left of a study needs of a disk and of time, before any of it is done."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from rankwise.records.folder import StudyFolder
from rankwise.study.costs import TRAINING_WORK, furthest, state_bytes, stored_bytes
from rankwise.study.stages import Stage, Train

CARD_FLOPS = 989e12
"""Multiplications and additions of an H100 SXM in a second, dense bfloat16, by its data sheet."""

CARD_SHARE = 1 / 3
"""Of that, what LoRA training is assumed to reach; not measured. Large products reach two thirds
and more, and what is no product takes about as long."""


class Needs(NamedTuple):
    """What stages need.

    Attributes:
        disk_bytes: see ``disk_left``.
        seconds: of those that read tokens, without the analysis of weights; None: no rate is known.
        tokens_per_second: of LoRA training, by which the seconds are estimated.
    """

    disk_bytes: int
    seconds: float | None
    tokens_per_second: float | None


def needs_of(
    stages: Sequence[Stage],
    folder: StudyFolder,
    tokens_per_second: float | None,
    num_devices: int = 1,
    later_work: float = 0.0,
) -> Needs:
    """What is left of some stages needs where LoRA training reads so many tokens in a second.

    The seconds are those of one device, the disk is that of several which train at once.
    ``later_work``, in scored tokens, is what is planned once there is a verdict.
    """
    disk_bytes = disk_left(stages, folder, num_devices)
    if tokens_per_second is None:
        return Needs(disk_bytes, None, None)
    work = sum(
        stage.work * share_left(stage, folder) for stage in stages if stage.num_tokens is not None
    )
    seconds = (work + later_work) / (tokens_per_second * TRAINING_WORK["lora"])
    return Needs(disk_bytes, seconds, tokens_per_second)


def disk_left(stages: Sequence[Stage], folder: StudyFolder, num_devices: int = 1) -> int:
    """Bytes that what is left of some stages takes of the disk, about, when it takes most.

    Weights and answers stay. A state from which training can be resumed is there until its training
    ends, so of all passes the one with the largest states counts, and of its largest state a second
    copy: a new one is whole before the old one goes. Several devices have as many of these at once.
    A search ends passes before their trainings: these states stay.
    """
    stay, states, waiting = 0, list[int](), dict[str, int]()
    for stage in stages:
        if not isinstance(stage, Train):
            stay += round(stage.disk_bytes * share_left(stage, folder))
            continue
        left = [model for model in stage.left(folder) if model is not None]
        stay += sum(map(stored_bytes, left))
        passed = {model.training.name for model in left if model.checkpoint_of is not None}
        sizes, of_pass = [0], 0
        for model in furthest(left):
            if not (stage.saves_states or model.training.name in passed):
                continue
            sizes.append(state_bytes(model) * model.num_trainable_parameters)
            if folder.training_state_file(model.whole).exists():
                continue
            if model.checkpoint_of is None:
                of_pass += sizes[-1]
            else:
                waiting[model.training.name] = sizes[-1]
        states.append(of_pass + max(sizes))
    return stay + sum(heapq.nlargest(num_devices, states)) + sum(waiting.values())


def share_left(stage: Stage, folder: StudyFolder) -> float:
    """Of a stage's models, those that it is not finished with."""
    return len(stage.left(folder)) / max(1, len(stage.models))


def assumed_rate(num_parameters: int) -> float:
    """Tokens of LoRA training in a second on one H100, by ``CARD_SHARE``.

    A token takes 4 FLOP for each of the base's weights: 2 forward, 2 for the gradients of what its
    layers read. The adapters' own are few. A model of less than a billion weights is slower than
    that: starting its small kernels takes longer than computing them.
    """
    return CARD_FLOPS * CARD_SHARE / (4 * num_parameters)
