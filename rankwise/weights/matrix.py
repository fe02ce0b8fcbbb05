"""What an update did to one weight matrix, compared with random updates of the same size."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rankwise.records.spectra import (
    EPSILONS,
    LEADING,
    FullOverlap,
    MatrixSpectrum,
    SideChange,
    UpdateSpectrum,
    VectorChange,
)
from rankwise.weights import spectra
from rankwise.weights.adapted_svd import SumInBaseBasis, in_base_basis, leading_svd, numerical_rank
from rankwise.weights.decomposition import thin_svd
from rankwise.weights.spectra import Svd

# the number of the layer in a module's name
_LAYER = re.compile(r"\.(\d+)\.")


NullKind = Literal["gaussian", "haar"]


def layer_number(name: str) -> int | None:
    """The number of the layer in a module's name, from 0; None where it has none."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


class NullDraws(NamedTuple):
    """How often each null is drawn, and from which seed."""

    num_draws: int
    seed: int


def matrix_spectrum(
    name: str,
    base: Svd,
    update: Svd,
    *,
    rank: int | None,
    top_k: int,
    nulls: NullDraws,
    full_update: Svd | None = None,
) -> MatrixSpectrum:
    """Everything about one adapted matrix.

    Args:
        name: of the layer, with its place in the model.
        base: the thin decomposition of the base's matrix.
        update: that of delta; is moved to the base's device.
        rank: of the LoRA factors; None for full fine-tuning.
        top_k: leading singular vectors that are compared, at most min(out, in).
        nulls: random updates to compare with; a zero update is compared with none.
        full_update: full fine-tuning's delta of this matrix, for a LoRA update.
    """
    device = base.S.device
    update = Svd(*(part.to(device) for part in update))
    k = min(top_k, len(base.S))
    matrix = in_base_basis(base, update)
    leading = tuple(dict.fromkeys(min(count, k) for count in (*LEADING, k) if count <= top_k))
    layer = _LAYER.search(name)
    shape = base.U.shape[0], base.Vh.shape[1]
    values = update.S[: matrix.P.shape[1]]  # those that are not zero
    base_norm, S = float(base.S.double().norm()), update.S.double()
    random: dict[NullKind, VectorChange | None] = {"gaussian": None, "haar": None}
    if len(values) and nulls.num_draws:
        for kind in random:  # the mean over updates that are drawn from seed and name
            sums = (
                random_sum(kind, matrix.S, shape, values, nulls.seed, name, draw)
                for draw in range(nulls.num_draws)
            )
            random[kind] = _mean([_change(each, max(leading), leading) for each in sums])
    return MatrixSpectrum(
        module=name,
        layer=layer_number(name),
        kind=name[layer.end() :] if layer else name.rpartition(".")[2],
        out_features=shape[0],
        in_features=shape[1],
        base_frobenius_norm=base_norm,
        base_spectral_norm=float(base.S[0]),
        update=UpdateSpectrum(
            rank=rank,
            frobenius_norm=float(S.norm()),
            relative_norm=float(S.norm()) / base_norm if base_norm else None,
            spectral_norm=float(S[0]),
            stable_rank=spectra.stable_rank(S),
            effective_rank=spectra.effective_rank(S),
            energy_rank_90=spectra.energy_rank(S, 0.9),
            energy_rank_99=spectra.energy_rank(S, 0.99),
        ),
        leading=leading,
        change=_change(matrix, k, leading),
        gaussian_null=random["gaussian"],
        haar_null=random["haar"],
        full_overlap=overlap(update, full_update) if full_update and len(values) else None,
    )


def delta_svd(
    base: Float[Tensor, "out_features in_features"],
    adapted: Float[Tensor, "out_features in_features"],
) -> Svd:
    """The thin decomposition of what full fine-tuning changed, subtracted in float64.

    Raises:
        ValueError: the shapes differ, or a weight is NaN or infinite.
    """
    if base.shape != adapted.shape:
        raise ValueError(f"matrices of shape {tuple(base.shape)} and {tuple(adapted.shape)}.")
    delta = adapted.double() - base.double()
    if not bool(torch.isfinite(delta).all()):
        raise ValueError("a weight is NaN or infinite.")
    return thin_svd(delta)


