"""An adapter without its delta of single heads.

A head's delta is its rows of q, its rows of k and v if no other head reads them, and its columns of
the output projection. Removing it sets rows of ``lora_B`` and columns of ``lora_A`` to zero, which
is exact and keeps the rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.heads.layouts import HeadLayout, LayerSlice
from rankwise.records.grouping import grouped


class Head(NamedTuple):
    """A head by the number of its layer and its number in the layer, both from 0."""

    layer: int
    head: int


def without_heads(
    factors: Mapping[str, ScaledFactors], layouts: Sequence[HeadLayout], heads: Iterable[Head]
) -> dict[str, ScaledFactors]:
    """An adapter's factors without the delta of some heads; the given factors are not changed.

    Args:
        factors: by the layer's name; other layers have no delta.
        layouts: of every layer.
        heads: whose delta is removed.
    """
    parts_of = grouped(
        (part.module, part)
        for layer, head in heads
        for part in head_slices(layouts[layer], head)
        if part.module in factors
    )
    changed = dict(factors)
    for name, parts in parts_of.items():
        side = "lora_A" if parts[0].is_input else "lora_B"  # as all of a layer are
        new: Tensor = getattr(factors[name], side).clone()
        for part in parts:
            new[part.block] = 0
        changed[name] = factors[name]._replace(**{side: new})
    return changed


def adapted_heads(
    factors: Mapping[str, ScaledFactors], layouts: Sequence[HeadLayout]
) -> list[Head]:
    """The heads of which an adapter has a delta, in order."""
    return [
        Head(layout.layer, number)
        for layout in layouts
        for number in range(layout.num_heads)
        if any(part.module in factors for part in head_slices(layout, number))
    ]


def head_slices(layout: HeadLayout, head: int) -> list[LayerSlice]:
    """A head's columns, its rows of q, and those of k and v if no other head reads them."""
    own = [layout.columns(head), layout.query(head)]
    return [*own, *layout.keys_and_values(head)] if len(layout.sharers(head)) == 1 else own
