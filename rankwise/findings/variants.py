"""Variants of LoRA beside LoRA: what each gains and keeps at the same rank, or as many weights.

The recommendation is about LoRA's ranks and knows no variant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from statistics import mean
from typing import Literal

from rankwise.findings.comparison import Compared, compare
from rankwise.findings.options import DecidingTasks, Option, OptionGains, TrainTaskFinding
from rankwise.records import quantities
from rankwise.records.axes import beside_rank
from rankwise.records.config.variants import VARIANT_LABELS
from rankwise.records.grouping import grouped
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import Unit

OF_RATES = "the best rates are chosen on the items that they are compared on"


class VariantRow(Compared):
    """A variant with its settings against one rank of LoRA, ``beside_rank``, at its best rate.

    Against the base where no LoRA run is there to compare with. ``is_best_rate`` says that no other
    of ``num_rates`` learning rates of the variant gains more. ``unsettled_share`` is the mean over
    seeds of that of ``RunRecord``: None but for EVA.
    """

    variant: str
    beside_rank: int
    learning_rate: float
    num_rates: int
    is_best_rate: bool
    unsettled_share: float | None


class TrainTaskVariants(TrainTaskFinding):
    """The variants of one trained task, beside the smallest rank first."""

    unit: Unit
    match: Literal["rank", "parameters"]
    rows: tuple[VariantRow, ...]


def variants_beside_lora(
    source: OptionGains, recommendation: Recommendation
) -> TrainTaskVariants | None:
    """Every variant of a trained task against LoRA; None where the study plans none.

    Args:
        source: the options of the trained task.
        recommendation: of the same task, for the unit in-domain.
    """
    section = source.results.study.config.methods.variants
    trained, left_out = source.of_role("variant")
    if section is None or not (trained or left_out):
        return None
    tasks = source.deciding_tasks(recommendation.unit)
    trained.sort(key=lambda option: option.plan.beside_ranks)
    rows: list[VariantRow] = []
    for rank in sorted({rank for one in trained for rank in one.plan.beside_ranks}):
        its = [one for one in trained if rank in one.plan.beside_ranks]
        rows += [_row(source, tasks, one, rank, its) for one in its]
    return source.found(
        TrainTaskVariants,
        unit=recommendation.unit,
        match=section.match,
        rows=tuple(rows),
        statements=tuple(_statements(rows)),
        left_out=left_out,
    )


_BUT_RATE = attrgetter("variant", "alpha_labels", "target_modules", "epochs")
"""What variants that differ by learning rate alone have in common."""


def _row(
    source: OptionGains, tasks: DecidingTasks, one: Option, rank: int, trained: Sequence[Option]
) -> VariantRow:
    """A variant beside a rank of LoRA, among all that are ``trained`` beside it."""
    plan = one.plan
    alike = [other for other in trained if _BUT_RATE(other.plan) == _BUT_RATE(plan)]
    assert plan.variant is not None
    unsettled = [r.unsettled_share for r in one.records if r.unsettled_share is not None]
    return compare(
        VariantRow,
        source,
        tasks,
        one,
        _beside(source, tasks, one, rank),
        variant=VARIANT_LABELS[plan.variant],
        beside_rank=rank,
        learning_rate=plan.learning_rate,
        num_rates=len(alike),
        is_best_rate=_best(source, tasks, alike) is one,
        unsettled_share=mean(unsettled) if unsettled else None,
    )


def _beside(source: OptionGains, tasks: DecidingTasks, one: Option, rank: int) -> Option | None:
    """LoRA at this rank and the variant's settings, at the rate at which it gains most."""
    plan, alphas = one.plan, {*one.plan.alpha_labels}
    alike = [
        option
        for option in source.options
        if (option.rank, option.plan.mean_rank) == (rank, None)
        and option.plan.role != "imported"
        and (option.plan.target_modules, option.plan.epochs) == (plan.target_modules, plan.epochs)
        and (not alphas or alphas & {alpha for alpha, *_ in beside_rank(option.plan)})
        and option.seeds == one.seeds
    ]
    return _best(source, tasks, alike)


def _best(source: OptionGains, tasks: DecidingTasks, options: Sequence[Option]) -> Option | None:
    """The one that gains most."""
    return max(
        options,
        key=lambda option: source.change(option.runs, tasks.in_domain).estimate,
        default=None,
    )


def _statements(rows: Sequence[VariantRow]) -> Iterator[str]:
    """One sentence for each variant at its best rate, and one of rates that end at an edge."""
    for row in rows:
        if row.lead is None or not row.is_best_rate:
            continue
        text = f"{quantities.capital(row.label)}, against {row.against}: "
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
