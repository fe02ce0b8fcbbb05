"""A singular value decomposition that is exact to float32's last digits, at little over its price.

``torch.linalg.svd`` in float32 turns neighbouring vectors into each other by rounding over their
distance: 1e-3 between singular values that are 1e-4 of the largest apart. One step of first-order
correction, with products in float64, takes that away. After Ogita and Aishima, "Iterative
refinement for singular value decomposition based on matrix multiplication", J. Comput. Appl. Math.
369 (2020), for the leading vectors only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.weights.spectra import Svd

NUM_REFINED = 768
"""Leading vectors that are corrected: the 500 compared, and half as many behind them."""

# Nearer than this, relative to the largest, singular values have a common subspace.
_INSEPARABLE = 1e-5
# Values below this share of the largest are rounding.
_SMALLEST = 1e-6

_ROWS = 1024


class _Rotation(NamedTuple):
    """What is added: U @ left to the leading left vectors, V @ right to the right ones."""

    left: Float[Tensor, "leading leading"]
    right: Float[Tensor, "leading leading"]
    S: Float[Tensor, " leading"]


def refined_svd(
    weight: Float[Tensor, "out_features in_features"], num_refined: int = NUM_REFINED
) -> Svd:
    """The thin decomposition in float32, its leading vectors and values corrected in float64.

    They are corrected against each other. What float32 has mixed of one of them and one behind them
    stays: the further from the last of them, the less.

    Args:
        weight: finite.
        num_refined: leading vectors.

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
    found = _rotation(S[:leading].double(), M, left.T @ left, right.T @ right)
    return Svd(
        _rotated(U, left, found.left),
        torch.cat([found.S.float(), S[leading:]]),
        _rotated(V, right, found.right).T.contiguous(),
    )


def _product(
    weight: Float[Tensor, "out_features in_features"],
    vectors: Float[Tensor, "in_features leading"],
) -> Float[Tensor, "out_features leading"]:
    """In float64, without a copy of the weight in it."""
    return torch.cat([rows.double() @ vectors for rows in weight.split(_ROWS)])


def _rotation(
    S: Float[Tensor, " leading"],
    M: Float[Tensor, "leading leading"],
    left_gram: Float[Tensor, "leading leading"],
    right_gram: Float[Tensor, "leading leading"],
) -> _Rotation:
    """The first-order correction from M = UᵀW V and the vectors' Gram matrices.

    With U(I + F) and V(I + G) orthonormal and making W diagonal, F_ij and G_ij obey two equations
    each, from M_ij and M_ji.
    """
    eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
    R, T = eye - left_gram, eye - right_gram
    column, row = S, S[:, None]
    a, b = M + R * column, M.T + T * column
    apart = column.square() - row.square()
    together = (column - row).abs() <= _INSEPARABLE * S[0]
    apart = apart.masked_fill(together, 1.0)
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
    """Leading vectors, which are given in float64 too, turned; the others made to stand on them.

    Corrections are small, so they are multiplied in float32.
    """
    count = leading.shape[1]
    moved = leading + (vectors[:, :count] @ turn.float()).double()
    # Among close values turns are no longer small; their square has to go from lengths and angles.
    gram = moved.T @ moved
    eye = torch.eye(count, dtype=gram.dtype, device=gram.device)
    head = (moved + moved @ ((eye - gram) / 2)).float()
    others = vectors[:, count:]
    return torch.cat([head, others - head @ (head.T @ others)], dim=1)
