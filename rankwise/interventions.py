"""Interventions on a trained adapter's update: adapters in, adapters and their exact errors out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rankwise.adapted_svd import AdaptedSvd, SumInBaseBasis, in_base_basis, leading_svd
from rankwise.lowrank import LowRankUpdate
from rankwise.spectra import Svd, best_matched, intruder_indices
from rankwise.spectra_records import INTRUDER_EPSILON, INTRUDER_K


class Intervened(NamedTuple):
    """An adapter after an intervention.

    Attributes:
        updates: by layer.
        relative_errors: of each layer: ‖wanted - written‖_F / ‖wanted‖_F, in [0, 1].
        relative_error: the same of all layers together.
    """

    updates: dict[str, LowRankUpdate]
    relative_errors: dict[str, float]
    relative_error: float


class Mitigated(NamedTuple):
    """An adapter whose intruder dimensions were scaled, and how many there were in each layer."""

    intervened: Intervened
    num_intruders: dict[str, int]


def truncated_updates(updates: Mapping[str, LowRankUpdate], rank: int) -> Intervened:
    """Every update cut to its leading singular directions: the closest of that rank.

    That is not what training at that rank would have found.

    Args:
        updates: by layer.
        rank: of each; layers of a lower rank keep theirs.

    Raises:
        ValueError: the rank is below 1.
    """
    cut = {name: update.truncated(min(rank, update.rank)) for name, update in updates.items()}
    norms = {name: update.frobenius_norm for name, update in updates.items()}
    return _intervened(
        {name: each.update for name, each in cut.items()},
        {name: each.relative_error for name, each in cut.items()},
        norms,
    )


def scaled_intruders(
    updates: Mapping[str, LowRankUpdate],
    base: Callable[[str], Svd],
    factor: float,
    *,
    k: int = INTRUDER_K,
    epsilon: float = INTRUDER_EPSILON,
    rank: int | None = None,
) -> Mitigated:
    """Scale the intruder dimensions of the adapted matrices: 1 leaves them, 0 removes them.

    W' = W + (factor - 1) σ_j u_j v_jᵀ for every intruder j of the adapted W. So the update gains
    one rank for each; it is exact unless it is cut.

    Args:
        updates: by layer.
        base: the thin decomposition of a layer's base matrix.
        factor: of the intruders' singular values.
        k: leading vectors that are looked at.
        epsilon: an intruder's largest |cos| is below it.
        rank: cut every changed update to this; None keeps the ranks that the change needs.

    Source: the mitigation of arXiv:2410.21228; peft's ``reduce_intruder_dimension`` scales alike.
    """
    changed: dict[str, LowRankUpdate] = {}
    errors: dict[str, float] = {}
    norms: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, update in updates.items():
        own_base = base(name)
        matrix = in_base_basis(own_base, update.factorization)
        found = leading_svd(matrix, min(k, len(own_base.S)))
        chosen = intruder_indices(best_matched(found.left_cosines), k, epsilon)
        wanted = update
        if len(chosen):
            wanted = update.plus(_scaled_part(own_base, matrix, found, chosen, factor))
        cut = None if rank is None or not len(chosen) else wanted.truncated(rank)
        changed[name] = wanted if cut is None else cut.update
        errors[name] = 0.0 if cut is None else cut.relative_error
        norms[name], counts[name] = wanted.frobenius_norm, len(chosen)
    return Mitigated(_intervened(changed, errors, norms), counts)


def _scaled_part(
    base: Svd,
    matrix: SumInBaseBasis,
    found: AdaptedSvd,
    chosen: Int[Tensor, " intruders"],
    factor: float,
) -> LowRankUpdate:
    """(factor - 1) σ u vᵀ of the chosen singular triplets, in the matrix's own space."""
    left = _own_space(base.U, matrix.left_outside, found.left[:, chosen])
    right = _own_space(base.Vh.T, matrix.right_outside, found.right[:, chosen])
    return LowRankUpdate(right.T, left * ((factor - 1.0) * found.S[chosen]))


def _own_space(
    basis: Float[Tensor, "features values"],
    outside: Float[Tensor, "features _"] | None,
    coordinates: Float[Tensor, "coordinates vectors"],
) -> Float[Tensor, "features vectors"]:
    inside = basis.shape[1]
    vectors = basis.double() @ coordinates[:inside]
    return vectors if outside is None else vectors + outside @ coordinates[inside:]


def _intervened(
    updates: dict[str, LowRankUpdate], errors: dict[str, float], norms: Mapping[str, float]
) -> Intervened:
    total = math.hypot(*norms.values())
    missed = math.hypot(*(errors[name] * norms[name] for name in updates))
    return Intervened(updates, errors, missed / total if total else 0.0)


def energy_kept(updates: Mapping[str, LowRankUpdate], rank: int) -> float:
    """The share of ‖delta‖_F² of all layers that cutting each to ``rank`` keeps, in [0, 1].

    1 for a zero update: there is nothing to lose.
    """
    squares = [update.singular_values.square() for update in updates.values()]
    total = float(torch.stack([each.sum() for each in squares]).sum())
    kept = sum(float(each[:rank].sum()) for each in squares)
    return kept / total if total else 1.0
