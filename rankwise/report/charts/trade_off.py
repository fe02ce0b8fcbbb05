"""What is gained against what is lost: one mark for each model, labelled where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.findings.models import ModelSummary
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.records.axes import Kind
from rankwise.records.study import Unit
from rankwise.report.charts.labels import CHARACTER_SHARE, Box, Label, place_labels
from rankwise.report.charts.ranks import on_halo, padded, ring
from rankwise.report.charts.theme import FONT_SIZE, MUTED, kind_colour, kind_shape
from rankwise.report.parts import Chart

WIDTH, HEIGHT = 440, 330
_MANY_RUNS = 7


class Point(NamedTuple):
    """A model with its change on the retention tasks (x) and its gain in-domain (y)."""

    summary: ModelSummary
    x: TaskMean
    y: TaskMean


class _Axis(NamedTuple):
    """An axis whose domain is known, so that pixels can be computed; y grows downwards."""

    channel: type[alt.X | alt.Y]
    title: str
    low: float
    high: float

    @classmethod
    def of(cls, channel: type[alt.X | alt.Y], title: str, values: Sequence[float]) -> _Axis:
        return cls(channel, title, *padded(values))

    def pixel(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return WIDTH * share if self.channel is alt.X else HEIGHT * (1.0 - share)

    def at(self, field: str) -> alt.X | alt.Y:
        scale = alt.Scale(domain=[self.low, self.high], nice=False, zero=False)
        axis = alt.Axis(tickCount=6)
        return self.channel(f"{field}:Q", title=self.title, scale=scale, axis=axis)


def trade_off_chart(points: Sequence[Point], unit: Unit, epsilon_points: float | None) -> Chart:
    """Gain in-domain (up) against the change on the retention tasks (right); the base is (0, 0).

    Args:
        points: at least one.
        unit: of the gain.
        epsilon_points: drawn as a line where it is given.
    """
    marked = [0.0] if epsilon_points is None else [0.0, -epsilon_points]
    x = _Axis.of(
        alt.X,
        "Change on retention tasks (points; left is forgotten)",
        [*marked, *(end for point in points for end in (point.x.lower, point.x.upper))],
    )
    y = _Axis.of(
        alt.Y,
        f"In-domain gain ({'points' if unit == 'points' else 'nats per token'})",
        [0.0, *(end for point in points for end in (point.y.lower, point.y.upper))],
    )
    rows = [_row(point) for point in points]
    base: dict[str, Any] = {
        "x": 0.0,
        "y": 0.0,
        "colour": kind_colour("base").light,
        "shape": kind_shape("base"),
    }
    origin = alt.Chart(alt.Data(values=[base])).mark_rule(color=MUTED.light, strokeWidth=1)
    layers: list[Any] = [origin.encode(x.at("x")), origin.encode(y.at("y"))]
    obstacles = [_thin(x.pixel(0), 0, x.pixel(0), HEIGHT), _thin(0, y.pixel(0), WIDTH, y.pixel(0))]
    if epsilon_points is not None:
        layers += _epsilon_line(epsilon_points, x, obstacles)
    colour, shape = alt.Color("colour:N", scale=None), alt.Shape("shape:N", scale=None)
    few = len(rows) <= _MANY_RUNS
    bars = alt.Chart(alt.Data(values=rows)).mark_rule(
        strokeWidth=1.6 if few else 1.2, opacity=1 if few else 0.5
    )
    marks = alt.Chart(alt.Data(values=[*rows, base])).mark_point(filled=True, size=80, opacity=1)
    layers += [
        bars.encode(x.at("x_low"), alt.X2("x_high:Q"), y.at("y"), colour),
        bars.encode(x.at("x"), y.at("y_low"), alt.Y2("y_high:Q"), colour),
        ring([row for row in rows if row["is_recommended"]]).encode(x.at("x"), y.at("y")),
        marks.encode(x.at("x"), y.at("y"), colour, shape),
    ]
    for label in _placed(points, x, y, obstacles):
        layers += _label(label)
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def _row(point: Point) -> dict[str, Any]:
    return {
        "x": point.x.estimate,
        "x_low": point.x.lower,
        "x_high": point.x.upper,
        "y": point.y.estimate,
        "y_low": point.y.lower,
        "y_high": point.y.upper,
        "colour": kind_colour(point.summary.kind).light,
        "shape": kind_shape(point.summary.kind),
        "is_recommended": point.summary.is_recommended,
    }


def _epsilon_line(epsilon: float, x: _Axis, obstacles: list[Box]) -> list[alt.Chart]:
    """The largest retention loss that is accepted, dashed, named at its foot."""
    at = x.pixel(-epsilon)
    text = f"loss = ε ({quantities.score(epsilon, 'points')})"
    left, middle = at + 5, HEIGHT - 10
    width = CHARACTER_SHARE * FONT_SIZE * len(text)
    obstacles += [_thin(at, 0, at, HEIGHT), Box(left, middle - 8, left + width, middle + 8)]
    line = alt.Chart(alt.Data(values=[{"x": -epsilon}])).mark_rule(
        color=MUTED.light, strokeDash=[5, 4], strokeWidth=1.2
    )
    return [line.encode(x.at("x")), *_label(Label(text, "base", left, middle))]


def _placed(
    points: Sequence[Point], x: _Axis, y: _Axis, obstacles: Sequence[Box]
) -> tuple[Label, ...]:
    """The labels of the base and of every kind of model, clear of marks, bars and lines."""
    anchors: dict[Kind, list[tuple[float, float]]] = {"base": [(x.pixel(0), y.pixel(0))]}
    texts: dict[Kind, str] = {"base": "base"}
    bars: list[Box] = []
    for point in points:
        kind = point.summary.kind
        across, up = x.pixel(point.x.estimate), y.pixel(point.y.estimate)
        anchors.setdefault(kind, []).append((across, up))
        texts[kind] = f"rank {kind}" if isinstance(kind, int) else kind
        bars.append(_thin(x.pixel(point.x.lower), up, x.pixel(point.x.upper), up))
        bars.append(_thin(across, y.pixel(point.y.upper), across, y.pixel(point.y.lower)))
    return place_labels(anchors, texts, (*obstacles, *bars), (WIDTH, HEIGHT), FONT_SIZE)


def _thin(left: float, top: float, right: float, bottom: float) -> Box:
    return Box(left, top, right, bottom).grown(2)


def _label(label: Label) -> list[alt.Chart]:
    """Text in the group's colour, with a line to what it names."""
    colour = kind_colour(label.group).light
    charts = on_halo(label.text, label.x, label.y, colour, is_bold=label.group != "base")
    if label.leader is None:
        return charts
    x, y, x2, y2 = (alt.value(number) for number in label.leader)
    line = alt.Chart(alt.Data(values=[{}])).mark_rule(
        color=colour, strokeWidth=1, strokeDash=[2, 2]
    )
    return [line.encode(x=x, y=y, x2=x2, y2=y2), *charts]
