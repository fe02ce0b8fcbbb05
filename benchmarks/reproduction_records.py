"""What the tables of docs/studies/reproduction.md need of a study's findings, as small records.

They are kept in docs/studies/reproduction, so that a later change to a finding leaves the page's
numbers as they were measured.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.claims import Claim
from rankwise.findings.axes import TrainTaskAxes
from rankwise.findings.gauges import TrainTaskGauges
from rankwise.findings.mechanisms import TrainTaskMechanisms
from rankwise.findings.study import StudyFindings
from rankwise.findings.trends import TrendOf
from rankwise.findings.weights import ALL_MODULES, RunWeights
from rankwise.records.axes import FULL_LABEL
from rankwise.records.base import Record, VersionedRecord
from rankwise.records.study import Interval

START = "rank 32"  # the paper's advice
FIXED_ALPHA = ("rank 8, alpha 2r = 16", "rank 32, alpha 16", "rank 128, alpha 16")
TRENDS: tuple[TrendOf, ...] = ("train-test gap", "same option", "same next token", "KL")

MEASURES: Mapping[str, Callable[[RunWeights], float | None]] = {
    "frobenius_norm": lambda run: run.frobenius_norm,
    "effective_rank": lambda run: run.effective_rank,
    "energy_rank_99": lambda run: run.energy_rank_99,
    "intruders": lambda run: run.intruders.observed,
    "intruders_gaussian": lambda run: run.intruders.gaussian,
    "similarity": lambda run: run.similarity.observed,
    "similarity_gaussian": lambda run: run.similarity.gaussian,
    "similarity_haar": lambda run: run.similarity.haar,
    "full_overlap": lambda run: run.full_overlap,
    "full_overlap_expected": lambda run: run.full_overlap_expected,
}
"""What is averaged of a run's weights, by name."""


class JudgedClaim(Record):
    """A claim of the paper with its verdict, and how many comparisons it rests on."""

    statement: str
    judgement: str
    num_comparisons: int


class OptionChange(Record):
    """An option trained on a task, less the base.

    ``gain`` and ``kept`` are in points of p(right), in-domain and over the retention tasks;
    ``prose`` is the rise of the loss in nats per token.
    """

    train_task: str
    label: str
    gain: float
    kept: float
    prose: float


class TransferCell(Record):
    """The change of accuracy on tasks that are one column of the matrix, in points."""

    train_task: str
    label: str
    column: str
    base_score: float
    change: Interval


class AxisChange(Record):
    """A value of an axis less its first value, in points of p(right)."""

    axis: str
    method: str
    value: str
    first: str
    gain: Interval | None
    kept: Interval | None


class MatchedPair(Record):
    """A higher rank less a lower one whose updates have nearly one size, in points."""

    lower: str
    higher: str
    gain: Interval
    kept: Interval


class RankTrend(Record):
    """From the smallest to the largest rank of a trained task: mechanisms, norms and heads.

    ``exponent`` is that of the power law; ``r_squared`` are those of a logarithm and of a power
    law; ``heads_moved`` is Spearman's correlation of the heads' change with rank.
    """

    train_task: str
    changes: dict[TrendOf, Interval]
    exponent: Interval
    r_squared: tuple[float, float]
    heads_moved: Interval


class ReproductionNumbers(VersionedRecord, has_texts=False):
    """What the tables need of one study. ``labels`` are its options in the study's order.

    ``weights`` has the means of ``MEASURES`` over all runs of an option, by its label; None where
    nothing was measured. Only the main study has ``claims``, ``transfer`` and ``trends``.
    """

    labels: tuple[str, ...]
    changes: tuple[OptionChange, ...]
    weights: dict[str, dict[str, float | None]]
    claims: tuple[JudgedClaim, ...] = ()
    transfer: tuple[TransferCell, ...] = ()
    trends: tuple[RankTrend, ...] = ()
    axes: tuple[AxisChange, ...] = ()
    matched: tuple[MatchedPair, ...] = ()


def main_numbers(findings: StudyFindings, claims: Sequence[Claim]) -> ReproductionNumbers:
    """Those of the study of five tasks."""
    return _numbers(findings).model_copy(
        update={
            "claims": tuple(
                JudgedClaim(
                    statement=claim.statement,
                    judgement=claim.judgement,
                    num_comparisons=len(claim.evidence),
                )
                for claim in claims
            ),
            "transfer": tuple(_transfer(findings)),
            "trends": tuple(_trends(findings)),
        }
    )


