"""What is said of one matrix: planted updates whose every number is known by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rankwise.records.spectra import EPSILONS, MatrixSpectrum, VectorChange, intruders_of
from rankwise.weights.adapted_svd import leading_svd
from rankwise.weights.lowrank import LowRankUpdate
from rankwise.weights.matrix import (
    NullDraws,
    NullKind,
    delta_svd,
    matrix_spectrum,
    overlap,
    random_sum,
)
from rankwise.weights.spectra import Svd, best_matched, index_matched, intruder_indices

NAME = "model.layers.7.self_attn.q_proj"


def orthonormal(size: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(size, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q


def planted_base(values: list[float] | torch.Tensor, shape: tuple[int, int] | None = None) -> Svd:
    """A base with these singular values and vectors at random, e_i below."""
    S = torch.as_tensor(values, dtype=torch.float64)
    out, inside = shape or (len(S), len(S))
    return Svd(orthonormal(out, len(S), 1), S, orthonormal(inside, len(S), 2).T.contiguous())


def along(base: Svd, left: list[float], right: list[float]) -> LowRankUpdate:
    """left rightᵀ in the base's own directions."""
    B, A = torch.tensor([left]).double().T, torch.tensor([right]).double()
    return LowRankUpdate(A @ base.Vh, base.U @ B)


def spectrum(base: Svd, update: Svd, **settings: Any) -> MatrixSpectrum:
    given: dict[str, Any] = {"rank": 1, "top_k": 500, "nulls": NullDraws(0, 0)} | settings
    found = matrix_spectrum(NAME, base, update, **given)
    # nothing in it is NaN: that would not come back as a number
    assert MatrixSpectrum.model_validate_json(found.model_dump_json()) == found
    return found


def test_two_directions_that_change_places() -> None:
    """diag(4, 3, 2, 1) with the left vectors of its first two values swapped: an update of rank 1.

    It is (e2 - e1) (4 e1 - 3 e2)ᵀ, of norm √2 · 5.
    """
    base = planted_base([4.0, 3.0, 2.0, 1.0])
    update = along(base, [-1.0, 1.0, 0.0, 0.0], [4.0, -3.0, 0.0, 0.0])
    found = spectrum(base, update.factorization, top_k=3)
    assert (found.module, found.layer, found.kind) == (NAME, 7, "self_attn.q_proj")
    assert (found.out_features, found.in_features) == (4, 4)
    assert found.base_frobenius_norm == pytest.approx(math.sqrt(30))
    assert found.base_spectral_norm == 4.0
    its = found.update
    assert (its.rank, its.energy_rank_90, its.energy_rank_99) == (1, 1, 1)
    assert its.frobenius_norm == pytest.approx(5 * math.sqrt(2))
    assert its.spectral_norm == pytest.approx(5 * math.sqrt(2))
    assert its.relative_norm == pytest.approx(5 * math.sqrt(2 / 30))
    assert its.stable_rank == pytest.approx(1.0)
    assert its.effective_rank == pytest.approx(1.0)
    assert found.leading == (3,)
    change = found.change
    assert change.left.index_matched == pytest.approx((1 / 3,), abs=1e-6)
    assert change.right.index_matched == pytest.approx((1.0,))
    for side in (change.left, change.right):
        assert side.best_matched == pytest.approx((1.0,))
        assert side.overlap == pytest.approx((1.0,))
    assert change.value_shift == pytest.approx((0.0,), abs=1e-9)
    assert change.intruders == ((0.0,) * len(EPSILONS),)


