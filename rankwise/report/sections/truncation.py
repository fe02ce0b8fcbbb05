"""One run at every rank on the page: trained, truncated, and truncated and refined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from rankwise.findings.options import TaskMean
from rankwise.findings.shares import NO_SHARE
from rankwise.findings.truncation import (
    SERIES,
    CurvePoint,
    Series,
    TrainTaskTruncation,
    TruncatedCurve,
)
from rankwise.records import quantities
from rankwise.report import cells
from rankwise.report.charts.ranks import AxisMark, axis_chart
from rankwise.report.parts import (
    Column,
    Figure,
    ReportSection,
    Table,
    TitledTable,
    TrainedTask,
    grouped_table,
)

MOST_PANELS = 9
"""More settings than this are too many to draw."""

ChangeKind = Literal["gain", "retention"]

_TITLES: dict[ChangeKind, tuple[str, str]] = {
    "gain": ("In-domain gain: trained at a rank, or truncated to it", "Gain"),
    "retention": ("Change on retention tasks: trained at a rank, or truncated to it", "Change"),
}
_GROUPS: dict[Series, str] = {
    "trained": "Trained at the rank",
    "truncated": "Truncated to the rank",
    "refined": "Truncated, then refined",
}


def truncation_section(found: Sequence[TrainTaskTruncation]) -> ReportSection:
    """A chart of the gain, one of retention, and a table for each trained task.

    Args:
        found: at least one.
    """
    tasks = TrainedTask.each(found)
    remarks = [
        "The adapter of the largest rank, truncated to smaller ranks by its singular values, under "
        "the same scaling. This is an estimate after one run: training at a rank finds another "
        "adapter than truncation does, so the trained one is shown where there is one. The "
        "recommendation does not rest on this. Intervals are "
        f"{quantities.percent(found[0].confidence)}, one at a time: exploratory.",
        *(
            f"{task.before}{statement}"
            for part, task in tasks
            for curve in part.curves
            for statement in curve.statements
        ),
    ]
    for part, task in tasks:
        remarks += cells.left_out(part.left_out, task.after)
    return ReportSection(
        name="truncation",
        title="One run, every rank",
        remarks=remarks,
        figures=[
            figure for part, task in tasks for figure in task.figures("truncation", _figures(part))
        ],
        tables=[TitledTable(task.heading, _table(part)) for part, task in tasks if part.curves],
        files={"truncation.csv": cells.csv_text(_rows(found))},
    )


def _figures(found: TrainTaskTruncation) -> Iterator[Figure]:
    for kind in _TITLES:
        drawn = [
            _Drawn(_detail(found, curve), point.rank, point.series, mean)
            for curve in found.curves[:MOST_PANELS]
            for point in curve.points
            if (mean := _mean(point, kind)) is not None
        ]
        if drawn:
            yield _figure(found, kind, drawn)


def _mean(point: CurvePoint, kind: ChangeKind) -> TaskMean | None:
    return point.gain if kind == "gain" else point.retention


class _Drawn(NamedTuple):
    """A point of a chart; ``panel`` names the setting where there are several."""

    panel: str
    rank: int
    series: Series
    mean: TaskMean


def _figure(found: TrainTaskTruncation, kind: ChangeKind, drawn: Sequence[_Drawn]) -> Figure:
    title, what = _TITLES[kind]
    first = drawn[0].mean
    values = [series for series in SERIES if any(point.series == series for point in drawn)]
    caption = (
        "Above zero is better than the base. Values at one rank are side by side. Each interval is "
        "for one change from the base; models share their items, so the paired differences in "
        "the table vary less."
    )
    if len(found.curves) > MOST_PANELS:
        caption += f" {len(found.curves) - MOST_PANELS} more settings are in the table."
    words = [
        f"{point.panel + ', ' if point.panel else ''}rank {point.rank}, {point.series} "
        f"{cells.in_words(point.mean)}"
        for point in drawn
    ]
    items = quantities.sample_size(first, "items")
    items += f" in {first.num_tasks} tasks" if first.num_tasks > 1 else ""
    return Figure(
        kind,
        title,
        caption,
        f"{'; '.join(words)}.",
        axis_chart(
            [AxisMark(*point) for point in drawn],
            values,
            "adapter",
            f"{what} ({cells.unit_name(first.unit)})",
        ),
        f"{items}; bars are {quantities.percent(found.confidence)} intervals",
        letters=(46, 64),
    )


def _table(found: TrainTaskTruncation) -> Table:
    points = [point for curve in found.curves for point in curve.points]
    has_retention = any(point.retention is not None for point in points)
    is_compared = any(point.gain_less_trained is not None for point in points)
    columns: list[Column[CurvePoint]] = [
        Column("Rank", lambda row: str(row.rank)),
        Column("Steps", lambda row: cells.count(row.num_steps), "of each seed"),
        Column("Energy kept", lambda row: _energy(row), "of the update"),
        Column("Gain", lambda row: cells.mean(row.gain, has_size=True), found.unit),
        Column(
            "Share of the gain", lambda row: cells.share(row.share_of_gain), "of the largest rank's"
        ),
        Column(
            "Against trained",
            lambda row: cells.mean(row.gain_less_trained),
            f"difference, {found.unit}",
            is_shown=is_compared,
        ),
        Column(
            "Retention",
            lambda row: cells.mean(row.retention, has_size=True),
            "change, points",
            is_shown=has_retention,
        ),
        Column(
            "Against trained",
            lambda row: cells.mean(row.retention_less_trained),
            "difference, points",
            is_shown=is_compared and has_retention,
        ),
        Column("Training", lambda row: quantities.seconds(row.train_seconds), "all seeds"),
    ]
    caption = (
        f"Trained on {found.train_task}: changes from the base, seeds averaged, paired over the "
        f"same items, {quantities.percent(found.confidence)} intervals. Energy is the squared "
        "Frobenius norm."
    )
    groups = [
        (_GROUPS[series], _detail(found, curve), points)
        for curve in found.curves
        for series in SERIES
        if (points := curve.series(series))
    ]
    return grouped_table(caption, columns, groups)


def _detail(found: TrainTaskTruncation, curve: TruncatedCurve) -> str:
    return curve.source.label if len(found.curves) > 1 else ""


def _energy(point: CurvePoint) -> str | None:
    return None if point.energy is None else quantities.share(point.energy)


def _rows(found: Sequence[TrainTaskTruncation]) -> Iterator[dict[str, Any]]:
    for part in found:
        for curve in part.curves:
            for point in curve.points:
                share = point.share_of_gain or NO_SHARE
                yield {
                    "train_task": part.train_task,
                    "source": curve.source.label,
                    "series": point.series,
                    "rank": point.rank,
                    "num_seeds": curve.num_seeds,
                    "num_steps": point.num_steps,
                    "train_seconds": point.train_seconds,
                    "energy_share": point.energy,
                    **cells.csv_row(point.gain, "gain", cells.SIZE_AND_UNIT),
                    "share_of_gain": share.estimate,
                    "share_of_gain_lower": share.lower,
                    "share_of_gain_upper": share.upper,
                    **cells.csv_row(point.gain_less_trained, "gain_less_trained"),
                    **cells.csv_row(point.retention, "retention", cells.SIZE_AND_UNIT),
                    **cells.csv_row(point.retention_less_trained, "retention_less_trained"),
                }