def side_numbers(findings: StudyFindings) -> ReproductionNumbers:
    """Those of a study of one task."""
    (mechanisms,) = findings.mechanisms
    return _numbers(findings).model_copy(
        update={"axes": tuple(_axes(findings.axes)), "matched": tuple(_matched(mechanisms))}
    )


def _numbers(findings: StudyFindings) -> ReproductionNumbers:
    labels = tuple(gap.option.label for gap in findings.mechanisms[0].gaps)
    parts = zip(findings.mechanisms, findings.gauges, strict=True)
    return ReproductionNumbers(
        labels=labels,
        changes=tuple(itertools.chain.from_iterable(_changes(*part) for part in parts)),
        weights={label: _weights(findings, label) for label in labels},
    )


def _changes(mechanisms: TrainTaskMechanisms, gauges: TrainTaskGauges) -> Iterator[OptionChange]:
    assert mechanisms.train_task == gauges.train_task
    gauged = {model.label: model for model in gauges.models if model.kind == "run"}
    for gap in mechanisms.gaps:
        loss, rise = gauged[gap.option.label].retention_loss, gauged[gap.option.label].prose_rise
        assert loss is not None
        assert rise is not None
        yield OptionChange(
            train_task=mechanisms.train_task,
            label=gap.option.label,
            gain=gap.test.estimate,
            kept=-loss.estimate,
            prose=rise.estimate,
        )


def _weights(findings: StudyFindings, label: str) -> dict[str, float | None]:
    runs = [run for part in findings.weights for run in part.runs if run.option.label == label]

    def mean(read: Callable[[RunWeights], float | None]) -> float | None:
        values = [value for run in runs if (value := read(run)) is not None]
        return statistics.fmean(values) if values else None

    return {name: mean(read) for name, read in MEASURES.items()}


def _transfer(findings: StudyFindings) -> Iterator[TransferCell]:
    found = findings.transfer
    assert found is not None
    names = {column.tasks: column.name for column in found.columns}
    for cell in found.cells:
        if cell.label in (START, FULL_LABEL):
            yield TransferCell(
                train_task=cell.train_task,
                label=cell.label,
                column=names[cell.tasks],
                base_score=cell.base_score.estimate,
                change=_plain(cell.change),
            )


def _trends(findings: StudyFindings) -> Iterator[RankTrend]:
    parts = zip(findings.mechanisms, findings.weights, findings.heads, strict=True)
    for mechanisms, weights, heads in parts:
        changes = {trend.of: _plain(trend.change) for trend in mechanisms.trends}
        (norm,) = (trend for trend in weights.norm_trends if trend.module == ALL_MODULES)
        (moved,) = (trend for trend in heads.against_rank if trend.measure == "output")
        assert moved.correlation is not None
        yield RankTrend(
            train_task=mechanisms.train_task,
            changes={of: changes[of] for of in TRENDS},
            exponent=_plain(norm.power_law.slope),
            r_squared=(norm.logarithmic.r_squared, norm.power_law.r_squared),
            heads_moved=_plain(moved.correlation),
        )


def _axes(parts: Sequence[TrainTaskAxes]) -> Iterator[AxisChange]:
    for axis in itertools.chain.from_iterable(part.axes for part in parts):
        for effect in axis.effects:
            gain, kept = effect.lead, effect.retention_lead
            yield AxisChange(
                axis=axis.name,
                method=axis.method,
                value=effect.value,
                first=axis.values[0],
                gain=None if gain is None else _plain(gain),
                kept=None if kept is None else _plain(kept),
            )


def _matched(mechanisms: TrainTaskMechanisms) -> Iterator[MatchedPair]:
    """Ranks under one alpha, whose updates have nearly one size."""
    for pair in () if mechanisms.matched is None else mechanisms.matched.pairs:
        if {pair.option.label, pair.other.label} <= {*FIXED_ALPHA}:
            yield MatchedPair(
                lower=pair.option.label,
                higher=pair.other.label,
                gain=_plain(pair.gain.negated()),
                kept=_plain(pair.kept.negated()),
            )


def _plain(of: Interval) -> Interval:
    """Without what a kind of interval has beside its bounds."""
    return Interval(estimate=of.estimate, lower=of.lower, upper=of.upper)
