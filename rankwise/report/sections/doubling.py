"""What buys most: doublings on one scale, and the learning curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankwise.findings.doubling import TrainTaskDoubling
from rankwise.records import quantities
from rankwise.records.grouping import grouped
from rankwise.report import cells
from rankwise.report.charts.ranks import MOST_SERIES, RankMark, RankPanel, in_unit, rank_chart
from rankwise.report.parts import Column, Figure, ReportSection, Shown, Table

_HELD = {
    "epochs": "read each of their rows as often",
    "steps": "take as many optimizer steps, so that they read their rows more often",
}


def doubling_section(found: Sequence[TrainTaskDoubling]) -> ReportSection:
    """A chart of the curves and three tables for each trained task."""
    about = [
        "Runs on fewer rows are trained on the first of the same rows in one order, and "
        f"{_HELD[found[0].rows_at]}. A doubling begins at the middle of the study and changes one "
        "setting to its next value; what it gains is divided by the number of doublings between "
        "the two, so that all are on one scale. Seeds and items are paired; intervals are "
        f"{quantities.percent(found[0].confidence)}, one at a time, and which doubling gains more "
        "is corrected by Holm's method. Exploratory: "
        "the recommendation is about the runs on all rows."
    ]
    num_seeds = max(point.gain.num_seeds for part in found for point in part.points)
    about += cells.of_one_seed(num_seeds)

    return ReportSection.of("doubling", "What buys most", about, found, _shown)


def _shown(found: TrainTaskDoubling) -> Iterator[Shown]:
    yield from (*found.statements, *cells.left_out(found.left_out))
    names = list(dict.fromkeys(point.option for point in found.points))
    marks = [
        RankMark(point.num_rows, point.gain, point.option)
        for point in found.points
        if point.option in names[:MOST_SERIES]
    ]
    title = f"Gain ({cells.unit_name(found.unit)})"
    panel = RankPanel(title, marks, has_zero=True, write=in_unit(found.unit))
    caption = (
        "Above zero is better than the base. Each interval is for one change from the base; models "
        "share their items, so the paired differences in the table vary less."
    )
    if len(names) > MOST_SERIES:
        caption += f" {len(names) - MOST_SERIES} more settings are in the table."
    yield Figure(
        "curve",
        "In-domain gain by number of rows",
        caption,
        rank_chart([panel], names[:MOST_SERIES], "Setting", "Training rows (log scale)"),
        f"{quantities.sample_size(found.points[0].gain, 'items')}; bars are "
        f"{cells.intervals(found.confidence)}",
    )
    doublings = Table.of(
        f"From {found.middle}.",
        found.doublings,
        Column.text("Twice the", lambda row: row.of),
        Column("From", lambda row: row.before),
        Column("To", lambda row: row.after),
        Column("Gain", lambda row: cells.sized(row.gain), f"of one doubling, {found.unit}"),
    )
    by_option = grouped((point.option, point) for point in found.points)
    points = Table.grouped(
        cells.changes_caption(found.train_task, found.confidence),
        [(option, "", own) for option, own in by_option.items()],
        Column("Rows", lambda row: row.num_rows),
        Column("Epochs", lambda row: row.epochs),
        Column("Steps", lambda row: row.num_steps),
        Column("Gain", lambda row: cells.sized(row.gain), found.unit),
        Column.optional("Retention", lambda row: cells.sized(row.retention), "change, points"),
    )
    yield "One doubling", doublings
    yield "By number of rows", points
