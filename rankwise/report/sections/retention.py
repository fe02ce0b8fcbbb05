"""Knowledge retention on the page: by group of subjects, and by subject."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rankwise.findings.retention import RetentionLine, TrainTaskRetention
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.charts.intervals import SubjectRow, subject_chart
from rankwise.report.parts import (
    Cell,
    Figure,
    ReportSection,
    Table,
    TitledTable,
    TrainedTask,
    file_name,
    grouped_table,
)

MOST_SUBJECTS = 20
"""More subjects than this are too many to draw; those with the largest loss are."""


def retention_section(found: Sequence[TrainTaskRetention]) -> ReportSection:
    """A chart and a table for each trained task.

    Args:
        found: at least one.
    """
    tasks = TrainedTask.each(found)
    confidence = quantities.percent(found[0].confidence)
    remarks = [
        "Change from the base on the retention tasks in points, seeds averaged, paired over the "
        "same items. A group's change counts each of its tasks the same; their items are "
        f"independent, so variances add. Intervals are {confidence}, one at a time: exploratory."
    ]
    lines = [line for part in found for line in (*part.groups, *part.subjects)]
    if any(line.base_score_by_items is not None for line in lines):
        remarks.append(
            "The mean over items, as lm-evaluation-harness aggregates groups such as mmlu, is "
            "given next to the mean over tasks. The mean over items decides nothing; the "
            "recommendation takes the mean over all retention tasks."
        )
    for part, task in tasks:
        remarks += cells.left_out(part.left_out, task.after)
    return ReportSection(
        name="retention-by-subject",
        title="Knowledge retention by subject",
        remarks=remarks,
        figures=[_figure(part, task) for part, task in tasks],
        tables=[TitledTable(task.heading, _table(part)) for part, task in tasks],
        files={"retention.csv": cells.csv_text(_rows(found))},
    )


def _figure(found: TrainTaskRetention, task: TrainedTask) -> Figure:
    options = cells.drawn_options(found.options)
    labels = {option.label for option in options}
    subjects = sorted(found.subjects, key=lambda line: _worst(line, labels))
    rows = [
        SubjectRow(
            line.name,
            f"base {quantities.score(line.base_score.estimate, line.base_score.unit)}, "
            f"{quantities.sample_size(line.base_score)}",
            is_group=line in found.groups,
            changes={change.label: change.change for change in line.changes},
        )
        for line in (*found.groups, *subjects[:MOST_SUBJECTS])
    ]
    caption = (
        "Left of zero is worse than the base. Groups in bold are means over their tasks; below "
        "them single tasks, that with the largest loss of any option first."
    )
    if len(subjects) > MOST_SUBJECTS:
        caption += f" {len(subjects) - MOST_SUBJECTS} more are in the table."
    more = len(found.options) - len(options)
    if more:
        verb = "is" if more == 1 else "are"
        caption += f" {quantities.counted(more, 'more option')} {verb} in the table."
    words = [
        f"{row.name}, {row.detail}: "
        + "; ".join(
            f"{label} {cells.in_words(mean)}"
            for label, mean in row.changes.items()
            if label in labels
        )
        for row in rows
    ]
    name, title = "retention-by-subject", "Change on retention tasks, worst first"
    if task.is_named:
        name, title = f"{name}-{file_name(task.name)}", f"{title}: trained on {task.name}"
    size = quantities.sample_size(found.groups[0].base_score)
    confidence = quantities.percent(found.confidence)
    return Figure(
        name,
        title,
        caption,
        f"{'. '.join(words)}.",
        subject_chart(rows, options, "Change (points; left is forgotten)"),
        f"{size} in {len(found.subjects)} tasks; bars are {confidence} intervals",
        letters=(40, 52),
    )


def _worst(line: RetentionLine, labels: Iterable[str]) -> float:
    return min(change.change.estimate for change in line.changes if change.label in labels)


def _table(found: TrainTaskRetention) -> Table:
    caption = (
        f"Trained on {found.train_task}: base score and change from it in points, seeds averaged, "
        f"{quantities.percent(found.confidence)} intervals."
    )
    groups = [
        (title, "", [row for line in lines for row in _table_rows(line)])
        for title, lines in (("Groups", found.groups), ("Tasks", found.subjects))
    ]
    return grouped_table(caption, cells.option_columns("Task or group", found.options), groups)


def _table_rows(line: RetentionLine) -> Iterator[list[Cell]]:
    """The mean over tasks, and below it that over items where that is another one."""
    size = quantities.sample_size(line.base_score)
    note = f"mean over {len(line.tasks)} tasks, {size}" if len(line.tasks) > 1 else size
    yield [
        Cell(line.name, "", note),
        cells.mean(line.base_score, signed=False),
        *(cells.mean(change.change) for change in line.changes),
    ]
    if line.base_score_by_items is not None:
        yield [
            Cell(line.name, "", "mean over items; decides nothing"),
            cells.mean(line.base_score_by_items, signed=False),
            *(cells.mean(change.by_items) for change in line.changes),
        ]


def _rows(found: Sequence[TrainTaskRetention]) -> Iterator[dict[str, Any]]:
    """One row for each trained task, group or task, and option."""
    for part in found:
        for line in (*part.groups, *part.subjects):
            for change in line.changes:
                yield {
                    "train_task": part.train_task,
                    "name": line.name,
                    "tasks": " ".join(line.tasks),
                    "option": change.label,
                    "num_examples": change.change.num_examples,
                    "num_seeds": change.change.num_seeds,
                    **cells.csv_row(line.base_score, "base_score"),
                    **cells.csv_row(change.change, "change"),
                    **cells.csv_row(line.base_score_by_items, "base_score_by_items"),
                    **cells.csv_row(change.by_items, "change_by_items"),
                }
