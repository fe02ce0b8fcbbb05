"""The numbers of the mechanisms as tables of text, and as rows of CSV files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rankwise.findings.agreement import AgreementWithFull
from rankwise.findings.mechanisms import (
    MatchedPair,
    MatchedPairs,
    TrainTaskMechanisms,
    TrainTestGap,
)
from rankwise.findings.models import BASE_LABEL
from rankwise.findings.options import TaskMean
from rankwise.findings.trends import RankTrend, TrendOf
from rankwise.records import quantities
from rankwise.records.study import Bound, Unit
from rankwise.report.changes import mean_row
from rankwise.report.parts import EMPTY, Cell, Heading, RowGroup, Table
from rankwise.report.summaries import mean_cell

TREND_NAMES: dict[TrendOf, str] = {
    "train-test gap": "gap between trained and test items",
    "same outcome": "same outcome as full fine-tuning",
    "same option": "same option as full fine-tuning",
    "same next token": "same most probable token",
    "KL": "KL(full || LoRA)",
}
_CLAIMS: dict[TrendOf, str] = {
    "train-test gap": "rises: low ranks regularise",
    "same outcome": "rises: high ranks approach full",
    "same option": "rises: high ranks approach full",
    "same next token": "rises: high ranks approach full",
    "KL": "falls: high ranks approach full",
}


def gap_table(found: TrainTaskMechanisms) -> Table:
    """Every option's gain on trained and on test items, and their difference."""
    headings = (
        Heading("Option"),
        Heading("Gain on trained items", found.unit),
        Heading("Gain on test items", found.unit),
        Heading("Gap", "trained − test"),
    )
    rows = tuple(_gap_cells(gap, found.unit) for gap in found.gaps)
    caption = (
        f"Trained on {found.train_task}, both against the base. The items are different ones, so "
        "the variances of both gains add."
    )
    return Table(caption, headings, (RowGroup("", "", rows),))


def pair_table(found: TrainTaskMechanisms, matched: MatchedPairs) -> Table:
    """Every pair of one gain, and what the lower rank keeps more."""
    headings = (
        Heading("Lower rank"),
        Heading("Higher rank"),
        Heading("In-domain", f"lower − higher, {found.unit}"),
        Heading("Retention", "lower − higher, points"),
        Heading("Does the lower keep more?"),
    )
    delta = quantities.amount(found.delta, found.unit)
    which = (
        f"Pairs whose in-domain gains are shown to be equal within δ = {delta}."
        if matched.match == "within delta"
        else f"No pair is shown to be equal within δ = {delta}; these cannot be told apart, which "
        "is weaker."
    )
    rows = tuple(_pair_cells(pair) for pair in matched.pairs)
    caption = f"Trained on {found.train_task}. {which} Paired over the same items."
    return Table(caption, headings, (RowGroup("", "", rows),), (0, 1, 4))


def agreement_table(found: TrainTaskMechanisms) -> Table:
    """Every model against the full fine-tuning of its seed."""
    references = list(dict.fromkeys(each.reference.label for each in found.agreement))
    headings = (
        Heading("Model"),
        Heading("Same outcome", "% of items"),
        Heading("Kappa", "beyond chance"),
        Heading("Same option", "% of items"),
        Heading("Same next token", "%"),
        Heading("KL(full || model)", "nats per token"),
    )
    groups = tuple(
        RowGroup(
            f"Beside {label}",
            "",
            tuple(_agreement_cells(e) for e in found.agreement if e.reference.label == label),
        )
        for label in references
    )
    caption = (
        f"Trained on {found.train_task}, in-domain items, each seed against full fine-tuning of "
        "the same seed. The base is an update of zero; full fine-tuning against its next seed is "
        "as alike as two runs can be expected to be."
    )
    return Table(caption, headings, groups)


def trend_table(found: TrainTaskMechanisms) -> Table:
    """The change of every measure from the smallest to the largest rank."""
    headings = (
        Heading("Measure"),
        Heading("From rank"),
        Heading("To rank"),
        Heading("Change"),
        Heading("The mechanism says"),
        Heading("The study"),
    )
    rows = tuple(_trend_cells(trend) for trend in found.trends)
    caption = f"Trained on {found.train_task}: largest rank less smallest, on the same items."
    return Table(caption, headings, (RowGroup("", "", rows),), (0, 4, 5))


