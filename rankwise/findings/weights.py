"""The weights of a study's runs: norms against rank, intruders against forgetting."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from rankwise.findings.audits import (
    NullPair,
    intruders_of_all,
    norms,
    similarity_of_all,
    subject,
)
from rankwise.findings.options import OptionGains, OptionName, TrainTaskFinding, ladders
from rankwise.findings.stats.growth import norm_growth
from rankwise.findings.trends import correlated, in_words, mean_of_options
from rankwise.records import quantities
from rankwise.records.audits import AuditRecord
from rankwise.records.base import Record
from rankwise.records.results import ModelResults
from rankwise.records.spectra import (
    INTRUDER_EPSILON,
    INTRUDER_K,
    MatrixSpectrum,
    SpectraRecord,
)
from rankwise.records.study import Interval, Relation, Unit

ALL_MODULES = "all modules"
Measure = Literal["intruders", "norm of the update", "turned directions"]


class RunWeights(Record):
    """One run's weights over all adapted matrices.

    ``relative_norm`` is ‖delta‖_F / ‖W_0‖_F of all matrices together; ``intruders`` the sum over
    matrices at k = 10, ε = 0.5; ``similarity`` the mean |cos| of left and right vectors of one
    index, over as many as were compared. ``effective_rank`` and ``energy_rank_99`` are medians over
    matrices; ``full_overlap`` and what random directions would have are means. ``forgetting`` is
    what ``Association`` relates them to, by its name.
    """

    run: str
    option: OptionName
    num_matrices: int
    frobenius_norm: float
    relative_norm: float
    effective_rank: float
    energy_rank_99: float
    intruders: NullPair
    similarity: NullPair
    full_overlap: float | None
    full_overlap_expected: float | None
    forgetting: dict[str, float]


class FittedLaw(Record):
    """A law of growth; see ``stats.growth.LineFit``."""

    slope: Interval
    intercept: float
    r_squared: float


class NormTrend(Record):
    """‖delta‖_F of one kind of module against rank; runs differ by rank and seed alone."""

    module: str
    setting: str
    ranks: tuple[int, ...]
    norms: tuple[float, ...]
    logarithmic: FittedLaw
    power_law: FittedLaw


class Association(Record):
    """Spearman's correlation of a measure of the weights with forgetting, over options.

    ``correlation`` is None with its ``reason``.
    """

    measure: Measure
    forgetting: str
    unit: Unit
    num_options: int
    correlation: Interval | None
    reason: str | None


class TrainTaskWeights(TrainTaskFinding):
    """The weights of one trained task's runs.

    ``not_analysed`` has, by run, why it has no matrices.
    """

    num_seeds: int
    runs: tuple[RunWeights, ...]
    norm_trends: tuple[NormTrend, ...]
    associations: tuple[Association, ...]
    not_analysed: dict[str, str]


def weight_findings(source: OptionGains, *_read: object) -> TrainTaskWeights | None:
    """The weights of one trained task's runs; None where none were analysed."""
    results = source.results
    looked = [(model, model.spectra) for model in results.runs if model.spectra is not None]
    if not looked:
        return None
    runs = tuple(_run_weights(source, *each) for each in looked if each[1].matrices)
    trends = tuple(_norm_trends(source))
    top_k = results.study.top_k
    associations: list[Association] = []
    for name, _, unit in _FORGETTING:
        having = [run for run in runs if name in run.forgetting]
        for measure, value in _MEASURES if having else ():
            options, x = mean_of_options(having, value)
            _, y = mean_of_options(having, lambda run, name=name: run.forgetting[name])
            correlation, reason = correlated(x, y, source.confidence, "option")
            associations.append(
                Association(
                    measure=measure,
                    forgetting=name,
                    unit=unit,
                    num_options=len(options),
                    correlation=correlation,
                    reason=reason,
                )
            )
    return source.found(
        TrainTaskWeights,
        num_seeds=len(results.study.config.seeds),
        runs=runs,
        norm_trends=trends,
        associations=tuple(associations),
        statements=tuple(_statements(trends, associations, runs, min(INTRUDER_K, top_k))),
        not_analysed={
            model.name: spectra.not_analysed
            for model, spectra in looked
            if spectra.not_analysed is not None
        },
    )


def _run_weights(source: OptionGains, model: ModelResults, spectra: SpectraRecord) -> RunWeights:
    # how much worse than the base, macro-mean over the tasks that are scored in the unit
    forgetting: dict[str, float] = {}
    for name, relation, unit in _FORGETTING:
        tasks = [task for task in source.tasks(relation, unit) if task in model.items]
        gains = [float(source.pair(model, task).gain.mean()) for task in tasks]
        if gains:
            forgetting[name] = -statistics.fmean(gains)
    option = source.name_of(model)
    return _weights_of(model.name, option, spectra.matrices, spectra.epsilons, forgetting)