def overlap(update: Svd, full: Svd) -> FullOverlap:
    """Overlap of a LoRA update's directions with as many leading ones of full fine-tuning's."""
    rank = min(numerical_rank(update.S), numerical_rank(full.S))
    left = spectra.cosines(full.U[:, :rank].double(), update.U[:, :rank].double())
    right = spectra.cosines(full.Vh[:rank].T.double(), update.Vh[:rank].T.double())
    return FullOverlap(
        rank=rank,
        left=spectra.subspace_overlap(left, rank) if rank else 0.0,
        right=spectra.subspace_overlap(right, rank) if rank else 0.0,
        left_expected=rank / len(update.U),
        right_expected=rank / update.Vh.shape[1],
    )


def _change(matrix: SumInBaseBasis, k: int, leading: Sequence[int]) -> VectorChange:
    adapted = leading_svd(matrix, k)
    left, right = adapted.left_cosines, adapted.right_cosines
    best = spectra.best_matched(left)
    # values that are only rounding have no vectors and are left out there; they count as 0
    after = torch.zeros_like(matrix.S[:k])
    after[: len(adapted.S)] = adapted.S
    largest = float(matrix.S[0])
    shift = (after - matrix.S[:k]) / largest if largest else after
    return VectorChange(
        left=_side(left, leading),
        right=_side(right, leading),
        value_shift=tuple(float(shift[:n].mean()) for n in leading),
        intruders=tuple(
            tuple(float(len(spectra.intruder_indices(best, n, epsilon))) for epsilon in EPSILONS)
            for n in leading
        ),
    )


def _side(cosines: Float[Tensor, "base adapted"], leading: Sequence[int]) -> SideChange:
    """Means over the leading vectors; where the matrix has fewer, over those that exist."""
    index, best = spectra.index_matched(cosines), spectra.best_matched(cosines)
    present = cosines.shape[1]
    return SideChange(
        index_matched=tuple(float(index[:n].mean()) for n in leading),
        best_matched=tuple(float(best[:n].mean()) for n in leading),
        overlap=tuple(spectra.subspace_overlap(cosines, min(n, present)) for n in leading),
    )


def _mean(changes: Sequence[VectorChange]) -> VectorChange:
    def mean(values: Sequence[Any]) -> Any:
        """Element by element, and entry by entry of records."""
        if isinstance(values[0], dict):
            return {name: mean([each[name] for each in values]) for name in values[0]}
        return np.mean(values, axis=0).tolist()

    return VectorChange.model_validate(mean([change.model_dump() for change in changes]))


def random_sum(
    kind: NullKind,
    base_values: Float[Tensor, " values"],
    shape: tuple[int, int],
    update_values: Float[Tensor, " rank"],
    *draw: int | str,
) -> SumInBaseBasis:
    """A base plus a random update in place of a given one: the null for similarities.

    Random directions look the same from every basis, so only the base's singular values are needed.
    They are drawn on the device of these values; another device draws others.

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
    device = base_values.device
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
    num_base, S = len(base_values), update_values.double().to(device)
    left, right = (_gaussian(size, num_base, len(S), generator) for size in shape)
    if kind == "haar":
        # Haar-distributed columns: QR alone prefers signs (Mezzadri, arXiv:math-ph/0609050)
        pairs = (torch.linalg.qr(factor) for factor in (left, right))
        left, right = (Q * R.diagonal().sign() * S.sqrt() for Q, R in pairs)
    else:
        # ‖left @ right.T‖_F, from (rank, rank) matrices
        norm = float((left.T @ left * (right.T @ right)).sum().sqrt())
        left, right = (factor * (float(S.norm()) / norm) ** 0.5 for factor in (left, right))
    return SumInBaseBasis(base_values.double(), left, right)


def _gaussian(
    size: int, num_base: int, rank: int, generator: torch.Generator
) -> Float[Tensor, "coordinates rank"]:
    """A Gaussian factor's coordinates along a base's vectors, and outside their span.

    Any orthonormal basis outside serves: one in which the coordinates are triangular has only
    ``rank`` of them.
    """
    factor = torch.randn(
        size, rank, generator=generator, device=generator.device, dtype=torch.float64
    )
    if size == num_base:
        return factor
    return torch.cat([factor[:num_base], torch.linalg.qr(factor[num_base:]).R])
