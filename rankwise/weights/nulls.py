"""Random updates on a given base, in its own singular basis: the null for similarities.

Random directions look the same from every basis, so only the base's singular values are needed.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.weights.adapted_svd import SumInBaseBasis

NullKind = Literal["gaussian", "haar"]


def random_sum(
    kind: NullKind,
    base_values: Float[Tensor, " values"],
    shape: tuple[int, int],
    update_values: Float[Tensor, " rank"],
    *draw: int | str,
) -> SumInBaseBasis:
    """A base plus a random update in place of a given one.

    Args:
        kind: ``gaussian`` is a product of two Gaussian factors with the update's rank and Frobenius
            norm, which spreads its energy evenly; ``haar`` has the update's singular values and
            random orthonormal vectors.
        base_values: singular values of the base, descending.
        shape: (out, in) of the matrix.
        update_values: singular values of the update, descending, none of them zero.
        draw: names the randomness: the same names, the same update.
    """
    digest = hashlib.sha256(repr((kind, *draw)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    num_base, S = len(base_values), update_values.double().cpu()
    left, right = (_gaussian(size, num_base, len(S), generator) for size in shape)
    if kind == "haar":
        left, right = (_orthonormal(factor) * S.sqrt() for factor in (left, right))
    else:
        # ‖left @ right.T‖_F, from (rank, rank) matrices
        norm = float((left.T @ left * (right.T @ right)).sum().sqrt())
        left, right = (factor * (float(S.norm()) / norm) ** 0.5 for factor in (left, right))
    device = base_values.device
    return SumInBaseBasis(base_values.double(), left.to(device), right.to(device))


def _orthonormal(
    gaussian: Float[Tensor, "coordinates rank"],
) -> Float[Tensor, "coordinates rank"]:
    """Haar-distributed columns: QR alone prefers signs (Mezzadri, arXiv:math-ph/0609050)."""
    Q, R = torch.linalg.qr(gaussian)
    return Q * R.diagonal().sign()


def _gaussian(
    size: int, num_base: int, rank: int, generator: torch.Generator
) -> Float[Tensor, "coordinates rank"]:
    """A Gaussian factor's coordinates along a base's vectors, and outside their span.

    Any orthonormal basis outside serves: one in which the coordinates are triangular has only
    ``rank`` of them.
    """
    factor = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    if size == num_base:
        return factor
    return torch.cat([factor[:num_base], torch.linalg.qr(factor[num_base:]).R])
