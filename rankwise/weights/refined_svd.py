"""A singular value decomposition exact to float32's last digits, little slower than float32's own.

``torch.linalg.svd`` in float32 mixes neighbouring vectors by its rounding divided by the distance
of their values: by 1e-3 for singular values that are 1e-4 of the largest apart. One first-order
correction, with products in float64, removes that. After Ogita and Aishima, "Iterative refinement
for singular value decomposition based on matrix multiplication", J. Comput. Appl. Math. 369 (2020),
for the leading vectors only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.weights.spectra import Svd

NUM_REFINED = 768
"""Leading vectors that are corrected: the 500 compared, and half as many behind them."""

# Singular values nearer than this, relative to the largest, are not told apart: first order would
# divide by their distance. Their vectors are corrected within their common subspace only.
_INSEPARABLE = 1e-5
# Values below this share of the largest are float32's rounding.
_SMALLEST = 1e-6
# Rows of the weight that are float64 at once.
_ROWS = 1024


class _Rotation(NamedTuple):
    """U @ left is added to the leading left vectors, V @ right to the right ones; S replaces S."""

    left: Float[Tensor, "leading leading"]
    right: Float[Tensor, "leading leading"]
    S: Float[Tensor, " leading"]


def refined_svd(
    weight: Float[Tensor, "out_features in_features"], num_refined: int = NUM_REFINED
) -> Svd:
    """The thin decomposition in float32, its leading vectors and values corrected in float64.

    Leading vectors are corrected against each other only. What float32 has mixed of one of them
    and one behind them stays; the further from the last of them, the less this is.

    Args:
        weight: finite.
        num_refined: number of leading vectors.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weight holds NaN or infinite values.")
    U, S, Vh = torch.linalg.svd(weight.float(), full_matrices=False)
    leading = int((S[:num_refined] > _SMALLEST * S[0]).sum())
    if leading == 0:
        return Svd(U, S, Vh)
    V = Vh.T
    left, right = U[:, :leading].double(), V[:, :leading].double()
    M = left.T @ _product(weight, right)
    turn = _rotation(S[:leading].double(), M, left.T @ left, right.T @ right)
    return Svd(
        _rotated(U, left, turn.left),
        torch.cat([turn.S.float(), S[leading:]]),
        _rotated(V, right, turn.right).T.contiguous(),
    )


def _product(
    weight: Float[Tensor, "out_features in_features"],
    vectors: Float[Tensor, "in_features leading"],
) -> Float[Tensor, "out_features leading"]:
    """The product in float64, without a whole float64 copy of the weight."""
    return torch.cat([rows.double() @ vectors for rows in weight.split(_ROWS)])


def _rotation(
    S: Float[Tensor, " leading"],
    M: Float[Tensor, "leading leading"],
    left_gram: Float[Tensor, "leading leading"],
    right_gram: Float[Tensor, "leading leading"],
) -> _Rotation:
    """The first-order correction from M = UᵀW V and the vectors' Gram matrices.

    U(I + F) and V(I + G) are to be orthonormal and to make W diagonal. With R = I - UᵀU and
    T = I - VᵀV, to first order, F + Fᵀ = R, G + Gᵀ = T, and M_ij + σ_j F_ji + σ_i G_ij = 0. Without
    F_ji and G_ji these are two equations for F_ij and G_ij:

        σ_j F_ij - σ_i G_ij = M_ij + σ_j R_ij =: a
        σ_j G_ij - σ_i F_ij = M_ji + σ_j T_ij =: b
    """
    eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
    R, T = eye - left_gram, eye - right_gram
    column, row = S, S[:, None]  # σ_j and σ_i
    a, b = M + R * column, M.T + T * column
    apart = column.square() - row.square()
    together = (column - row).abs() <= _INSEPARABLE * S[0]
    apart = apart.masked_fill(together, 1.0)  # not used there, but it must not divide by zero
    F = torch.where(together, R / 2, (a * column + b * row) / apart)
    G = torch.where(together, T / 2, (b * column + a * row) / apart)
    F.diagonal().copy_(R.diagonal() / 2)
    G.diagonal().copy_(T.diagonal() / 2)
    values = M.diagonal() * (1 + (R.diagonal() + T.diagonal()) / 2)
    return _Rotation(F, G, values)


def _rotated(
    vectors: Float[Tensor, "features values"],
    leading: Float[Tensor, "features leading"],
    turn: Float[Tensor, "leading leading"],
) -> Float[Tensor, "features values"]:
    """Correct the leading vectors, in float64, and make the others orthogonal to them again.

    Corrections are small, so multiplying them in float32 is enough.
    """
    count = leading.shape[1]
    moved = leading + (vectors[:, :count] @ turn.float()).double()
    # Among close values turns are no longer small: their second order disturbs lengths and angles.
    # One Newton-Schulz step, X (3I - XᵀX) / 2, makes the vectors orthonormal again.
    gram = moved.T @ moved
    eye = torch.eye(count, dtype=gram.dtype, device=gram.device)
    head = (moved + moved @ ((eye - gram) / 2)).float()
    others = vectors[:, count:]
    return torch.cat([head, others - head @ (head.T @ others)], dim=1)