def test_a_last_direction_that_becomes_the_second() -> None:
    base = planted_base([4.0, 3.0, 2.0, 1.0])
    update = along(base, [0.0, 0.0, 0.0, 2.5], [0.0, 0.0, 0.0, 1.0])
    found = spectrum(base, update.factorization, top_k=2)  # 4, 3.5 (e4), 3 (e2), 2 (e3)
    for side in (found.change.left, found.change.right):
        assert side.index_matched == pytest.approx((0.5,), abs=1e-6)
        assert side.best_matched == pytest.approx((1.0,))
        assert side.overlap == pytest.approx((0.5,), abs=1e-6)
    assert found.change.value_shift == pytest.approx((0.5 / 2 / 4.0,))
    whole = spectrum(base, update.factorization)
    assert whole.leading == (4,)
    assert whole.change.left.overlap == pytest.approx((1.0,))
    assert whole.change.left.index_matched == pytest.approx((0.25,), abs=1e-6)
    assert whole.change.value_shift == pytest.approx(((0.5 + 1.0 + 1.0) / 4 / 4.0,))


def test_norms_and_ranks_of_an_update_of_several_values() -> None:
    base = planted_base(torch.arange(12.0, 0.0, -1.0))
    S = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    update = Svd(orthonormal(12, 4, 3), S, orthonormal(12, 4, 4).T)
    its = spectrum(base, update, rank=6).update
    assert its.rank == 6
    assert its.frobenius_norm == pytest.approx(math.sqrt(22))
    assert its.relative_norm == pytest.approx(math.sqrt(22 / 650))
    assert its.spectral_norm == 4.0
    assert its.stable_rank == pytest.approx(22 / 16)
    entropy = -sum(p * math.log(p) for p in (0.5, 0.25, 0.125, 0.125))
    assert its.effective_rank == pytest.approx(math.exp(entropy))
    assert (its.energy_rank_90, its.energy_rank_99) == (2, 4)  # 20 of 22, and all


@pytest.mark.parametrize(
    ("size", "top_k", "leading"),
    [
        *((12, 500, (10, 12)), (10, 500, (10,)), (4, 500, (4,)), (60, 500, (10, 50, 60))),
        *((120, 500, (10, 50, 100, 120)), (120, 70, (10, 50, 70)), (120, 5, (5,))),
    ],
)
def test_means_are_over_as_many_vectors_as_there_are(
    size: int, top_k: int, leading: tuple[int, ...]
) -> None:
    base = planted_base(torch.arange(float(size), 0.0, -1.0))
    update = Svd(orthonormal(size, 1, 3), torch.ones(1).double(), orthonormal(size, 1, 4).T)
    found = spectrum(base, update, top_k=top_k, nulls=NullDraws(1, 0))
    assert found.leading == leading
    for change in (found.change, found.gaussian_null, found.haar_null):
        assert change is not None
        assert len(change.left.index_matched) == len(change.intruders) == len(leading)
        assert {len(row) for row in change.intruders} == {len(EPSILONS)}


def test_intruders_are_looked_for_among_ten_or_as_many_as_there_are() -> None:
    base = planted_base(torch.arange(12.0, 0.0, -1.0))
    counts = {(10, 12): 1.0, (4,): 3.0}
    for leading, expected in counts.items():
        found = spectrum(base, along(base, [0.0] * 12, [0.0] * 12).factorization)
        rows = [[0.0] * len(EPSILONS) for _ in leading]
        rows[0][EPSILONS.index(0.5)] = expected
        change = found.change.model_copy(update={"intruders": tuple(tuple(row) for row in rows)})
        assert intruders_of(change, leading, EPSILONS) == expected


