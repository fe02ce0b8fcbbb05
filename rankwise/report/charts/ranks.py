"""Quantities by rank: values with intervals, what has no rank as lines across, fitted curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import altair as alt

from rankwise.findings.trends import means_by_rank
from rankwise.records.axes import Kind
from rankwise.records.study import Interval
from rankwise.report.charts.theme import (
    FONT_SIZE,
    INK,
    MUTED,
    PAGE,
    SERIES,
    SERIES_SHAPES,
    key_columns,
    kind_colour,
)
from rankwise.report.parts import Chart

WIDTH, HEIGHT, _SMALL_HEIGHT = 410, 250, 165
MOST_VALUES = len(SERIES)
"""Of an axis beside rank: each has a colour and a shape."""

_STEP = 0.13
"""Between two marks of one rank, in powers of two."""

_REACH = math.log2(1.6)
"""Of the axis beyond the smallest and the largest rank, in powers of two."""

_MARGIN_SHARE, _LINE_HEIGHT, _BESIDE = 0.08, 16.0, 7
_DASHES = ([1, 0], [6, 3], [2, 3])
_CURVE_POINTS = 40

# One chart for each combination of the axes that are not drawn.
_AXIS_WIDTH, _AXIS_HEIGHT = 440, 290
_SMALL_AXIS_WIDTH, _SMALL_AXIS_HEIGHT, _COLUMNS = 205, 165, 2
_PANEL_LETTERS = 32
_SPREAD_SHARE, _STEP_SHARE = 0.62, 0.16
"""Of the space between two ranks, how much all values of one rank take, and two at most."""


class RankMark(NamedTuple):
    """The value of one LoRA model or option; ``is_ringed`` marks what is recommended."""

    rank: int
    value: Interval
    is_ringed: bool = False


class RankLine(NamedTuple):
    """What has no rank, drawn across; lines of one text are named once."""

    text: str
    kind: Kind
    value: Interval


class RankPanel(NamedTuple):
    """One measure; ``marks`` of at least one option. ``zero`` puts zero into sight."""

    y_title: str
    marks: Sequence[RankMark]
    lines: Sequence[RankLine]
    title: str = ""
    zero: bool = False


class RankStyle(NamedTuple):
    """How panels look: their height and marks in pixels, ticks, and the names of the lines."""

    height: float = HEIGHT
    mark_size: float = 70
    axis: alt.Axis = alt.Axis(tickCount=5)
    is_bold: bool = False


def rank_chart(panels: Sequence[RankPanel], style: RankStyle | None = None) -> Chart:
    """Panels under each other with one axis of ranks; marks of one rank stand side by side.

    Args:
        panels: at least one.
        style: the panels are lower where there are several.
    """
    style = style or RankStyle(height=HEIGHT if len(panels) == 1 else _SMALL_HEIGHT)
    charts = [_panel(panel, style, is_last=panel is panels[-1]) for panel in panels]
    return alt.vconcat(*charts)


def _panel(panel: RankPanel, style: RankStyle, *, is_last: bool) -> Chart:
    low, high = _domain(panel)
    y = _y(panel.y_title, low, high, style.axis)
    x = _x(sorted({mark.rank for mark in panel.marks}), is_titled=is_last)
    means = means_by_rank((mark.rank, mark.value.estimate) for mark in panel.marks)
    rows = _rows(panel.marks)
    data, colour = alt.Data(values=rows), alt.Color("colour:N", scale=None)
    layers = [_line_at({"y": 0.0}, y, color=MUTED.light)] if panel.zero else []
    for line in panel.lines:
        alike = sum(other.text == line.text for other in panel.lines)
        layers += _band(line, y, opacity=0.16 / alike)
    layers += [
        alt.Chart(alt.Data(values=[{"x": rank, "y": mean} for rank, mean in means.items()]))
        .mark_line(color=MUTED.light, strokeWidth=1.2)
        .encode(x, alt.Y("y:Q", **y)),
        alt.Chart(data)
        .mark_rule(strokeWidth=1.8)
        .encode(x, alt.Y("low:Q", **y), alt.Y2("high:Q"), colour),
        ring([row for row in rows if row["is_ringed"]]).encode(x, alt.Y("y:Q", **y)),
        alt.Chart(data)
        .mark_point(filled=True, size=style.mark_size, opacity=1, shape="circle")
        .encode(x, alt.Y("y:Q", **y), colour),
        *_line_names(panel.lines, low, high, style),
    ]
    chart = alt.layer(*layers).properties(width=WIDTH, height=style.height)
    return chart.properties(title=small_title(panel.title)) if panel.title else chart


def small_title(text: str) -> alt.TitleParams:
    """Of one panel among several."""
    return alt.TitleParams(text, fontSize=FONT_SIZE, fontWeight="normal", frame="group", offset=6)


def ring(rows: Sequence[dict[str, Any]]) -> alt.Chart:
    """Around what is recommended."""
    return alt.Chart(alt.Data(values=list(rows))).mark_point(
        filled=False, size=230, shape="circle", color=INK.light, strokeWidth=1.6
    )


def on_halo(text: str, x: float, y: float, colour: str, *, is_bold: bool) -> list[alt.Chart]:
    """Text that begins at a place in pixels, legible on any mark."""
    style: dict[str, Any] = {"align": "left", "baseline": "middle", "fontSize": FONT_SIZE}
    base = alt.Chart(alt.Data(values=[{"text": text}])).encode(
        x=alt.value(x), y=alt.value(y), text="text:N"
    )
    weight = "bold" if is_bold else "normal"
    return [
        base.mark_text(**style, color=PAGE.light, stroke=PAGE.light, strokeWidth=4),
        base.mark_text(**style, color=colour, fontWeight=weight),
    ]


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis that holds these values, with a margin."""
    margin = (max(values) - min(values) or 1.0) * _MARGIN_SHARE
    return min(values) - margin, max(values) + margin


