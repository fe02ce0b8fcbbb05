"""What an audit found, in sentences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rankwise import quantities
from rankwise.audit_records import AuditedKind, AuditScore, KeptEnergy
from rankwise.spectra_records import (
    EPSILONS,
    INTRUDER_EPSILON,
    INTRUDER_K,
    MatrixSpectrum,
    VectorChange,
    intruders_of,
)

ENOUGH = 0.99
"""The share of an update's energy that a truncation should keep."""


def audit_statements(
    kind: AuditedKind,
    rank: int | None,
    matrices: Sequence[MatrixSpectrum],
    kept: Sequence[KeptEnergy],
    scores: Sequence[AuditScore],
) -> tuple[str, ...]:
    """Sentences on energy, size, intruders and scores; of a zero update that it is one."""
    what = "this checkpoint's update" if rank is None else f"this rank-{rank} adapter"
    if all(each.update.frobenius_norm == 0.0 for each in matrices):
        return (f"{quantities.capital(what)} changes nothing: every update is zero.",)
    found = [_energy(what, rank, matrices, kept), _size(matrices)]
    found.append(_intruders(matrices))
    found += [_score(score) for score in scores]
    if kind == "checkpoint":
        found.append("Looked into were all linear layers below the head.")
    return tuple(found)


def smallest_enough(kept: Sequence[KeptEnergy]) -> KeptEnergy:
    """The smallest of these ranks that keeps 99 % of the energy."""
    return next(each for each in kept if each.share >= ENOUGH or each is kept[-1])


def _energy(
    what: str, rank: int | None, matrices: Sequence[MatrixSpectrum], kept: Sequence[KeptEnergy]
) -> str:
    used = statistics.median(each.update.effective_rank for each in matrices)
    low = min(each.update.effective_rank for each in matrices)
    high = max(each.update.effective_rank for each in matrices)
    cut = smallest_enough(kept)
    text = (
        f"{quantities.capital(what)} uses about {used:.0f} dimensions (effective rank, median of "
        f"{quantities.count(len(matrices))} {'matrix' if len(matrices) == 1 else 'matrices'}, "
        f"{low:.1f} to {high:.1f})"
    )
    if rank is not None and cut.rank >= rank:
        return f"{text}; no smaller rank looked at keeps {ENOUGH:.0%} of its energy."
    return f"{text}; cut to {cut.rank} it keeps {100 * cut.share:.1f} % of its energy."


def _size(matrices: Sequence[MatrixSpectrum]) -> str:
    norm = sum(each.update.frobenius_norm**2 for each in matrices) ** 0.5
    base = sum(each.base_frobenius_norm**2 for each in matrices) ** 0.5
    largest = max(matrices, key=lambda each: each.update.relative_norm or 0.0)
    return (
        f"The update's norm is {norm:.3g}, {100 * norm / base:.2g} % of that of the matrices it is "
        f"added to; relatively the largest is that of {largest.module} "
        f"({100 * (largest.update.relative_norm or 0.0):.2g} %)."
        if base
        else f"The update's norm is {norm:.3g}, on matrices that are zero."
    )


def _intruders(matrices: Sequence[MatrixSpectrum]) -> str:
    def total(changes: Sequence[VectorChange | None]) -> float:
        """Zero updates have no nulls, and no intruders."""
        return sum(
            intruders_of(change, each.leading, EPSILONS)
            for change, each in zip(changes, matrices, strict=True)
            if change is not None
        )

    trained = total([each.change for each in matrices])
    nulls = {
        "Gaussian": [each.gaussian_null for each in matrices],
        "Haar": [each.haar_null for each in matrices],
    }
    words = [f"{name} {total(changes):.3g}" for name, changes in nulls.items() if any(changes)]
    beside = f" (random updates: {', '.join(words)})" if words else ""
    return (
        f"Intruder dimensions among the {INTRUDER_K} leading directions of each matrix, "
        f"ε = {INTRUDER_EPSILON}: {trained:g} in all{beside}."
    )


def _score(score: AuditScore) -> str:
    interval = quantities.change_interval(score.lower, score.upper, score.unit)
    verdict = "cannot be told from the base"
    if score.lower > 0.0:
        verdict = "is better than the base"
    elif score.upper < 0.0:
        verdict = "is worse than the base"
    return (
        f"On {score.task} it {verdict}: {quantities.change(score.difference, score.unit)} "
        f"{score.unit} ({interval}), {quantities.score(score.adapted_score, score.unit)} against "
        f"{quantities.score(score.base_score, score.unit)}, "
        f"{quantities.size(score.num_examples)}."
    )
