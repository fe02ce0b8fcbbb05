"""Texts of several lengths, read one by one, and how far numbers differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankwise.engine.models.packed_attention import attend_packed
from rankwise.engine.models.packed_layout import PackedLayout

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


def inputs(lengths: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query of 6 heads, key and value of 2, as transposed views like those of most models."""
    generator = torch.Generator().manual_seed(3)
    sizes = [(sum(lengths), heads, width) for heads, width in ((6, 16), (2, 16), (2, 16))]
    made = [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]
    return [x.transpose(0, 1)[None].requires_grad_() for x in made]


def attended(lengths: tuple[int, ...], given: list[Tensor], **settings: Any) -> Tensor:
    out, weights = attend_packed(
        nn.Identity(), *given, None, packed_layout=PackedLayout(lengths), **settings
    )
    assert weights is None
    return out


def with_gradients(
    lengths: tuple[int, ...], dtype: torch.dtype = torch.float32, **settings: Any
) -> list[Tensor]:
    given = inputs(lengths, dtype)
    out = attended(lengths, given, **settings)
    weighting = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    return [out, *torch.autograd.grad(out, given, weighting)]


def by_definition(lengths: tuple[int, ...], window: int | None) -> list[Tensor]:
    """Full scores with one mask for everything, in float64."""
    given = [x.detach().double().requires_grad_() for x in inputs(lengths)]
    query, key, value = given
    key, value = (x.repeat_interleave(3, dim=1) for x in (key, value))
    at = torch.arange(sum(lengths))
    of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    behind = at[:, None] - at
    seen = (of[:, None] == of) & (behind >= 0) & (behind < (window or len(at)))
    scores = (query @ key.mT * 16**-0.5).masked_fill(~seen, -torch.inf)
    out = (scores.softmax(-1) @ value).transpose(1, 2)
    weighting = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
    return [out, *torch.autograd.grad(out, given, weighting.double())]
