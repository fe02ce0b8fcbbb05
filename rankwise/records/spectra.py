"""What was found in the weights of a run, matrix by matrix: ``spectra.json``."""

from __future__ import annotations

from collections.abc import Iterable

from rankwise.records.study import SCHEMA_VERSION, Record, SchemaVersion, StageRecord

LEADING = (10, 50, 100, 500)
"""Over how many leading singular vectors similarities are averaged; where a matrix has fewer, over
all that it has."""

EPSILONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Below which largest cosine a vector counts as an intruder."""

INTRUDER_K, INTRUDER_EPSILON = 10, 0.5
"""The entry of the grid that stands for all, as in arXiv:2410.21228."""


class UpdateSpectrum(Record):
    """An update by its singular values.

    ``relative_norm`` is ‖delta‖_F / ‖W_0‖_F (None where the base's matrix is zero). ``rank`` is
    that of the factors; of full fine-tuning None. Energy ranks keep 90 and 99 % of Σ σ². A
    zero update has zeros everywhere.
    """

    rank: int | None
    frobenius_norm: float
    relative_norm: float | None
    spectral_norm: float
    stable_rank: float
    effective_rank: float
    energy_rank_90: int
    energy_rank_99: int


class SideChange(Record):
    """One side's singular vectors, adapted beside base: a value for each of ``leading``.

    Means of |cos| over that many leading vectors, each with the base's of the same index and with
    the most similar of all of the base's; and ‖U_0ᵀU_1‖_F² / k. All in [0, 1], 1 is unchanged.
    """

    index_matched: tuple[float, ...]
    best_matched: tuple[float, ...]
    overlap: tuple[float, ...]


class VectorChange(Record):
    """What an update did to the leading singular values and vectors.

    ``value_shift`` is the mean of (σ_i after - σ_i before) / σ_1 before, for each of ``leading``.
    ``intruders`` counts left vectors for each of ``leading`` (rows) and ``epsilons`` (columns).
    Of a null these are means over its draws.
    """

    left: SideChange
    right: SideChange
    value_shift: tuple[float, ...]
    intruders: tuple[tuple[float, ...], ...]


class FullOverlap(Record):
    """How much of a LoRA update's directions are among full fine-tuning's: ‖Uᵀ U_full‖_F² / rank.

    Over the ``rank`` leading directions of both updates, in [0, 1]. ``expected`` is what random
    directions would have: rank / size of the space.
    """

    rank: int
    left: float
    right: float
    left_expected: float
    right_expected: float


class MatrixSpectrum(Record):
    """One adapted matrix of a run.

    ``layer`` is None where the name holds no number; ``kind`` is the name behind it.
    ``leading`` are the numbers of vectors that similarities are over: ``LEADING`` where the matrix
    has as many. Nulls are updates of the same rank at random: ``gaussian_null`` of the same
    Frobenius norm, ``haar_null`` of the same singular values. A zero update has none, and neither
    where the study asks for no draws.
    """

    module: str
    layer: int | None
    kind: str
    out_features: int
    in_features: int
    base_frobenius_norm: float
    base_spectral_norm: float
    update: UpdateSpectrum
    leading: tuple[int, ...]
    change: VectorChange
    gaussian_null: VectorChange | None
    haar_null: VectorChange | None
    full_overlap: FullOverlap | None = None


class SpectraRecord(StageRecord):
    """``spectra.json``: every adapted matrix of one run.

    ``not_analysed`` says why there are no matrices: an update that is no plain LoRA.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    model: str
    epsilons: tuple[float, ...]
    null_draws: int
    matrices: tuple[MatrixSpectrum, ...]
    not_analysed: str | None
    analysis_seconds: float

    @property
    def frobenius_norm(self) -> float:
        """Of the whole update, all its matrices taken as one."""
        return sum(each.update.frobenius_norm**2 for each in self.matrices) ** 0.5


def intruders_of(
    change: VectorChange, leading: tuple[int, ...], epsilons: tuple[float, ...]
) -> float:
    """The count at ``INTRUDER_K``, or at fewer vectors, and ``INTRUDER_EPSILON``."""
    row = max(index for index, k in enumerate(leading) if k <= INTRUDER_K or index == 0)
    return change.intruders[row][epsilons.index(INTRUDER_EPSILON)]


def intruder_k(matrices: Iterable[MatrixSpectrum]) -> int:
    """Among how many leading vectors ``intruders_of`` counts; a smaller matrix has fewer."""
    return max(each.leading[0] for each in matrices)


def similarity(change: VectorChange) -> float:
    """The mean |cos| of left and right vectors of one index, over all that were compared."""
    return (change.left.index_matched[-1] + change.right.index_matched[-1]) / 2
