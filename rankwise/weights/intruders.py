"""Intruder dimensions of an adapted matrix, scaled: updates in, updates out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxtyping import Float
from torch import Tensor

from rankwise.records.spectra import INTRUDER_EPSILON, INTRUDER_K
from rankwise.weights.adapted_svd import in_base_basis, leading_svd, numerical_rank
from rankwise.weights.lowrank import LowRankUpdate
from rankwise.weights.spectra import Svd, best_matched, intruder_indices


def scaled_intruders(
    updates: Mapping[str, LowRankUpdate], base: Callable[[str], Svd], factor: float
) -> dict[str, LowRankUpdate] | None:
    """Scale the intruder dimensions of the adapted matrices: 1 keeps them, 0 removes them.

    W' = W + (factor - 1) σ_j u_j v_jᵀ for every intruder j of the adapted W. Each takes one more
    rank of the update, which is exact to rounding. Directions behind the leading ones move up, and
    may be intruders then.

    Args:
        updates: layer → update.
        base: layer → thin decomposition of its base matrix.
        factor: multiplies the intruders' singular values.

    Returns:
        layer → update; None where no layer has an intruder.

    Raises:
        ValueError: the update overflows float32, or a shape is not the base's.

    Source: the mitigation of arXiv:2410.21228. peft's ``reduce_intruder_dimension`` scales alike,
    whatever its docstring says of ``mitigation_lambda``.
    """
    made: dict[str, LowRankUpdate] = {}
    for name, update in updates.items():
        base_svd = base(name)
        delta = Svd(*(part.to(base_svd.S.device) for part in update.factorization))
        matrix = in_base_basis(base_svd, delta)
        leading = leading_svd(matrix, min(INTRUDER_K, len(base_svd.S)))
        chosen = intruder_indices(best_matched(leading.left_cosines), INTRUDER_K, INTRUDER_EPSILON)
        if len(chosen):
            # (factor - 1) σ u vᵀ of the intruders, in features
            left = _in_features(base_svd.U, matrix.left_outside, leading.left[:, chosen])
            right = _in_features(base_svd.Vh.T, matrix.right_outside, leading.right[:, chosen])
            scaled = left * ((factor - 1.0) * leading.S[chosen])
            wanted = update.plus(LowRankUpdate(right.T.cpu(), scaled.cpu()))
            needed = max(numerical_rank(wanted.singular_values), 1)  # others are only rounding
            made[name] = wanted.truncated(needed).update
    return {**updates, **made} if made else None


def _in_features(
    basis: Float[Tensor, "features values"],
    outside: Float[Tensor, "features _"] | None,
    coordinates: Float[Tensor, "coordinates vectors"],
) -> Float[Tensor, "features vectors"]:
    """Vectors from their coordinates along a basis, and along directions outside its span."""
    inside = basis.shape[1]
    vectors = basis.double() @ coordinates[:inside]
    return vectors if outside is None else vectors + outside @ coordinates[inside:]
