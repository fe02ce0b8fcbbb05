"""Knowledge retention on the page: by group of subjects, and by subject."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from rankwise.findings.retention import RetentionLine, SubjectChange, TrainTaskRetention
from rankwise.records import quantities
from rankwise.report.changes import drawn_options, left_out_remark, mean_row, mean_words
from rankwise.report.charts.subjects import SubjectRow, subject_chart
from rankwise.report.charts.theme import theme
from rankwise.report.parts import (
    Cell,
    Figure,
    Heading,
    ReportSection,
    RowGroup,
    Table,
    TitledTable,
    file_name,
)
from rankwise.report.summaries import mean_cell
from rankwise.report.tables.csv import csv_text

MOST_SUBJECTS = 20
"""More subjects than this are too many to draw; those with the largest loss are."""

_TITLE_WIDTH, _SUBTITLE_WIDTH = 40, 52


def retention_section(found: Sequence[TrainTaskRetention]) -> ReportSection:
    """A chart and a table for each trained task.

    Args:
        found: at least one.
    """
    several = len(found) > 1
    confidence = quantities.percent(found[0].confidence)
    remarks = [
        "Change from the base on the retention tasks in points, seeds averaged, paired over the "
        "same items. A group's change counts each of its tasks the same; their items are "
        f"independent, so variances add. Intervals are {confidence}, one at a time: exploratory.",
    ]
    lines = [line for each in found for line in (*each.groups, *each.subjects)]
    if any(line.base_score_by_items is not None for line in lines):
        remarks.append(
            "The mean over items, as lm-evaluation-harness aggregates groups such as mmlu, is "
            "given next to the mean over tasks. The mean over items decides nothing; the "
            "recommendation takes the mean over all retention tasks."
        )
    for part in found:
        where = f", trained on {part.train_task}" if several else ""
        remarks += left_out_remark(part.left_out, where)
    return ReportSection(
        name="retention-by-subject",
        title="Knowledge retention by subject",
        remarks=tuple(remarks),
        figures=tuple(_figure(each, several) for each in found),
        tables=tuple(
            TitledTable(f"Trained on {each.train_task}" if several else "Every number", table)
            for each in found
            for table in (_table(each),)
        ),
        files={"retention.csv": csv_text(_rows(found))},
    )


def _figure(found: TrainTaskRetention, several: bool) -> Figure:
    options = drawn_options(found.options)
    labels = {option.label for option in options}
    subjects = sorted(found.subjects, key=lambda line: _worst(line, labels))
    drawn = [*found.groups, *subjects[:MOST_SUBJECTS]]
    rows = [
        SubjectRow(
            line.name,
            f"base {quantities.score(line.base_score.estimate, line.base_score.unit)}, "
            f"{quantities.sample_size(line.base_score)}",
            is_group=line in found.groups,
            changes={change.label: change.change for change in line.changes},
        )
        for line in drawn
    ]
    size = quantities.sample_size(found.groups[0].base_score)
    subtitle = (
        f"{size} in {len(found.subjects)} tasks; bars are {quantities.percent(found.confidence)} "
        "intervals"
    )
    title = "Change on retention tasks, worst first"
    title += f": trained on {found.train_task}" if several else ""
    wrapped = textwrap.wrap(subtitle, _SUBTITLE_WIDTH)
    heading = textwrap.wrap(title, _TITLE_WIDTH)
    chart = subject_chart(
        rows,
        options,
        "Change (points; left is forgotten)",
        alt.TitleParams(heading, subtitle=wrapped),
    )
    caption = (
        "Left of zero is worse than the base. Groups in bold are means over their tasks; below "
        "them single tasks, that with the largest loss of any option first."
    )
    if len(subjects) > MOST_SUBJECTS:
        caption += f" {len(subjects) - MOST_SUBJECTS} more are in the table."
    if len(options) < len(found.options):
        more = len(found.options) - len(options)
        verb = "is" if more == 1 else "are"
        caption += f" {quantities.counted(more, 'more option')} {verb} in the table."
    words = [
        f"{row.name}, {row.detail}: "
        + "; ".join(
            f"{label} {mean_words(mean)}" for label, mean in row.changes.items() if label in labels
        )
        for row in rows
    ]
    name = "retention-by-subject"
    name += f"-{file_name(found.train_task)}" if several else ""
    return Figure(name, title, caption, f"{'. '.join(words)}.", chart.configure(**theme()))


def _worst(line: RetentionLine, labels: Iterable[str]) -> float:
    return min(change.change.estimate for change in line.changes if change.label in labels)


def _table(found: TrainTaskRetention) -> Table:
    headings = (
        Heading("Task or group"),
        Heading("Base", "points"),
        *(Heading(option.label, "change") for option in found.options),
    )
    groups = tuple(row for line in found.groups for row in _line_rows(line))
    subjects = tuple(row for line in found.subjects for row in _line_rows(line))
    caption = (
        f"Trained on {found.train_task}: base score and change from it in points, seeds averaged, "
        f"{quantities.percent(found.confidence)} intervals."
    )
    return Table(
        caption, headings, (RowGroup("Groups", "", groups), RowGroup("Tasks", "", subjects))
    )


def _line_rows(line: RetentionLine) -> list[tuple[Cell, ...]]:
    """The mean over tasks, and below it that over items where that is another one."""
    size = quantities.sample_size(line.base_score)
    several = len(line.tasks) > 1
    note = f"mean over {len(line.tasks)} tasks, {size}" if several else size
    rows = [
        (
            Cell(line.name, "", note),
            mean_cell(line.base_score, signed=False),
            *(mean_cell(change.change) for change in line.changes),
        )
    ]
    if line.base_score_by_items is not None:
        rows.append(
            (
                Cell(line.name, "", "mean over items; decides nothing"),
                mean_cell(line.base_score_by_items, signed=False),
                *(mean_cell(each.by_items) for each in line.changes),
            )
        )
    return rows


def _rows(found: Sequence[TrainTaskRetention]) -> Iterable[dict[str, Any]]:
    """One row for each trained task, group or task, and option."""
    for part in found:
        for line in (*part.groups, *part.subjects):
            for change in line.changes:
                yield _row(part.train_task, line, change)


def _row(train_task: str, line: RetentionLine, change: SubjectChange) -> dict[str, Any]:
    return {
        "train_task": train_task,
        "name": line.name,
        "tasks": " ".join(line.tasks),
        "option": change.label,
        "num_examples": change.change.num_examples,
        "num_seeds": change.change.num_seeds,
        **mean_row(line.base_score, "base_score"),
        **mean_row(change.change, "change"),
        **mean_row(line.base_score_by_items, "base_score_by_items"),
        **mean_row(change.by_items, "change_by_items"),
    }
