"""The update in factors: everything against the dense matrix, and against hand-computed answers."""

from __future__ import annotations

import math

import pytest
import torch

from rankwise.weights.lowrank import LowRankUpdate
from rankwise.weights.spectra import effective_rank, energy_rank, stable_rank


def random_update(rank: int, out: int = 12, inside: int = 9, scaling: float = 0.5) -> LowRankUpdate:
    generator = torch.Generator().manual_seed(rank)
    A = torch.randn(rank, inside, generator=generator)
    return LowRankUpdate(A, torch.randn(out, rank, generator=generator), scaling)


def dense(update: LowRankUpdate) -> torch.Tensor:
    return update.scaling * update.lora_B.double() @ update.lora_A.double()


@pytest.mark.parametrize("rank", [1, 3, 9, 20])
def test_factors_say_what_the_dense_matrix_says(rank: int) -> None:
    update = random_update(rank, scaling=-1.7)
    delta = dense(update)
    S = torch.linalg.svdvals(delta)
    found = update.factorization
    assert torch.allclose(found.U * found.S @ found.Vh, delta, atol=1e-12)
    kept = min(rank, 9)
    assert torch.allclose(update.singular_values[:kept], S[:kept], atol=1e-12)
    assert update.frobenius_norm == pytest.approx(float(delta.norm()), rel=1e-12)
    assert float(update.singular_values[0]) == pytest.approx(float(S[0]), rel=1e-12)
    assert stable_rank(update.singular_values) == pytest.approx(
        float((S**2).sum() / S[0] ** 2), rel=1e-10
    )
    assert update.shape == (12, 9)


def test_ranks_of_a_planted_spectrum_by_hand() -> None:
    S = torch.tensor([4.0, 2.0, 1.0, 1.0])  # squares 16, 4, 1, 1: energy 22
    assert stable_rank(S) == pytest.approx(22 / 16)
    p = [0.5, 0.25, 0.125, 0.125]
    assert effective_rank(S) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))
    assert [energy_rank(S, share) for share in (0.7, 16 / 22, 0.75, 0.9, 0.99, 1.0)] == [
        *(1, 1, 2, 2, 4, 4)
    ]


def test_equal_singular_values_have_their_number_as_every_rank() -> None:
    S = torch.full((7,), 3.0)
    assert stable_rank(S) == pytest.approx(7.0)
    assert effective_rank(S) == pytest.approx(7.0)
    assert energy_rank(S, 1.0) == 7


def test_a_zero_update_has_zero_of_everything() -> None:
    update = LowRankUpdate(torch.randn(4, 9), torch.zeros(12, 4), 2.0)
    S = update.singular_values
    assert update.frobenius_norm == float(S[0]) == 0.0
    assert stable_rank(S) == effective_rank(S) == 0.0
    assert energy_rank(S, 0.99) == 0
    assert not dense(update.truncated(2)).any()


def test_truncation_is_the_best() -> None:
    left, right = torch.linalg.qr(torch.randn(12, 3)).Q, torch.linalg.qr(torch.randn(9, 3)).Q
    update = LowRankUpdate(right.T, left * torch.tensor([12.0, 4.0, 3.0]))
    kept = update.truncated(1)
    assert kept.rank == 1
    assert kept.scaling == 1.0
    left_out = (dense(update) - dense(kept)).norm()
    assert float(left_out) == pytest.approx(5.0, rel=1e-6)  # sqrt(16 + 9)
    assert torch.allclose(dense(update.truncated(8)), dense(update), atol=1e-6)


def test_half_precision_factors_are_multiplied_in_float64() -> None:
    update = random_update(4)
    half = LowRankUpdate(update.lora_A.bfloat16(), update.lora_B.bfloat16(), update.scaling)
    assert half.frobenius_norm == pytest.approx(float(dense(half).norm()), rel=1e-12)


def test_a_sum_has_both_ranks_and_is_exact() -> None:
    one, other = random_update(2), random_update(3, scaling=-0.25)
    both = one.plus(other)
    assert (both.rank, both.scaling) == (5, 1.0)
    assert torch.allclose(dense(both), dense(one) + dense(other), atol=1e-12)
    with pytest.raises(ValueError, match="no sum"):
        one.plus(random_update(2, out=5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    A = torch.randn(2, 9)
    A[0, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        LowRankUpdate(A, torch.randn(12, 2))


@pytest.mark.usefixtures("unchecked_shapes")
def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match="no rank in common"):
        LowRankUpdate(torch.randn(2, 9), torch.randn(12, 3))
    with pytest.raises(ValueError, match="0 is not a rank"):
        random_update(2).truncated(0)
    with pytest.raises(ValueError, match="not in"):
        energy_rank(torch.ones(3), 0.0)
