"""Variants of LoRA beside LoRA: what each gains and keeps at the same rank, or as many weights.

The recommendation is about LoRA's ranks and knows no variant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from statistics import mean
from typing import Literal, NamedTuple

from rankwise.findings.options import DecidingTasks, Option, OptionGains, Runs, TaskMean, over_seeds
from rankwise.findings.pairs import run_record
from rankwise.records import quantities
from rankwise.records.axes import beside_rank, run_labels
from rankwise.records.base import Record
from rankwise.records.config.variants import VARIANT_LABELS
from rankwise.records.grouping import grouped
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import PlannedRun, Unit

OF_RATES = "the best rates are chosen on the items that they are compared on"


class VariantRow(Record):
    """A variant with its settings, seeds averaged, beside one rank of LoRA at its best rate.

    ``gain`` and ``retention`` are changes from the base. The ``lead`` and ``retention_lead`` are
    this less LoRA at ``beside``, on the same items and from the same seeds: positive where the
    variant is better, None where no LoRA run is there to compare with. ``is_best_rate`` says that
    no other of ``num_rates`` learning rates of the variant gains more. ``unsettled_share`` is the
    mean over seeds of that of ``RunRecord``: None but for EVA.
    """

    label: str
    variant: str
    beside_rank: int
    beside: str | None
    learning_rate: float
    num_rates: int
    is_best_rate: bool
    num_parameters: int
    num_seeds: int
    train_seconds: float
    gain: TaskMean
    retention: TaskMean | None
    lead: TaskMean | None
    retention_lead: TaskMean | None
    unsettled_share: float | None = None


class TrainTaskVariants(Record):
    """The variants of one trained task, beside the smallest rank first. Exploratory.

    ``left_out`` names those of which a seed diverged or is missing.
    """

    train_task: str
    unit: Unit
    confidence: float
    match: Literal["rank", "parameters"]
    rows: tuple[VariantRow, ...]
    statements: tuple[str, ...]
    left_out: tuple[str, ...]


class _Trained(NamedTuple):
    """A variant with its settings and its models, in the order of the seeds."""

    label: str
    plan: PlannedRun
    runs: Runs
    gain: TaskMean


def variants_beside_lora(
    source: OptionGains, recommendation: Recommendation
) -> TrainTaskVariants | None:
    """Every variant of a trained task against LoRA; None where the study plans none.

    Args:
        source: the options of the trained task.
        recommendation: of the same task, for the unit in-domain.
    """
    planned = source.results.planned_of("variant")
    section = source.results.study.config.methods.variants
    if not planned or section is None:
        return None
    tasks = source.deciding_tasks(recommendation.unit)
    labels, left_out = run_labels(planned), list[str]()
    groups = over_seeds(source.results, "variant", lambda plan: labels[plan.name])
    trained: list[_Trained] = []
    for label, group in sorted(groups.items(), key=lambda item: item[1].plans[0].beside_ranks):
        if group.is_complete:
            gain = source.change(group.runs, tasks.in_domain)
            trained.append(_Trained(label, group.plans[0], group.runs, gain))
        else:
            left_out.append(label)
    rows: list[VariantRow] = []
    for rank in sorted({rank for one in trained for rank in one.plan.beside_ranks}):
        its = [one for one in trained if rank in one.plan.beside_ranks]
        rows += [_row(source, tasks, one, rank, its) for one in its]
    return TrainTaskVariants(
        train_task=source.results.train_task,
        unit=recommendation.unit,
        confidence=source.confidence,
        match=section.match,
        rows=tuple(rows),
        statements=tuple(_statements(rows)),
        left_out=tuple(left_out),
    )


_BUT_RATE = attrgetter("variant", "alpha_labels", "target_modules", "epochs")
"""What variants that differ by learning rate alone have in common."""


def _row(
    source: OptionGains, tasks: DecidingTasks, one: _Trained, rank: int, trained: Sequence[_Trained]
) -> VariantRow:
    """A variant beside a rank of LoRA, among all that are ``trained`` beside it."""
    beside, plan = _beside(source, tasks, one, rank), one.plan
    alike = [other for other in trained if _BUT_RATE(other.plan) == _BUT_RATE(plan)]
    others = None if beside is None else beside.runs
    assert plan.variant is not None
    assert plan.learning_rate is not None
    shares = [run_record(run).unsettled_share for run in one.runs]
    unsettled = [share for share in shares if share is not None]
    return VariantRow(
        label=one.label,
        variant=VARIANT_LABELS[plan.variant],
        beside_rank=rank,
        beside=None if beside is None else beside.label,
        learning_rate=plan.learning_rate,
        num_rates=len(alike),
        is_best_rate=max(alike, key=lambda other: other.gain.estimate) is one,
        num_parameters=plan.num_trainable_parameters,
        num_seeds=len(one.runs),
        train_seconds=sum(run_record(run).train_seconds for run in one.runs),
        gain=one.gain,
        retention=source.change(one.runs, tasks.retention) if tasks.retention else None,
        lead=source.lead_over(one.runs, others, tasks.in_domain),
        retention_lead=source.lead_over(one.runs, others, tasks.retention),
        unsettled_share=mean(unsettled) if unsettled else None,
    )


def _beside(source: OptionGains, tasks: DecidingTasks, one: _Trained, rank: int) -> Option | None:
    """LoRA at this rank and the variant's settings, at the rate at which it gains most."""
    plan, seeds = one.plan, [run_record(run).planned.seed for run in one.runs]
    alphas = {*plan.alpha_labels}
    alike = [
        option
        for option in source.options
        if option.rank == rank
        and option.plan.role != "imported"
        and (option.plan.target_modules, option.plan.epochs) == (plan.target_modules, plan.epochs)
        and (not alphas or alphas & {alpha for alpha, *_ in beside_rank(option.plan)})
        and [*option.seeds] == seeds
    ]
    return max(
        alike, key=lambda option: source.change(option.runs, tasks.in_domain).estimate, default=None
    )


def _statements(rows: Sequence[VariantRow]) -> Iterator[str]:
    """One sentence for each variant at its best rate, and one of rates that end at an edge."""
    for row in rows:
        if row.lead is None or not row.is_best_rate:
            continue
        text = f"{quantities.capital(row.label)}, against {row.beside}: "
        text += f"{quantities.with_interval(row.lead, row.lead.unit)} in-domain"
        if row.retention_lead is not None:
            text += f", {quantities.with_interval(row.retention_lead, 'points')} on retention"
        text += f"; {quantities.parameters(row.num_parameters)} trained weights"
        if row.unsettled_share:
            text += (
                f"; its directions still turned in {quantities.share(row.unsettled_share)} of the "
                "layers when they were taken"
            )
        yield f"{text}; {OF_RATES}." if row.num_rates > 1 else f"{text}."
    rates = grouped((row.variant, row.learning_rate) for row in rows)
    at_edge = [
        row.variant
        for row in rows
        if row.is_best_rate
        and row.num_rates > 1
        and row.learning_rate in (min(rates[row.variant]), max(rates[row.variant]))
    ]
    if at_edge:
        yield (
            f"The best learning rate of {quantities.listed(list(dict.fromkeys(at_edge)))} is the "
            "smallest or the largest that was tried: the optimum may lie beyond."
        )
