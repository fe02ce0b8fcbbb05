"""The leading singular values and vectors of base + update, in the base's own singular basis.

There the sum is diag(S) + P @ Q.T, and its Gram matrix is a diagonal D² plus a term of rank 2r,
Z C Zᵀ. An eigenvector v of value λ obeys (λ - D²) v = Z (C Zᵀ v), so in coordinates whose D² is
below λ it lies in the columns of (λ - D²)⁻¹ Z. A few shifts in place of λ span these columns for
all leading λ. So a Rayleigh-Ritz step over the leading coordinates and a few times 2r columns finds
the leading vectors; residuals show whether it did. In float64, because squares lose half of the
digits.
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

# The same for square roots of the Gram matrix's eigenvalues: an eigenvalue is rounded by 1e-16 of
# the largest, its root so by 1e-8.
_SQUARED_ROUNDING = 1e-7
# The part of (λ - x)⁻¹ that the shifts may leave out; it enters a Ritz value squared.
_SPANNED = 2e-3
# Where this many shifts are not enough, more coordinates are kept whole.
_MAX_SHIFTS = 8
# Points of x and of λ at which the spanning is checked; the functions are smooth.
_GRID = 48
# A plan has to be smaller than all coordinates by this factor: its QR and products take time too.
_WORTHWHILE = 0.85
# Numbers of leading coordinates that are tried, in equal ratios.
_TRIED = 24
# λ has to be above the trailing D² by this factor: 1 / (λ - D²) has a pole there.
_APART = 1.001


class AdaptedSvd(NamedTuple):
    """The leading k singular values and vectors of base + update.

    Coordinates are signed cosines with the base's singular vectors, in their order, and then with
    directions outside their span.

    Attributes:
        S: descending.
        left: coordinates of the left singular vectors, as columns.
        right: coordinates of the right ones.
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
        left_outside: directions of the other rows of P: orthonormal columns orthogonal to U.
        right_outside: likewise for Q and V.
    """

    S: Float[Tensor, " values"]
    P: Float[Tensor, "left rank"]
    Q: Float[Tensor, "right rank"]
    left_outside: Float[Tensor, "out_features _"] | None = None
    right_outside: Float[Tensor, "in_features _"] | None = None

    @cached_property
    def values(self) -> list[float]:
        """S as numbers, read from its device once."""
        return self.S.tolist()

    @cached_property
    def update_bound(self) -> float:
        """‖P‖_F ‖Q‖_F: the update's norms are at most this."""
        return float(self.P.norm() * self.Q.norm())

    @cached_property
    def diagonal(self) -> Float[Tensor, " right"]:
        """D: S, and zeros for the right coordinates outside the base's span."""
        return torch.cat([self.S, self.S.new_zeros(len(self.Q) - len(self.S))])

    @cached_property
    def factors(self) -> Float[Tensor, "right double_rank"]:
        """Z = [D P, Q]."""
        DP = torch.zeros_like(self.Q)
        DP[: len(self.S)] = self.S[:, None] * self.P[: len(self.S)]
        return torch.cat([DP, self.Q], dim=1)

    @cached_property
    def core(self) -> Float[Tensor, "double_rank double_rank"]:
        """C = [0 I; I PᵀP], so that (D + P Qᵀ)ᵀ (D + P Qᵀ) = D² + Z C Zᵀ."""
        eye = torch.eye(self.P.shape[1], dtype=self.P.dtype, device=self.P.device)
        upper = torch.cat([torch.zeros_like(eye), eye], dim=1)
        return torch.cat([upper, torch.cat([eye, self.P.T @ self.P], dim=1)])

    @cached_property
    def whole(self) -> Float[Tensor, "left right"] | None:
        """The sum multiplied out; None where its factors take fewer multiplications.

        A Gram matrix times a vector takes 2 left · right of them, by the factors
        4 right · rank + 4 rank².
        """
        left, right, rank = len(self.P), len(self.Q), self.P.shape[1]
        if 2 * rank * (right + rank) < left * right:
            return None
        whole = self.P @ self.Q.T
        whole.diagonal().add_(self.S)
        return whole

    def gram(self, vectors: Float[Tensor, "right k"]) -> Float[Tensor, "right k"]:
        """(base + update)ᵀ (base + update) @ vectors, in O(right · k · rank)."""
        if self.whole is not None:
            return self.whole.T @ (self.whole @ vectors)
        return self.diagonal.square()[:, None] * vectors + self.factors @ (
            self.core @ (self.factors.T @ vectors)
        )

    def image(self, vectors: Float[Tensor, "right k"]) -> Float[Tensor, "left k"]:
        """(base + update) @ vectors."""
        if self.whole is not None:
            return self.whole @ vectors
        image = self.P @ (self.Q.T @ vectors)
        image[: len(self.S)] += self.S[:, None] * vectors[: len(self.S)]
        return image


