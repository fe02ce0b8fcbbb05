"""The cross-domain matrix on the page: what each trained model gains or loses elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rankwise.findings.statements import TRANSFER_ALARM_SHARE
from rankwise.findings.transfer import DomainMean, Transfer, TransferCell, TransferRow
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.cells import EMPTY, Cell
from rankwise.report.charts.heatmap import HeatCell, HeatPanel, HeatScale, heat_map
from rankwise.report.charts.marks import lines
from rankwise.report.charts.theme import ALARM, INK
from rankwise.report.parts import (
    Figure,
    ReportSection,
    Table,
    TitledTable,
    file_name,
    option_columns,
    shows,
)
from rankwise.report.summaries import RELATION_NAMES

MOST_COLUMNS = 16
"""More columns than this cannot be read side by side; the rest is in the table."""

MOST_ALARMS = 5
"""This many are named in words, those with the largest drop for their base first."""

SCALE = HeatScale(
    (2.0, 5.0, 10.0, 20.0),
    lambda value: quantities.change(value, "points").removesuffix(".0"),
    is_signed=True,
    title="points; grey: the interval holds 0",
)
"""The same in every study."""

_SIZE = (80.0, 37.0)
_ROW_LETTERS, _COLUMN_LETTERS = 30, 13
_NO_DOMAIN = "no domain named"

Measured = TransferCell | DomainMean


class _TestColumn(NamedTuple):
    """A test task, or the mean of a domain, whose ``tasks`` are None."""

    name: str
    domain: str | None
    tasks: tuple[str, ...] | None

    @property
    def label(self) -> str:
        """Such as mathematics mean."""
        return f"{self.domain} mean" if self.tasks is None else self.name


class _Matrix(NamedTuple):
    """What was measured, by trained task, option, and the column's tasks or the mean's domain."""

    found: Transfer
    columns: Sequence[_TestColumn]
    cells: Mapping[tuple[str, str, tuple[str, ...] | str | None], Measured]

    @classmethod
    def of(cls, found: Transfer) -> _Matrix:
        """Test tasks by domain, and after those of a domain its mean."""
        columns: list[_TestColumn] = []
        averaged = {mean.domain for mean in found.domain_means}
        for domain, own in itertools.groupby(found.columns, key=lambda column: column.domain):
            columns += [_TestColumn(column.name, domain, column.tasks) for column in own]
            if domain in averaged:
                columns.append(_TestColumn("mean", domain, None))
        cells = {(cell.train_task, cell.label, cell.tasks): cell for cell in found.cells}
        means = {(mean.train_task, mean.label, mean.domain): mean for mean in found.domain_means}
        return cls(found, columns, {**cells, **means})

    def at(self, row: tuple[str, str], column: _TestColumn) -> Measured | None:
        """What was measured of a trained task and option in a column."""
        return self.cells.get((*row, column.domain if column.tasks is None else column.tasks))

    @property
    def is_named(self) -> bool:
        """Whether any column has a domain."""
        return any(column.domain for column in self.columns)


@shows("transfer")
def transfer_section(found: Transfer, *_: object) -> ReportSection:
    """A matrix for each option, or one of all options where one task was trained on."""
    matrix = _Matrix.of(found)
    several = len(found.rows) > 1
    share = quantities.percent(TRANSFER_ALARM_SHARE)
    alarms = [
        f"{cell.label}{f' trained on {cell.train_task}' if several else ''} on "
        f"{quantities.listed(cell.tasks)} {cells.in_words(cell.change)}, base "
        f"{quantities.score(cell.base_score.estimate, 'points')}"
        for cell in sorted(
            (cell for cell in found.cells if cell.is_alarm),
            key=lambda cell: cell.change.upper / cell.base_score.estimate,
        )
    ]
    if len(alarms) > MOST_ALARMS:
        alarms[MOST_ALARMS:] = [f"and {len(alarms) - MOST_ALARMS} more, marked below"]
    remarks = [
        "What a model trained on one task gains (+) or loses (−) on the others, in points of "
        "the task's own metric (accuracy where there are options), averaged over seeds and paired "
        "over the same items. Intervals are "
        f"{quantities.percent(found.confidence)}, one at a time, and exploratory: among many, "
        "some miss.",
        f"Negative transfer, a drop of over {share} of the base's score at its lower bound: "
        f"{'; '.join(alarms)}."
        if alarms
        else "No negative transfer: no task outside the trained domain is shown to drop by more "
        f"than {share} of the base's score.",
    ]
    if matrix.is_named:
        remarks.append(
            "A domain's mean counts each of its tasks the same and leaves out the trained task."
        )
    for name, labels in found.left_out.items():
        before = f"Trained on {name}: " if several else ""
        remarks += [f"{before}{said}" for said in cells.left_out(labels)]
    tables = [
        TitledTable(f"Trained on {row.name}" if several else "Every number", _table(matrix, row))
        for row in found.rows
    ]
    title = "On other tasks and domains"
    return ReportSection("transfer", title, remarks, list(_figures(matrix)), tables)


def _figures(matrix: _Matrix) -> Iterator[Figure]:
    found = matrix.found
    if len(found.rows) == 1:
        options = cells.drawn_options(found.options, most=24)
        drawn = {option.label: (found.rows[0].name, option.label) for option in options}
        yield _figure(matrix, "transfer", "Change on every task", drawn)
        return
    for option in cells.drawn_options(found.options):
        drawn = {
            f"{row.name} ({row.domain})" if row.domain else row.name: (row.name, option.label)
            for row in found.rows
        }
        title = f"Trained on (rows), tested on (columns): {option.label}"
        yield _figure(matrix, f"transfer-{file_name(option.label)}", title, drawn)


def _figure(matrix: _Matrix, name: str, title: str, rows: dict[str, tuple[str, str]]) -> Figure:
    """A matrix; ``rows`` are the trained task and the option of each, by its label."""
    found, shown = matrix.found, matrix.columns[:MOST_COLUMNS]
    measured = {
        (label, column): matrix.at(row, column) for label, row in rows.items() for column in shown
    }
    caption = "Muted cells have an interval that contains zero. A frame marks the trained task."
    if any(map(_is_alarm, measured.values())):
        caption += " ▼ in a red frame is negative transfer."
    caption += cells.more(len(matrix.columns) - len(shown), "columns are in the table")
    if len(found.rows) == 1:
        caption += cells.more(len(found.options) - len(rows), "options are in the table")
    words = [
        f"{label}: "
        + "; ".join(
            f"{column.label} {cells.in_words(cell.change)}"
            for column in shown
            if (cell := measured[label, column]) is not None
        )
        for label in rows
    ]
    panels = [
        HeatPanel(
            (domain or _NO_DOMAIN) if matrix.is_named else "",
            [wrapped(column.name, _COLUMN_LETTERS) for column in own],
            [wrapped(row, _ROW_LETTERS) for row in rows],
            {
                (wrapped(row, _ROW_LETTERS), wrapped(column.name, _COLUMN_LETTERS)): cell
                for row in rows
                for column in own
                if (cell := heat_cell(measured[row, column], column.tasks is None)) is not None
            },
            SCALE,
        )
        for domain, group in itertools.groupby(shown, key=lambda column: column.domain)
        for own in [list(group)]
    ]
    sizes = sorted({cell.change.num_examples for cell in found.cells})
    size = quantities.size(sizes[0])
    size += f" to {quantities.count(sizes[-1])}" if len(sizes) > 1 else ""
    detail = (
        f"adapted {quantities.MINUS} base in points with {cells.intervals(found.confidence)}; "
        f"{size} in a column"
    )
    drawing = heat_map(panels, _SIZE)._replace(words=f"{'. '.join(words)}.")
    return Figure(name, title, caption, drawing, detail)


def _is_alarm(cell: Measured | None) -> bool:
    return isinstance(cell, TransferCell) and cell.is_alarm


def heat_cell(cell: Measured | None, is_mean: bool = False) -> HeatCell | None:
    """A cell whose interval holds zero is muted; a mean that was not measured has none."""
    if cell is None:
        return None if is_mean else HeatCell(None, quantities.NOT_MEASURED)
    change = cell.change
    is_own = isinstance(cell, TransferCell) and cell.relation == "in_domain"
    return HeatCell(
        change.estimate,
        f"{'▼ ' if _is_alarm(cell) else ''}{quantities.change(change.estimate, change.unit)}",
        quantities.change_interval(change.lower, change.upper, change.unit),
        is_shown=change.sign() != 0,
        frame=ALARM.css if _is_alarm(cell) else INK.css if is_own else "",
        task=cell.tasks[0] if len(cell.tasks) == 1 else "",
    )


def wrapped(text: str, letters: int) -> str:
    """A name on several lines, broken after spaces or underscores where it has any."""
    return lines(text, letters, " ") if " " in text else lines(text, letters, "_")


def _table(matrix: _Matrix, row: TransferRow) -> Table:
    """One row for each column of the matrix, one column for each option."""

    def change(measured: Measured | None) -> Cell:
        note = "negative transfer" if _is_alarm(measured) else ""
        return EMPTY if measured is None else cells.mean(measured.change, note=note)

    rows: list[list[Cell | str]] = []
    options = matrix.found.options
    for column in matrix.columns:
        own = [matrix.at((row.name, option.label), column) for option in options]
        first = next((cell for cell in own if cell is not None), None)
        if first is None:
            continue
        size = quantities.sample_size(first.change)
        if isinstance(first, DomainMean):
            tasks = quantities.counted(len(first.tasks), "task")
            head = Cell("mean", "", f"{tasks}, {size}"), EMPTY
        else:
            note = f"{RELATION_NAMES[first.relation]}, {size}"
            head = Cell(column.name, "", note), cells.mean(first.base_score, signed=False)
        group = (column.domain or _NO_DOMAIN) if matrix.is_named else ""
        rows.append([*head, *map(change, own), group])
    where = f" ({row.domain})" if row.domain else ""
    return Table.of(
        f"Trained on {row.name}{where}: change from the base in "
        f"points, seeds averaged, {cells.intervals(matrix.found.confidence)}.",
        rows,
        *option_columns("Tested on", (option.label for option in options)),
        by=lambda row: row[-1],
        file="transfer",
        records=[
            ({"test": column.name, "domain": column.domain}, measured)
            for option in options
            for column in matrix.columns
            if (measured := matrix.at((row.name, option.label), column)) is not None
        ],
    ).behind(train_task=row.name)
