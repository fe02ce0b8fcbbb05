"""Decompositions by eigenvectors of the Gram matrix, as on CUDA: against what was planted."""

from __future__ import annotations

import pytest
import torch

from rankwise.weights import decomposition
from rankwise.weights.adapted_svd import in_base_basis, leading_svd, numerical_rank
from rankwise.weights.decomposition import gram_svd, largest_error, thin_svd
from rankwise.weights.lowrank import LowRankUpdate
from rankwise.weights.spectra import Svd, best_matched, cosines, index_matched, intruder_indices

SIZE = 120
SHAPES = [(SIZE, SIZE), (SIZE, 200), (200, SIZE)]
NEIGHBOURS = torch.arange(10, dtype=torch.float64)
SPECTRA = {
    "decaying": torch.arange(1, SIZE + 1, dtype=torch.float64) ** -0.5,
    "to rounding": torch.logspace(0, -11, SIZE, dtype=torch.float64),
    "rank deficient": torch.cat([torch.linspace(1, 0.5, 20), torch.zeros(SIZE - 20)]).double(),
    "gaps of 1e-6": torch.linspace(1, 0.1, SIZE, dtype=torch.float64),
}
SPECTRA["gaps of 1e-6"][50:60] = SPECTRA["gaps of 1e-6"][50] - 1e-6 * NEIGHBOURS


def orthonormal(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q


def planted(shape: tuple[int, int], S: torch.Tensor) -> tuple[torch.Tensor, Svd]:
    """A matrix, and the decomposition that it was made of."""
    U, V = (orthonormal(size, len(S), seed) for seed, size in enumerate(shape))
    return U * S @ V.T, Svd(U, S, V.T)


def turned(found: Svd, wanted: Svd, count: int) -> float:
    """The largest wrong cosine of the first vectors with any that was planted."""
    eye = torch.eye(len(wanted.S), count, dtype=torch.float64)
    left = cosines(wanted.U, found.U[:, :count])
    right = cosines(wanted.Vh.T, found.Vh[:count].T)
    return max(float((side - eye).abs().max()) for side in (left, right))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", SPECTRA)
def test_planted_values_are_found_to_float64_s_digits(shape: tuple[int, int], kind: str) -> None:
    """Below 1e-8 of the largest, one Gram matrix's roots would be rounding."""
    S = SPECTRA[kind]
    matrix, _ = planted(shape, S)
    found = gram_svd(matrix)
    assert [tuple(part.shape) for part in found] == [(shape[0], SIZE), (SIZE,), (SIZE, shape[1])]
    assert torch.allclose(found.S, S, rtol=0, atol=1e-14)
    assert bool((found.S.diff() <= 0).all())
    assert largest_error(matrix, found) < 1e-11
    assert torch.allclose(found.U * found.S @ found.Vh, matrix, rtol=0, atol=1e-11)
    assert numerical_rank(found.S) == numerical_rank(S)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    # what float64 leaves of a vector is its rounding over the distance of its value to the next
    ("kind", "count", "tolerance"),
    [("decaying", SIZE, 1e-10), ("gaps of 1e-6", SIZE, 1e-8), ("to rounding", 50, 1e-8)],
)
def test_planted_vectors_are_found(
    shape: tuple[int, int], kind: str, count: int, tolerance: float
) -> None:
    matrix, wanted = planted(shape, SPECTRA[kind])
    assert turned(gram_svd(matrix), wanted, count) < tolerance


@pytest.mark.parametrize(
    "matrix",
    [
        torch.zeros(30, 20),
        torch.eye(30),
        torch.outer(torch.arange(30.0), torch.ones(20)),
        torch.full((1, 7), 2.0),
        1e30 * torch.eye(5),
    ],
    ids=["zero", "equal values", "rank one", "one row", "large"],
)
def test_matrices_without_unique_vectors_are_decomposed(matrix: torch.Tensor) -> None:
    found = gram_svd(matrix)
    assert torch.allclose(found.S, torch.linalg.svdvals(matrix.double()), rtol=1e-12, atol=1e-10)
    assert largest_error(matrix, found) < 1e-12


@pytest.mark.parametrize("size", [0.05, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_similarities_are_nearer_than_those_of_a_float32_svd(
    shape: tuple[int, int], size: float
) -> None:
    """The measure of ``benchmarks.spectra``, whose vectors are kept in float32."""
    base = planted(shape, SPECTRA["decaying"])[0].float()  # as it is stored
    A, B = orthonormal(shape[1], 4, 5).T, orthonormal(shape[0], 4, 6)
    kept = Svd(*(part.float() for part in gram_svd(base)))
    found = leading_svd(in_base_basis(kept, LowRankUpdate(A, B, size).factorization), 40)
    delta = size * B @ A
    exact, single = thin_svd(base.double()), thin_svd(base)
    after, single_after = thin_svd(base.double() + delta), thin_svd((base + delta).float())
    left = (found.left_cosines, cosines(exact.U, after.U), cosines(single.U, single_after.U))
    right = (
        found.right_cosines,
        cosines(exact.Vh.T, after.Vh.T),
        cosines(single.Vh.T, single_after.Vh.T),
    )
    for measure in (index_matched, best_matched):
        for ours, wanted, plain in (left, right):
            error = float((measure(ours) - measure(wanted)[:40]).abs().max())
            assert error < 1e-5
            assert error <= 2 * float((measure(plain) - measure(wanted))[:40].abs().max())


def test_a_planted_intruder_dimension_is_counted_and_nothing_else() -> None:
    base, _ = planted((SIZE, SIZE), SPECTRA["decaying"])
    decomposed = gram_svd(base)
    U, V = decomposed.U, decomposed.Vh.T
    # cosine 0.13 with each of sixty vectors, on both sides
    left, right = (side[:, 20:80].sum(1, keepdim=True) / 60**0.5 for side in (U, V))
    update = LowRankUpdate(right.T, 2.0 * left)
    found = leading_svd(in_base_basis(decomposed, update.factorization), 10)
    best = best_matched(found.left_cosines)
    assert intruder_indices(best, 10, 0.5).tolist() == [0]
    assert len(intruder_indices(best, 10, 0.1)) == 0


def test_errors_are_measured() -> None:
    matrix, exact = planted((30, 20), torch.linspace(2.0, 1.0, 20, dtype=torch.float64))
    assert largest_error(matrix, exact) < 1e-14
    assert largest_error(matrix, exact._replace(S=exact.S + 0.2)) == pytest.approx(0.2 / 2.2)
    longer = exact._replace(U=1.1 * exact.U, S=exact.S / 1.1)  # the same product
    assert largest_error(matrix, longer) == pytest.approx(0.21)
    assert largest_error(matrix, exact._replace(Vh=exact.Vh.flip(0))) > 0.3


def test_what_is_not_right_is_decomposed_by_the_cpu() -> None:
    matrix, exact = planted((30, 20), torch.linspace(2.0, 1.0, 20, dtype=torch.float64))
    assert decomposition._checked(matrix, exact) is exact
    by_cpu = thin_svd(matrix)
    for wrong in (exact._replace(S=exact.S + 1e-7), exact._replace(U=exact.U * torch.nan)):
        found = decomposition._checked(matrix, wrong)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, by_cpu, strict=True))


def test_the_cpu_s_own_is_lapack_s_in_the_matrix_s_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        matrix = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
        theirs = torch.linalg.svd(matrix, full_matrices=False)
        for mine, their in zip(thin_svd(matrix), theirs, strict=True):
            assert torch.equal(mine, their)
