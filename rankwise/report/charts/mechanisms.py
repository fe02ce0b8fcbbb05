"""Measures by rank with the base and full fine-tuning as lines; and pairs of options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.findings.options import OptionName
from rankwise.findings.trends import means_by_rank
from rankwise.records.axes import Kind
from rankwise.records.study import Interval
from rankwise.report.charts.theme import FONT_SIZE, MUTED, PAGE, kind_colour, kind_shape

Layers = alt.LayerChart | alt.FacetChart

_WIDTH, _HEIGHT = 410, 250
_SMALL_HEIGHT = 165
_PAIR_WIDTH, _LABEL_LIMIT = 320, 370
_ONE_LINE, _TWO_LINES, _LETTERS = 22, 36, 34
_STEP = 0.13
"""Between two options of one rank, in powers of two."""

_MARGIN_SHARE, _LINE_HEIGHT, _BESIDE = 0.08, 16.0, 7


class RankMark(NamedTuple):
    """One LoRA option's value with its interval."""

    option: OptionName
    value: Interval


class RankLine(NamedTuple):
    """What has no rank, drawn across; ``kind`` is "base" or "full"."""

    text: str
    kind: Kind
    value: Interval


class RankPanel(NamedTuple):
    """One measure; ``marks`` of at least one option. ``zero`` puts zero into sight."""

    title: str
    y_title: str
    marks: tuple[RankMark, ...]
    lines: tuple[RankLine, ...]
    zero: bool = False


class PairMark(NamedTuple):
    """A difference of two options with its interval; ``kind`` decides the colour."""

    label: str
    other: str
    kind: Kind
    difference: Interval


def rank_panels(panels: Sequence[RankPanel], title: alt.TitleParams) -> alt.VConcatChart:
    """Panels under each other with one axis of ranks; options of one rank stand side by side.

    Args:
        panels: at least one.
        title: with n in its subtitle, unless the panels have it.
    """
    height = _HEIGHT if len(panels) == 1 else _SMALL_HEIGHT
    charts = [_panel(panel, height, panel is panels[-1]) for panel in panels]
    return alt.vconcat(*charts).properties(title=title)


def pair_chart(marks: Sequence[PairMark], x_title: str, title: alt.TitleParams) -> Layers:
    """One row for each pair; right of zero is more.

    Args:
        marks: at least one.
        x_title: with the unit.
        title: with n in its subtitle.
    """
    labels = [_pair_label(mark) for mark in marks]
    values = [
        {
            "label": label,
            "x": mark.difference.estimate,
            "low": mark.difference.lower,
            "high": mark.difference.upper,
            "zero": 0.0,
            "colour": kind_colour(mark.kind).light,
            "shape": kind_shape(mark.kind),
        }
        for label, mark in zip(labels, marks, strict=True)
    ]
    step = _TWO_LINES if any("\n" in label for label in labels) else _ONE_LINE
    y = alt.Y(
        "label:N",
        sort=labels,
        title=None,
        scale=alt.Scale(domain=labels),
        axis=alt.Axis(
            domain=False,
            ticks=False,
            labelLimit=_LABEL_LIMIT,
            labelFontSize=FONT_SIZE if step == _ONE_LINE else FONT_SIZE - 1,
            labelPadding=8,
            labelExpr="split(datum.label, '\\n')",
        ),
    )
    x: dict[str, Any] = {
        "title": x_title,
        "axis": alt.Axis(tickCount=6, labelFlush=False),
        "scale": alt.Scale(zero=True, padding=8),
    }
    colour = alt.Color("colour:N", scale=None)
    return alt.layer(
        alt.Chart().mark_rule(color=MUTED.light).encode(alt.X("zero:Q", **x)),
        alt.Chart()
        .mark_rule(strokeWidth=2)
        .encode(alt.X("low:Q", **x), alt.X2("high:Q"), y, colour),
        alt.Chart()
        .mark_point(filled=True, size=70, opacity=1)
        .encode(alt.X("x:Q", **x), y, colour, alt.Shape("shape:N", scale=None)),
        data=alt.Data(values=values),
    ).properties(width=_PAIR_WIDTH, height=step * len(marks), title=title)


def _pair_label(mark: PairMark) -> str:
    """On one line if that is short, else on two."""
    text = f"{mark.label} less {mark.other}"
    return text if len(text) <= _LETTERS else f"{mark.label}\nless {mark.other}"


