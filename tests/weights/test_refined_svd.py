"""A float32 decomposition, corrected: against float64, and on what has no unique answer."""

from __future__ import annotations

import pytest
import torch

from rankwise.weights.decomposition import refined_svd
from rankwise.weights.spectra import Svd


def off_by(found: Svd, exact: Svd, k: int) -> float:
    """The largest wrong cosine of any two vectors, of which the second is among the k leading."""
    worst = 0.0
    for mine, theirs in ((found.U, exact.U), (found.Vh.T, exact.Vh.T)):
        cosines = (mine.double().T @ theirs)[:, :k].abs()
        wanted = torch.eye(len(cosines), k, dtype=torch.float64)
        worst = max(worst, float((cosines - wanted).abs().max()))
    return worst


@pytest.mark.parametrize("shape", [(80, 80), (50, 120), (120, 50)])
@pytest.mark.parametrize("num_refined", [1024, 30])
def test_vectors_and_values_are_right_to_float32_s_digits(
    shape: tuple[int, int], num_refined: int
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    exact = Svd(*torch.linalg.svd(weight.double(), full_matrices=False))
    plain = Svd(*torch.linalg.svd(weight, full_matrices=False))
    found = refined_svd(weight, num_refined)
    k = min(num_refined, *shape)
    k = k if k == min(shape) else k // 2  # of the last that are corrected, neighbours are not
    assert off_by(found, exact, k) < 1e-6
    assert off_by(found, exact, k) < off_by(plain, exact, k) / 10
    assert torch.allclose(found.S[:k].double(), exact.S[:k], rtol=2e-7)
    assert torch.allclose(found.S.double(), exact.S, atol=2e-6 * float(exact.S[0]))
    for vectors in (found.U.T, found.Vh):
        gram = vectors @ vectors.T
        assert torch.allclose(gram, torch.eye(len(gram)), atol=5e-6)
    assert torch.allclose(found.U * found.S @ found.Vh, weight, atol=1e-4)


@pytest.mark.parametrize("kind", ["equal values", "zero", "low rank"])
def test_matrices_without_unique_vectors_stay_decomposed(kind: str) -> None:
    weight = {
        "equal values": torch.eye(30),
        "zero": torch.zeros(30, 20),
        "low rank": torch.outer(torch.arange(30.0), torch.ones(20)),
    }[kind]
    found = refined_svd(weight)
    assert torch.allclose(found.U * found.S @ found.Vh, weight, atol=1e-4)
    gram = found.U.T @ found.U
    assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)


def test_half_precision_weights_are_taken_as_they_are() -> None:
    weight = torch.randn(30, 30, generator=torch.Generator().manual_seed(2)).bfloat16()
    exact = Svd(*torch.linalg.svd(weight.double(), full_matrices=False))
    assert off_by(refined_svd(weight), exact, 30) < 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    weight = torch.randn(5, 5)
    weight[2, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        refined_svd(weight)


@pytest.mark.parametrize("gap", [1.2e-6, 1e-5, 1e-4])
def test_close_values_keep_orthonormal_vectors(gap: float) -> None:
    """Turns among twenty neighbours are not small, and their squares were left in the vectors."""
    generator = torch.Generator().manual_seed(3)
    left, right = (
        torch.linalg.qr(torch.randn(n, 150, generator=generator, dtype=torch.float64)).Q
        for n in (200, 150)
    )
    S = torch.linspace(1.0, 0.1, 150, dtype=torch.float64)
    S[40:60] = S[40] - gap * torch.arange(20)
    weight = (left * S @ right.T).float()
    found = refined_svd(weight, 100)
    for vectors in (found.U.T, found.Vh):
        gram = vectors @ vectors.T
        assert torch.allclose(gram, torch.eye(len(gram)), atol=5e-6)
    assert torch.allclose(found.U * found.S @ found.Vh, weight, atol=2e-5)