def in_base_basis(base: Svd, update: Svd) -> SumInBaseBasis:
    """Write base + update in the base's singular basis: O(out · in · rank), in the base's dtype.

    Directions of the update outside the base's span (a wide matrix has right ones, a tall one left
    ones) get additional coordinates.

    Raises:
        ValueError: the shapes differ.
    """
    shapes = [(svd.U.shape[0], svd.Vh.shape[1]) for svd in (base, update)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"an update of shape {shapes[1]} on a base of shape {shapes[0]}.")
    U, S, Vh = (part.double() for part in update)
    rank = numerical_rank(S)
    root = S[:rank].sqrt()  # half of the update's size in each factor
    P, left_outside = _coordinates(base.U, U[:, :rank] * root)
    Q, right_outside = _coordinates(base.Vh.T, Vh[:rank].T * root)
    return SumInBaseBasis(base.S.double(), P, Q, left_outside, right_outside)


def numerical_rank(singular_values: Float[Tensor, " values"]) -> int:
    """How many of these values, which descend, are more than rounding."""
    return int((singular_values > ROUNDING * singular_values[0]).sum())


def _coordinates(
    basis: Float[Tensor, "features values"], factor: Float[Tensor, "features rank"]
) -> tuple[Tensor, Tensor | None]:
    """A factor's coordinates along a basis, then along an orthonormal basis of the rest."""
    inside = (basis.T @ factor.to(basis.dtype)).double()
    if basis.shape[0] == basis.shape[1]:
        return inside, None
    rest = factor - (basis @ inside.to(basis.dtype)).double()
    # A second projection: the basis is float32, so the first one leaves 1e-7 of ``inside``.
    rest -= (basis @ (basis.T @ rest.to(basis.dtype))).double()
    outside, R = torch.linalg.qr(rest)
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
        eye = torch.eye(len(matrix.S), k, dtype=matrix.S.dtype, device=matrix.S.device)
        return AdaptedSvd(matrix.S[:k], eye, eye, len(matrix.S), 0.0)
    plan = _cheapest(matrix, k)
    while plan is not None and plan.size(matrix) < len(matrix.diagonal):
        pairs = _singular_pairs(matrix, *_projected(matrix, k, plan))
        if pairs.residual <= tolerance:
            return pairs
        # two more, until taking all coordinates is no more work
        bounds = _EigenBounds.of(matrix, k, plan.num_leading)
        plan = plan._replace(shifts=bounds.shifts(len(plan.shifts) + 2))
    return _singular_pairs(matrix, *_dense(matrix, k))


class _SpanPlan(NamedTuple):
    """How many leading coordinates are kept whole, and the shifts that span the others."""

    num_leading: int
    shifts: Float[np.ndarray, " shifts"]

    def size(self, matrix: SumInBaseBasis) -> int:
        """Columns of the Rayleigh-Ritz problem: each shift gives one for each column of Z."""
        return self.num_leading + len(self.shifts) * matrix.factors.shape[1]


