"""The axes of a study, one at a time, on the page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import altair as alt

from rankwise.findings.axes import (
    Axis,
    AxisDifference,
    AxisEffect,
    AxisName,
    AxisPoint,
    AxisState,
    TrainTaskAxes,
)
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.records.axes import FULL_LABEL
from rankwise.records.study import Unit
from rankwise.report.changes import left_out_remark, mean_row, mean_words
from rankwise.report.charts.axes import MOST_VALUES, AxisMark, axis_chart
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
from rankwise.report.summaries import mean_cell
from rankwise.report.tables.csv import csv_text

MOST_PANELS = 9
"""More combinations of the other axes than this are too many to draw."""

ChangeKind = Literal["gain", "retention"]

_TITLE_WIDTH, _SUBTITLE_WIDTH = 46, 64
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
    several = len(found) > 1
    confidence = quantities.percent(found[0].confidence)
    remarks = [
        "Each value of an axis against the first, averaged over the combinations of the other "
        "axes that were trained with both, so that nothing else differs. Seeds are averaged, items "
        f"paired. Intervals are {confidence}, one at a time; p values are corrected by Holm's "
        "method over the values of an axis. Exploratory: the recommendation does not rest on this.",
        *(sentence for each in found for sentence in _sentences(each, several)),
    ]
    for part in found:
        where = f", trained on {part.train_task}" if several else ""
        remarks += left_out_remark(part.left_out, where)
    return ReportSection(
        name="axes",
        title="One setting at a time",
        remarks=tuple(remarks),
        figures=tuple(figure for each in found for figure in _figures(each, several)),
        tables=tuple(
            TitledTable(
                f"Trained on {each.train_task}" if several else "Every number", _table(each)
            )
            for each in found
        ),
        files={"axes.csv": csv_text(_rows(found))},
    )


def _sentences(found: TrainTaskAxes, several: bool) -> Iterable[str]:
    """One for each axis: whether it matters in-domain and on retention."""
    for axis in found.axes:
        where = f"Trained on {found.train_task}: " if several else ""
        name = _axis_name(axis)
        parts = [f"in-domain {_verdict(axis.in_domain, found.delta, found.unit, 'δ')}"]
        if found.epsilon_points is not None:
            parts.append(
                f"on retention {_verdict(axis.retention, found.epsilon_points, 'points', 'ε')}"
            )
        text = f"{where}{name} ({', '.join(axis.values)}): {'; '.join(parts)}."
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


def _figures(found: TrainTaskAxes, several: bool) -> Iterable[Figure]:
    for axis in found.axes:
        if axis.method == "lora" and axis.name != "rank":
            yield _figure(found, axis, "gain", several)
            if found.epsilon_points is not None:
                yield _figure(found, axis, "retention", several)


def _figure(found: TrainTaskAxes, axis: Axis, kind: ChangeKind, several: bool) -> Figure:
    what = "In-domain gain" if kind == "gain" else "Change on retention tasks"
    where = f", trained on {found.train_task}" if several else ""
    title = f"{what} by rank and {axis.name}{where}"
    prefix = f"{file_name(found.train_task)}-" if several else ""
    name = f"axis-{prefix}{file_name(axis.name)}-{kind}"
    values = axis.values[:MOST_VALUES]
    marks, num_panels = _marks(found, axis, values, kind)
    first = marks[0].mean
    size = quantities.sample_size(first, "items")
    items = size + (f" in {first.num_tasks} tasks" if first.num_tasks > 1 else "")
    subtitle = f"{items}; bars are {quantities.percent(found.confidence)} intervals"
    unit = "points" if first.unit == "points" else "nats per token"
    chart = axis_chart(
        marks,
        values,
        axis.name,
        f"{'Gain' if kind == 'gain' else 'Change'} ({unit})",
        alt.TitleParams(
            textwrap.wrap(title, _TITLE_WIDTH),
            subtitle=textwrap.wrap(subtitle, _SUBTITLE_WIDTH),
        ),
    )
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
        f"{mean_words(mark.mean)}"
        for mark in marks
    ]
    return Figure(name, title, caption, f"{'; '.join(words)}.", chart.configure(**theme()))


def _marks(
    found: TrainTaskAxes, axis: Axis, values: Sequence[str], kind: ChangeKind
) -> tuple[list[AxisMark], int]:
    """What is drawn, and of how many panels; a panel is a combination of the other axes."""
    others: list[AxisName] = [
        each.name
        for each in found.axes
        if each.method == "lora" and each.name not in ("rank", axis.name)
    ]
    by_panel: dict[str, list[AxisMark]] = {}
    for point in found.points:
        mean = _mean(point, kind)
        panel = ", ".join(f"{_WORDS[name]}{point.settings[name]}" for name in others)
        value = point.settings[axis.name]
        if mean is not None and point.option.rank is not None and value in values:
            mark = AxisMark(panel, point.option.rank, value, mean)
            by_panel.setdefault(panel, []).append(mark)
    shown = list(by_panel.values())[:MOST_PANELS]
    return [mark for marks in shown for mark in marks], len(by_panel)


def _mean(point: AxisPoint, kind: ChangeKind) -> TaskMean | None:
    return point.gain if kind == "gain" else point.retention


def _table(found: TrainTaskAxes) -> Table:
    has_retention = found.epsilon_points is not None
    headings = [
        Heading("Value"),
        Heading("Matched combinations", "of the other axes"),
        Heading("In-domain", f"difference, {found.unit}"),
        Heading("Holm p"),
    ]
    if has_retention:
        headings += [Heading("Retention", "difference, points"), Heading("Holm p")]
    groups: list[RowGroup] = []
    for axis in found.axes:
        detail = f"against {axis.values[0]}"
        rows = tuple(_effect_cells(effect, has_retention) for effect in axis.effects)
        groups.append(RowGroup(_axis_name(axis), detail, rows))
    caption = (
        f"Trained on {found.train_task}: each value less the first of its axis, on the same items, "
        "all other settings equal. Positive is better."
    )
    return Table(caption, tuple(headings), tuple(groups))


def _effect_cells(effect: AxisEffect, has_retention: bool) -> tuple[Cell, ...]:
    same = effect.num_same_runs
    note = f"{quantities.count(same)} of them one run" if same else ""
    cells = [
        Cell(effect.value),
        Cell(quantities.count(effect.num_combinations), "", note),
        *_difference_cells(effect.in_domain),
    ]
    if has_retention:
        cells += _difference_cells(effect.retention)
    return tuple(cells)


def _difference_cells(difference: AxisDifference | None) -> list[Cell]:
    if difference is None:
        return [Cell("not compared"), EMPTY]
    size = quantities.sample_size(difference.mean)
    return [
        mean_cell(difference.mean, note=size),
        Cell(_p_value(difference.holm_p_value)),
    ]


def _p_value(value: float) -> str:
    """Below this it is not known more exactly."""
    return "< 10⁻⁹" if value < 1e-9 else quantities.p_value(value)


def _rows(found: Sequence[TrainTaskAxes]) -> Iterable[dict[str, Any]]:
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
                **_mean_columns(point.gain, "in_domain"),
                **_mean_columns(point.retention, "retention"),
            }


def _difference_row(difference: AxisDifference | None, name: str) -> dict[str, Any]:
    row = _mean_columns(None if difference is None else difference.mean, name)
    row[f"{name}_p_value"] = None if difference is None else difference.p_value
    row[f"{name}_holm_p_value"] = None if difference is None else difference.holm_p_value
    return row


def _mean_columns(mean: TaskMean | None, name: str) -> dict[str, Any]:
    return {
        **mean_row(mean, name),
        f"{name}_n": None if mean is None else mean.num_examples,
        f"{name}_unit": None if mean is None else mean.unit,
        f"{name}_p_value": None,
        f"{name}_holm_p_value": None,
    }
