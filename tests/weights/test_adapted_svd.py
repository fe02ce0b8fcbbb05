"""Leading singular vectors of base + update against a dense float64 decomposition."""

from __future__ import annotations

import pytest
import torch

from rankwise.weights import adapted_svd
from rankwise.weights.adapted_svd import AdaptedSvd, in_base_basis, leading_svd
from rankwise.weights.lowrank import LowRankUpdate
from rankwise.weights.matrix import random_sum
from rankwise.weights.spectra import Svd, best_matched, cosines, index_matched, intruder_indices

SHAPES = [(90, 90), (60, 110), (110, 60)]


def planted(
    shape: tuple[int, int], rank: int, *, decay: float = 0.5, size: float = 0.05, seed: int = 0
) -> tuple[torch.Tensor, LowRankUpdate]:
    """A float64 base with singular values i^-decay, and an update of a share of its norm."""
    generator = torch.Generator().manual_seed(seed)
    num_values = min(shape)

    def orthonormal(rows: int) -> torch.Tensor:
        gaussian = torch.randn(rows, num_values, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(gaussian).Q

    S = torch.arange(1, num_values + 1, dtype=torch.float64) ** -decay
    base = orthonormal(shape[0]) * S @ orthonormal(shape[1]).T
    A = torch.randn(rank, shape[1], generator=generator, dtype=torch.float64)
    B = torch.randn(shape[0], rank, generator=generator, dtype=torch.float64)
    return base, LowRankUpdate(A, B, float(size * base.norm() / (B @ A).norm()))


def thin(matrix: torch.Tensor) -> Svd:
    return Svd(*torch.linalg.svd(matrix, full_matrices=False))


def found_and_expected(
    base: torch.Tensor, update: LowRankUpdate, k: int, tolerance: float = 1e-9
) -> tuple[AdaptedSvd, Svd, Svd]:
    before = thin(base)
    delta = update.scaling * update.lora_B.double() @ update.lora_A.double()
    found = leading_svd(in_base_basis(before, update.factorization), k, tolerance)
    return found, before, thin(base + delta)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rank", "k"), [(1, 10), (3, 20), (8, 60), (60, 60)])
def test_values_and_cosines_equal_a_dense_decomposition(
    shape: tuple[int, int], rank: int, k: int
) -> None:
    found, before, after = found_and_expected(*planted(shape, rank), k)
    assert torch.allclose(found.S, after.S[:k], atol=1e-9)
    left = cosines(before.U, after.U[:, :k])
    right = cosines(before.Vh.T, after.Vh[:k].T)
    assert torch.allclose(found.left_cosines, left, atol=1e-7)
    assert torch.allclose(found.right_cosines, right, atol=1e-7)
    assert found.residual < 1e-9


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_the_usual_tolerance_is_finer_than_a_float32_decomposition(rank: int) -> None:
    base, update = planted((300, 300), rank)
    found, before, after = found_and_expected(base, update, 40, adapted_svd.TOLERANCE)
    delta = update.scaling * update.lora_B @ update.lora_A
    single = cosines(thin(base.float()).U, thin((base + delta).float()).U[:, :40])
    expected = index_matched(cosines(before.U, after.U[:, :40]))
    error = float((index_matched(found.left_cosines) - expected).abs().max())
    assert found.residual <= adapted_svd.TOLERANCE
    assert error < 1e-5
    assert error < 2 * float((index_matched(single) - expected).abs().max())


def test_a_large_matrix_with_a_small_update_is_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the whole matrix was decomposed")

    monkeypatch.setattr(adapted_svd, "_dense", refuse)
    found, before, after = found_and_expected(*planted((300, 300), 2), 20, 1e-7)
    assert torch.allclose(found.left_cosines, cosines(before.U, after.U[:, :20]), atol=1e-6)


def test_too_few_shifts_are_noticed_and_more_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapted_svd, "_SPANNED", 1e9)  # one shift is planned
    base, update = planted((300, 300), 2, decay=0.05, size=0.5)
    found, _, after = found_and_expected(base, update, 20, 1e-6)
    assert found.residual <= 1e-6
    assert torch.allclose(found.S, after.S[:20], atol=1e-9)


def test_an_update_along_the_last_directions_becomes_the_first() -> None:
    base, _ = planted((300, 300), 1)
    U, S, Vh = thin(base)
    update = LowRankUpdate(Vh[-1:], 3.0 * U[:, -1:])
    found = leading_svd(in_base_basis(Svd(U, S, Vh), update.factorization), 10)
    assert float(found.S[0]) == pytest.approx(3.0 + float(S[-1]), rel=1e-9)
    assert float(found.left_cosines[-1, 0]) == pytest.approx(1.0)
    # every other vector has moved down by one place
    assert torch.allclose(found.left_cosines[:9, 1:].diagonal(), torch.ones(9).double())
    assert float(index_matched(found.left_cosines).max()) < 1e-6
    assert torch.allclose(best_matched(found.left_cosines), torch.ones(10).double())


