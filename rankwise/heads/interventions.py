"""An adapter's delta of single heads: removed, or kept alone.

A head's delta is its rows of q, its rows of k and v if no other head reads them (on request, also
if its group shares them), and its columns of the output projection. Removing it sets rows of
``lora_B`` and columns of ``lora_A`` to zero, which is exact and keeps the rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.heads.layouts import HeadLayout, LayerSlice
from rankwise.records.grouping import grouped


class Head(NamedTuple):
    """A head by the number of its layer and its number in the layer, both from 0."""

    layer: int
    head: int


def without_heads(
    factors: Mapping[str, ScaledFactors],
    layouts: Sequence[HeadLayout],
    heads: Iterable[Head],
    *,
    keys_and_values: bool = False,
) -> dict[str, ScaledFactors]:
    """An adapter's factors without the delta of some heads; the given factors are not changed.

    Args:
        factors: by the layer's name; other layers have no delta.
        layouts: of every layer.
        heads: whose delta is removed.
        keys_and_values: also rows of k and v that a head shares: all heads of its group
            (``HeadLayout.sharers``) lose these.
    """
    cut = _of_heads(factors, layouts, heads, keys_and_values, is_kept=False)
    return {**factors, **cut}


def only_heads(
    factors: Mapping[str, ScaledFactors],
    layouts: Sequence[HeadLayout],
    heads: Iterable[Head],
    *,
    keys_and_values: bool = False,
) -> dict[str, ScaledFactors]:
    """The delta of some heads and nothing else: what ``without_heads`` removes."""
    return _of_heads(factors, layouts, heads, keys_and_values, is_kept=True)


def adapted_heads(
    factors: Mapping[str, ScaledFactors],
    layouts: Sequence[HeadLayout],
    *,
    keys_and_values: bool = False,
) -> list[Head]:
    """The heads of which an adapter has a delta, in order."""
    return [
        Head(layout.layer, number)
        for layout in layouts
        for number in range(layout.num_heads)
        if any(
            part.module in factors
            for part in head_slices(layout, number, keys_and_values=keys_and_values)
        )
    ]


def head_slices(layout: HeadLayout, head: int, *, keys_and_values: bool) -> list[LayerSlice]:
    """A head's columns, its rows of q, and those of k and v if unshared or on request."""
    own = [layout.columns(head), layout.query(head)]
    has_keys = keys_and_values or len(layout.sharers(head)) == 1
    return [*own, *layout.keys_and_values(head)] if has_keys else own


def _of_heads(
    factors: Mapping[str, ScaledFactors],
    layouts: Sequence[HeadLayout],
    heads: Iterable[Head],
    keys_and_values: bool,
    *,
    is_kept: bool,
) -> dict[str, ScaledFactors]:
    """The layers in which some heads have a delta, with that and nothing else, or without it."""
    parts_of = grouped(
        (part.module, part)
        for layer, head in heads
        for part in head_slices(layouts[layer], head, keys_and_values=keys_and_values)
        if part.module in factors
    )
    changed: dict[str, ScaledFactors] = {}
    for name, parts in parts_of.items():
        side = "lora_A" if parts[0].is_input else "lora_B"  # as all of a layer are
        whole: Tensor = getattr(factors[name], side)
        new = torch.zeros_like(whole) if is_kept else whole.clone()
        for part in parts:
            new[part.block] = whole[part.block] if is_kept else 0
        changed[name] = factors[name]._replace(**{side: new})
    return changed