def test_a_planted_intruder_is_in_the_grid_where_its_cosine_is_below() -> None:
    """A large direction with |cos| 0.65 with e30 and less with others; e1 to e10 stay as they are.

    So the leading ten after it are the intruder and e1 to e9.
    """
    base = planted_base(torch.arange(40.0, 0.0, -1.0))
    left = torch.zeros(40)
    left[10:29] = math.sqrt((1 - 0.65**2) / 19)
    left[29] = 0.65
    update = along(base, (1e6 * left).tolist(), left.tolist())
    found = spectrum(base, update.factorization, top_k=10)
    assert dict(zip(EPSILONS, found.change.intruders[0], strict=True)) == {
        **dict.fromkeys((0.3, 0.4, 0.5, 0.6), 0.0),
        **dict.fromkeys((0.7, 0.8, 0.9), 1.0),
    }
    assert found.change.left.best_matched == pytest.approx(((9 + 0.65) / 10,), abs=1e-5)
    assert found.change.left.index_matched == pytest.approx((0.0,), abs=1e-5)
    assert found.change.left.overlap == pytest.approx((0.9,), abs=1e-5)
    # (1e6 + what was there) instead of 40, then 40 instead of 39 ...
    assert found.change.value_shift == pytest.approx((1e6 / 10 / 40,), rel=1e-3)


def test_a_zero_update_has_changed_nothing_and_has_no_nulls() -> None:
    base = planted_base(torch.arange(60.0, 0.0, -1.0), (80, 60))
    zero = LowRankUpdate(torch.randn(4, 60), torch.zeros(80, 4)).factorization
    full = Svd(orthonormal(80, 60, 3), base.S, orthonormal(60, 60, 4))
    found = spectrum(base, zero, rank=4, nulls=NullDraws(2, 0), full_update=full)
    its = found.update
    assert its.frobenius_norm == its.relative_norm == its.spectral_norm == 0.0
    assert its.stable_rank == its.effective_rank == its.energy_rank_90 == its.energy_rank_99 == 0
    for side in (found.change.left, found.change.right):
        assert side.index_matched == side.best_matched == side.overlap == (1.0,) * 3
    assert found.change.value_shift == (0.0,) * 3
    assert not any(count for row in found.change.intruders for count in row)
    assert found.gaussian_null is None
    assert found.haar_null is None
    assert found.full_overlap is None


def test_a_base_of_zeros_has_no_relative_norm_and_no_division_by_it() -> None:
    base = Svd(*torch.linalg.svd(torch.zeros(30, 20).double(), full_matrices=False))
    S = torch.tensor([3.0, 1.0], dtype=torch.float64)
    update = Svd(orthonormal(30, 2, 3), S, orthonormal(20, 2, 4).T)
    found = spectrum(base, update, rank=2, nulls=NullDraws(2, 0))
    assert found.update.relative_norm is None
    assert found.base_frobenius_norm == found.base_spectral_norm == 0.0
    assert found.change.value_shift == pytest.approx((4.0 / 10, 4.0 / 20))  # no base to relate to
    for change in (found.change, found.haar_null):
        assert change is not None
        for value in (*change.left.index_matched, *change.right.best_matched, *change.left.overlap):
            assert 0.0 <= value <= 1.0


def test_nulls_are_means_over_draws_that_have_names() -> None:
    base = planted_base(torch.arange(1.0, 61.0) ** -0.5, (60, 80))
    S = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)  # rank 2 in factors of rank 3
    update = Svd(orthonormal(60, 3, 3), S, orthonormal(80, 3, 4).T)
    settings: dict[str, Any] = {"rank": 3, "top_k": 50, "nulls": NullDraws(3, 5)}
    found = spectrum(base, update, **settings)
    nulls: list[tuple[NullKind, VectorChange | None]] = [
        ("gaussian", found.gaussian_null),
        ("haar", found.haar_null),
    ]
    for kind, null in nulls:
        assert null is not None
        drawn: list[tuple[float, float, float, float]] = []
        for draw in range(3):
            sum_ = leading_svd(random_sum(kind, base.S, (60, 80), S[:2], 5, NAME, draw), 50)
            best = best_matched(sum_.left_cosines)
            drawn.append(
                (
                    float(index_matched(sum_.left_cosines)[:10].mean()),
                    float(best_matched(sum_.right_cosines).mean()),
                    float((sum_.S - base.S[:50]).mean() / base.S[0]),
                    float(len(intruder_indices(best, 10, 0.5))),
                )
            )
        assert len({first for first, *_ in drawn}) == 3
        means = [sum(column) / 3 for column in zip(*drawn, strict=True)]
        assert null.left.index_matched[0] == pytest.approx(means[0])
        assert null.right.best_matched[1] == pytest.approx(means[1])
        assert null.value_shift[1] == pytest.approx(means[2])
        assert null.intruders[0][EPSILONS.index(0.5)] == pytest.approx(means[3])
    assert spectrum(base, update, **settings) == found
    other = spectrum(base, update, **settings | {"nulls": NullDraws(3, 6)})
    assert other.haar_null != found.haar_null
    assert other.change == found.change


