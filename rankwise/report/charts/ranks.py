"""The two charts that answer the question: what is gained against what is lost, and by rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.findings.models import ModelSummary
from rankwise.findings.options import TaskMean
from rankwise.findings.trends import means_by_rank
from rankwise.records import quantities
from rankwise.records.axes import Kind
from rankwise.records.study import Unit
from rankwise.report.charts.labels import CHARACTER_SHARE, Box, Label, place_labels
from rankwise.report.charts.theme import FONT_SIZE, INK, MUTED, PAGE, kind_colour, kind_shape

Layers = alt.LayerChart | alt.FacetChart
Score = tuple[ModelSummary, TaskMean]
"""A model with its score."""

WIDTH, HEIGHT = 440, 330
_MARGIN_SHARE = 0.08
_SEED_STEP = 0.13
_LINE_HEIGHT = 15.0
_MANY_RUNS = 7


class PixelAxis(NamedTuple):
    """A linear axis whose domain is known, so that pixels can be computed.

    ``length`` is in pixels; ``flipped`` for y, which grows downwards.
    """

    title: str
    low: float
    high: float
    length: float
    flipped: bool

    def pixel(self, value: float) -> float:
        """Where a value is drawn."""
        share = (value - self.low) / (self.high - self.low)
        return self.length * (1.0 - share if self.flipped else share)

    @property
    def scale(self) -> alt.Scale:
        return alt.Scale(domain=[self.low, self.high], nice=False, zero=False)


class Point(NamedTuple):
    """A model with its change on the retention tasks (x) and its gain in-domain (y)."""

    summary: ModelSummary
    x: TaskMean
    y: TaskMean


def trade_off_chart(
    points: Sequence[Point],
    unit: Unit,
    epsilon_points: float | None,
    title: alt.TitleParams,
) -> Layers:
    """Gain in-domain (up) against the change on the retention tasks (right); the base is (0, 0).

    Args:
        points: at least one.
        unit: of the gain.
        epsilon_points: drawn as a line where it is given.
        title: with n in its subtitle.
    """
    marked = [] if epsilon_points is None else [-epsilon_points]
    x_axis = _axis(
        "Change on retention tasks (points; left is forgotten)",
        [0.0, *marked, *(end for point in points for end in _ends(point.x))],
        WIDTH,
    )
    y_axis = _axis(
        f"In-domain gain ({'points' if unit == 'points' else 'nats per token'})",
        [0.0, *(end for point in points for end in _ends(point.y))],
        HEIGHT,
        flipped=True,
    )
    layers: list[Any] = [*_zero_lines(x_axis, y_axis)]
    if epsilon_points is not None:
        layers.extend(_epsilon_line(epsilon_points, x_axis, y_axis))
    values = [_point_value(point) for point in points]
    layers.extend(_error_bars(values, x_axis, y_axis))
    layers.append(_marks([*values, _origin()], x_axis, y_axis))
    layers.extend(_labels(_placed(points, epsilon_points, x_axis, y_axis)))
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=title)


def score_by_rank_chart(
    scores: Sequence[Score], unit: Unit, y_title: str, title: alt.TitleParams
) -> Layers:
    """In-domain score by rank; base and full fine-tuning are lines in bands of their intervals."""
    ranked = [
        (rank, summary, mean) for summary, mean in scores if isinstance(rank := summary.kind, int)
    ]
    across = [score for score in scores if not isinstance(score[0].kind, int)]
    ranks = sorted({rank for rank, *_ in ranked})
    y_axis = _axis(
        y_title, [end for _, mean in scores for end in _ends(mean)], HEIGHT, flipped=True
    )
    x = alt.X(
        "x:Q",
        title="LoRA rank (log scale)",
        scale=alt.Scale(type="log", base=2, domain=[ranks[0] / 1.6, ranks[-1] * 1.6], nice=False),
        axis=alt.Axis(values=ranks, format="d", labelOverlap=False, grid=False),
    )
    y = alt.Y("y:Q", title=y_title, scale=y_axis.scale, axis=_value_axis(unit))
    values = _ranked_values(ranked)
    means = [
        {"x": rank, "y": y}
        for rank, y in means_by_rank((rank, mean.estimate) for rank, _, mean in ranked).items()
    ]
    colour = alt.Color("colour:N", scale=None)
    chart = alt.layer(
        *_bands(across, y_axis),
        alt.Chart(alt.Data(values=means))
        .mark_line(color=MUTED.light, strokeWidth=1.2)
        .encode(x, y),
        alt.Chart(alt.Data(values=values))
        .mark_rule(strokeWidth=1.8)
        .encode(
            x, alt.Y("y_low:Q", title=y_title, scale=y_axis.scale), alt.Y2("y_high:Q"), color=colour
        ),
        _rings(values, x, y),
        alt.Chart(alt.Data(values=values))
        .mark_point(filled=True, size=80, opacity=1, shape="circle")
        .encode(x, y, color=colour),
        *_labels(_band_labels(across, y_axis)),
    )
    return chart.properties(width=WIDTH - 30, height=HEIGHT, title=title)


def _ends(mean: TaskMean) -> tuple[float, float]:
    return mean.lower, mean.upper


def _axis(title: str, values: Sequence[float], length: float, flipped: bool = False) -> PixelAxis:
    low, high = min(values), max(values)
    margin = (high - low or 1.0) * _MARGIN_SHARE
    return PixelAxis(title, low - margin, high + margin, length, flipped)


def _value_axis(unit: Unit) -> alt.Axis:
    """Few ticks, and a grid that does not compete with the data."""
    return alt.Axis(tickCount=6, format="d" if unit == "points" else ".2f")


def _x(field: str, axis: PixelAxis) -> alt.X:
    return alt.X(f"{field}:Q", title=axis.title, scale=axis.scale, axis=alt.Axis(tickCount=6))


def _y(field: str, axis: PixelAxis) -> alt.Y:
    return alt.Y(f"{field}:Q", title=axis.title, scale=axis.scale, axis=alt.Axis(tickCount=6))


def _point_value(point: Point) -> dict[str, Any]:
    return {
        "x": point.x.estimate,
        "x_low": point.x.lower,
        "x_high": point.x.upper,
        "y": point.y.estimate,
        "y_low": point.y.lower,
        "y_high": point.y.upper,
        "colour": kind_colour(point.summary.kind).light,
        "shape": kind_shape(point.summary.kind),
        "recommended": point.summary.is_recommended,
    }


def _origin() -> dict[str, Any]:
    return {
        "x": 0.0,
        "y": 0.0,
        "colour": kind_colour("base").light,
        "shape": kind_shape("base"),
        "recommended": False,
    }


def _zero_lines(x_axis: PixelAxis, y_axis: PixelAxis) -> list[alt.Chart]:
    line: dict[str, Any] = {"color": MUTED.light, "strokeWidth": 1}
    origin = alt.Data(values=[{"x": 0.0, "y": 0.0}])
    return [
        alt.Chart(origin).mark_rule(**line).encode(_x("x", x_axis)),
        alt.Chart(origin).mark_rule(**line).encode(_y("y", y_axis)),
    ]


def _epsilon_line(epsilon: float, x_axis: PixelAxis, y_axis: PixelAxis) -> list[alt.Chart]:
    """The largest retention loss that is accepted, dashed, named at its foot."""
    line = (
        alt.Chart(alt.Data(values=[{"x": -epsilon}]))
        .mark_rule(color=MUTED.light, strokeDash=[5, 4], strokeWidth=1.2)
        .encode(_x("x", x_axis))
    )
    return [line, *_labels([_epsilon_label(epsilon, x_axis, y_axis)])]


def _epsilon_label(epsilon: float, x_axis: PixelAxis, y_axis: PixelAxis) -> Label:
    text = f"loss = ε ({quantities.score(epsilon, 'points')})"
    return Label(text, "base", x_axis.pixel(-epsilon) + 5, y_axis.length - 10)


def _error_bars(
    values: list[dict[str, Any]], x_axis: PixelAxis, y_axis: PixelAxis
) -> list[alt.Chart]:
    data = alt.Data(values=values)
    colour = alt.Color("colour:N", scale=None)
    few = len(values) <= _MANY_RUNS
    across = alt.Chart(data).mark_rule(strokeWidth=1.6 if few else 1.2, opacity=1 if few else 0.5)
    upright = across.copy()
    return [
        across.encode(_x("x_low", x_axis), alt.X2("x_high:Q"), _y("y", y_axis), color=colour),
        upright.encode(_x("x", x_axis), _y("y_low", y_axis), alt.Y2("y_high:Q"), color=colour),
    ]


def _marks(values: list[dict[str, Any]], x_axis: PixelAxis, y_axis: PixelAxis) -> Layers:
    x, y = _x("x", x_axis), _y("y", y_axis)
    points = (
        alt.Chart(alt.Data(values=values))
        .mark_point(filled=True, size=80, opacity=1)
        .encode(
            x, y, color=alt.Color("colour:N", scale=None), shape=alt.Shape("shape:N", scale=None)
        )
    )
    return alt.layer(_rings(values, x, y), points)


def _rings(values: list[dict[str, Any]], x: alt.X, y: alt.Y) -> alt.Chart:
    """A ring around what is recommended."""
    return (
        alt.Chart(alt.Data(values=[value for value in values if value["recommended"]]))
        .mark_point(filled=False, size=230, shape="circle", color=INK.light, strokeWidth=1.6)
        .encode(x, y)
    )


def _placed(
    points: Sequence[Point], epsilon: float | None, x_axis: PixelAxis, y_axis: PixelAxis
) -> tuple[Label, ...]:
    anchors: dict[Kind, list[tuple[float, float]]] = {"base": [(x_axis.pixel(0), y_axis.pixel(0))]}
    texts: dict[Kind, str] = {"base": "base"}
    obstacles = [_thin(x_axis.pixel(0), 0, x_axis.pixel(0), HEIGHT)]
    obstacles.append(_thin(0, y_axis.pixel(0), WIDTH, y_axis.pixel(0)))
    if epsilon is not None:
        at = x_axis.pixel(-epsilon)
        obstacles.append(_thin(at, 0, at, HEIGHT))
        label = _epsilon_label(epsilon, x_axis, y_axis)
        width = CHARACTER_SHARE * FONT_SIZE * len(label.text)
        obstacles.append(Box(label.x, label.y - 8, label.x + width, label.y + 8))
    for point in points:
        kind = point.summary.kind
        x, y = x_axis.pixel(point.x.estimate), y_axis.pixel(point.y.estimate)
        anchors.setdefault(kind, []).append((x, y))
        texts[kind] = f"rank {kind}" if isinstance(kind, int) else kind
        (left, right), (low, high) = _ends(point.x), _ends(point.y)
        obstacles.append(_thin(x_axis.pixel(left), y, x_axis.pixel(right), y))
        obstacles.append(_thin(x, y_axis.pixel(high), x, y_axis.pixel(low)))
    return place_labels(anchors, texts, obstacles, (WIDTH, HEIGHT), FONT_SIZE)


def _thin(left: float, top: float, right: float, bottom: float) -> Box:
    return Box(left - 2, top - 2, right + 2, bottom + 2)


def _labels(labels: Sequence[Label]) -> list[alt.Chart]:
    """Text in the group's colour, on a halo of the page's, with a line to what it names."""
    charts: list[alt.Chart] = []
    for label in labels:
        if label.leader is not None:
            x, y, x2, y2 = (alt.value(number) for number in label.leader)
            line = alt.Chart(alt.Data(values=[{}])).mark_rule(
                color=kind_colour(label.group).light, strokeWidth=1, strokeDash=[2, 2]
            )
            charts.append(line.encode(x=x, y=y, x2=x2, y2=y2))
        place: dict[str, Any] = {"x": alt.value(label.x), "y": alt.value(label.y)}
        one = alt.Chart(alt.Data(values=[{"text": label.text}]))
        style: dict[str, Any] = {"align": "left", "baseline": "middle", "fontSize": FONT_SIZE}
        halo = one.mark_text(**style, color=PAGE.light, stroke=PAGE.light, strokeWidth=4)
        colour = kind_colour(label.group).light
        weight = "normal" if label.group == "base" else "bold"
        text = one.mark_text(**style, color=colour, fontWeight=weight)
        charts.extend(each.encode(text="text:N", **place) for each in (halo, text))
    return charts


def _ranked_values(
    ranked: Sequence[tuple[int, ModelSummary, TaskMean]],
) -> list[dict[str, Any]]:
    """One value for each run; the runs of one rank stand side by side."""
    values: list[dict[str, Any]] = []
    for rank, summary, mean in ranked:
        alike = [other for other_rank, other, _ in ranked if other_rank == rank]
        offset = (alike.index(summary) - (len(alike) - 1) / 2) * _SEED_STEP
        values.append(
            {
                "x": rank * math.pow(2.0, offset),
                "y": mean.estimate,
                "y_low": mean.lower,
                "y_high": mean.upper,
                "colour": kind_colour(rank).light,
                "recommended": summary.is_recommended,
            }
        )
    return values


def _bands(scores: Sequence[Score], y_axis: PixelAxis) -> list[alt.Chart]:
    charts: list[alt.Chart] = []
    for summary, mean in scores:
        value = {"y": mean.estimate, "y_low": mean.lower, "y_high": mean.upper}
        data = alt.Data(values=[value])
        colour = kind_colour(summary.kind).light
        alike = sum(other.kind == summary.kind for other, _ in scores)
        dash = [1, 0] if summary.kind == "base" else [6, 3]
        charts.append(
            alt.Chart(data)
            .mark_rect(color=colour, opacity=0.16 / alike)
            .encode(_y("y_low", y_axis), alt.Y2("y_high:Q"))
        )
        charts.append(
            alt.Chart(data)
            .mark_rule(color=colour, strokeWidth=1.6, strokeDash=dash)
            .encode(_y("y", y_axis))
        )
    return charts


def _band_labels(scores: Sequence[Score], y_axis: PixelAxis) -> list[Label]:
    """The names of the lines at their right ends, kept a line's height apart."""
    places: dict[Kind, list[float]] = {}
    for summary, mean in scores:
        places.setdefault(summary.kind, []).append(y_axis.pixel(mean.estimate))
    heights: dict[Kind, float] = {
        kind: sum(pixels) / len(pixels) for kind, pixels in places.items()
    }
    if len(heights) == 2:
        upper, lower = sorted(heights, key=lambda kind: heights[kind])
        gap = max(_LINE_HEIGHT - (heights[lower] - heights[upper]), 0.0)
        heights[upper] -= gap / 2
        heights[lower] += gap / 2
    return [Label(str(kind), kind, WIDTH - 30 + 7, y) for kind, y in heights.items()]