def _domain(panel: RankPanel) -> tuple[float, float]:
    values = [drawn.value for drawn in (*panel.marks, *panel.lines)]
    bounds = [end for value in values for end in (value.lower, value.upper)]
    return padded([*bounds, 0.0] if panel.zero else bounds)


def _x(ranks: Sequence[int], reach: float = _REACH, *, is_titled: bool = True) -> alt.X:
    domain = [ranks[0] / 2**reach, ranks[-1] * 2**reach]
    return alt.X(
        "x:Q",
        title="LoRA rank (log scale)" if is_titled else None,
        scale=alt.Scale(type="log", base=2, domain=domain, nice=False),
        axis=alt.Axis(values=list(ranks), format="d", labelOverlap=False, grid=False),
    )


def _y(title: str, low: float, high: float, axis: alt.Axis) -> dict[str, Any]:
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    return {"title": title, "scale": scale, "axis": axis}


def _rows(marks: Sequence[RankMark]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for place, mark in enumerate(marks):
        alike = [number for number, other in enumerate(marks) if other.rank == mark.rank]
        offset = (alike.index(place) - (len(alike) - 1) / 2) * _STEP
        rows.append(
            {
                "x": mark.rank * math.pow(2.0, offset),
                "y": mark.value.estimate,
                "low": mark.value.lower,
                "high": mark.value.upper,
                "colour": kind_colour(mark.rank).light,
                "is_ringed": mark.is_ringed,
            }
        )
    return rows


def _line_at(row: dict[str, Any], y: dict[str, Any], **look: Any) -> alt.Chart:
    """Across, at the row's y."""
    return alt.Chart(alt.Data(values=[row])).mark_rule(**look).encode(alt.Y("y:Q", **y))


def _band(line: RankLine, y: dict[str, Any], opacity: float) -> list[alt.Chart]:
    """The estimate across, in a band of its interval; dashed for full fine-tuning."""
    value, colour = line.value, kind_colour(line.kind).light
    row = {"y": value.estimate, "low": value.lower, "high": value.upper}
    band = alt.Chart(alt.Data(values=[row])).mark_rect(color=colour, opacity=opacity)
    dash = [1, 0] if line.kind == "base" else [6, 3]
    return [
        band.encode(alt.Y("low:Q", **y), alt.Y2("high:Q")),
        _line_at(row, y, color=colour, strokeWidth=1.6, strokeDash=dash),
    ]


def _line_names(
    lines: Sequence[RankLine], low: float, high: float, style: RankStyle
) -> list[alt.Chart]:
    """At the right ends of the lines, a line's height apart; of several at their mean."""
    heights: dict[tuple[str, Kind], list[float]] = {}
    for line in lines:
        place = style.height * (high - line.value.estimate) / (high - low)
        heights.setdefault((line.text, line.kind), []).append(place)
    means = {name: sum(places) / len(places) for name, places in heights.items()}
    charts: list[alt.Chart] = []
    last = -math.inf
    for text, kind in sorted(means, key=lambda name: means[name]):
        last = max(means[text, kind], last + _LINE_HEIGHT)
        is_bold = style.is_bold and kind != "base"
        charts += on_halo(text, WIDTH + _BESIDE, last, kind_colour(kind).light, is_bold=is_bold)
    return charts


class RankCurve(NamedTuple):
    """A law or an expectation over the ranks, from its smallest to its largest."""

    name: str
    points: Sequence[tuple[float, float]]

    @classmethod
    def of(cls, name: str, ranks: Sequence[int], law: Callable[[float], float]) -> RankCurve:
        """A law at many ranks between the smallest and the largest, evenly on the log scale."""
        low, high = min(ranks), max(ranks)
        steps = [
            low * (high / low) ** (step / (_CURVE_POINTS - 1)) for step in range(_CURVE_POINTS)
        ]
        return cls(name, [(rank, law(rank)) for rank in steps])


def curve_chart(
    points: Sequence[tuple[int, float]],
    curves: Sequence[RankCurve],
    y_title: str,
    *,
    across: float | None = None,
) -> Chart:
    """Values of runs by rank, and curves.

    Args:
        points: rank and value of each run, at least one.
        curves: at most three, which differ in dash.
        y_title: with the unit.
        across: full fine-tuning's value, drawn as a line.
    """
    ranks = sorted({rank for rank, _ in points})
    heights = [value for _, value in points] + [y for curve in curves for _, y in curve.points]
    heights += [] if across is None else [across]
    low, high = padded(heights)
    if 0.0 <= min(heights) < 6 * (high - max(heights)):
        low = 0.0
    x, y = _x(ranks), _y(y_title, low, high, alt.Axis(tickCount=5))
    layers: list[alt.Chart] = []
    if across is not None:
        colour = kind_colour("full").light
        row = {"y": across, "text": "full"}
        layers.append(_line_at(row, y, color=colour, strokeDash=[6, 3], strokeWidth=1.6))
        label: dict[str, Any] = {"align": "left", "dx": WIDTH / 2 + _BESIDE, "fontSize": FONT_SIZE}
        name = alt.Chart(alt.Data(values=[row])).mark_text(**label, color=colour)
        layers.append(name.encode(alt.Y("y:Q", **y), alt.Text("text:N")))
    if curves:
        names = [curve.name for curve in curves]
        dash = alt.StrokeDash(
            "name:N",
            sort=names,
            scale=alt.Scale(domain=names, range=list(_DASHES[: len(names)])),
            legend=alt.Legend(title=None, orient="bottom", symbolStrokeColor=MUTED.light),
        )
        rows = [
            {"x": rank, "y": value, "name": curve.name}
            for curve in curves
            for rank, value in curve.points
        ]
        line = alt.Chart(alt.Data(values=rows)).mark_line(color=MUTED.light, strokeWidth=1.6)
        layers.append(line.encode(x, alt.Y("y:Q", **y), dash))
    rows = [{"x": rank, "y": value, "colour": kind_colour(rank).light} for rank, value in points]
    layers.append(
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=75, opacity=1, stroke=PAGE.light, strokeWidth=0.8)
        .encode(x, alt.Y("y:Q", **y), alt.Fill("colour:N", scale=None))
    )
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


