"""The leading singular values and vectors of base + update, in the basis of the base's own.

There the sum is diag(S) + P @ Q.T, and its Gram matrix a diagonal D² plus a term of rank 2r,
Z C Zᵀ. An eigenvector of value λ obeys (λ - D²) v = Z (C Zᵀ v): whatever it has in coordinates
whose D² is below λ lies in the columns of (λ - D²)⁻¹ Z. A few shifts span these columns for all
leading λ, so that a Rayleigh-Ritz step over the leading coordinates and a few multiples of 2r
columns finds the leading vectors; residuals tell whether it did. In float64, because squares lose
half of the digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.weights.spectra import Svd

TOLERANCE = 1e-5
"""Largest residual of a singular pair, relative to the largest singular value."""

ROUNDING = 1e-12
"""Singular values below this share of the largest are rounding: their vectors mean nothing."""

# The same for roots of the Gram matrix's eigenvalues, whose rounding is that of squares.
_SQUARED_ROUNDING = 1e-7
# How well the shifts span (λ - x)^-1; what is left of it enters squared.
_SPANNED = 2e-3
_MAX_SHIFTS = 8
_GRID = 48


class AdaptedSvd(NamedTuple):
    """The leading k of base + update.

    Coordinates are signed cosines with the base's singular vectors, in their order, and then with
    directions outside their span.

    Attributes:
        S: descending.
        left: of the left singular vectors, as columns.
        right: of the right ones.
        num_base: how many of the coordinates are the base's: min(out, in).
        residual: the largest ‖(WᵀW - σ²) v‖ / (σ₁ σ).
    """

    S: Float[Tensor, " k"]
    left: Float[Tensor, "left k"]
    right: Float[Tensor, "right k"]
    num_base: int
    residual: float

    @property
    def left_cosines(self) -> Float[Tensor, "base k"]:
        """|cos| of every left singular vector of the base with each of these."""
        return self.left[: self.num_base].abs()

    @property
    def right_cosines(self) -> Float[Tensor, "base k"]:
        """|cos| of every right singular vector of the base with each of these."""
        return self.right[: self.num_base].abs()


@dataclass(frozen=True, eq=False)
class SumInBaseBasis:
    """base + update as [diag(S) 0; 0 0] + P @ Q.T, all float64.

    Attributes:
        S: the base's singular values, descending.
        P: the update's left factor: its first ``len(S)`` rows along the base's left vectors.
        Q: its right factor, likewise along the base's right vectors.
        left_outside: what the other rows of P stand for: orthonormal columns orthogonal to U.
        right_outside: likewise for Q and V.
    """

    S: Float[Tensor, " values"]
    P: Float[Tensor, "left rank"]
    Q: Float[Tensor, "right rank"]
    left_outside: Float[Tensor, "out_features _"] | None = None
    right_outside: Float[Tensor, "in_features _"] | None = None

    @cached_property
    def diagonal(self) -> Float[Tensor, " right"]:
        """D: S, and zeros for the right coordinates outside the base's span."""
        return torch.cat([self.S, self.S.new_zeros(len(self.Q) - len(self.S))])

    @cached_property
    def factors(self) -> Float[Tensor, "right double_rank"]:
        """Z = [diag(S) P, Q]."""
        DP = torch.zeros_like(self.Q)
        DP[: len(self.S)] = self.S[:, None] * self.P[: len(self.S)]
        return torch.cat([DP, self.Q], dim=1)

    @cached_property
    def core(self) -> Float[Tensor, "double_rank double_rank"]:
        """C, so that the Gram matrix is D² + Z C Zᵀ."""
        eye = torch.eye(self.P.shape[1], dtype=self.P.dtype, device=self.P.device)
        return torch.cat(
            [
                torch.cat([torch.zeros_like(eye), eye], dim=1),
                torch.cat([eye, self.P.T @ self.P], dim=1),
            ]
        )

    def gram(self, vectors: Float[Tensor, "right k"]) -> Float[Tensor, "right k"]:
        """(base + update)ᵀ (base + update) @ vectors, in O(right · k · rank)."""
        return self.diagonal.square()[:, None] * vectors + self.factors @ (
            self.core @ (self.factors.T @ vectors)
        )

    def image(self, vectors: Float[Tensor, "right k"]) -> Float[Tensor, "left k"]:
        """(base + update) @ vectors."""
        found = self.P @ (self.Q.T @ vectors)
        found[: len(self.S)] += self.S[:, None] * vectors[: len(self.S)]
        return found


