"""The cross-domain matrix on the page: what each trained model gains or loses elsewhere."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from rankwise.findings.options import OptionName
from rankwise.findings.statements import TRANSFER_ALARM_SHARE
from rankwise.findings.transfer import (
    DomainMean,
    Transfer,
    TransferCell,
    TransferColumn,
    TransferRow,
)
from rankwise.records import quantities
from rankwise.report.changes import drawn_options, left_out_remark, mean_row, mean_words
from rankwise.report.charts.heatmap import HeatCell, HeatColumn, HeatRow, heatmap, heatmap_width
from rankwise.report.charts.theme import theme
from rankwise.report.parts import (
    EMPTY,
    Cell,
    Figure,
    Heading,
    ReportSection,
    RowGroup,
    Table,
    TitledTable,
    file_name,
)
from rankwise.report.summaries import RELATION_NAMES, mean_cell
from rankwise.report.tables.csv import csv_text

MOST_COLUMNS = 16
"""More columns than this cannot be read side by side; the rest is in the table."""

MOST_ALARMS = 5
"""This many are named in words, those with the largest drop for their base first."""

_WIDE_FROM = 560.0
_SUBTITLE_WIDTH = 100
_NO_DOMAIN = "no domain named"

_Column = TransferColumn | str
"""A column, or a domain whose mean it shows."""


def transfer_section(found: Transfer) -> ReportSection:
    """A matrix for each option, or one of all options where one task was trained on."""
    columns = _columns(found)
    alarms = [cell for cell in found.cells if cell.is_alarm]
    confidence = quantities.percent(found.confidence)
    several = len(found.rows) > 1
    remarks = [
        "What a model trained on one task gains (+) or loses (−) on the others, in points of "
        "the task's own metric (accuracy where there are options), "
        f"averaged over seeds and paired over the same items. Intervals are {confidence}, one at "
        "a time, and exploratory: among many, some miss.",
        _alarm_remark(alarms, several),
    ]
    if any(column.domain for column in found.columns):
        remarks.append(
            "A domain's mean counts each of its tasks the same and leaves out the trained task."
        )
    for name, labels in found.left_out.items():
        remarks += left_out_remark(labels, f", trained on {name}" if several else "")
    tables = tuple(
        TitledTable(
            f"Trained on {row.name}" if several else "Every number", _table(found, row, columns)
        )
        for row in found.rows
    )
    return ReportSection(
        name="transfer",
        title="On other tasks and domains",
        remarks=tuple(remarks),
        figures=_figures(found, columns),
        tables=tables,
        files={"transfer.csv": csv_text(_rows(found))},
    )


def _alarm_remark(alarms: Sequence[TransferCell], several: bool) -> str:
    share = quantities.percent(TRANSFER_ALARM_SHARE)
    if not alarms:
        return (
            f"No negative transfer: no task outside the trained domain is shown to drop by more "
            f"than {share} of the base's score."
        )
    worst = sorted(alarms, key=lambda cell: cell.change.upper / cell.base_score.estimate)
    parts = [
        f"{cell.label}{f' trained on {cell.train_task}' if several else ''} on "
        f"{quantities.listed(cell.tasks)} {mean_words(cell.change)}, base "
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
    for index, column in enumerate(found.columns):
        columns.append(column)
        after = found.columns[index + 1].domain if index + 1 < len(found.columns) else None
        if column.domain in averaged and after != column.domain:
            columns.append(column.domain or "")
    return columns


def _figures(found: Transfer, columns: Sequence[_Column]) -> tuple[Figure, ...]:
    shown = columns[:MOST_COLUMNS]
    heads = _heads(shown)
    if len(found.rows) == 1:
        rows = [
            HeatRow("", option.label, _heat_cells(found, found.rows[0], option, shown))
            for option in drawn_options(found.options, most=24)
        ]
        return (_figure(found, "transfer", "Change on every task", rows, heads, columns),)
    figures: list[Figure] = []
    named = any(row.domain for row in found.rows)
    for option in drawn_options(found.options):
        rows = [
            HeatRow(
                (row.domain or _NO_DOMAIN) if named else "",
                row.name,
                _heat_cells(found, row, option, shown),
            )
            for row in found.rows
        ]
        name = f"transfer-{file_name(option.label)}"
        title = f"Trained on (rows), tested on (columns): {option.label}"
        figures.append(_figure(found, name, title, rows, heads, columns))
    return tuple(figures)


def _figure(
    found: Transfer,
    name: str,
    title: str,
    rows: Sequence[HeatRow],
    heads: Sequence[HeatColumn],
    columns: Sequence[_Column],
) -> Figure:
    sizes = sorted({cell.change.num_examples for cell in found.cells})
    size = quantities.size(sizes[0])
    size += f" to {quantities.count(sizes[-1])}" if len(sizes) > 1 else ""
    subtitle = (
        f"adapted {quantities.MINUS} base in points with {quantities.percent(found.confidence)} "
        f"intervals; {size} in a column"
    )
    wrapped = textwrap.wrap(subtitle, _SUBTITLE_WIDTH)
    chart = heatmap(rows, heads, alt.TitleParams(title, subtitle=wrapped))
    caption = "Muted cells have an interval that contains zero. A frame marks the trained task."
    if any(cell.is_alarm for row in rows for cell in row.cells if cell is not None):
        caption += " ▼ in a red frame is negative transfer."
    if len(columns) > len(heads):
        caption += f" {len(columns) - len(heads)} more columns are in the table."
    left_out = len(found.options) - len(rows)
    if len(found.rows) == 1 and left_out > 0:
        caption += f" {left_out} more options are in the table."
    words = [
        f"{row.label}: "
        + "; ".join(
            f"{head.label if not head.is_mean else f'{head.group} mean'} {mean_words(cell.mean)}"
            for head, cell in zip(heads, row.cells, strict=True)
            if cell is not None
        )
        for row in rows
    ]
    wide = heatmap_width(rows, heads) > _WIDE_FROM
    return Figure(name, title, caption, f"{'. '.join(words)}.", chart.configure(**theme()), wide)


def _heads(columns: Sequence[_Column]) -> list[HeatColumn]:
    named = any(isinstance(column, str) or column.domain for column in columns)
    heads: list[HeatColumn] = []
    for column in columns:
        if isinstance(column, str):
            heads.append(HeatColumn(column, "mean", is_mean=True))
        else:
            heads.append(HeatColumn((column.domain or _NO_DOMAIN) if named else "", column.name))
    return heads


def _heat_cells(
    found: Transfer, row: TransferRow, option: OptionName, columns: Sequence[_Column]
) -> tuple[HeatCell | None, ...]:
    cells: list[HeatCell | None] = []
    for column in columns:
        at = _at(found, row, option.label, column)
        if at is None:
            cells.append(None)
        elif isinstance(at, DomainMean):
            cells.append(HeatCell(at.change))
        else:
            cells.append(HeatCell(at.change, at.relation == "in_domain", at.is_alarm))
    return tuple(cells)


def _at(
    found: Transfer, row: TransferRow, label: str, column: _Column
) -> TransferCell | DomainMean | None:
    """What was measured there, if anything."""
    if isinstance(column, str):
        means = (m for m in found.domain_means if m.domain == column)
        return next((m for m in means if (m.train_task, m.label) == (row.name, label)), None)
    cells = (cell for cell in found.cells if cell.tasks == column.tasks)
    return next((c for c in cells if (c.train_task, c.label) == (row.name, label)), None)


def _table(found: Transfer, row: TransferRow, columns: Sequence[_Column]) -> Table:
    """One row for each column of the matrix, one column for each option."""
    named = any(column.domain for column in found.columns)
    groups: dict[str, list[tuple[Cell, ...]]] = {}
    for column in columns:
        domain = column if isinstance(column, str) else (column.domain or _NO_DOMAIN)
        measured = [_at(found, row, option.label, column) for option in found.options]
        some = next((each for each in measured if each is not None), None)
        if some is None:
            continue
        cells = [_row_head(some, column), _base_cell(some)]
        for each in measured:
            alarm = isinstance(each, TransferCell) and each.is_alarm
            note = "negative transfer" if alarm else ""
            cells.append(EMPTY if each is None else mean_cell(each.change, note=note))
        groups.setdefault(domain if named else "", []).append(tuple(cells))
    headings = (
        Heading("Tested on"),
        Heading("Base", "points"),
        *(Heading(option.label, "change") for option in found.options),
    )
    caption = (
        f"Trained on {row.name}{f' ({row.domain})' if row.domain else ''}: change from the base in "
        f"points, seeds averaged, {quantities.percent(found.confidence)} intervals."
    )
    rows = tuple(RowGroup(name, "", tuple(its)) for name, its in groups.items())
    return Table(caption, headings, rows)


def _row_head(at: TransferCell | DomainMean, column: _Column) -> Cell:
    size = quantities.size(at.change.num_examples)
    if isinstance(at, DomainMean) or isinstance(column, str):
        return Cell("mean", "", f"{quantities.counted(len(at.tasks), 'task')}, {size}")
    return Cell(column.name, "", f"{RELATION_NAMES[at.relation]}, {size}")


def _base_cell(at: TransferCell | DomainMean) -> Cell:
    return EMPTY if isinstance(at, DomainMean) else mean_cell(at.base_score, signed=False)


def _rows(found: Transfer) -> Iterable[dict[str, Any]]:
    """One row for each option, trained task and column, means of domains included."""
    names = {column.tasks: column for column in found.columns}
    for each in (*found.cells, *found.domain_means):
        is_mean = isinstance(each, DomainMean)
        yield {
            "train_task": each.train_task,
            "option": each.label,
            "test": "mean" if is_mean else names[each.tasks].name,
            "domain": each.domain if is_mean else names[each.tasks].domain,
            "relation": None if is_mean else each.relation,
            "tasks": " ".join(each.tasks),
            "num_examples": each.change.num_examples,
            "num_seeds": each.change.num_seeds,
            **mean_row(None if is_mean else each.base_score, "base_score"),
            **mean_row(each.change, "change"),
            "negative_transfer": None if is_mean else each.is_alarm,
        }
