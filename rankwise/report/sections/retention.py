"""Knowledge retention on the page: by group of subjects, and by subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankwise.findings.retention import RetentionLine, TrainTaskRetention
from rankwise.records import quantities
from rankwise.records.axes import Kind
from rankwise.report import cells
from rankwise.report.cells import Cell
from rankwise.report.charts.intervals import Bar, BarPanel, interval_chart, short_names
from rankwise.report.parts import Figure, ReportSection, Shown, Table, option_columns, shows

MOST_SUBJECTS = 20
"""More subjects than this are too many to draw; those with the largest loss are."""


@shows("retention")
def retention_section(found: Sequence[TrainTaskRetention], *_: object) -> ReportSection:
    """A chart and a table for each trained task."""
    about = [
        "Change from the base on the retention tasks in points, seeds averaged, paired over the "
        "same items. A group's change counts each of its tasks the same; their items are "
        "independent, so variances add. Intervals are "
        f"{quantities.percent(found[0].confidence)}, one at a time: exploratory."
    ]
    lines = [line for part in found for line in (*part.groups, *part.subjects)]
    if any(line.base_score_by_items is not None for line in lines):
        about.append(
            "The mean over items, as lm-evaluation-harness aggregates groups such as mmlu, is "
            "given next to the mean over tasks. The mean over items decides nothing; the "
            "recommendation takes the mean over all retention tasks."
        )
    return ReportSection.of(
        "retention-by-subject", "Knowledge retention by subject", about, found, _shown
    )


def _shown(found: TrainTaskRetention) -> Iterator[Shown]:
    yield _figure(found)
    lines = (*found.groups, *found.subjects)
    yield Table.of(
        f"Trained on {found.train_task}: base score and change from it in points, seeds averaged, "
        f"{cells.intervals(found.confidence)}.",
        [row for line in lines for row in _table_rows(line)],
        *option_columns("Task or group", (option.label for option in found.options)),
        by=lambda row: row[-1],
        file="retention",
        records=[(line, change) for line in lines for change in line.changes],
    )


def _figure(found: TrainTaskRetention) -> Figure:
    options = cells.drawn_options(found.options)
    kinds: dict[str, Kind] = {option.label: option.kind for option in options}
    subjects = sorted(
        found.subjects,
        key=lambda line: min(c.change.estimate for c in line.changes if c.label in kinds),
    )
    parts = {"Means of groups": found.groups, "Tasks": subjects[:MOST_SUBJECTS]}
    short = short_names(line.name for lines in parts.values() for line in lines)
    panels = [
        BarPanel(
            title,
            "Change (points; left is forgotten)",
            "points",
            [
                Bar(
                    f"{short[line.name]}\nbase {cells.mean(line.base_score, signed=False).value}, "
                    f"{quantities.sample_size(line.base_score)}",
                    change.label,
                    kinds[change.label],
                    change.change,
                    line.tasks[0] if len(line.tasks) == 1 else "",
                )
                for line in lines
                for change in line.changes
                if change.label in kinds
            ],
        )
        for title, lines in parts.items()
        if lines
    ]
    caption = (
        "Left of zero is worse than the base. Above are means over the tasks of a group; below "
        "them single tasks, that with the largest loss of any option first."
    )
    caption += cells.more(len(subjects) - MOST_SUBJECTS, "are in the table")
    if more := len(found.options) - len(options):
        verb = "is" if more == 1 else "are"
        caption += f" {quantities.counted(more, 'more option')} {verb} in the table."
    size = quantities.sample_size(found.groups[0].base_score)
    detail = f"{size} in {len(found.subjects)} tasks; bars are {cells.intervals(found.confidence)}"
    title = "Change on retention tasks, worst first"
    return Figure("", title, caption, interval_chart(panels), detail)


def _table_rows(line: RetentionLine) -> Iterator[list[Cell | str]]:
    """The mean over tasks, and below it that over items where that is another one; its group."""
    size, is_group = quantities.sample_size(line.base_score), len(line.tasks) > 1
    note = f"mean over {len(line.tasks)} tasks, {size}" if is_group else size
    means = [(note, line.base_score, [change.change for change in line.changes])]
    if (by_items := line.base_score_by_items) is not None:
        changes = [change.by_items for change in line.changes if change.by_items is not None]
        means.append(("mean over items; decides nothing", by_items, changes))
    for note, base, changes in means:
        score = cells.mean(base, signed=False)
        group = "Groups" if is_group else "Tasks"
        yield [Cell(line.name, "", note), score, *map(cells.mean, changes), group]
