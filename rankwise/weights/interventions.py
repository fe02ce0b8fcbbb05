"""Interventions on a trained adapter's update: adapters in, adapters and their exact errors out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from rankwise.records.audits import ChangedLayer, InterventionRecord
from rankwise.records.files import write_atomically
from rankwise.records.outputs import output_folder
from rankwise.records.provenance import collect_provenance
from rankwise.records.spectra import INTRUDER_EPSILON, INTRUDER_K
from rankwise.weights.adapted_svd import (
    AdaptedSvd,
    SumInBaseBasis,
    in_base_basis,
    leading_svd,
    numerical_rank,
)
from rankwise.weights.lowrank import LowRankUpdate, save_updates
from rankwise.weights.spectra import Svd, best_matched, intruder_indices

INTERVENTION_FILE = "intervention.json"


class Intervened(NamedTuple):
    """An adapter after an intervention, as it is written: float32 factors, scalings of 1.

    Attributes:
        updates: layer → update.
        relative_errors: layer → ‖wanted - written‖_F / ‖wanted‖_F, rounding included.
        relative_error: the same of all layers together.
    """

    updates: dict[str, LowRankUpdate]
    relative_errors: dict[str, float]
    relative_error: float


class Mitigated(NamedTuple):
    """An adapter whose intruder dimensions were scaled.

    Attributes:
        intervened: the new adapter.
        num_intruders: layer → intruders before.
        num_left: layer → intruders after: directions behind the leading ones have moved up.
    """

    intervened: Intervened
    num_intruders: dict[str, int]
    num_left: dict[str, int]


class AdapterChange(NamedTuple):
    """What was done to an adapter; see ``InterventionRecord``."""

    kind: Literal["truncation", "scaled_intruders"]
    rank: int | None = None
    factor: float | None = None
    k: int | None = None
    epsilon: float | None = None


def truncated_updates(updates: Mapping[str, LowRankUpdate], rank: int) -> Intervened:
    """Every update truncated to its leading singular directions: the closest of that rank.

    Training at that rank would have found another one.

    Args:
        updates: layer → update.
        rank: of every layer; layers of a lower rank, or smaller ones, keep theirs.

    Raises:
        ValueError: the rank is below 1.
    """
    cut = {name: update.truncated(rank).update for name, update in updates.items()}
    return _intervened(updates, cut)


def scaled_intruders(
    updates: Mapping[str, LowRankUpdate],
    base: Callable[[str], Svd],
    factor: float,
    *,
    k: int = INTRUDER_K,
    epsilon: float = INTRUDER_EPSILON,
    rank: int | None = None,
) -> Mitigated:
    """Scale the intruder dimensions of the adapted matrices: 1 keeps them, 0 removes them.

    W' = W + (factor - 1) σ_j u_j v_jᵀ for every intruder j of the adapted W. Each takes one more
    rank of the update, which is exact to rounding unless it is truncated.

    Args:
        updates: layer → update.
        base: layer → thin decomposition of its base matrix.
        factor: multiplies the intruders' singular values.
        k: leading vectors that are checked.
        epsilon: an intruder's largest |cos| is below it.
        rank: truncate every changed update to this; None keeps the ranks that the change needs.

    Raises:
        ValueError: the factor is not finite, or makes the update overflow float32; epsilon is not
            in [0, 1], or a shape is not the base's.

    Source: the mitigation of arXiv:2410.21228. peft's ``reduce_intruder_dimension`` scales alike,
    whatever its docstring says of ``mitigation_lambda``.
    """
    if not math.isfinite(factor):
        raise ValueError(f"{factor} is no factor; use a finite number.")
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"{epsilon} is no epsilon; use a number from 0 to 1.")
    wanted: dict[str, LowRankUpdate] = {}
    made: dict[str, LowRankUpdate] = {}
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    for name, update in updates.items():
        base_svd = base(name)
        intruders = _intruders(base_svd, update, k, epsilon)
        before[name] = after[name] = len(intruders.chosen)
        wanted[name] = made[name] = update
        if len(intruders.chosen) and factor != 1.0:
            wanted[name] = update.plus(_scaled_part(base_svd, intruders, factor))
            made[name] = _compressed(wanted[name], rank)
            after[name] = len(_intruders(base_svd, made[name], k, epsilon).chosen)
    return Mitigated(_intervened(wanted, made), before, after)


def _compressed(update: LowRankUpdate, rank: int | None) -> LowRankUpdate:
    """Without directions that are only rounding; truncated to a rank if one is given."""
    needed = max(numerical_rank(update.singular_values), 1)
    return update.truncated(needed if rank is None else min(rank, needed)).update


class _Intruders(NamedTuple):
    """Leading singular triplets of an adapted matrix, and which of them are intruders."""

    matrix: SumInBaseBasis
    leading: AdaptedSvd
    chosen: Int[Tensor, " intruders"]


def _intruders(base: Svd, update: LowRankUpdate, k: int, epsilon: float) -> _Intruders:
    delta = Svd(*(part.to(base.S.device) for part in update.factorization))
    matrix = in_base_basis(base, delta)
    leading = leading_svd(matrix, min(k, len(base.S)))
    chosen = intruder_indices(best_matched(leading.left_cosines), k, epsilon)
    return _Intruders(matrix, leading, chosen)


def _scaled_part(base: Svd, intruders: _Intruders, factor: float) -> LowRankUpdate:
    """(factor - 1) σ u vᵀ of the intruders, in features."""
    matrix, leading, chosen = intruders
    left = _in_features(base.U, matrix.left_outside, leading.left[:, chosen])
    right = _in_features(base.Vh.T, matrix.right_outside, leading.right[:, chosen])
    return LowRankUpdate(right.T.cpu(), (left * ((factor - 1.0) * leading.S[chosen])).cpu())


def _in_features(
    basis: Float[Tensor, "features values"],
    outside: Float[Tensor, "features _"] | None,
    coordinates: Float[Tensor, "coordinates vectors"],
) -> Float[Tensor, "features vectors"]:
    """Vectors from their coordinates along a basis, and along directions outside its span."""
    inside = basis.shape[1]
    vectors = basis.double() @ coordinates[:inside]
    return vectors if outside is None else vectors + outside @ coordinates[inside:]


def _intervened(
    wanted: Mapping[str, LowRankUpdate], made: Mapping[str, LowRankUpdate]
) -> Intervened:
    """Round updates as they are written, and compute how far they are from the wanted ones."""
    updates = {name: update.as_written for name, update in made.items()}
    norms = {name: update.frobenius_norm for name, update in wanted.items()}
    missed = {name: _distance(update, updates[name]) for name, update in wanted.items()}
    total = math.hypot(*norms.values())
    return Intervened(
        updates,
        {name: missed[name] / norms[name] if norms[name] else 0.0 for name in norms},
        math.hypot(*missed.values()) / total if total else 0.0,
    )


def _distance(one: LowRankUpdate, other: LowRankUpdate) -> float:
    """‖one - other‖_F."""
    return one.plus(LowRankUpdate(other.lora_A, other.lora_B, -other.scaling)).frobenius_norm


def write_intervention(
    source: Path,
    folder: Path,
    before: Mapping[str, LowRankUpdate],
    intervened: Intervened,
    change: AdapterChange,
    mitigated: Mitigated | None = None,
) -> InterventionRecord:
    """Write the new adapter, and next to it the record of what was done.

    Args:
        source: folder of the adapter that was changed.
        folder: to write; is created.
        before: layer → update of the source.
        intervened: the new adapter.
        change: what was done.
        mitigated: of scaled intruders, for their numbers.

    Raises:
        ConfigError: files that rankwise did not write are in the way.
        ModelError: the source cannot be read.
        StorageError: the folder cannot be written; nothing of it is left then.
    """
    record = InterventionRecord(
        source=str(source),
        **change._asdict(),
        relative_error=intervened.relative_error,
        energy_kept=1.0 - intervened.relative_error**2,
        layers=tuple(
            ChangedLayer(
                name=name,
                rank_before=before[name].rank,
                rank=update.rank,
                relative_error=intervened.relative_errors[name],
                num_intruders=None if mitigated is None else mitigated.num_intruders[name],
                num_intruders_left=None if mitigated is None else mitigated.num_left[name],
            )
            for name, update in intervened.updates.items()
        ),
        provenance=collect_provenance(),
    )
    with output_folder(folder) as temporary:
        save_updates(intervened.updates, temporary, source=source)
        write_atomically(temporary / INTERVENTION_FILE, record.model_dump_json(indent=2) + "\n")
    return record
