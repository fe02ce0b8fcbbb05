"""Checkpoints on the page: what the runs gain and lose on their way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rankwise.findings.checkpoints import CheckpointPoint, TrainTaskCheckpoints
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.charts.ranks import MOST_VALUES, AxisMark, axis_chart
from rankwise.report.parts import (
    Column,
    Figure,
    ReportSection,
    Table,
    TitledTable,
    TrainedTask,
    grouped_table,
)


def checkpoint_section(found: Sequence[TrainTaskCheckpoints]) -> ReportSection:
    """Two charts and a table for each trained task.

    Args:
        found: at least one.
    """
    tasks = TrainedTask.each(found)
    confidence = quantities.percent(found[0].confidence)
    remarks = [
        "Runs are scored on their way too. Which step is best is chosen on validation items, and "
        f"compared with the end on test items, paired. Intervals are {confidence}, one at a time: "
        "exploratory. The recommendation is about the ends.",
        *(f"{task.before}{choice.statement}" for part, task in tasks for choice in part.choices),
    ]
    return ReportSection(
        name="checkpoints",
        title="On the way: checkpoints",
        remarks=remarks,
        figures=[
            figure for part, task in tasks for figure in task.figures("checkpoints", _figures(part))
        ],
        tables=[TitledTable(task.heading, _table(part)) for part, task in tasks],
        files={"checkpoints.csv": cells.csv_text(_rows(found))},
    )


def _step(point: CheckpointPoint) -> str:
    """As a value beside rank: the share of the steps, the same for every option."""
    return quantities.percent(round(point.step / point.num_steps, 3))


def _figures(found: TrainTaskCheckpoints) -> Iterator[Figure]:
    for kind, title in (("gain", "In-domain gain"), ("retention", "Change on retention tasks")):
        marks = [
            AxisMark("", point.option.rank, _step(point), mean)
            for point in found.points
            if point.option.rank is not None
            and (mean := point.gain if kind == "gain" else point.retention) is not None
        ]
        values = sorted({mark.value for mark in marks}, key=lambda text: float(text[:-2]))
        if not marks or len(values) > MOST_VALUES:
            continue
        first = next(
            mean
            for point in found.points
            if (mean := point.gain if kind == "gain" else point.retention) is not None
        )
        words = [
            f"rank {point.option.rank} after {_step(point)} {cells.in_words(mean)}"
            for point in found.points
            if (mean := point.gain if kind == "gain" else point.retention) is not None
        ]
        yield Figure(
            kind,
            f"{title} by rank and share of the steps",
            "Above zero is better than the base. The last share is the end of the training.",
            f"{'; '.join(words)}.",
            axis_chart(marks, values, "steps", f"Change ({cells.unit_name(first.unit)})"),
            f"{quantities.sample_size(first, 'items')}; bars are "
            f"{quantities.percent(found.confidence)} intervals",
            letters=(46, 64),
        )


def _table(found: TrainTaskCheckpoints) -> Table:
    chosen = {(choice.option.label, choice.step) for choice in found.choices}
    columns: list[Column[CheckpointPoint]] = [
        Column("Step", lambda row: f"{quantities.count(row.step)} of {row.num_steps}"),
        Column("Gain", lambda row: cells.mean(row.gain), "test items"),
        Column("Retention", lambda row: cells.mean(row.retention), "test items"),
        Column(
            "Worth", lambda row: quantities.formatted(row.validation_worth, "+.1f"), "validation"
        ),
        Column(
            "Chosen",
            lambda row: "yes" if (row.option.label, row.step) in chosen else "",
            is_text=True,
        ),
    ]
    labels = dict.fromkeys(point.option.label for point in found.points)
    groups = [
        (label, "", [point for point in found.points if point.option.label == label])
        for label in labels
    ]
    caption = (
        f"Trained on {found.train_task}: change from the base after so many steps. Worth is the "
        "gain less twice the retention loss beyond ε, on validation items."
    )
    return grouped_table(caption, columns, groups)


def _rows(found: Sequence[TrainTaskCheckpoints]) -> Iterator[dict[str, Any]]:
    """One row for each option and step."""
    for part in found:
        for point in part.points:
            yield {
                "train_task": part.train_task,
                "option": point.option.label,
                "rank": point.option.rank,
                "step": point.step,
                "num_steps": point.num_steps,
                "validation_worth": point.validation_worth,
                **cells.csv_row(point.gain, "gain", cells.SIZE_AND_UNIT),
                **cells.csv_row(point.retention, "retention", cells.SIZE_AND_UNIT),
            }
