"""Repairs against forgetting on the page: what each gains, keeps and costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rankwise.findings.mitigations import Arm, MitigatedOption, TrainTaskMitigations
from rankwise.findings.shares import NO_SHARE
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.charts.arms import arm_chart
from rankwise.report.parts import (
    Column,
    Figure,
    ReportSection,
    Table,
    TitledTable,
    TrainedTask,
    grouped_table,
)

MOST_FIGURES = 6
"""More options than this are too many to draw."""


def mitigation_section(found: Sequence[TrainTaskMitigations]) -> ReportSection:
    """A plane for each option, and a table for each trained task.

    Args:
        found: at least one.
    """
    tasks = TrainedTask.each(found)
    remarks = [
        "Each arm trains the run once more with one thing changed. A lower learning rate forgets "
        "less and gains less, and costs nothing: it is what every other arm has to beat. An arm "
        "is set against the line through the run as trained, its lower rates and the base, at the "
        "arm's own retention. The recommendation does not rest on this. Intervals are "
        f"{quantities.percent(found[0].confidence)}, one at a time; what is said to gain more or "
        "less is corrected for the number of arms (Holm).",
        *(
            f"{task.before}{statement}"
            for part, task in tasks
            for option in part.options
            for statement in option.statements
        ),
    ]
    for part, task in tasks:
        remarks += cells.left_out(part.left_out, task.after)
    return ReportSection(
        name="mitigations",
        title="What to do about forgetting",
        remarks=remarks,
        figures=[figure for part, task in tasks for figure in task.figures("arms", _figures(part))],
        tables=[TitledTable(task.heading, _table(part)) for part, task in tasks if part.options],
        files={"mitigations.csv": cells.csv_text(_rows(found))},
    )


def _figures(found: TrainTaskMitigations) -> Iterator[Figure]:
    for place, option in enumerate(found.options[:MOST_FIGURES], start=1):
        first = option.arms[0]
        words = [
            f"{arm.label}: gain {cells.in_words(arm.gain)}, retention "
            f"{cells.in_words(arm.retention)}"
            for arm in option.arms
        ]
        yield Figure(
            str(place),
            f"Gain against retention, {option.source.label}",
            "The line goes from the run as trained over its lower rates to the base. An arm above "
            "it gains more than a lower rate does at the same retention. Bars are of each change "
            "from the base; arms share their items, so the differences in the table vary less. "
            "The dashed line is ε, the largest loss that is accepted.",
            f"{'; '.join(words)}.",
            arm_chart(option.arms, first.gain.unit, found.epsilon_points),
            f"{quantities.sample_size(first.gain, 'items')} in-domain, "
            f"{quantities.sample_size(first.retention, 'items')} of retention; bars are "
            f"{quantities.percent(found.confidence)} intervals",
        )


def _table(found: TrainTaskMitigations) -> Table:
    columns: list[Column[Arm]] = [
        Column("Arm", lambda row: row.label),
        Column("Gain", lambda row: cells.mean(row.gain, has_size=True), found.unit),
        Column("Kept", lambda row: cells.share(row.kept_gain), "of the gain as trained"),
        Column("Retention", lambda row: cells.mean(row.retention, has_size=True), "change, points"),
        Column("Regained", lambda row: cells.share(row.regained), "of the retention loss"),
        Column(
            "Above lower rates",
            lambda row: cells.mean(
                row.above_rates, note="" if row.is_told_apart else "not told apart"
            ),
            f"gain at its retention, {found.unit}",
        ),
        Column("Tokens", lambda row: cells.count(row.num_tokens), "of each seed"),
        Column("Training", lambda row: quantities.seconds(row.train_seconds), "all seeds"),
    ]
    caption = (
        f"Trained on {found.train_task}: changes from the base, seeds averaged, paired over the "
        f"same items, {quantities.percent(found.confidence)} intervals."
    )
    groups = [(option.source.label, _seeds(option), option.arms) for option in found.options]
    return grouped_table(caption, columns, groups)


def _seeds(option: MitigatedOption) -> str:
    return quantities.counted(option.num_seeds, "seed")


def _rows(found: Sequence[TrainTaskMitigations]) -> Iterator[dict[str, Any]]:
    for part in found:
        for option in part.options:
            for arm in option.arms:
                kept, regained = arm.kept_gain or NO_SHARE, arm.regained or NO_SHARE
                yield {
                    "train_task": part.train_task,
                    "option": option.source.label,
                    "arm": arm.label,
                    "num_seeds": option.num_seeds,
                    "num_tokens": arm.num_tokens,
                    "train_seconds": arm.train_seconds,
                    **cells.csv_row(arm.gain, "gain", cells.SIZE_AND_UNIT),
                    **cells.csv_row(kept, "kept_gain_share"),
                    **cells.csv_row(arm.retention, "retention", cells.SIZE_AND_UNIT),
                    **cells.csv_row(regained, "regained_share"),
                    **cells.csv_row(arm.above_rates, "above_rates"),
                    "is_told_apart": arm.is_told_apart,
                }
