"""Findings in the weights of a run, matrix by matrix: ``spectra.json``."""

from __future__ import annotations

from collections.abc import Iterable

from rankwise.records.base import Record
from rankwise.records.study import StageRecord

LEADING = (10, 50, 100, 500)
"""Numbers of leading singular vectors over which similarities are averaged; a matrix that has fewer
is averaged over all of them."""

EPSILONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""A vector whose largest |cosine| with the base's is below this counts as an intruder."""

INTRUDER_K, INTRUDER_EPSILON = 10, 0.5
"""The entry of the grid that is reported as the number of intruders, as in arXiv:2410.21228."""


class UpdateSpectrum(Record):
    """An update described by its singular values σ; a zero update has zeros everywhere."""

    rank: int | None
    """Rank of the factors; None for full fine-tuning."""
    frobenius_norm: float
    relative_norm: float | None
    """‖delta‖_F / ‖W_0‖_F; None where the base's matrix is zero."""
    spectral_norm: float
    stable_rank: float
    effective_rank: float
    energy_rank_90: int
    """Number of leading σ that hold 90 % of Σ σ²."""
    energy_rank_99: int


class SideChange(Record):
    """One side's leading singular vectors, the adapted model's compared with the base's.

    Each field has one value for each number of vectors k in ``leading``; all are in [0, 1], and 1
    is unchanged.
    """

    index_matched: tuple[float, ...]
    """Mean |cos| of k vectors with the base's vector of the same index."""
    best_matched: tuple[float, ...]
    """Mean |cos| of k vectors with the most similar of all the base's vectors."""
    overlap: tuple[float, ...]
    """‖U_0ᵀU_1‖_F² / k."""


class VectorChange(Record):
    """Change of leading singular values and vectors by an update; of a null, means over draws."""

    left: SideChange
    right: SideChange
    value_shift: tuple[float, ...]
    """Mean of (σ_i after - σ_i before) / σ_1 before, for each of ``leading``."""
    intruders: tuple[tuple[float, ...], ...]
    """Number of left intruder vectors, for each of ``leading`` (rows) and ``epsilons`` (columns).
    """


class FullOverlap(Record):
    """How far a LoRA update's leading directions lie among full fine-tuning's.

    ‖Uᵀ U_full‖_F² / rank over the ``rank`` leading directions of both updates, in [0, 1].
    """

    rank: int
    left: float
    right: float
    left_expected: float
    """The value for random directions: rank / size of the space."""
    right_expected: float


class MatrixSpectrum(Record):
    """One adapted matrix of a run.

    The nulls are random updates of the same rank. They are None for a zero update, and where the
    study asks for no draws.
    """

    module: str
    layer: int | None
    """Number in the module's name; None where it has none."""
    kind: str
    """The module's name after that number."""
    out_features: int
    in_features: int
    base_frobenius_norm: float
    base_spectral_norm: float
    update: UpdateSpectrum
    leading: tuple[int, ...]
    """``LEADING``, as far as the matrix has that many vectors."""
    change: VectorChange
    gaussian_null: VectorChange | None
    """Random updates of the same Frobenius norm."""
    haar_null: VectorChange | None
    """Random updates of the same singular values."""
    full_overlap: FullOverlap | None = None


class SpectraRecord(StageRecord, has_texts=False):
    """``spectra.json``: every adapted matrix of one run."""

    model: str
    epsilons: tuple[float, ...]
    null_draws: int
    matrices: tuple[MatrixSpectrum, ...]
    not_analysed: str | None
    """Why there are no matrices, such as an update that is not plain LoRA; None otherwise."""
    analysis_seconds: float


def intruders_of(
    change: VectorChange, leading: tuple[int, ...], epsilons: tuple[float, ...]
) -> float:
    """The number of intruders at ``INTRUDER_K``, or at fewer vectors, and ``INTRUDER_EPSILON``."""
    row = max(index for index, k in enumerate(leading) if k <= INTRUDER_K or index == 0)
    return change.intruders[row][epsilons.index(INTRUDER_EPSILON)]


def intruder_k(matrices: Iterable[MatrixSpectrum]) -> int:
    """The number of leading vectors that ``intruders_of`` searches; smaller matrices have fewer."""
    return max(matrix.leading[0] for matrix in matrices)


def similarity(change: VectorChange) -> float:
    """The mean |cos| of left and right vectors of one index, over all that were compared."""
    return (change.left.index_matched[-1] + change.right.index_matched[-1]) / 2
