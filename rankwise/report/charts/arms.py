"""Repairs against forgetting on one plane: what each gains against what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.findings.mitigations import Arm, ArmKind
from rankwise.records.axes import Kind
from rankwise.records.study import Unit
from rankwise.report.charts.labels import Box, place_labels
from rankwise.report.charts.ranks import on_halo, padded
from rankwise.report.charts.theme import BASE, FONT_SIZE, INK, MUTED, SERIES, Colour
from rankwise.report.parts import Chart

WIDTH, HEIGHT = 560, 380

_MARKS: dict[ArmKind, tuple[Colour, str]] = {
    "as trained": (INK, "circle"),
    "rate": (INK, "circle"),
    "kl": (SERIES[0], "triangle-up"),
    "replay": (SERIES[1], "square"),
    "other": (SERIES[3], "cross"),
}


class _Scales(NamedTuple):
    """The domains of both axes; pixels grow downwards."""

    x: tuple[float, float]
    y: tuple[float, float]

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return WIDTH * across, HEIGHT * (1.0 - up)


def arm_chart(arms: Sequence[Arm], unit: Unit, epsilon_points: float | None) -> Chart:
    """Gain in-domain (up) against the change on the retention tasks (right); the base is (0, 0).

    A line goes through the run as trained, its lower rates and the base.

    Args:
        arms: of one option, at least one; those of the line in the order of their rates.
        unit: of the gain.
        epsilon_points: drawn as a line where it is given.
    """
    marked = [0.0] if epsilon_points is None else [0.0, -epsilon_points]
    retention = [end for arm in arms for end in (arm.retention.lower, arm.retention.upper)]
    gains = [end for arm in arms for end in (arm.gain.lower, arm.gain.upper)]
    scales = _Scales(padded([*marked, *retention]), padded([0.0, *gains]))
    x_title = "Change on retention tasks (points; left is forgotten)"
    y_title = f"In-domain gain ({'points' if unit == 'points' else 'nats per token'})"

    def x(field: str) -> alt.X:
        scale = alt.Scale(domain=list(scales.x), nice=False, zero=False)
        return alt.X(f"{field}:Q", title=x_title, scale=scale, axis=alt.Axis(tickCount=6))

    def y(field: str) -> alt.Y:
        scale = alt.Scale(domain=list(scales.y), nice=False, zero=False)
        return alt.Y(f"{field}:Q", title=y_title, scale=scale, axis=alt.Axis(tickCount=6))

    base: dict[str, Any] = {"x": 0.0, "y": 0.0, "colour": BASE.light, "shape": "diamond"}
    rows = [_row(arm) for arm in arms]
    line = [row for arm, row in zip(arms, rows, strict=True) if arm.is_of_line]
    path = [{**row, "order": place} for place, row in enumerate([*line, base])]
    colour, shape = alt.Color("colour:N", scale=None), alt.Shape("shape:N", scale=None)
    bars = alt.Chart(alt.Data(values=rows)).mark_rule(strokeWidth=1.2, opacity=0.55)
    marks = alt.Chart(alt.Data(values=[*rows, base])).mark_point(filled=True, size=85, opacity=1)
    axes = alt.Chart(alt.Data(values=[base])).mark_rule(color=MUTED.light, strokeWidth=1)
    layers: list[Any] = [axes.encode(x("x")), axes.encode(y("y"))]
    if epsilon_points is not None:
        limit = alt.Chart(alt.Data(values=[{"x": -epsilon_points}]))
        layers.append(
            limit.mark_rule(color=MUTED.light, strokeDash=[5, 4], strokeWidth=1.2).encode(x("x"))
        )
    layers += [
        alt.Chart(alt.Data(values=path))
        .mark_line(color=MUTED.light, strokeWidth=1.5)
        .encode(x("x"), y("y"), order="order:Q"),
        bars.encode(x("x_low"), alt.X2("x_high:Q"), y("y"), colour),
        bars.encode(x("x"), y("y_low"), alt.Y2("y_high:Q"), colour),
        marks.encode(x("x"), y("y"), colour, shape),
    ]
    return alt.layer(*layers, *_words(arms, scales)).properties(width=WIDTH, height=HEIGHT)


def _row(arm: Arm) -> dict[str, Any]:
    colour, shape = _MARKS[arm.kind]
    return {
        "x": arm.retention.estimate,
        "x_low": arm.retention.lower,
        "x_high": arm.retention.upper,
        "y": arm.gain.estimate,
        "y_low": arm.gain.lower,
        "y_high": arm.gain.upper,
        "colour": colour.light,
        "shape": shape,
    }


def _words(arms: Sequence[Arm], scales: _Scales) -> list[alt.Chart]:
    """What each mark is, in its colour, where there is room."""
    anchors: dict[Kind, list[tuple[float, float]]] = {
        place: [scales.pixel(arm.retention.estimate, arm.gain.estimate)]
        for place, arm in enumerate(arms)
    }
    texts: dict[Kind, str] = {place: arm.label for place, arm in enumerate(arms)}
    colours = {place: _MARKS[arm.kind][0] for place, arm in enumerate(arms)}
    anchors[-1], texts[-1], colours[-1] = [scales.pixel(0.0, 0.0)], "base", BASE
    charts: list[alt.Chart] = []
    axes = [Box(scales.pixel(0, 0)[0], 0, scales.pixel(0, 0)[0], HEIGHT).grown(2)]
    for label in place_labels(anchors, texts, axes, (WIDTH, HEIGHT), FONT_SIZE):
        assert isinstance(label.group, int)
        colour = colours[label.group].light
        charts += on_halo(label.text, label.x, label.y, colour, is_bold=False)
        if label.leader is not None:
            from_x, from_y, to_x, to_y = (alt.value(number) for number in label.leader)
            leader = alt.Chart(alt.Data(values=[{}])).mark_rule(
                color=colour, strokeWidth=1, strokeDash=[2, 2]
            )
            charts.append(leader.encode(x=from_x, y=from_y, x2=to_x, y2=to_y))
    return charts
