"""What training changed in every head: base and adapted on the same prompts, and the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.heads.activity import HeadActivity
from rankwise.heads.layouts import HeadLayout, Part
from rankwise.heads.measures import (
    attention_divergence,
    attention_entropy,
    column_norms_squared,
    first_token_mass,
    row_norms_squared,
)
from rankwise.records.heads import CHANGE_MEASURES, ChangeMap, HeadMap, ShareMap, ShareOf

NormSquared = Callable[[Part, bool], float | None]
"""‖delta‖² of a part of a layer, of its rows (outputs) or else its columns; None if not adapted."""


class _Sums(NamedTuple):
    """Sums over queries of every head of a layer: (measures, heads), and how many queries."""

    values: Float[Tensor, "measures heads"]
    num_queries: int


class HeadChangeTally:
    """Adds prompts up, in two halves.

    The first token of a prompt sees itself alone, so means are over the queries behind it.
    """

    def __init__(self) -> None:
        self._halves: tuple[list[_Sums], list[_Sums]] = ([], [])
        self._added = 0

    def add(self, before: Sequence[HeadActivity], after: Sequence[HeadActivity]) -> None:
        """One prompt, of two tokens at least, by layers; prompts go into the halves in turn."""
        own = [_sums(one, other) for one, other in zip(before, after, strict=True)]
        half = self._halves[self._added % 2]
        half[:] = [_joined(a, b) for a, b in zip(half, own, strict=True)] if half else own
        self._added += 1

    def changes(self) -> tuple[ChangeMap, ...]:
        """All measures; needs two prompts."""
        first, second = self._halves
        whole = [_joined(a, b) for a, b in zip(first, second, strict=True)]
        maps = [_maps(sums) for sums in (whole, first, second)]
        return tuple(
            ChangeMap(measure=measure, values=maps[0][n], halves=(maps[1][n], maps[2][n]))
            for n, measure in enumerate(CHANGE_MEASURES)
        )

    def base_maps(self) -> tuple[HeadMap, HeadMap]:
        """The base's own entropy in nats and mass on the first token."""
        sums = [_joined(a, b) for a, b in zip(*self._halves, strict=True)]
        return tuple(  # pyright: ignore[reportReturnType]
            tuple(tuple((own.values[row] / own.num_queries).tolist()) for own in sums)
            for row in (_ENTROPY, _MASS)
        )


_ENTROPY, _NEW_ENTROPY, _DIVERGENCE, _MASS, _NEW_MASS, _MOVED, _SIZE = range(7)


def _sums(before: HeadActivity, after: HeadActivity) -> _Sums:
    p, q = before.weights[:, 1:], after.weights[:, 1:]
    by_query = [
        attention_entropy(p),
        attention_entropy(q),
        attention_divergence(p, q),
        first_token_mass(p),
        first_token_mass(q),
        (after.outputs.float() - before.outputs.float()).square().sum(-1),
        before.outputs.float().square().sum(-1),
    ]
    values = torch.stack([each.double().sum(-1).cpu() for each in by_query])
    return _Sums(values, p.shape[1])


def _joined(first: _Sums, second: _Sums) -> _Sums:
    return _Sums(first.values + second.values, first.num_queries + second.num_queries)


def relative_change(
    moved: Float[Tensor, " heads"], size: Float[Tensor, " heads"]
) -> Float[Tensor, " heads"]:
    """‖change‖ / ‖output‖ of each head; 0 where nothing moved, 1 of a head that put out nothing."""
    found = torch.where(size == 0, torch.ones_like(moved), moved / size)
    return torch.where(moved == 0, torch.zeros_like(moved), found)


def _maps(sums: Sequence[_Sums]) -> list[HeadMap]:
    """One for each of ``CHANGE_MEASURES``."""
    rows: list[list[tuple[float, ...]]] = [[] for _ in CHANGE_MEASURES]
    for values, count in sums:
        moved, size = values[_MOVED].sqrt(), values[_SIZE].sqrt()
        by_measure = [
            (values[_NEW_ENTROPY] - values[_ENTROPY]) / count,
            values[_DIVERGENCE] / count,
            (values[_NEW_MASS] - values[_MASS]) / count,
            relative_change(moved, size),
        ]
        for row, of_layer in zip(rows, by_measure, strict=True):
            row.append(tuple(of_layer.tolist()))
    return [tuple(row) for row in rows]


def share_maps(layouts: Sequence[HeadLayout], norm_squared: NormSquared) -> tuple[ShareMap, ...]:
    """Each head's share of ‖delta‖² of q, k, v and the output projection, and of all of them.

    Shares of a kind sum to 1 over all heads of the model. The rows of k and v of a group are
    divided evenly among its heads. A kind that is not adapted, or of which delta is zero, is
    left out.
    """
    kinds: dict[ShareOf, list[list[float]]] = {}
    for kind in ("query", "key", "value", "output"):
        parts = [
            [_norm(layout, n, kind, norm_squared) for n in range(layout.num_heads)]
            for layout in layouts
        ]
        if any(each for own in parts for each in own):
            kinds[kind] = [[each or 0.0 for each in own] for own in parts]
    if kinds:
        every = [
            [sum(of[layer][n] for of in kinds.values()) for n in range(layouts[layer].num_heads)]
            for layer in range(len(layouts))
        ]
        kinds["all"] = every
    return tuple(ShareMap(of=kind, values=_normalised(rows)) for kind, rows in kinds.items())


def _norm(layout: HeadLayout, head: int, kind: str, norm_squared: NormSquared) -> float | None:
    if kind == "output":
        return norm_squared(layout.columns(head), False)
    if kind == "query":
        return norm_squared(layout.query(head), True)
    part = layout.key(head) if kind == "key" else layout.value(head)
    found = norm_squared(part, True)
    return None if found is None else found / len(layout.sharers(head))


def _normalised(rows: Sequence[Sequence[float]]) -> HeadMap:
    total = sum(sum(row) for row in rows)
    return tuple(tuple(value / total for value in row) for row in rows)


def norms_of_factors(factors: Mapping[str, ScaledFactors]) -> NormSquared:
    """Of an adapter, from its factors by layer; delta is never built."""

    def norm_squared(part: Part, is_rows: bool) -> float | None:
        own = factors.get(part.module)
        if own is None:
            return None
        norm = row_norms_squared if is_rows else column_norms_squared
        return norm(own.lora_A, own.lora_B, own.scaling, part.span)

    return norm_squared


def norms_of_matrices(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> NormSquared:
    """Of full fine-tuning, from weight matrices (out, in) by layer."""

    def norm_squared(part: Part, is_rows: bool) -> float | None:
        if part.module not in before:
            return None
        own = part.span if is_rows else (slice(None), part.span)
        delta = after[part.module][own].double() - before[part.module][own].double()
        return float(delta.square().sum())

    return norm_squared
