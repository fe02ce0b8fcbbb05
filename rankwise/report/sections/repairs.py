"""Repairs after training on the page: what each would do, and the one written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rankwise.records import quantities
from rankwise.records.repairs import AdapterRepair, JudgedTask, RepairChoice, RepairPoint
from rankwise.report import cells
from rankwise.report.parts import Cell, Column, ReportSection, Table, TitledTable, table


def repair_section(found: Sequence[AdapterRepair]) -> ReportSection:
    """The answer of each ``rankwise repair``, its curve, and the judged tasks.

    Args:
        found: at least one.
    """
    return ReportSection(
        name="repairs",
        title="Repairs after training",
        remarks=[
            "Each repair changes a trained adapter and trains nothing. Half of the items choose "
            "the repair that gains most and keeps the loss of retention within the limit; the "
            "others judge it. The recommendation does not rest on this.",
            *(f"{each.model}: {each.choice.statement}" for each in found),
            *(f"{each.model}: {warning}" for each in found for warning in each.warnings),
        ],
        tables=[each for repair in found for each in _tables(repair)],
        files={"repairs.csv": cells.csv_text(_rows(found))},
    )


def _tables(found: AdapterRepair) -> Iterator[TitledTable]:
    yield TitledTable(f"What repairs would do to {found.model}", _curve(found.choice))
    if found.choice.judged is not None and found.choice.judged.tasks:
        title = f"{found.model}, {found.choice.judged.repair.label}"
        yield TitledTable(title, _judged(found, found.choice.judged.tasks))


def _curve(choice: RepairChoice) -> Table:
    chosen = None if choice.judged is None else choice.judged.repair
    columns: list[Column[RepairPoint]] = [
        Column(
            "Repair",
            lambda row: Cell(row.repair.label, "", "chosen" if row.repair == chosen else ""),
        ),
        Column("Gain", lambda row: cells.interval(row.gain, choice.unit), choice.unit),
        Column(
            "Retention loss", lambda row: cells.interval(row.retention_loss, "points"), "points"
        ),
        Column("Keeps enough", lambda row: "yes" if row.keeps_enough else "no"),
    ]
    limit = quantities.amount(choice.max_loss_points, "points")
    caption = (
        f"Against the base, on the {quantities.count(choice.num_choosing_items)} items that "
        f"choose, {quantities.percent(choice.confidence)} intervals. A repair keeps enough if it "
        f"loses no more than {limit} less a standard error."
    )
    return table(caption, columns, choice.curve)


def _judged(found: AdapterRepair, tasks: Sequence[JudgedTask]) -> Table:
    columns: list[Column[JudgedTask]] = [
        Column("Task", lambda row: Cell(row.task, "", row.relation.replace("_", "-"))),
        Column("Metric", lambda row: row.metric, is_text=True),
        Column("Items", lambda row: cells.count(row.num_items)),
        Column("Base", lambda row: quantities.score(row.base_score, row.unit)),
        Column("As it is", lambda row: quantities.score(row.adapted_score, row.unit)),
        Column("Repaired", lambda row: quantities.score(row.repaired_score, row.unit)),
    ]
    place = "not written" if found.folder is None else f"written to {found.folder}"
    return table(f"On the items by which it was not chosen; {place}.", columns, tasks)


def _rows(found: Sequence[AdapterRepair]) -> Iterator[dict[str, Any]]:
    for each in found:
        for point in each.choice.curve:
            yield {
                "run": each.model,
                "repair": point.repair.label,
                "unit": each.choice.unit,
                **cells.csv_row(point.gain, "gain"),
                **cells.csv_row(point.retention_loss, "retention_loss"),
                "keeps_enough": point.keeps_enough,
            }
