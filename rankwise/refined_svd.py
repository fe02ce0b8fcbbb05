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

from rankwise.spectra import Svd

NUM_REFINED = 640
"""Leading vectors that are corrected, against all others: the 500 compared, and some more."""

# Nearer than this, relative to the largest, singular values have a common subspace.
_INSEPARABLE = 1e-5
# Values below this share of the largest are rounding.
_SMALLEST = 1e-6


class _Rotation(NamedTuple):
    """What is added: U @ left to the leading left vectors, V @ right to the right ones."""

    left: Float[Tensor, "values leading"]
    right: Float[Tensor, "values leading"]
    S: Float[Tensor, " leading"]


def refined_svd(
    weight: Float[Tensor, "out_features in_features"], num_refined: int = NUM_REFINED
) -> Svd:
    """The thin decomposition in float32, its leading vectors and values corrected in float64.

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
    W, U64, V64 = weight.double(), U.double(), V.double()
    right_image, left_image = W @ V64[:, :leading], W.T @ U64[:, :leading]
    M, N = U64.T @ right_image, V64.T @ left_image
    found = _rotation(
        S.double(),
        M,
        N,
        U64.T @ U64[:, :leading],
        V64.T @ V64[:, :leading],
    )
    left = _rotated(U64, found.left, right_image / found.S).float()
    right = _rotated(V64, found.right, left_image / found.S).float()
    return Svd(left, torch.cat([found.S.float(), S[leading:]]), right.T.contiguous())


def _rotation(
    S: Float[Tensor, " values"],
    M: Float[Tensor, "values leading"],
    N: Float[Tensor, "values leading"],
    left_gram: Float[Tensor, "values leading"],
    right_gram: Float[Tensor, "values leading"],
) -> _Rotation:
    """The first-order correction from M = UᵀW V, N = VᵀWᵀU and the vectors' Gram matrices.

    With U(I + F) and V(I + G) orthonormal and making W diagonal, F_ij and G_ij obey two equations
    each, from M_ij and M_ji.
    """
    leading = M.shape[1]
    eye = torch.eye(len(S), leading, dtype=S.dtype, device=S.device)
    R, T = eye - left_gram, eye - right_gram
    column, row = S[:leading], S[:, None]
    a, b = M + R * column, N + T * column
    apart = column.square() - row.square()
    together = (column - row).abs() <= _INSEPARABLE * S[0]
    apart = apart.masked_fill(together, 1.0)
    F = torch.where(together, R / 2, (a * column + b * row) / apart)
    G = torch.where(together, T / 2, (b * column + a * row) / apart)
    diagonal = torch.arange(leading, device=S.device)
    F[diagonal, diagonal], G[diagonal, diagonal] = R.diagonal() / 2, T.diagonal() / 2
    values = M.diagonal() * (1 + (R.diagonal() + T.diagonal()) / 2)
    return _Rotation(F, G, values)


def _rotated(
    vectors: Float[Tensor, "features values"],
    turn: Float[Tensor, "values leading"],
    image: Float[Tensor, "features leading"],
) -> Float[Tensor, "features values"]:
    """Leading vectors turned, and the others turned against them.

    Corrections are small, so they are multiplied in float32. What the ``image`` of the other side's
    vectors has outside the span of thin vectors is added.
    """
    leading = turn.shape[1]
    single = vectors.float()
    moved = vectors.clone()
    moved[:, :leading] += (single @ turn.float()).double()
    if vectors.shape[0] > vectors.shape[1]:
        outside = image
        for _ in range(2):  # the vectors are orthonormal to float32's digits only
            outside = outside - vectors @ (vectors.T @ outside)
        moved[:, :leading] += outside
    # Among close values turns are no longer small; their square has to go from lengths and angles.
    gram = moved[:, :leading].T @ moved[:, :leading]
    eye = torch.eye(leading, dtype=gram.dtype, device=gram.device)
    moved[:, :leading] += moved[:, :leading] @ ((eye - gram) / 2)
    head = moved[:, :leading].float()
    moved[:, leading:] -= (head @ (head.T @ single[:, leading:])).double()
    return moved