def _panel(panel: RankPanel, height: float, is_last: bool) -> Layers:
    ranks = sorted({mark.option.rank for mark in panel.marks if mark.option.rank is not None})
    low, high = _domain(panel)
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    y: dict[str, Any] = {"title": panel.y_title, "scale": scale, "axis": alt.Axis(tickCount=5)}
    x = alt.X(
        "x:Q",
        title="LoRA rank (log scale)" if is_last else None,
        scale=alt.Scale(type="log", base=2, domain=[ranks[0] / 1.6, ranks[-1] * 1.6], nice=False),
        axis=alt.Axis(values=ranks, format="d", labelOverlap=False, grid=False),
    )
    values = alt.Data(values=_values(panel.marks))
    colour = alt.Color("colour:N", scale=None)
    layers: list[Any] = []
    if panel.zero:
        zero = alt.Chart(alt.Data(values=[{"zero": 0.0}])).mark_rule(color=MUTED.light)
        layers.append(zero.encode(alt.Y("zero:Q", **y)))
    layers += [
        *(layer for line in panel.lines for layer in _line(line, y)),
        alt.Chart(alt.Data(values=_mean_points(panel.marks)))
        .mark_line(color=MUTED.light, strokeWidth=1.2)
        .encode(x, alt.Y("y:Q", **y)),
        alt.Chart(values)
        .mark_rule(strokeWidth=1.8)
        .encode(x, alt.Y("low:Q", **y), alt.Y2("high:Q"), colour),
        alt.Chart(values)
        .mark_point(filled=True, size=70, opacity=1, shape="circle")
        .encode(x, alt.Y("y:Q", **y), colour),
        *_line_labels(panel.lines, low, high, height),
    ]
    chart = alt.layer(*layers).properties(width=_WIDTH, height=height)
    if not panel.title:
        return chart
    heading = alt.TitleParams(
        panel.title, fontSize=FONT_SIZE, fontWeight="normal", frame="group", offset=6
    )
    return chart.properties(title=heading)


def _domain(panel: RankPanel) -> tuple[float, float]:
    values = [drawn.value for drawn in (*panel.marks, *panel.lines)]
    bounds = [end for value in values for end in (value.lower, value.upper)]
    if panel.zero:
        bounds.append(0.0)
    margin = (max(bounds) - min(bounds) or 1.0) * _MARGIN_SHARE
    return min(bounds) - margin, max(bounds) + margin


def _values(marks: Sequence[RankMark]) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = []
    for mark in marks:
        alike = [other for other in marks if other.option.rank == mark.option.rank]
        offset = (alike.index(mark) - (len(alike) - 1) / 2) * _STEP
        values.append(
            {
                "x": (mark.option.rank or 1) * math.pow(2.0, offset),
                "y": mark.value.estimate,
                "low": mark.value.lower,
                "high": mark.value.upper,
                "colour": kind_colour(mark.option.kind).light,
            }
        )
    return values


def _mean_points(marks: Sequence[RankMark]) -> list[dict[str, Any]]:
    means = means_by_rank((mark.option.rank or 1, mark.value.estimate) for mark in marks)
    return [{"x": rank, "y": mean} for rank, mean in means.items()]


def _line(line: RankLine, y: dict[str, Any]) -> list[alt.Chart]:
    """The estimate across, in a band of its interval; dashed for full fine-tuning."""
    value = line.value
    data = alt.Data(values=[{"y": value.estimate, "low": value.lower, "high": value.upper}])
    colour = kind_colour(line.kind).light
    dash = [1, 0] if line.kind == "base" else [6, 3]
    return [
        alt.Chart(data)
        .mark_rect(color=colour, opacity=0.16)
        .encode(alt.Y("low:Q", **y), alt.Y2("high:Q")),
        alt.Chart(data)
        .mark_rule(color=colour, strokeWidth=1.6, strokeDash=dash)
        .encode(alt.Y("y:Q", **y)),
    ]


def _line_labels(
    lines: Sequence[RankLine], low: float, high: float, height: float
) -> list[alt.Chart]:
    """The names of the lines at their right ends, a line's height apart."""
    places = {line: height * (high - line.value.estimate) / (high - low) for line in lines}
    charts: list[alt.Chart] = []
    last = -math.inf
    for line in sorted(lines, key=lambda each: places[each]):
        last = max(places[line], last + _LINE_HEIGHT)
        text = alt.Chart(alt.Data(values=[{"text": line.text}]))
        style: dict[str, Any] = {"align": "left", "baseline": "middle", "fontSize": FONT_SIZE}
        place: dict[str, Any] = {"x": alt.value(_WIDTH + _BESIDE), "y": alt.value(last)}
        colour = kind_colour(line.kind).light
        halo = text.mark_text(**style, color=PAGE.light, stroke=PAGE.light, strokeWidth=4)
        charts += [
            each.encode(text="text:N", **place)
            for each in (halo, text.mark_text(**style, color=colour))
        ]
    return charts