def test_every_matrix_has_random_updates_of_its_own() -> None:
    base = planted_base(torch.arange(1.0, 61.0) ** -0.5)
    update = Svd(orthonormal(60, 2, 3), torch.ones(2).double(), orthonormal(60, 2, 4).T)
    found = [
        matrix_spectrum(f"layers.{n}.q_proj", base, update, rank=2, top_k=20, nulls=NullDraws(1, 0))
        for n in range(2)
    ]
    assert found[0].change == found[1].change
    assert found[0].haar_null != found[1].haar_null
    assert found[0].gaussian_null != found[1].gaussian_null


@pytest.mark.parametrize("kind", ["gaussian", "haar"])
def test_random_updates_lean_to_no_side(kind: NullKind) -> None:
    """Along the base's own directions their mean is zero; QR's signs made it positive."""
    values, S = torch.ones(40), torch.ones(4, dtype=torch.float64)
    drawn = [random_sum(kind, values, (40, 40), S, draw) for draw in range(200)]
    sums = torch.stack([(each.P * each.Q).sum(dim=1)[:4].sum() for each in drawn])
    error = float(sums.std()) / 200**0.5
    assert abs(float(sums.mean())) < 3 * error


def test_no_draws_no_nulls() -> None:
    base = planted_base(torch.arange(12.0, 0.0, -1.0))
    update = Svd(orthonormal(12, 1, 3), torch.ones(1).double(), orthonormal(12, 1, 4).T)
    found = spectrum(base, update, nulls=NullDraws(0, 0))
    assert found.gaussian_null is None
    assert found.haar_null is None


def test_an_update_like_its_null_is_as_similar_as_its_null() -> None:
    """An update at random, with the same singular values, is one more draw of the null."""
    base = planted_base(torch.arange(1.0, 81.0) ** -0.5)
    S = torch.full((4,), 0.6, dtype=torch.float64)
    found = [
        spectrum(
            base,
            Svd(orthonormal(80, 4, 10 + draw), S, orthonormal(80, 4, 50 + draw).T),
            rank=4,
            nulls=NullDraws(2, draw),
        )
        for draw in range(12)
    ]
    ones = torch.tensor([each.change.left.index_matched[1] for each in found])
    nulls = torch.tensor([each.haar_null.left.index_matched[1] for each in found if each.haar_null])
    error = (ones.var() / 12 + nulls.var() / 12).sqrt()
    assert float(ones.mean()) < 0.9
    assert abs(float(ones.mean() - nulls.mean())) < 4 * float(error)


def test_overlap_with_full_fine_tuning_of_planted_directions() -> None:
    U, V = orthonormal(40, 40, 3), orthonormal(60, 40, 4)
    full = Svd(U, torch.arange(40.0, 0.0, -1.0).double(), V.T)
    S = torch.ones(4, dtype=torch.float64)
    base = planted_base(torch.arange(40.0, 0.0, -1.0), (40, 60))
    same = spectrum(base, Svd(U[:, :4], S, V[:, :4].T), rank=4, full_update=full).full_overlap
    assert same is not None
    assert (same.rank, same.left, same.right) == pytest.approx((4, 1.0, 1.0))
    assert (same.left_expected, same.right_expected) == pytest.approx((4 / 40, 4 / 60))
    # two of four are shared on the left, none on the right
    half = overlap(Svd(U[:, 2:6], S, V[:, 20:24].T), full)
    assert (half.left, half.right) == pytest.approx((0.5, 0.0), abs=1e-9)