def in_base_basis(base: Svd, update: Svd) -> SumInBaseBasis:
    """Write base + update in the base's singular basis: O(out · in · rank), in the base's dtype.

    Directions of the update that are outside the base's span (a wide matrix has right ones, a tall
    one left ones) get coordinates of their own.

    Raises:
        ValueError: the shapes differ.
    """
    shapes = [(each.U.shape[0], each.Vh.shape[1]) for each in (base, update)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"an update of shape {shapes[1]} on a base of shape {shapes[0]}.")
    U, S, Vh = (part.double() for part in update)
    rank = numerical_rank(S)
    root = S[:rank].sqrt()
    P, left_outside = _coordinates(base.U, U[:, :rank] * root)
    Q, right_outside = _coordinates(base.Vh.T, Vh[:rank].T * root)
    return SumInBaseBasis(base.S.double(), P, Q, left_outside, right_outside)


def numerical_rank(singular_values: Float[Tensor, " values"]) -> int:
    """How many of them, descending, are more than rounding."""
    return int((singular_values > ROUNDING * singular_values[0]).sum())


def _coordinates(
    basis: Float[Tensor, "features values"], factor: Float[Tensor, "features rank"]
) -> tuple[Tensor, Tensor | None]:
    """A factor's coordinates along a basis, then along an orthonormal basis of what is left."""
    inside = (basis.T @ factor.to(basis.dtype)).double()
    if basis.shape[0] == basis.shape[1]:
        return inside, None
    left = factor - (basis @ inside.to(basis.dtype)).double()
    left -= (basis @ (basis.T @ left.to(basis.dtype))).double()  # once more, for orthogonality
    outside, R = torch.linalg.qr(left)
    return torch.cat([inside, R]), outside


def leading_svd(matrix: SumInBaseBasis, k: int, tolerance: float = TOLERANCE) -> AdaptedSvd:
    """The k leading singular values and vectors of base + update.

    Args:
        matrix: in the base's singular basis.
        k: at most min(out, in); fewer are returned where singular values are below 1e-7 of the
            largest: their vectors mean nothing.
        tolerance: of the residuals, relative to the largest singular value.

    Raises:
        ValueError: k is not in 1 ... min(out, in).
    """
    if not 1 <= k <= len(matrix.S):
        raise ValueError(f"k = {k} of {len(matrix.S)} singular values.")
    if matrix.P.shape[1] == 0:
        return _unchanged(matrix, k)
    plan = _cheapest(matrix, k)
    while plan is not None:
        found = _singular_pairs(matrix, *_projected(matrix, k, plan))
        if found.residual <= tolerance:
            return found
        plan = plan.with_more_shifts(matrix, k)
    return _singular_pairs(matrix, *_dense(matrix, k))


def _unchanged(matrix: SumInBaseBasis, k: int) -> AdaptedSvd:
    eye = torch.eye(len(matrix.S), k, dtype=matrix.S.dtype, device=matrix.S.device)
    return AdaptedSvd(matrix.S[:k], eye, eye, len(matrix.S), 0.0)


class _Plan(NamedTuple):
    """Which coordinates are kept whole, and the shifts that span what the others hold."""

    num_leading: int
    shifts: Float[np.ndarray, " shifts"]

    def size(self, matrix: SumInBaseBasis) -> int:
        return self.num_leading + len(self.shifts) * matrix.factors.shape[1]

    def with_more_shifts(self, matrix: SumInBaseBasis, k: int) -> _Plan | None:
        """Two more; None where all coordinates are no more work."""
        bounds = _Bounds.of(matrix, k, self.num_leading)
        more = _Plan(self.num_leading, bounds.shifts(len(self.shifts) + 2))
        return more if more.size(matrix) < len(matrix.diagonal) else None


