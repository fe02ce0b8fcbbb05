"""Texts of several lengths, read one by one, and how far numbers differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")


LENGTHS = (5, 9, 5, 1, 17)


def tokens() -> Tensor:
    return torch.randint(3, 64, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))


def logits_alone(model: Any, embeds: Tensor) -> Tensor:
    pieces = embeds.split(LENGTHS, dim=1)
    return torch.cat([model(inputs_embeds=x, use_cache=False).logits for x in pieces], dim=1)


def farthest(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to each tensor's largest element."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b is not None and b.any()]
    return max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs)
