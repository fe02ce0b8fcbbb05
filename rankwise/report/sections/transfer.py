"""The cross-domain matrix on the page: what each trained model gains or loses elsewhere."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rankwise.findings.options import OptionName, TaskMean
from rankwise.findings.statements import TRANSFER_ALARM_SHARE
from rankwise.findings.transfer import DomainMean, Transfer, TransferCell, TransferRow
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.charts.heatmap import (
    LABEL_FONT,
    HeatCell,
    HeatColumn,
    HeatLook,
    HeatRow,
    Key,
    cut,
    heat_map,
)
from rankwise.report.charts.theme import (
    ALARM,
    FONT_SIZE,
    GAIN_STEPS,
    INK,
    LOSS_STEPS,
    MUTED,
    PAGE,
    UNSHOWN,
)
from rankwise.report.parts import (
    EMPTY,
    Cell,
    Chart,
    Figure,
    ReportSection,
    Table,
    TitledTable,
    TrainedTask,
    file_name,
    grouped_table,
)
from rankwise.report.summaries import RELATION_NAMES

MOST_COLUMNS = 16
"""More columns than this cannot be read side by side; the rest is in the table."""

MOST_ALARMS = 5
"""This many are named in words, those with the largest drop for their base first."""

STEP_ENDS = (2.0, 5.0, 10.0, 20.0)
"""Points at which the colour changes; the same in every study."""

_WIDE_FROM = 560.0
_NO_DOMAIN = "no domain named"
_ROW_LETTERS, _LONGEST_ROW = 20, 34
_COLUMN_LETTERS, _COLUMN_LINES = 12, 3
_LOOK = HeatLook(
    cell=(76.0, 36.0),
    gap=2.0,
    group_gap=12.0,
    label_size=LABEL_FONT,
    label_colour=INK,
    label_gap=6.0,
    text_size=FONT_SIZE,
)

Measured = TransferCell | DomainMean


class _Column(NamedTuple):
    """A test task, or the mean of a domain, whose ``tasks`` are None."""

    name: str
    domain: str | None
    tasks: tuple[str, ...] | None

    @property
    def is_mean(self) -> bool:
        return self.tasks is None


def transfer_section(found: Transfer) -> ReportSection:
    """A matrix for each option, or one of all options where one task was trained on."""
    columns = _columns(found)
    tasks = [(row, TrainedTask(row.name, len(found.rows) > 1)) for row in found.rows]
    remarks = [
        "What a model trained on one task gains (+) or loses (−) on the others, in points of "
        "the task's own metric (accuracy where there are options), averaged over seeds and paired "
        "over the same items. Intervals are "
        f"{quantities.percent(found.confidence)}, one at a time, and exploratory: among many, "
        "some miss.",
        _alarm_remark(found),
    ]
    if any(column.domain for column in found.columns):
        remarks.append(
            "A domain's mean counts each of its tasks the same and leaves out the trained task."
        )
    for name, labels in found.left_out.items():
        remarks += cells.left_out(labels, TrainedTask(name, len(found.rows) > 1).after)
    return ReportSection(
        name="transfer",
        title="On other tasks and domains",
        remarks=remarks,
        figures=list(_figures(found, columns)),
        tables=[TitledTable(task.heading, _table(found, row, columns)) for row, task in tasks],
        files={"transfer.csv": cells.csv_text(_rows(found))},
    )


def _alarm_remark(found: Transfer) -> str:
    share = quantities.percent(TRANSFER_ALARM_SHARE)
    alarms = [cell for cell in found.cells if cell.is_alarm]
    if not alarms:
        return (
            f"No negative transfer: no task outside the trained domain is shown to drop by more "
            f"than {share} of the base's score."
        )
    worst = sorted(alarms, key=lambda cell: cell.change.upper / cell.base_score.estimate)
    parts = [
        f"{cell.label}{f' trained on {cell.train_task}' if len(found.rows) > 1 else ''} on "
        f"{quantities.listed(cell.tasks)} {cells.in_words(cell.change)}, base "
        f"{quantities.score(cell.base_score.estimate, 'points')}"
        for cell in worst[:MOST_ALARMS]
    ]
    if len(alarms) > MOST_ALARMS:
        parts.append(f"and {len(alarms) - MOST_ALARMS} more, marked below")
    return (
        f"Negative transfer, a drop of over {share} of the base's score at its lower bound: "
        f"{'; '.join(parts)}."
    )


def _columns(found: Transfer) -> list[_Column]:
    """Test tasks by domain, and after those of a domain its mean."""
    columns: list[_Column] = []
    averaged = {mean.domain for mean in found.domain_means}
    for domain, own in itertools.groupby(found.columns, key=lambda column: column.domain):
        columns += [_Column(column.name, domain, column.tasks) for column in own]
        if domain in averaged:
            columns.append(_Column("mean", domain, None))
    return columns


def _at(found: Transfer, row: TransferRow, label: str, column: _Column) -> Measured | None:
    """What was measured there, if anything."""
    measured: Sequence[Measured] = found.cells
    if column.is_mean:
        measured = [mean for mean in found.domain_means if mean.domain == column.domain]
    for cell in measured:
        is_there = column.is_mean or cell.tasks == column.tasks
        if is_there and (cell.train_task, cell.label) == (row.name, label):
            return cell
    return None


def _figures(found: Transfer, columns: Sequence[_Column]) -> Iterator[Figure]:
    shown = columns[:MOST_COLUMNS]

    def measured(row: TransferRow, option: OptionName) -> list[Measured | None]:
        return [_at(found, row, option.label, column) for column in shown]

    if len(found.rows) == 1:
        (row,) = found.rows
        options = cells.drawn_options(found.options, most=24)
        rows = [("", option.label, measured(row, option)) for option in options]
        yield _figure(found, "transfer", "Change on every task", rows, columns)
        return
    is_named = any(row.domain for row in found.rows)
    for option in cells.drawn_options(found.options):
        rows = [
            ((row.domain or _NO_DOMAIN) if is_named else "", row.name, measured(row, option))
            for row in found.rows
        ]
        name = f"transfer-{file_name(option.label)}"
        title = f"Trained on (rows), tested on (columns): {option.label}"
        yield _figure(found, name, title, rows, columns)


def _figure(
    found: Transfer,
    name: str,
    title: str,
    rows: Sequence[tuple[str, str, Sequence[Measured | None]]],
    columns: Sequence[_Column],
) -> Figure:
    """A matrix; ``rows`` are their group, their label, and what was measured."""
    sizes = sorted({cell.change.num_examples for cell in found.cells})
    size = quantities.size(sizes[0])
    size += f" to {quantities.count(sizes[-1])}" if len(sizes) > 1 else ""
    caption = "Muted cells have an interval that contains zero. A frame marks the trained task."
    if any(_is_alarm(cell) for *_, measured in rows for cell in measured):
        caption += " ▼ in a red frame is negative transfer."
    shown = columns[:MOST_COLUMNS]
    if len(columns) > len(shown):
        caption += f" {len(columns) - len(shown)} more columns are in the table."
    left_out = len(found.options) - len(rows)
    if len(found.rows) == 1 and left_out > 0:
        caption += f" {left_out} more options are in the table."
    words = [
        f"{label}: "
        + "; ".join(
            f"{f'{column.domain} mean' if column.is_mean else column.name} "
            f"{cells.in_words(cell.change)}"
            for column, cell in zip(shown, measured, strict=True)
            if cell is not None
        )
        for _, label, measured in rows
    ]
    chart: Any = _chart(rows, shown)
    return Figure(
        name,
        title,
        caption,
        f"{'. '.join(words)}.",
        chart,
        f"adapted {quantities.MINUS} base in points with {quantities.percent(found.confidence)} "
        f"intervals; {size} in a column",
        is_wide=chart.width > _WIDE_FROM,
        letters=(100, 100),
    )


def _chart(
    rows: Sequence[tuple[str, str, Sequence[Measured | None]]], columns: Sequence[_Column]
) -> Chart:
    is_named = any(column.domain or column.is_mean for column in columns)
    heads = [
        HeatColumn(
            (column.domain or _NO_DOMAIN) if is_named else "",
            wrapped(column.name, _COLUMN_LETTERS, _COLUMN_LINES),
            column.is_mean,
        )
        for column in columns
    ]
    body = [
        HeatRow(
            group,
            _row_lines(label),
            tuple(_heat_cell(*pair) for pair in zip(measured, columns, strict=True)),
        )
        for group, label, measured in rows
    ]
    shown = [cell for *_, measured in rows for cell in measured]
    words = [("points", MUTED)]
    words += [("framed: trained on", INK)] if any(map(_is_own, shown)) else []
    words += [("▼ negative transfer", ALARM)] if any(map(_is_alarm, shown)) else []
    ends = [*(-end for end in reversed(STEP_ENDS)), 0.0, *STEP_ENDS]
    key = Key(
        "",
        [*reversed(LOSS_STEPS), *GAIN_STEPS],
        [quantities.change(end, "points").removesuffix(".0") for end in ends],
        (34.0, 12.0),
        [(UNSHOWN, "interval holds 0")],
    )
    return heat_map(body, heads, [key], _LOOK, words)


def _is_own(cell: Measured | None) -> bool:
    return isinstance(cell, TransferCell) and cell.relation == "in_domain"


def _is_alarm(cell: Measured | None) -> bool:
    return isinstance(cell, TransferCell) and cell.is_alarm


def _heat_cell(cell: Measured | None, column: _Column) -> HeatCell | None:
    """A cell whose interval holds zero has no colour and muted text."""
    if cell is None:
        return None if column.is_mean else HeatCell("", quantities.NOT_MEASURED, MUTED.light)
    change = cell.change
    colour, ink = step_colour(change)
    return HeatCell(
        colour,
        f"{'▼ ' if _is_alarm(cell) else ''}{quantities.change(change.estimate, change.unit)}",
        ink,
        quantities.change_interval(change.lower, change.upper, change.unit),
        ALARM.light if _is_alarm(cell) else INK.light if _is_own(cell) else "",
        is_bold=bool(change.sign()),
    )


def step_colour(mean: TaskMean) -> tuple[str, str]:
    """The colour of a difference's cell and of the text on it."""
    if mean.sign() == 0:
        return UNSHOWN.light, MUTED.light
    steps = GAIN_STEPS if mean.estimate > 0 else LOSS_STEPS
    step = sum(abs(mean.estimate) >= end for end in STEP_ENDS)
    return steps[step].light, (INK if step < len(steps) - 2 else PAGE).light