class _Bounds(NamedTuple):
    """Trailing D² are within [0, trailing], the wanted λ within [lowest, highest]."""

    trailing: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, matrix: SumInBaseBasis, k: int, num_leading: int) -> _Bounds:
        """By Weyl: σ_k of the sum is at least the base's σ_{k+rank}, σ_1 at most σ_1 + ‖update‖."""
        S, rank = matrix.S, matrix.P.shape[1]
        highest = float(S[0]) + float(matrix.P.norm() * matrix.Q.norm())
        return cls(float(S[num_leading]) ** 2, float(S[k + rank - 1]) ** 2, highest**2)

    def shifts(self, count: int) -> Float[np.ndarray, " shifts"]:
        """Chebyshev points in log(λ - trailing), in which the spanned columns vary smoothly."""
        low, high = np.log(self.lowest - self.trailing), np.log(self.highest - self.trailing)
        nodes = np.cos(np.pi * (np.arange(count) + 0.5) / count)
        return self.trailing + np.exp((low + high) / 2 + (high - low) / 2 * nodes)

    def spans(self, count: int) -> bool:
        """Whether so many shifts span 1 / (λ - x) well enough for all wanted λ."""
        x = np.linspace(0.0, self.trailing, _GRID)
        wanted = self.trailing + np.geomspace(
            self.lowest - self.trailing, self.highest - self.trailing, _GRID
        )
        basis, _ = np.linalg.qr(1.0 / (self.shifts(count) - x[:, None]))
        columns = 1.0 / (wanted - x[:, None])
        columns /= np.linalg.norm(columns, axis=0)
        left = columns - basis @ (basis.T @ columns)
        return float(np.linalg.norm(left, axis=0).max()) <= _SPANNED


def _cheapest(matrix: SumInBaseBasis, k: int) -> _Plan | None:
    """The plan with the fewest columns; None where none is clearly smaller than the whole."""
    num_values, rank = len(matrix.S), matrix.P.shape[1]
    best: _Plan | None = None
    smallest = 0.85 * len(matrix.diagonal)
    for num_leading in np.unique(np.geomspace(k + rank + 1, num_values, 24).astype(int)):
        if num_leading >= min(num_values, smallest):
            break
        bounds = _Bounds.of(matrix, k, int(num_leading))
        if bounds.lowest <= bounds.trailing * 1.001:
            continue
        for count in range(1, _MAX_SHIFTS + 1):
            plan = _Plan(int(num_leading), bounds.shifts(count))
            if plan.size(matrix) >= smallest:
                break
            if bounds.spans(count):
                best, smallest = plan, plan.size(matrix)
                break
    return best


def _projected(matrix: SumInBaseBasis, k: int, plan: _Plan) -> tuple[Tensor, Tensor]:
    """λ and v by Rayleigh-Ritz over the plan's columns."""
    cut = plan.num_leading
    squares, Z = matrix.diagonal.square(), matrix.factors
    Z_leading, Z_trailing = Z[:cut], Z[cut:]
    columns = [Z_trailing / (shift - squares[cut:, None]) for shift in plan.shifts.tolist()]
    basis, _ = torch.linalg.qr(torch.cat(columns, dim=1))
    reduced = torch.cat([Z_leading, basis.T @ Z_trailing])
    H = reduced @ matrix.core @ reduced.T
    H.diagonal()[:cut] += squares[:cut]
    H[cut:, cut:] += basis.T @ (squares[cut:, None] * basis)
    values, vectors = _leading_eigenpairs(H, k)
    return values, torch.cat([vectors[:cut], basis @ vectors[cut:]])


def _dense(matrix: SumInBaseBasis, k: int) -> tuple[Tensor, Tensor]:
    H = matrix.factors @ matrix.core @ matrix.factors.T
    H.diagonal().add_(matrix.diagonal.square())
    return _leading_eigenpairs(H, k)


def _leading_eigenpairs(H: Float[Tensor, "n n"], k: int) -> tuple[Tensor, Tensor]:
    """Descending eigenvalues and their vectors as columns."""
    values, vectors = torch.linalg.eigh(H)
    return values[-k:].flip(0), vectors[:, -k:].flip(1)


def _singular_pairs(matrix: SumInBaseBasis, values: Tensor, vectors: Tensor) -> AdaptedSvd:
    """Singular values, left vectors and residuals of eigenpairs of the Gram matrix."""
    roots = values.clamp_min(0).sqrt()
    kept = int((roots > _SQUARED_ROUNDING * roots[0]).sum())
    S, right = roots[:kept], vectors[:, :kept]
    left = matrix.image(right) / S
    off = matrix.gram(right) - right * S.square()
    residual = float((off.norm(dim=0) / S).max() / S[0]) if kept else 0.0
    return AdaptedSvd(S, left, right, len(matrix.S), residual)