def gap_rows(found: Sequence[TrainTaskMechanisms]) -> Iterable[dict[str, Any]]:
    """One row for each trained task and option."""
    for part in found:
        for gap in part.gaps:
            yield {
                "train_task": part.train_task,
                "option": gap.option.label,
                "rank": gap.option.rank,
                "unit": part.unit,
                **_mean_row(gap.trained, "trained"),
                **_mean_row(gap.test, "test"),
                **_bound_row(gap.gap, "gap"),
            }


def pair_rows(found: Sequence[TrainTaskMechanisms]) -> Iterable[dict[str, Any]]:
    """One row for each trained task and pair."""
    for part in found:
        for pair in () if part.matched is None else part.matched.pairs:
            yield {
                "train_task": part.train_task,
                "option": pair.option.label,
                "other": pair.other.label,
                "match": "" if part.matched is None else part.matched.match,
                "unit": part.unit,
                **_mean_row(pair.gain, "gain"),
                **_mean_row(pair.kept, "kept"),
                "answer": pair.answer,
            }


def agreement_rows(found: Sequence[TrainTaskMechanisms]) -> Iterable[dict[str, Any]]:
    """One row for each trained task and model."""
    for part in found:
        for row in part.agreement:
            yield {
                "train_task": part.train_task,
                "option": BASE_LABEL if row.option is None else row.option.label,
                "reference": row.reference.label,
                "num_seeds": row.num_seeds,
                **_mean_row(row.same_outcome, "same_outcome_percent"),
                **_bound_row(row.kappa, "kappa"),
                **_mean_row(row.same_option, "same_option_percent"),
                **_mean_row(row.same_next_token, "same_next_token_percent"),
                **_mean_row(row.kl, "kl_nats"),
            }


def model_name(row: AgreementWithFull) -> str:
    """The base, an option's label, or full fine-tuning as the next seed of itself."""
    if row.option is None:
        return BASE_LABEL
    return f"{row.option.label}, next seed" if row.option.rank is None else row.option.label


def _gap_cells(gap: TrainTestGap, unit: Unit) -> tuple[Cell, ...]:
    return (
        Cell(gap.option.label),
        mean_cell(gap.trained, note=quantities.sample_size(gap.trained)),
        mean_cell(gap.test, note=quantities.sample_size(gap.test)),
        _bound_cell(gap.gap, unit),
    )


def _pair_cells(pair: MatchedPair) -> tuple[Cell, ...]:
    answers = {"shown": "yes", "contradicted": "no, less", "undecided": "cannot tell"}
    return (
        Cell(pair.option.label),
        Cell(pair.other.label),
        mean_cell(pair.gain, note=quantities.sample_size(pair.gain)),
        mean_cell(pair.kept, note=quantities.sample_size(pair.kept)),
        Cell(answers[pair.answer]),
    )


def _agreement_cells(row: AgreementWithFull) -> tuple[Cell, ...]:
    return (
        Cell(model_name(row)),
        _share_cell(row.same_outcome),
        EMPTY if row.kappa is None else _kappa_cell(row.kappa),
        _share_cell(row.same_option),
        _share_cell(row.same_next_token),
        _share_cell(row.kl),
    )


def _share_cell(mean: TaskMean | None) -> Cell:
    note = "" if mean is None else quantities.sample_size(mean)
    return mean_cell(mean, signed=False, note=note)


def _kappa_cell(kappa: Bound) -> Cell:
    interval = f"{quantities.ratio(kappa.lower)} to {quantities.ratio(kappa.upper)}"
    return Cell(quantities.ratio(kappa.estimate), interval)


def _trend_cells(trend: RankTrend) -> tuple[Cell, ...]:
    size = quantities.sample_size(trend)
    unit = "nats" if trend.unit == "nats" else "points"
    return (
        Cell(TREND_NAMES[trend.of], "", f"{unit}, {size}"),
        Cell(quantities.count(trend.smallest_rank)),
        Cell(quantities.count(trend.largest_rank)),
        _bound_cell(trend.change, trend.unit),
        Cell(_CLAIMS[trend.of]),
        Cell(trend.answer),
    )


def _bound_cell(bound: Bound, unit: Unit) -> Cell:
    return Cell(
        quantities.change(bound.estimate, unit),
        quantities.change_interval(bound.lower, bound.upper, unit),
    )


def _mean_row(mean: TaskMean | None, name: str) -> dict[str, Any]:
    return {**mean_row(mean, name), f"{name}_n": None if mean is None else mean.num_examples}


def _bound_row(bound: Bound | None, name: str) -> dict[str, Any]:
    return {
        name: None if bound is None else bound.estimate,
        f"{name}_lower": None if bound is None else bound.lower,
        f"{name}_upper": None if bound is None else bound.upper,
    }