def test_a_planted_intruder_is_counted_and_nothing_else() -> None:
    base, _ = planted((90, 90), 1)
    U, S, Vh = thin(base)
    spread = U[:, 20:80].sum(1, keepdim=True) / 60**0.5  # cosine 0.13 with each of sixty
    update = LowRankUpdate(Vh[20:80].sum(0, keepdim=True) / 60**0.5, 2.0 * spread)
    found = leading_svd(in_base_basis(Svd(U, S, Vh), update.factorization), 10)
    best = best_matched(found.left_cosines)
    assert float(best[0]) < 0.2
    assert len(intruder_indices(best, 10, 0.5)) == 1
    assert len(intruder_indices(best, 10, 0.1)) == 0


@pytest.mark.parametrize("shape", [(60, 110), (110, 60)])
def test_directions_outside_the_base_are_kept(shape: tuple[int, int]) -> None:
    base, update = planted(shape, 4, size=2.0)
    found, _, after = found_and_expected(base, update, 10)
    assert torch.allclose(found.S, after.S[:10], atol=1e-9)
    side = found.left if shape[0] > shape[1] else found.right
    assert len(side) == min(shape) + 4
    assert float(side[min(shape) :].abs().max()) > 0.1
    assert torch.allclose(side.norm(dim=0), torch.ones(10).double(), atol=1e-6)


def test_a_zero_update_changes_nothing() -> None:
    base, update = planted((60, 110), 4)
    zero = LowRankUpdate(update.lora_A, torch.zeros_like(update.lora_B))
    found, before, _ = found_and_expected(base, zero, 30)
    assert torch.equal(found.S, before.S[:30])
    assert bool((index_matched(found.left_cosines) == 1).all())
    assert len(intruder_indices(best_matched(found.left_cosines), 30, 0.9)) == 0


def test_bases_without_a_decay_or_without_anything() -> None:
    eye = torch.eye(40, dtype=torch.float64)
    update = planted((40, 40), 3)[1]
    found, _, after = found_and_expected(eye, update, 10)
    assert torch.allclose(found.S, after.S[:10], atol=1e-9)
    found, _, after = found_and_expected(0 * eye, update, 10)
    assert len(found.S) < 10  # a matrix of rank 3 has no more directions
    assert torch.allclose(found.S[:3], after.S[:3], atol=1e-9)


def test_a_rank_above_the_matrix_s_is_its_own() -> None:
    found, before, after = found_and_expected(*planted((20, 30), 25), 20)
    assert torch.allclose(found.S, after.S, atol=1e-9)
    assert torch.allclose(found.left_cosines, cosines(before.U, after.U), atol=1e-6)


def test_a_float32_base_is_enough_for_its_own_accuracy() -> None:
    base, update = planted((90, 90), 4)
    delta = update.scaling * update.lora_B @ update.lora_A
    after = thin(base + delta)
    matrix = in_base_basis(thin(base.float()), update.factorization)
    found = leading_svd(matrix, 20)
    expected = cosines(thin(base).U, after.U[:, :20])
    assert torch.allclose(found.left_cosines, expected, atol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    base, update = planted((20, 30), 2)
    with pytest.raises(ValueError, match=r"shape \(20, 30\) on a base of shape \(30, 20\)"):
        in_base_basis(thin(base.T), update.factorization)
    with pytest.raises(ValueError, match="k = 21 of 20"):
        leading_svd(in_base_basis(thin(base), update.factorization), 21)


@pytest.mark.parametrize("shape", SHAPES)
def test_nulls_have_what_they_promise(shape: tuple[int, int]) -> None:
    base, update = planted(shape, 4)
    S = thin(base).S
    for draw in range(2):
        haar = random_sum("haar", S, shape, update.singular_values, draw)
        values = torch.linalg.svdvals(haar.P @ haar.Q.T)[:4]
        assert torch.allclose(values, update.singular_values, atol=1e-10)
        gaussian = random_sum("gaussian", S, shape, update.singular_values, draw)
        delta = gaussian.P @ gaussian.Q.T
        assert float(delta.norm()) == pytest.approx(update.frobenius_norm, rel=1e-10)
        assert int(torch.linalg.matrix_rank(delta)) == 4
    again = random_sum("haar", S, shape, update.singular_values, 1)
    assert torch.equal(haar.P, again.P)
    other = random_sum("haar", S, shape, update.singular_values, 0)
    assert not torch.equal(haar.P, other.P)


def test_a_random_direction_is_as_near_to_the_base_as_geometry_says() -> None:
    S = torch.ones(50, dtype=torch.float64)
    shares = [
        float(random_sum("haar", S, (200, 50), S[:1], draw).P[:50].square().sum())
        for draw in range(200)
    ]
    assert sum(shares) / 200 == pytest.approx(50 / 200, abs=0.02)
