"""What an audit found, in sentences."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from rankwise.records import quantities
from rankwise.records.audits import AuditedKind, AuditScore, KeptEnergy, OtherChange
from rankwise.records.base import Record
from rankwise.records.grouping import grouped
from rankwise.records.spectra import (
    EPSILONS,
    INTRUDER_EPSILON,
    MatrixSpectrum,
    VectorChange,
    intruder_k,
    intruders_of,
    similarity,
)

Key = TypeVar("Key", str, int)

ENOUGH = 0.99
"""The share of an update's energy that a truncation should keep."""

SUSPICIOUS = 0.5
"""Relative to the base: no fine-tuning is that large, a model of another origin is."""


def audit_statements(
    kind: AuditedKind,
    ranks: Sequence[int],
    matrices: Sequence[MatrixSpectrum],
    cut: KeptEnergy | None,
    others: Sequence[OtherChange],
    scores: Sequence[AuditScore],
) -> tuple[str, ...]:
    """Sentences on energy, size, intruders, other parameters and scores, in this order."""
    what = subject(kind, ranks)
    changed = [matrix for matrix in matrices if matrix.update.frobenius_norm > 0.0]
    found: list[str] = []
    if cut is None or not changed:
        found.append(f"{quantities.capital(what)} changes no weight matrix: its update is zero.")
    else:
        found += [_energy(what, ranks, changed, cut), *_where(ranks, changed), _size(matrices)]
        alike = similarity_of_all(changed)
        words = _of_nulls(alike, ".3f")
        random = f"; random updates of the same size leave {words}" if words else ""
        found.append(
            f"The leading singular vectors keep a mean |cos| of {alike.observed:.3f} with the "
            f"base's of the same index{random}."
        )
        found.append(_intruders(changed))
        if len(changed) < len(matrices):
            number = len(matrices) - len(changed)
            are = "is" if number == 1 else "are"
            left = quantities.capital(_matrices(number))
            found.append(f"{left} of {len(matrices)} {are} unchanged.")
    if kind == "checkpoint":
        found.append(_others(others))
    return (*found, *(_score(score) for score in scores))


def subject(kind: AuditedKind, ranks: Sequence[int]) -> str:
    """What was audited: this rank-64 adapter, this checkpoint."""
    if kind == "checkpoint":
        return "this checkpoint"
    if len(ranks) == 1:
        return f"this rank-{ranks[0]} adapter"
    return f"this adapter of ranks {ranks[0]} to {ranks[-1]}"


def norms(matrices: Sequence[MatrixSpectrum]) -> tuple[float, float]:
    """‖delta‖_F and ‖W₀‖_F of all matrices together."""
    norm = sum(matrix.update.frobenius_norm**2 for matrix in matrices) ** 0.5
    base = sum(matrix.base_frobenius_norm**2 for matrix in matrices) ** 0.5
    return norm, base


class NullPair(Record):
    """A measure of matrices, and its means under both nulls; None where none was drawn."""

    observed: float
    gaussian: float | None
    haar: float | None


def intruders_of_all(matrices: Sequence[MatrixSpectrum], epsilons: tuple[float, ...]) -> NullPair:
    """How many intruders all matrices have together, at the one entry of the grid."""
    return _null_pair(matrices, lambda c, m: intruders_of(c, m.leading, epsilons), sum)


def similarity_of_all(matrices: Sequence[MatrixSpectrum]) -> NullPair:
    """The mean |cos| of singular vectors with those of the base of the same index."""
    return _null_pair(matrices, lambda change, _: similarity(change), statistics.fmean)


def _null_pair(
    matrices: Sequence[MatrixSpectrum],
    measure: Callable[[VectorChange, MatrixSpectrum], float],
    total: Callable[[list[float]], float],
) -> NullPair:
    """A zero update has no null; matrices with such a one among them have none either."""
    gaussian = [measure(m.gaussian_null, m) for m in matrices if m.gaussian_null is not None]
    haar = [measure(m.haar_null, m) for m in matrices if m.haar_null is not None]
    return NullPair(
        observed=total([measure(matrix.change, matrix) for matrix in matrices]),
        gaussian=total(gaussian) if len(gaussian) == len(matrices) else None,
        haar=total(haar) if len(haar) == len(matrices) else None,
    )


def _energy(
    what: str, ranks: Sequence[int], changed: Sequence[MatrixSpectrum], cut: KeptEnergy
) -> str:
    used = [matrix.update.energy_rank_90 for matrix in changed]
    span = f"{min(used)} to {max(used)}" if min(used) < max(used) else "in each"
    where = "the matrix" if len(used) == 1 else f"each matrix (median of {len(used)}; {span})"
    number = round(statistics.median(used))
    carry = "it carries" if number == 1 else "they carry"
    text = (
        f"{quantities.capital(what)} uses about {quantities.counted(number, 'dimension')} of "
        f"{where}: {carry} 90 % of the change."
    )
    if ranks and cut.rank >= ranks[-1]:
        return f"{text} To keep {ENOUGH:.0%} it needs its full rank."
    percent = int(1000 * cut.share) / 10  # rounded down: 99.97 is not all of it
    return f"{text} Truncated to rank {cut.rank} it keeps {percent:.1f} % of its energy."


