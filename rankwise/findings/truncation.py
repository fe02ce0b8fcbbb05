"""One run, every rank: the largest adapter truncated to smaller ranks, beside training at these.

An estimate after one run. A truncated adapter is the closest to the one that was trained, which is
not the one that training at its rank finds; so both are shown wherever both are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

from rankwise.findings.options import (
    DecidingTasks,
    Option,
    OptionGains,
    OptionName,
    Runs,
    TaskMean,
    over_seeds,
)
from rankwise.findings.pairs import run_record
from rankwise.findings.rows import Row, flat
from rankwise.findings.shares import Share, share_of_gain
from rankwise.records import quantities
from rankwise.records.axes import beside_rank
from rankwise.records.base import Record
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import PlannedRun, Unit

Series = Literal["trained", "truncated", "refined"]
SERIES: tuple[Series, ...] = get_args(Series)

ONE_RUN = "An estimate after one run: truncation is not training"


class CurvePoint(Record):
    """A rank of one series: trained at it, truncated to it, or truncated and then refined.

    ``energy`` is the share of the update's squared Frobenius norm that truncation keeps, the mean
    over the seeds; None for what is trained. ``num_steps`` are the optimizer steps of one seed at
    this rank, ``train_seconds`` those of all. ``share_of_gain`` is of the largest rank's, and None
    for that itself. The last two are less the model that is trained at
    the same rank, on the same items and from the same seeds; None where there is none.
    """

    series: Series
    rank: int
    num_steps: int
    train_seconds: float
    energy: float | None
    gain: TaskMean
    retention: TaskMean | None
    share_of_gain: Share | None
    gain_less_trained: TaskMean | None
    retention_less_trained: TaskMean | None


class TruncatedCurve(Record):
    """The adapter of the largest rank of a setting at every rank; points by series and rank."""

    source: OptionName
    num_seeds: int
    points: tuple[CurvePoint, ...]
    statements: tuple[str, ...]

    def series(self, name: Series) -> tuple[CurvePoint, ...]:
        """The points of one series, the smallest rank first."""
        return tuple(point for point in self.points if point.series == name)


class TrainTaskTruncation(Record):
    """The truncated adapters of one trained task. Exploratory.

    ``left_out`` names those of which a seed diverged or is missing.
    """

    train_task: str
    unit: Unit
    confidence: float
    curves: tuple[TruncatedCurve, ...]
    left_out: tuple[str, ...]


def truncated_curves(
    source: OptionGains, recommendation: Recommendation
) -> TrainTaskTruncation | None:
    """The truncated adapters of every setting; None where the study plans none.

    Args:
        source: the options of a trained task.
        recommendation: of the same task, for the unit in-domain.
    """

    def place(model: PlannedRun) -> tuple[str, Series, int]:
        """The option whose adapter is truncated, and the series and rank of its curve."""
        assert model.of is not None
        series: Series = "refined" if model.num_steps else "truncated"
        return source.labels[model.of.name], series, model.rank or 0

    members = over_seeds(source.results, "truncated", place)
    if not members:
        return None
    tasks = source.deciding_tasks(recommendation.unit)
    curves: list[TruncatedCurve] = []
    left_out = [of for of in dict.fromkeys(of for of, *_ in members) if of in source.left_out]
    for option in source.options:
        complete: dict[tuple[Series, int], Runs] = {}
        for (of, series, rank), member in members.items():
            if of == option.label and member.is_complete:
                complete[series, rank] = member.runs
            elif of == option.label:
                left_out.append(f"{option.label}, {series} to rank {rank}")
        if complete:
            curves.append(_curve(source, tasks, option, complete))
    return TrainTaskTruncation(
        train_task=source.results.train_task,
        unit=recommendation.unit,
        confidence=source.confidence,
        curves=tuple(curves),
        left_out=tuple(left_out),
    )


def _curve(
    source: OptionGains,
    tasks: DecidingTasks,
    option: Option,
    truncated: Mapping[tuple[Series, int], Runs],
) -> TruncatedCurve:
    settings = {*beside_rank(option.plan)}
    members: dict[tuple[Series, int], Runs] = {}
    for other in source.options:
        rank = other.plan.rank
        alike = other.plan.role != "imported" and settings & {*beside_rank(other.plan)}
        if rank is not None and alike and rank <= (option.rank or 0):
            members.setdefault(("trained", rank), other.runs)
    members |= truncated
    points: list[CurvePoint] = []
    for series, rank in sorted(members, key=lambda each: (SERIES.index(each[0]), each[1])):
        runs = members[series, rank]
        others = None if series == "trained" else members.get(("trained", rank))
        records = [run_record(model) for model in runs]
        errors = [record.truncation_error for record in records]
        energies = [1.0 - error**2 for error in errors if error is not None]
        share: Share | None = None
        if runs != option.runs:
            share = share_of_gain(source, runs, option.runs, tasks.in_domain)
        points.append(
            CurvePoint(
                series=series,
                rank=rank,
                num_steps=records[0].planned.num_steps,
                train_seconds=sum(record.train_seconds for record in records),
                energy=sum(energies) / len(energies) if energies else None,
                gain=source.change(runs, tasks.in_domain),
                retention=source.change(runs, tasks.retention) if tasks.retention else None,
                share_of_gain=share,
                gain_less_trained=source.lead_over(runs, others, tasks.in_domain),
                retention_less_trained=source.lead_over(runs, others, tasks.retention),
            )
        )
    return TruncatedCurve(
        source=option.name,
        num_seeds=len(option.runs),
        points=tuple(points),
        statements=tuple(_statements(option, points)),
    )


def _statements(option: Option, points: Sequence[CurvePoint]) -> Iterator[str]:
    """One sentence for each rank that was truncated to, the largest first."""
    found = {(point.series, point.rank): point for point in points}
    for rank in sorted({p.rank for p in points if p.series == "truncated"}, reverse=True):
        cut, refined = found["truncated", rank], found.get(("refined", rank))
        text = f"Truncated to rank {rank}, the adapter of {option.label} keeps {_kept(cut)}"
        text += " of its gain"
        if refined is not None:
            steps = quantities.counted(refined.num_steps, "step")
            text += f", and after {steps} of refinement {_kept(refined)}"
        last, name = (refined, "refined, ") if refined else (cut, "")
        if last.gain_less_trained is not None:
            lead = quantities.with_interval(last.gain_less_trained, last.gain.unit)
            text += f"; {name}against training at rank {rank}: {lead} in-domain"
        if last.retention_less_trained is not None:
            lead = quantities.with_interval(last.retention_less_trained, "points")
            text += f", {lead} on retention"
        yield f"{text}. {ONE_RUN}."


def _kept(point: CurvePoint) -> str:
    """92 % (85 to 99), or the gain itself where there is no share."""
    share = None if point.share_of_gain is None else point.share_of_gain.in_words
    return share or quantities.with_interval(point.gain, point.gain.unit)


def truncation_rows(found: Sequence[TrainTaskTruncation], _: object) -> Iterator[Row]:
    """Every point of every curve."""
    for part in found:
        for curve in part.curves:
            before = {"source": curve.source.label, "seeds": curve.num_seeds}
            yield from (flat(p, train_task=part.train_task, **before) for p in curve.points)