def audited_weights(record: AuditRecord) -> RunWeights:
    """Those of an audited model, whose update is not zero; medians are over changed matrices."""
    changed = [matrix for matrix in record.matrices if matrix.update.frobenius_norm > 0.0]
    rank = record.ranks[-1] if record.ranks else None
    option = OptionName(label=subject(record.kind, record.ranks).removeprefix("this "), rank=rank)
    found = _weights_of(record.target, option, changed, record.epsilons, {})
    norm, base_norm = norms(record.matrices)
    return found.model_copy(update={"relative_norm": norm / base_norm if base_norm else 0.0})


def _weights_of(
    run: str,
    option: OptionName,
    matrices: Sequence[MatrixSpectrum],
    epsilons: tuple[float, ...],
    forgetting: dict[str, float],
) -> RunWeights:
    overlaps = [each.full_overlap for each in matrices if each.full_overlap is not None]
    own = [(overlap.left + overlap.right) / 2 for overlap in overlaps]
    expected = [(overlap.left_expected + overlap.right_expected) / 2 for overlap in overlaps]
    norm, base_norm = norms(matrices)
    return RunWeights(
        run=run,
        option=option,
        num_matrices=len(matrices),
        frobenius_norm=norm,
        relative_norm=norm / base_norm if base_norm else 0.0,
        effective_rank=statistics.median(each.update.effective_rank for each in matrices),
        energy_rank_99=statistics.median(each.update.energy_rank_99 for each in matrices),
        intruders=intruders_of_all(matrices, epsilons),
        similarity=similarity_of_all(matrices),
        full_overlap=statistics.fmean(own) if own else None,
        full_overlap_expected=statistics.fmean(expected) if expected else None,
        forgetting=forgetting,
    )


_FORGETTING: tuple[tuple[str, Relation, Unit], ...] = (
    ("retention loss", "retention", "points"),
    ("loss on held-out text", "held_out_text", "nats"),
)


def _norm_trends(source: OptionGains) -> Iterator[NormTrend]:
    for ladder in ladders(source):
        points = [
            (rung.plan.rank or 0, run.spectra)
            for rung in ladder.rungs
            for run in rung.runs
            if run.spectra is not None and run.spectra.matrices
        ]
        kinds = dict.fromkeys(matrix.kind for _, spectra in points for matrix in spectra.matrices)
        ranks = tuple(rank for rank, _ in points)
        for module in (ALL_MODULES, *kinds):
            of_module = tuple(
                norms([each for each in spectra.matrices if module in (ALL_MODULES, each.kind)])[0]
                for _, spectra in points
            )
            growth = norm_growth(ranks, of_module, source.confidence) if points else None
            if growth is not None:
                laws = {
                    law: FittedLaw(
                        slope=Interval(estimate=fit.slope, lower=fit.lower, upper=fit.upper),
                        intercept=fit.intercept,
                        r_squared=fit.r_squared,
                    )
                    for law, fit in growth._asdict().items()
                }
                yield NormTrend(
                    module=module, setting=ladder.label, ranks=ranks, norms=of_module, **laws
                )


_MEASURES: tuple[tuple[Measure, Callable[[RunWeights], float]], ...] = (
    ("intruders", lambda run: run.intruders.observed),
    ("norm of the update", lambda run: run.frobenius_norm),
    ("turned directions", lambda run: 1.0 - run.similarity.observed),
)


def _statements(
    trends: Sequence[NormTrend],
    associations: Sequence[Association],
    runs: Sequence[RunWeights],
    k: int,
) -> Iterator[str]:
    """``k``: among how many leading directions intruders are counted."""
    for trend in trends:
        if trend.module == ALL_MODULES:
            setting = f" ({trend.setting})" if trend.setting else ""
            slope = trend.logarithmic.slope
            estimate, lower, upper = (
                quantities.formatted(value, "+.3g")
                for value in (slope.estimate, slope.lower, slope.upper)
            )
            yield (
                f"The norm of the update changes by {estimate} ({lower} to {upper}) per doubling "
                f"of the rank{setting} (R² {trend.logarithmic.r_squared:.3f}; as a power law "
                f"{trend.power_law.r_squared:.3f})."
            )
    for association in associations:
        if association.measure == "intruders" and association.correlation is not None:
            evidence = {
                1: f"Options with more intruder dimensions have more {association.forgetting}",
                0: f"No evidence that intruder dimensions go with {association.forgetting}",
                -1: f"Options with more intruder dimensions have less {association.forgetting}",
            }
            yield in_words(evidence, association.correlation, association.num_options, "option")
    if runs and all(run.intruders.observed == 0 for run in runs):
        yield (
            f"No run has an intruder dimension among its {k} leading directions at "
            f"ε = {INTRUDER_EPSILON}."
        )