def test_random_directions_overlap_as_expected() -> None:
    full = Svd(orthonormal(40, 40, 3), torch.ones(40).double(), orthonormal(60, 40, 4).T)
    found = [
        overlap(
            Svd(orthonormal(40, 4, 100 + draw), torch.ones(4), orthonormal(60, 4, 900 + draw).T),
            full,
        )
        for draw in range(150)
    ]
    assert sum(each.left for each in found) / 150 == pytest.approx(4 / 40, rel=0.08)
    assert sum(each.right for each in found) / 150 == pytest.approx(4 / 60, rel=0.08)
    assert found[0].left_expected == pytest.approx(4 / 40)


def test_ranks_that_are_not_full_count_what_there_is() -> None:
    full = Svd(orthonormal(40, 40, 3), torch.ones(40).double(), orthonormal(60, 40, 4).T)
    none = Svd(full.U, torch.zeros(40).double(), full.Vh)
    update = Svd(full.U[:, :3], torch.tensor([1.0, 1.0, 1e-14]).double(), full.Vh[:3])
    assert overlap(update, full).rank == 2
    assert overlap(update, none).model_dump() == {
        **dict.fromkeys(("rank", "left", "right", "left_expected", "right_expected"), 0.0)
    }


def test_an_update_of_a_rank_above_the_matrix_s() -> None:
    base = planted_base(torch.arange(12.0, 0.0, -1.0), (12, 20))
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(30, 20, generator=generator, dtype=torch.float64)
    B = torch.randn(12, 30, generator=generator, dtype=torch.float64)
    update = LowRankUpdate(A, B, 0.1)
    found = spectrum(base, update.factorization, rank=30, nulls=NullDraws(1, 0))
    dense = torch.linalg.svdvals(0.1 * B @ A)
    assert found.update.rank == 30
    assert found.update.frobenius_norm == pytest.approx(float(dense.norm()))
    assert found.update.energy_rank_99 <= 12
    after = torch.linalg.svdvals(base.U * base.S @ base.Vh + 0.1 * B @ A)
    assert found.change.value_shift[1] == pytest.approx(float((after - base.S).mean() / 12))


def test_full_fine_tuning_s_change_is_subtracted_exactly() -> None:
    base = torch.randn(30, 20, generator=torch.Generator().manual_seed(1)).bfloat16()
    delta = 1e-4 * torch.outer(torch.ones(30), torch.ones(20)).double()
    found = delta_svd(base, base.double() + delta)
    assert float(found.S[0]) == pytest.approx(1e-4 * math.sqrt(600), rel=1e-9)
    assert float(found.S[1]) < 1e-15
    assert found.U.shape == (30, 20)
    assert float(delta_svd(base, base).S[0]) == 0.0


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_is_not_finite_or_does_not_fit_is_refused() -> None:
    base, adapted = torch.ones(3, 4), torch.ones(3, 4)
    for bad in (math.nan, math.inf):
        adapted[1, 2] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            delta_svd(base, adapted)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(4, 3\)"):
        delta_svd(base, base.T)


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.12.mlp.experts.3.up_proj", 12, "mlp.experts.3.up_proj"),
        ("transformer.h.0.attn.c_attn", 0, "attn.c_attn"),
        ("lm_head", None, "lm_head"),
        ("model.connector.proj", None, "proj"),
    ],
)
def test_names_say_layer_and_kind(name: str, layer: int | None, kind: str) -> None:
    base = planted_base([2.0, 1.0])
    update = along(base, [1.0, 0.0], [1.0, 0.0]).factorization
    found = matrix_spectrum(name, base, update, rank=1, top_k=2, nulls=NullDraws(0, 0))
    assert (found.module, found.layer, found.kind) == (name, layer, kind)
