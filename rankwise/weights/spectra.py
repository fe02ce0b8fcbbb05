"""Singular values and vectors: ranks of a matrix, and how an update turned its directions.

Tensors in, numbers and tensors out. Singular values descend, vectors are as ``torch.linalg.svd``
returns them. Cosines are absolute: a singular vector's sign means nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Svd(NamedTuple):
    """U @ diag(S) @ Vh of a matrix, thin, as ``torch.linalg.svd`` returns it: S descends."""

    U: Float[Tensor, "out_features values"]
    S: Float[Tensor, " values"]
    Vh: Float[Tensor, "values in_features"]


def stable_rank(singular_values: Float[Tensor, " values"]) -> float:
    """‖M‖_F² / ‖M‖₂², between 1 and the rank; 0 for a zero matrix.

    Source: Rudelson and Vershynin, "Sampling from large matrices", J. ACM 54 (2007).
    """
    S = singular_values.double()
    return float((S / S[0]).square().sum()) if bool(S.any()) else 0.0


def effective_rank(singular_values: Float[Tensor, " values"]) -> float:
    """exp(-Σ p ln p) with p = σ / Σσ, between 1 and the rank; 0 for a zero matrix.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    S = singular_values.double()
    if not bool(S.any()):
        return 0.0
    return float(torch.special.entr(S / S.sum()).sum().exp())


def energy_rank(singular_values: Float[Tensor, " values"], share: float) -> int:
    """The smallest k with Σ_{i≤k} σ_i² ≥ share · Σ σ_i²; 0 for a zero matrix.

    Args:
        singular_values: descending.
        share: of the squared Frobenius norm, in (0, 1].

    Raises:
        ValueError: the share is not in (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a share of {share} of the energy is not in (0, 1].")
    energy = singular_values.double().square().cumsum(0)
    if float(energy[-1]) == 0.0:
        return 0
    return int((energy < share * energy[-1]).sum()) + 1


def cosines(
    before: Float[Tensor, "features base"], after: Float[Tensor, "features adapted"]
) -> Float[Tensor, "base adapted"]:
    """|cos| between the columns of two sets of unit vectors.

    Args:
        before: singular vectors of the base, as columns (U, or Vh transposed).
        after: those of the adapted matrix.
    """
    return (before.T @ after).abs()


def index_matched(cosines: Float[Tensor, "base adapted"]) -> Float[Tensor, " adapted"]:
    """|cos| of the i-th vector before with the i-th one after, in [0, 1]. 1: nothing has moved.

    Vectors of near-equal singular values mix freely: compare with the null's.
    Source: arXiv:2512.15634, for i up to 500.
    """
    return cosines.diagonal()[: cosines.shape[1]]


def best_matched(cosines: Float[Tensor, "base adapted"]) -> Float[Tensor, " adapted"]:
    """The largest |cos| of each adapted vector with any of the base's, in [0, 1].

    Args:
        cosines: with all min(out, in) singular vectors of the base.
    """
    return cosines.amax(dim=0)


def subspace_overlap(cosines: Float[Tensor, "base adapted"], k: int) -> float:
    """‖U_0ᵀU_1‖_F² / k of the leading k vectors each, in [0, 1]. 1: the subspaces are the same.

    Raises:
        ValueError: there are fewer than k vectors.
    """
    if not 1 <= k <= min(cosines.shape):
        raise ValueError(f"k = {k} with {min(cosines.shape)} vectors.")
    return float(cosines[:k, :k].double().square().sum()) / k


def intruder_indices(
    best: Float[Tensor, " adapted"], k: int, epsilon: float
) -> Int[Tensor, " intruders"]:
    """Which of the adapted matrix's leading k vectors resemble none of the base's.

    Args:
        best: from ``best_matched``, on the left side.
        k: leading vectors that are checked; 10 in the source.
        epsilon: an intruder's largest |cos| is below it; 0.5 in the source.

    Returns:
        Their indices, ascending.

    Source: Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence",
    arXiv:2410.21228.
    """
    return (best[:k] < epsilon).nonzero().flatten()