def _where(ranks: Sequence[int], changed: Sequence[MatrixSpectrum]) -> Iterator[str]:
    """Which modules of an adapter use their rank, and the layer that uses most and least of it."""
    used = grouped((matrix.kind.rpartition(".")[2], matrix) for matrix in changed)
    if not ranks or len(used) < 2:
        return
    means = _mean_used(used)
    parts = [f"{kind} {means[kind]:.1f}" for kind in sorted(means, key=lambda kind: -means[kind])]
    text = f"By module these are on average {quantities.listed(parts)}"
    by_layer = grouped((matrix.layer, matrix) for matrix in changed if matrix.layer is not None)
    if len(by_layer) > 1:
        layers = _mean_used(by_layer)
        most, least = max(layers, key=layers.__getitem__), min(layers, key=layers.__getitem__)
        text += (
            f"; by layer, most in layer {most} ({layers[most]:.1f}) and least in layer {least} "
            f"({layers[least]:.1f})"
        )
    yield f"{text}."


def _mean_used(groups: Mapping[Key, Sequence[MatrixSpectrum]]) -> dict[Key, float]:
    """Group -> the mean number of dimensions that its matrices use."""
    return {
        key: statistics.fmean(matrix.update.energy_rank_90 for matrix in matrices)
        for key, matrices in groups.items()
    }


def _size(matrices: Sequence[MatrixSpectrum]) -> str:
    norm, base = norms(matrices)
    if not base:
        return f"The update's norm is {norm:.3g}, on matrices that are zero."
    largest = max(matrices, key=lambda each: each.update.relative_norm or 0.0)
    text = (
        f"The update's norm is {norm:.3g}, {quantities.share(norm / base)} of that of the matrices "
        "it is added to"
    )
    if len(matrices) == 1:
        return f"{text}."
    share = quantities.share(largest.update.relative_norm or 0.0)
    return f"{text}; it is largest in {largest.module} ({share})."


def _intruders(changed: Sequence[MatrixSpectrum]) -> str:
    bring = intruders_of_all(changed, EPSILONS)
    trained, words = bring.observed, _of_nulls(bring, ".3g")
    random = f" Random updates of the same size bring {words}." if words else ""
    where = (
        f"among the {intruder_k(changed)} leading directions of each matrix (largest |cos| with "
        f"the base's below {INTRUDER_EPSILON})"
    )
    if trained == 0:
        return f"No intruder dimension is {where}.{random}"
    holding = sum(intruders_of(matrix.change, matrix.leading, EPSILONS) > 0 for matrix in changed)
    return (
        f"{quantities.counted(int(trained), 'intruder dimension')} in {_matrices(holding)} "
        f"{'is' if trained == 1 else 'are'} {where}.{random}"
    )


def _of_nulls(pair: NullPair, form: str) -> str:
    """Gaussian 0.912, Haar 0.915; empty where nothing was drawn."""
    nulls = (("Gaussian", pair.gaussian), ("Haar", pair.haar))
    return ", ".join(f"{name} {value:{form}}" for name, value in nulls if value is not None)


def _others(others: Sequence[OtherChange]) -> str:
    if not others:
        return "Nothing outside the linear layers below the head changed."
    first, more = others[0], len(others) - 1
    what = {
        "moved": f"changed (by {quantities.share(first.relative_norm or 0.0)})",
        "from_zero": f"changed (from zero to a norm of {first.norm or 0.0:.3g})",
        "resized": "has another size",
        "added": "was added",
        "removed": "is gone",
    }[first.change]
    changed = f"Beside the linear layers below the head {first.name} {what}"
    if not more:
        return f"{changed}."
    if all(each.change == "moved" for each in others):
        return f"{changed}, and {quantities.counted(more, 'parameter')} less than that."
    return f"{changed}, and {quantities.counted(more, 'other parameter')} changed too."


def _score(score: AuditScore) -> str:
    verdict = {
        1: "is better than the base",
        0: "cannot be distinguished from the base",
        -1: "is worse than the base",
    }[score.difference.sign()]
    accuracy = ""
    if score.accuracy is not None:
        accuracy = f"; accuracy {quantities.with_interval(score.accuracy.difference, 'points')}"
    return (
        f"On {score.task} it {verdict}: {quantities.with_interval(score.difference, score.unit)}, "
        f"{quantities.score(score.adapted_score, score.unit)} against "
        f"{quantities.score(score.base_score, score.unit)}, "
        f"{quantities.size(score.num_examples)}{accuracy}."
    )


def _matrices(number: int) -> str:
    return "1 matrix" if number == 1 else f"{quantities.count(number)} matrices"
