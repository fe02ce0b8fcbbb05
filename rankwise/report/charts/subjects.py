"""Changes from the base, one subject below the other, all options of a subject together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.findings.options import OptionName, TaskMean
from rankwise.records.axes import Kind
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

Layers = alt.LayerChart | alt.FacetChart

WIDTH = 360
_STEP, _GAP, _BLOCK_GAP = 8.5, 9.0, 16.0
_LABEL_LETTERS = 30
_SMALL_FONT = 11


class SubjectRow(NamedTuple):
    """A subject, or a group of them (set off from the subjects), with the change of each option."""

    name: str
    detail: str
    is_group: bool
    changes: Mapping[str, TaskMean]


class _Place(NamedTuple):
    row: SubjectRow
    top: float
    height: float


def subject_chart(
    rows: Sequence[SubjectRow], options: Sequence[OptionName], x_title: str, title: alt.TitleParams
) -> Layers:
    """Groups first; right of zero is better than the base.

    Args:
        rows: at least one; all of an option's changes are in one unit.
        options: that are drawn, in their order from top to bottom.
        x_title: with the unit.
        title: with n in its subtitle.
    """
    places = _places(rows, len(options))
    height = places[-1].top + places[-1].height + _GAP / 2
    x: dict[str, Any] = {
        "title": x_title,
        "axis": alt.Axis(tickCount=6, labelFlush=False),
        "scale": alt.Scale(zero=True, padding=8),
    }
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[0, height], nice=False, reverse=True))
    marks = option_marks(options)
    labels = [option.label for option in options]
    legend = alt.Legend(
        title=None, orient="top", columns=key_columns(labels, WIDTH), symbolOpacity=1
    )
    colour = alt.Color(
        "option:N",
        scale=alt.Scale(domain=labels, range=[marks[label][0] for label in labels]),
        legend=legend,
    )
    shape = alt.Shape(
        "option:N",
        scale=alt.Scale(domain=labels, range=[marks[label][1] for label in labels]),
        legend=legend,
    )
    data = alt.Data(values=_values(places, options))
    lines = [{"y": place.top - _GAP / 2} for place in places[1:]]
    return alt.layer(
        alt.Chart(alt.Data(values=lines)).mark_rule(color=GRID.light).encode(y),
        alt.Chart(data).mark_rule(color=MUTED.light).encode(alt.X("zero:Q", **x)),
        alt.Chart(data)
        .mark_rule(strokeWidth=1.6)
        .encode(alt.X("low:Q", **x), alt.X2("high:Q"), y, colour),
        alt.Chart(data)
        .mark_point(filled=True, size=46, opacity=1)
        .encode(alt.X("x:Q", **x), y, colour, shape),
        *_labels(places, y),
    ).properties(width=WIDTH, height=height, title=title)


def _places(rows: Sequence[SubjectRow], num_options: int) -> list[_Place]:
    places: list[_Place] = []
    at = _GAP / 2
    height = max(num_options * _STEP, 2.0 * (_SMALL_FONT + 3))
    for index, row in enumerate(rows):
        if index and rows[index - 1].is_group and not row.is_group:
            at += _BLOCK_GAP
        places.append(_Place(row, at, height))
        at += height + _GAP
    return places


def _values(places: Sequence[_Place], options: Sequence[OptionName]) -> list[dict[str, Any]]:
    return [
        {
            "option": option.label,
            "y": place.top + place.height * (index + 0.5) / len(options),
            "x": mean.estimate,
            "low": mean.lower,
            "high": mean.upper,
            "zero": 0.0,
        }
        for place in places
        for index, option in enumerate(options)
        if (mean := place.row.changes.get(option.label)) is not None
    ]


def _labels(places: Sequence[_Place], y: alt.Y) -> list[alt.Chart]:
    """The name, and the base's score with n under it, at the left of each row."""
    charts: list[alt.Chart] = []
    for is_group in (True, False):
        for is_name in (True, False):
            values = [
                {
                    "y": place.top + place.height / 2 + (-7.0 if is_name else 8.0),
                    "text": _cut(place.row.name) if is_name else place.row.detail,
                }
                for place in places
                if place.row.is_group == is_group
            ]
            style: dict[str, Any] = {
                "align": "right",
                "baseline": "middle",
                "fontSize": FONT_SIZE if is_name else _SMALL_FONT,
                "color": INK.light if is_name else MUTED.light,
                "fontWeight": "bold" if is_group and is_name else "normal",
            }
            text = alt.Chart(alt.Data(values=values)).mark_text(**style)
            charts.append(text.encode(y, x=alt.value(-8), text=alt.Text("text:N")))
    return charts


def _cut(name: str) -> str:
    if len(name) <= _LABEL_LETTERS:
        return name
    return f"{name[: _LABEL_LETTERS - 12]}…{name[-11:]}"


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
