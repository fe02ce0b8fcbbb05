"""The axes of a study, one at a time, on the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rankwise.findings.axes import (
    Axis,
    AxisDifference,
    AxisEffect,
    AxisName,
    AxisState,
    TrainTaskAxes,
)
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.records.axes import FULL_LABEL
from rankwise.records.study import Unit
from rankwise.report import cells
from rankwise.report.charts.ranks import MOST_VALUES, AxisMark, axis_chart
from rankwise.report.parts import (
    Cell,
    Column,
    Figure,
    ReportSection,
    Table,
    TitledTable,
    TrainedTask,
    file_name,
    grouped_table,
)

MOST_PANELS = 9
"""More combinations of the other axes than this are too many to draw."""

ChangeKind = Literal["gain", "retention"]

_WORDS: dict[AxisName, str] = {
    "rank": "rank ",
    "alpha": "alpha ",
    "learning rate": "rate ",
    "target modules": "on ",
    "epochs": "epochs ",
}
"""As in the labels of the options."""


def axis_section(found: Sequence[TrainTaskAxes]) -> ReportSection:
    """Two charts for each axis other than rank, and a table for each trained task.

    Args:
        found: at least one.
    """
    tasks = TrainedTask.each(found)
    confidence = quantities.percent(found[0].confidence)
    remarks = [
        "Each value of an axis against the first, averaged over the combinations of the other "
        "axes that were trained with both, so that nothing else differs. Seeds are averaged, items "
        f"paired. Intervals are {confidence}, one at a time; p values are corrected by Holm's "
        "method over the values of an axis. Exploratory: the recommendation does not rest on this.",
        *(sentence for part, task in tasks for sentence in _sentences(part, task)),
    ]
    for part, task in tasks:
        remarks += cells.left_out(part.left_out, task.after)
    return ReportSection(
        name="axes",
        title="One setting at a time",
        remarks=remarks,
        figures=[figure for part, task in tasks for figure in task.figures("axis", _figures(part))],
        tables=[TitledTable(task.heading, _table(part)) for part, task in tasks],
        files={"axes.csv": cells.csv_text(_rows(found))},
    )


def _sentences(found: TrainTaskAxes, task: TrainedTask) -> Iterator[str]:
    """One for each axis: whether it matters in-domain and on retention."""
    for axis in found.axes:
        parts = [f"in-domain {_verdict(axis.in_domain, found.delta, found.unit, 'δ')}"]
        if found.epsilon_points is not None:
            parts.append(
                f"on retention {_verdict(axis.retention, found.epsilon_points, 'points', 'ε')}"
            )
        text = f"{task.before}{_axis_name(axis)} ({', '.join(axis.values)}): {'; '.join(parts)}."
        yield quantities.capital(text)


def _verdict(state: AxisState | None, margin: float, unit: Unit, letter: str) -> str:
    amount = f"{letter}\u00a0=\u00a0{quantities.amount(margin, unit)}"
    if state is None:
        return "not compared"
    return {
        "different": "it matters",
        "slightly different": f"it matters, by less than {amount}",
        "alike": f"its values are alike within {amount}",
        "undecided": "cannot tell",
    }[state]


def _axis_name(axis: Axis) -> str:
    return f"{FULL_LABEL}, {axis.name}" if axis.method == "full" else axis.name


def _figures(found: TrainTaskAxes) -> Iterator[Figure]:
    for axis in found.axes:
        if axis.method == "lora" and axis.name != "rank":
            yield _figure(found, axis, "gain")
            if found.epsilon_points is not None:
                yield _figure(found, axis, "retention")


def _figure(found: TrainTaskAxes, axis: Axis, kind: ChangeKind) -> Figure:
    values = axis.values[:MOST_VALUES]
    marks, num_panels = _marks(found, axis, values, kind)
    first = marks[0].mean
    items = quantities.sample_size(first, "items")
    items += f" in {first.num_tasks} tasks" if first.num_tasks > 1 else ""
    caption = (
        "Above zero is better than the base. Values at one rank are side by side. Each interval is "
        "for one change from the base; models share their items, so the paired differences in "
        "the table vary less."
    )
    if len(axis.values) > len(values):
        caption += f" {len(axis.values) - len(values)} more values are in the table."
    if num_panels > MOST_PANELS:
        caption += f" {num_panels - MOST_PANELS} more combinations are in the CSV file."
    words = [
        f"{mark.panel + ', ' if mark.panel else ''}rank {mark.rank}, {axis.name} {mark.value} "
        f"{cells.in_words(mark.mean)}"
        for mark in marks
    ]
    what = "In-domain gain" if kind == "gain" else "Change on retention tasks"
    y_title = f"{'Gain' if kind == 'gain' else 'Change'} ({cells.unit_name(first.unit)})"
    return Figure(
        f"{file_name(axis.name)}-{kind}",
        f"{what} by rank and {axis.name}",
        caption,
        f"{'; '.join(words)}.",
        axis_chart(marks, values, axis.name, y_title),
        f"{items}; bars are {quantities.percent(found.confidence)} intervals",
        letters=(46, 64),
    )


def _marks(
    found: TrainTaskAxes, axis: Axis, values: Sequence[str], kind: ChangeKind
) -> tuple[list[AxisMark[TaskMean]], int]:
    """What is drawn, and of how many panels; a panel is a combination of the other axes."""
    others: list[AxisName] = [
        other.name
        for other in found.axes
        if other.method == "lora" and other.name not in ("rank", axis.name)
    ]
    by_panel: dict[str, list[AxisMark[TaskMean]]] = {}
    for point in found.points:
        mean = point.gain if kind == "gain" else point.retention
        panel = ", ".join(f"{_WORDS[name]}{point.settings[name]}" for name in others)
        value = point.settings[axis.name]
        if mean is not None and point.option.rank is not None and value in values:
            mark = AxisMark(panel, point.option.rank, value, mean)
            by_panel.setdefault(panel, []).append(mark)
    shown = list(by_panel.values())[:MOST_PANELS]
    return [mark for marks in shown for mark in marks], len(by_panel)


def _table(found: TrainTaskAxes) -> Table:
    def combinations(effect: AxisEffect) -> Cell:
        same = effect.num_same_runs
        note = f"{quantities.count(same)} of them one run" if same else ""
        return cells.count(effect.num_combinations, note)

    has_retention = found.epsilon_points is not None
    columns: list[Column[AxisEffect]] = [
        Column("Value", lambda effect: effect.value),
        Column("Matched combinations", combinations, "of the other axes"),
        Column("In-domain", lambda row: _difference(row.in_domain), f"difference, {found.unit}"),
        Column("Holm p", lambda row: _holm_p(row.in_domain)),
        Column(
            "Retention",
            lambda row: _difference(row.retention),
            "difference, points",
            is_shown=has_retention,
        ),
        Column("Holm p", lambda row: _holm_p(row.retention), is_shown=has_retention),
    ]
    caption = (
        f"Trained on {found.train_task}: each value less the first of its axis, on the same items, "
        "all other settings equal. Positive is better."
    )
    groups = [(_axis_name(axis), f"against {axis.values[0]}", axis.effects) for axis in found.axes]
    return grouped_table(caption, columns, groups)


def _difference(difference: AxisDifference | None) -> Cell:
    if difference is None:
        return Cell("not compared")
    return cells.mean(difference.mean, has_size=True)


def _holm_p(difference: AxisDifference | None) -> str | None:
    """Below this it is not known more exactly."""
    if difference is None:
        return None
    value = difference.holm_p_value
    return "< 10⁻⁹" if value < 1e-9 else quantities.p_value(value)


def _rows(found: Sequence[TrainTaskAxes]) -> Iterator[dict[str, Any]]:
    """Every effect, then every combination with its changes from the base."""
    for part in found:
        for axis in part.axes:
            for effect in axis.effects:
                yield {
                    "train_task": part.train_task,
                    "method": axis.method,
                    "axis": axis.name,
                    "value": effect.value,
                    "against": axis.values[0],
                    "num_combinations": effect.num_combinations,
                    "num_same_runs": effect.num_same_runs,
                    **_difference_row(effect.in_domain, "in_domain"),
                    **_difference_row(effect.retention, "retention"),
                }
        for point in part.points:
            yield {
                "train_task": part.train_task,
                "method": "lora",
                "axis": None,
                "value": ", ".join(f"{_WORDS[name]}{v}" for name, v in point.settings.items()),
                "against": "base",
                "num_combinations": None,
                "num_same_runs": None,
                **_mean_row(point.gain, "in_domain"),
                **_mean_row(point.retention, "retention"),
            }


def _mean_row(mean: TaskMean | None, name: str) -> dict[str, Any]:
    empty = {f"{name}_p_value": None, f"{name}_holm_p_value": None}
    return {**cells.csv_row(mean, name, cells.SIZE_AND_UNIT), **empty}


def _difference_row(difference: AxisDifference | None, name: str) -> dict[str, Any]:
    if difference is None:
        return _mean_row(None, name)
    p_values = {
        f"{name}_p_value": difference.p_value,
        f"{name}_holm_p_value": difference.holm_p_value,
    }
    return {**cells.csv_row(difference.mean, name, cells.SIZE_AND_UNIT), **p_values}
