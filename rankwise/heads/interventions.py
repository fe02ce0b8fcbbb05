"""An adapter's delta of single heads: removed, or kept alone.

A head's delta is its rows of q, its rows of k and v if no other head reads them (on request, also
if its group shares them), and its columns of the output projection. Removing it sets rows of
``lora_B`` and columns of ``lora_A`` to zero, which is exact and keeps the rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.heads.layouts import HeadLayout, LayerSlice


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
    changed = dict(factors)
    for part in _slices_of(layouts, heads, keys_and_values):
        name = part.module
        if name in factors:
            if changed[name] is factors[name]:
                lora_A, lora_B, scaling = factors[name]
                changed[name] = ScaledFactors(lora_A.clone(), lora_B.clone(), scaling)
            factor = changed[name].lora_A if part.is_input else changed[name].lora_B
            factor[part.block] = 0
    return changed


def only_heads(
    factors: Mapping[str, ScaledFactors],
    layouts: Sequence[HeadLayout],
    heads: Iterable[Head],
    *,
    keys_and_values: bool = False,
) -> dict[str, ScaledFactors]:
    """The delta of some heads and nothing else: what ``without_heads`` removes."""
    changed: dict[str, ScaledFactors] = {}
    for part in _slices_of(layouts, heads, keys_and_values):
        if part.module in factors:
            lora_A, lora_B, scaling = factors[part.module]
            whole = lora_A if part.is_input else lora_B
            if part.module not in changed:
                zeros = whole.new_zeros(whole.shape)
                pair = (zeros, lora_B) if part.is_input else (lora_A, zeros)
                changed[part.module] = ScaledFactors(*pair, scaling)
            kept = changed[part.module].lora_A if part.is_input else changed[part.module].lora_B
            kept[part.block] = whole[part.block]
    return changed


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


def _slices_of(
    layouts: Sequence[HeadLayout], heads: Iterable[Head], keys_and_values: bool
) -> Iterator[LayerSlice]:
    for layer, head in heads:
        yield from head_slices(layouts[layer], head, keys_and_values=keys_and_values)
