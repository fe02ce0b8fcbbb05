"""An adapter's delta of single heads: removed, or kept alone.

A head's delta is its rows of q, its rows of k and v if no other head reads them (on request, also
if its group shares them), and its columns of the output projection. Removing it sets rows of
``lora_B`` and columns of ``lora_A`` to zero, which is exact and keeps the rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.heads.layouts import HeadLayout, LayerSlice


class Head(NamedTuple):
    """A head by the number of its layer and its number in the layer, both from 0."""

    layer: int
    head: int


class _Spans(NamedTuple):
    """Which of a layer's factors belong to heads: rows of lora_B, or columns of lora_A."""

    rows: list[slice]
    columns: list[slice]


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
    for name, spans in _spans(layouts, heads, keys_and_values).items():
        if name in factors:
            lora_A, lora_B, scaling = factors[name]
            lora_A, lora_B = lora_A.clone(), lora_B.clone()
            for rows in spans.rows:
                lora_B[rows] = 0
            for columns in spans.columns:
                lora_A[:, columns] = 0
            changed[name] = ScaledFactors(lora_A, lora_B, scaling)
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
    for name, spans in _spans(layouts, heads, keys_and_values).items():
        if name in factors:
            lora_A, lora_B, scaling = factors[name]
            if spans.rows:
                kept = lora_B.new_zeros(lora_B.shape)
                for rows in spans.rows:
                    kept[rows] = lora_B[rows]
                changed[name] = ScaledFactors(lora_A, kept, scaling)
            else:
                kept = lora_A.new_zeros(lora_A.shape)
                for columns in spans.columns:
                    kept[:, columns] = lora_A[:, columns]
                changed[name] = ScaledFactors(kept, lora_B, scaling)
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
        if any(part.module in factors for part in _slices(layout, number, keys_and_values))
    ]


def delta_rows(layout: HeadLayout, head: int, *, keys_and_values: bool) -> list[LayerSlice]:
    """A head's rows of q; those of k and v if unshared, or with ``keys_and_values``."""
    if keys_and_values or len(layout.sharers(head)) == 1:
        return [layout.query(head), *layout.keys_and_values(head)]
    return [layout.query(head)]


def _slices(layout: HeadLayout, head: int, keys_and_values: bool) -> list[LayerSlice]:
    """A head's rows and, last, its columns."""
    return [*delta_rows(layout, head, keys_and_values=keys_and_values), layout.columns(head)]


def _spans(
    layouts: Sequence[HeadLayout], heads: Iterable[Head], keys_and_values: bool
) -> dict[str, _Spans]:
    """Layer → the spans of these heads in its factors."""
    spans: dict[str, _Spans] = {}
    for layer, head in heads:
        *rows, columns = _slices(layouts[layer], head, keys_and_values)
        for part in rows:
            spans.setdefault(part.module, _Spans([], [])).rows.append(part.span)
        spans.setdefault(columns.module, _Spans([], [])).columns.append(columns.span)
    return spans