def _row_lines(text: str) -> tuple[str, ...]:
    """Two lines at most, which may be longer where the text is."""
    letters = min(max(_ROW_LETTERS, len(text) // 2 + 6), _LONGEST_ROW)
    return (text,) if len(text) <= _ROW_LETTERS else wrapped(text, letters, 2)


def wrapped(text: str, letters: int, most: int) -> tuple[str, ...]:
    """A text broken into lines after spaces, hyphens and underscores; both counts are limits."""
    lines = [""]
    for piece in re.findall(r"[^ _-]*[ _-]|[^ _-]+", text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > letters:
            lines.append("")
        lines[-1] += piece
    lines = [cut(line.strip(), letters) for line in lines]
    return tuple(lines if len(lines) <= most else [*lines[: most - 1], f"…{lines[-1]}"])


def _table(found: Transfer, row: TransferRow, columns: Sequence[_Column]) -> Table:
    """One row for each column of the matrix, one column for each option."""
    is_named = any(column.domain for column in found.columns)
    groups: dict[str, list[list[Cell]]] = {}
    for column in columns:
        measured = [_at(found, row, option.label, column) for option in found.options]
        first = next((cell for cell in measured if cell is not None), None)
        if first is None:
            continue
        group = (column.domain or _NO_DOMAIN) if is_named else ""
        groups.setdefault(group, []).append([*_row_head(first, column), *map(_change, measured)])
    caption = (
        f"Trained on {row.name}{f' ({row.domain})' if row.domain else ''}: change from the base in "
        f"points, seeds averaged, {quantities.percent(found.confidence)} intervals."
    )
    rows = [(group, "", own) for group, own in groups.items()]
    return grouped_table(caption, cells.option_columns("Tested on", found.options), rows)


def _row_head(measured: Measured, column: _Column) -> tuple[Cell, Cell]:
    """What the column is, and the base's score there."""
    size = quantities.sample_size(measured.change)
    if isinstance(measured, DomainMean):
        tasks = quantities.counted(len(measured.tasks), "task")
        return Cell("mean", "", f"{tasks}, {size}"), EMPTY
    note = f"{RELATION_NAMES[measured.relation]}, {size}"
    return Cell(column.name, "", note), cells.mean(measured.base_score, signed=False)


def _change(measured: Measured | None) -> Cell:
    note = "negative transfer" if _is_alarm(measured) else ""
    return EMPTY if measured is None else cells.mean(measured.change, note=note)


def _rows(found: Transfer) -> Iterator[dict[str, Any]]:
    """One row for each option, trained task and column, means of domains included."""
    columns = {column.tasks: column for column in found.columns}
    for cell in (*found.cells, *found.domain_means):
        is_mean = isinstance(cell, DomainMean)
        yield {
            "train_task": cell.train_task,
            "option": cell.label,
            "test": "mean" if is_mean else columns[cell.tasks].name,
            "domain": cell.domain if is_mean else columns[cell.tasks].domain,
            "relation": None if is_mean else cell.relation,
            "tasks": " ".join(cell.tasks),
            "num_examples": cell.change.num_examples,
            "num_seeds": cell.change.num_seeds,
            **cells.csv_row(None if is_mean else cell.base_score, "base_score"),
            **cells.csv_row(cell.change, "change"),
            "negative_transfer": None if is_mean else cell.is_alarm,
        }