class _EigenBounds(NamedTuple):
    """The trailing D² are in [0, trailing], the wanted λ in [lowest, highest]."""

    trailing: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, matrix: SumInBaseBasis, k: int, num_leading: int) -> _EigenBounds:
        """Weyl's bounds: the sum's σ_k >= the base's σ_{k+rank}, and its σ_1 <= σ_1 + ‖update‖."""
        S, rank = matrix.values, matrix.P.shape[1]
        highest = S[0] + matrix.update_bound
        return cls(S[num_leading] ** 2, S[k + rank - 1] ** 2, highest**2)

    def shifts(self, count: int) -> Float[np.ndarray, " shifts"]:
        """Chebyshev points in log(λ - trailing), in which the spanned columns vary smoothly."""
        low, high = np.log(self.lowest - self.trailing), np.log(self.highest - self.trailing)
        nodes = np.cos(np.pi * (np.arange(count) + 0.5) / count)
        return self.trailing + np.exp((low + high) / 2 + (high - low) / 2 * nodes)

    def spans(self, count: int) -> bool:
        """Whether this many shifts span 1 / (λ - x) well enough for all wanted λ."""
        # as functions of x, which stands for the trailing D²; (grid, shifts) and (grid, wanted)
        x = np.linspace(0.0, self.trailing, _GRID)
        wanted = self.trailing + np.geomspace(
            self.lowest - self.trailing, self.highest - self.trailing, _GRID
        )
        basis, _ = np.linalg.qr(1.0 / (self.shifts(count) - x[:, None]))
        columns = 1.0 / (wanted - x[:, None])
        columns /= np.linalg.norm(columns, axis=0)
        left_out = columns - basis @ (basis.T @ columns)
        return float(np.linalg.norm(left_out, axis=0).max()) <= _SPANNED


def _cheapest(matrix: SumInBaseBasis, k: int) -> _SpanPlan | None:
    """The plan with the fewest columns; None where none is clearly smaller than the whole."""
    num_values, rank = len(matrix.S), matrix.P.shape[1]
    best: _SpanPlan | None = None
    smallest = _WORTHWHILE * len(matrix.diagonal)
    # from k + rank + 1 on, the lowest λ, which is σ²_(k+rank) at least, is above the trailing D²
    for num_leading in np.unique(np.geomspace(k + rank + 1, num_values, _TRIED).astype(int)):
        if num_leading >= min(num_values, smallest):
            break
        bounds = _EigenBounds.of(matrix, k, int(num_leading))
        if bounds.lowest <= bounds.trailing * _APART:
            continue
        for count in range(1, _MAX_SHIFTS + 1):
            plan = _SpanPlan(int(num_leading), bounds.shifts(count))
            if plan.size(matrix) >= smallest:
                break
            if bounds.spans(count):
                best, smallest = plan, plan.size(matrix)
                break
    return best


def _projected(matrix: SumInBaseBasis, k: int, plan: _SpanPlan) -> tuple[Tensor, Tensor]:
    """λ and v by Rayleigh-Ritz over the plan's columns."""
    cut = plan.num_leading
    squares, Z = matrix.diagonal.square(), matrix.factors
    Z_leading, Z_trailing = Z[:cut], Z[cut:]
    columns = [Z_trailing / (shift - squares[cut:, None]) for shift in plan.shifts.tolist()]
    basis, _ = torch.linalg.qr(torch.cat(columns, dim=1))  # (trailing, shifts * 2r)
    # The Gram matrix on the leading coordinates and on the columns of the basis.
    reduced = torch.cat([Z_leading, basis.T @ Z_trailing])  # (plan.size, 2r)
    H = reduced @ matrix.core @ reduced.T
    H.diagonal()[:cut] += squares[:cut]
    H[cut:, cut:] += basis.T @ (squares[cut:, None] * basis)
    values, vectors = _leading_eigenpairs(H, k)
    return values, torch.cat([vectors[:cut], basis @ vectors[cut:]])


def _dense(matrix: SumInBaseBasis, k: int) -> tuple[Tensor, Tensor]:
    """λ and v from the whole Gram matrix."""
    if matrix.whole is not None:
        return _leading_eigenpairs(matrix.whole.T @ matrix.whole, k)
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
