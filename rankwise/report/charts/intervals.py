"""Differences with their intervals, one below the other: by task, pair, or subject and option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.findings.options import OptionName, TaskMean
from rankwise.records.axes import Kind
from rankwise.records.study import Interval
from rankwise.report.charts.theme import (
    FONT_SIZE,
    GRID,
    INK,
    MUTED,
    SERIES_SHAPES,
    key_columns,
    kind_colour,
    kind_shape,
)
from rankwise.report.parts import Chart

SUBJECT_WIDTH = 360
_STEP, _GAP, _BLOCK_GAP = 8.5, 9.0, 16.0
_LABEL_LETTERS = 30
_SMALL_FONT = 11


class IntervalMark(NamedTuple):
    """The difference in a row; rows of one ``panel`` stand together under its name."""

    label: str
    difference: Interval
    colour: str
    shape: str = "circle"
    panel: str = ""

    @classmethod
    def of(cls, kind: Kind, label: str, difference: Interval, panel: str = "") -> IntervalMark:
        """In the colour and the shape of a model."""
        return cls(label, difference, kind_colour(kind).light, kind_shape(kind), panel)


def interval_chart(
    marks: Sequence[IntervalMark],
    x_title: str,
    *,
    width: float,
    step: float,
    label_limit: float,
    label_size: int = FONT_SIZE,
) -> Chart:
    """Rows and panels in their order, all with one axis; a label may have several lines.

    Args:
        marks: at least one.
        x_title: with the unit.
        width: of the axis in pixels, as all that follows.
        step: from row to row.
        label_limit: the longest label.
        label_size: of its font.
    """
    labels = list(dict.fromkeys(mark.label for mark in marks))
    panels = list(dict.fromkeys(mark.panel for mark in marks))
    y = alt.Y(
        "label:N",
        sort=labels,
        title=None,
        scale=alt.Scale(domain=labels),
        axis=alt.Axis(
            domain=False,
            ticks=False,
            labelLimit=label_limit,
            labelFontSize=label_size,
            labelPadding=8,
            labelExpr="split(datum.label, '\\n')",
        ),
    )
    rows = [
        {
            "panel": mark.panel,
            "label": mark.label,
            "colour": mark.colour,
            "shape": mark.shape,
            **_bounds(mark.difference),
        }
        for mark in marks
    ]
    colour, shape = alt.Color("colour:N", scale=None), alt.Shape("shape:N", scale=None)
    chart = alt.layer(
        *_whiskers(x_title, y, colour, shape, thickness=2, size=70), data=alt.Data(values=rows)
    ).properties(width=width, height=step * len(labels))
    if panels == [""]:
        return chart
    header = alt.Header(
        labelOrient="top", labelAnchor="start", labelPadding=4, labelFontWeight="normal", title=None
    )
    return chart.facet(row=alt.Row("panel:N", sort=panels, header=header))


def _bounds(difference: Interval) -> dict[str, float]:
    return {
        "x": difference.estimate,
        "low": difference.lower,
        "high": difference.upper,
        "zero": 0.0,
    }


def _whiskers(
    x_title: str, y: alt.Y, colour: alt.Color, shape: alt.Shape, *, thickness: float, size: float
) -> list[alt.Chart]:
    """A line at zero, every interval, and its estimate."""
    x: dict[str, Any] = {
        "title": x_title,
        "axis": alt.Axis(tickCount=6, labelFlush=False),
        "scale": alt.Scale(zero=True, padding=8),
    }
    return [
        alt.Chart().mark_rule(color=MUTED.light).encode(alt.X("zero:Q", **x)),
        alt.Chart()
        .mark_rule(strokeWidth=thickness)
        .encode(alt.X("low:Q", **x), alt.X2("high:Q"), y, colour),
        alt.Chart()
        .mark_point(filled=True, size=size, opacity=1)
        .encode(alt.X("x:Q", **x), y, colour, shape),
    ]


class SubjectRow(NamedTuple):
    """A subject, or a group of them (set off from the subjects), with the change of each option."""

    name: str
    detail: str
    is_group: bool
    changes: Mapping[str, TaskMean]


def subject_chart(rows: Sequence[SubjectRow], options: Sequence[OptionName], x_title: str) -> Chart:
    """All options of a subject together. Groups first; right of zero is better than the base.

    Args:
        rows: at least one; all of an option's changes are in one unit.
        options: that are drawn, in their order from top to bottom.
        x_title: with the unit.
    """
    room = max(len(options) * _STEP, 2.0 * (_SMALL_FONT + 3))
    tops: list[float] = []
    at = _GAP / 2
    for number, row in enumerate(rows):
        at += _BLOCK_GAP * (number > 0 and rows[number - 1].is_group and not row.is_group)
        tops.append(at)
        at += room + _GAP
    height = at - _GAP / 2
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[0, height], nice=False, reverse=True))
    labels = [option.label for option in options]
    colours, shapes = zip(*option_marks(options).values(), strict=True)
    legend = alt.Legend(
        title=None, orient="top", columns=key_columns(labels, SUBJECT_WIDTH), symbolOpacity=1
    )
    colour = alt.Color(
        "option:N", scale=alt.Scale(domain=labels, range=list(colours)), legend=legend
    )
    shape = alt.Shape("option:N", scale=alt.Scale(domain=labels, range=list(shapes)), legend=legend)
    marks = [
        {"option": option.label, "y": top + room * (number + 0.5) / len(options), **_bounds(change)}
        for row, top in zip(rows, tops, strict=True)
        for number, option in enumerate(options)
        if (change := row.changes.get(option.label)) is not None
    ]
    between = alt.Data(values=[{"y": top - _GAP / 2} for top in tops[1:]])
    whiskers = _whiskers(x_title, y, colour, shape, thickness=1.6, size=46)
    return alt.layer(
        alt.Chart(between).mark_rule(color=GRID.light).encode(y),
        alt.layer(*whiskers, data=alt.Data(values=marks)),
        *_subject_labels(rows, [top + room / 2 for top in tops], y),
    ).properties(width=SUBJECT_WIDTH, height=height)


def _subject_labels(
    rows: Sequence[SubjectRow], middles: Sequence[float], y: alt.Y
) -> list[alt.Chart]:
    """The name, and the base's score with n under it, at the left of each row."""
    names: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    for row, middle in zip(rows, middles, strict=True):
        (groups if row.is_group else names).append({"y": middle - 7.0, "text": cut_name(row.name)})
        details.append({"y": middle + 8.0, "text": row.detail})
    looks: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
        (groups, {"fontSize": FONT_SIZE, "color": INK.light, "fontWeight": "bold"}),
        (names, {"fontSize": FONT_SIZE, "color": INK.light}),
        (details, {"fontSize": _SMALL_FONT, "color": MUTED.light}),
    ]
    return [
        alt.Chart(alt.Data(values=texts))
        .mark_text(align="right", baseline="middle", **look)
        .encode(y, x=alt.value(-8), text=alt.Text("text:N"))
        for texts, look in looks
    ]


def cut_name(name: str, letters: int = _LABEL_LETTERS, ending: int = 11) -> str:
    """A name of so many letters at most: the middle of a longer one is left out."""
    if len(name) <= letters:
        return name
    return f"{name[: letters - ending - 1]}…{name[-ending:]}"


def option_marks(options: Sequence[OptionName]) -> dict[str, tuple[str, str]]:
    """The colour and the shape of each option by label; those of one rank differ in shape."""
    marks: dict[str, tuple[str, str]] = {}
    seen: dict[Kind, int] = {}
    for option in options:
        place = seen.get(option.kind, 0)
        seen[option.kind] = place + 1
        shapes = [kind_shape(option.kind)]
        shapes += [shape for shape in SERIES_SHAPES if shape not in ("circle", "square")]
        marks[option.label] = (kind_colour(option.kind).light, shapes[place % len(shapes)])
    return marks