Mean = TypeVar("Mean", bound=Interval, covariant=True)


class AxisMark(NamedTuple, Generic[Mean]):
    """One combination: its rank, its value on the axis, and the panel of all other settings."""

    panel: str
    rank: int
    value: str
    mean: Mean


def axis_chart(
    marks: Sequence[AxisMark[Interval]], values: Sequence[str], axis_name: str, y_title: str
) -> Chart:
    """A line for each value of another axis; the values of one rank stand side by side.

    Args:
        marks: at least one.
        values: of the axis, at most ``MOST_VALUES``.
        axis_name: the title of the key.
        y_title: with the unit.
    """
    panels = list(dict.fromkeys(_panel_title(mark.panel) for mark in marks))
    ranks = sorted({mark.rank for mark in marks})
    steps = [math.log2(high / low) for low, high in itertools.pairwise(ranks)]
    reach = min([*steps, 2.0]) / 2.0
    x = _x(ranks, reach)
    y: dict[str, Any] = {
        "title": y_title,
        "scale": alt.Scale(zero=True, padding=6),
        "axis": alt.Axis(tickCount=5),
    }
    legend = alt.Legend(
        title=axis_name, orient="top", columns=key_columns(values, _AXIS_WIDTH), symbolOpacity=1
    )

    def by_value(looks: Sequence[str]) -> dict[str, Any]:
        scale = alt.Scale(domain=list(values), range=list(looks[: len(values)]))
        return {"scale": scale, "legend": legend}

    colour = alt.Color("value:N", **by_value([colour.light for colour in SERIES]))
    shape = alt.Shape("value:N", **by_value(SERIES_SHAPES))
    several = len(panels) > 1
    layers = alt.layer(
        alt.Chart().mark_rule(color=MUTED.light).encode(alt.Y("zero:Q", **y)),
        alt.Chart()
        .mark_line(strokeWidth=1.4, opacity=0.75)
        .encode(x, alt.Y("y:Q", **y), colour, alt.Order("x:Q")),
        alt.Chart()
        .mark_rule(strokeWidth=1.6)
        .encode(x, alt.Y("low:Q", **y), alt.Y2("high:Q"), colour),
        alt.Chart()
        .mark_point(filled=True, size=48 if several else 70, opacity=1)
        .encode(x, alt.Y("y:Q", **y), colour, shape),
        data=alt.Data(values=_axis_rows(marks, list(values), reach)),
    )
    if not several:
        return layers.properties(width=_AXIS_WIDTH, height=_AXIS_HEIGHT)
    header = alt.Header(
        labelAnchor="start",
        labelPadding=4,
        labelFontWeight="normal",
        labelFontSize=FONT_SIZE - 1,
        labelExpr="split(datum.label, '\\n')",
        title=None,
    )
    return layers.properties(width=_SMALL_AXIS_WIDTH, height=_SMALL_AXIS_HEIGHT).facet(
        facet=alt.Facet("panel:N", sort=panels, header=header), columns=_COLUMNS
    )


def _axis_rows(
    marks: Sequence[AxisMark[Interval]], values: list[str], reach: float
) -> list[dict[str, Any]]:
    step = 2.0 * reach * min(_SPREAD_SHARE / len(values), _STEP_SHARE)
    return [
        {
            "panel": _panel_title(mark.panel),
            "value": mark.value,
            "x": mark.rank * 2.0 ** (step * (values.index(mark.value) - (len(values) - 1) / 2)),
            "y": mark.mean.estimate,
            "low": mark.mean.lower,
            "high": mark.mean.upper,
            "zero": 0.0,
        }
        for mark in marks
    ]


def _panel_title(text: str) -> str:
    """Broken into lines between settings, never within one."""
    lines: list[str] = []
    for part in text.split(", "):
        if lines and len(lines[-1]) + len(part) + 2 <= _PANEL_LETTERS:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return "\n".join(lines)
