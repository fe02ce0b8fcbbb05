"""The two charts that answer the question: what is gained against what is lost, and by rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.records import quantities
from rankwise.records.study import Unit
from rankwise.report.charts.labels import CHARACTER_SHARE, Box, Label, place_labels
from rankwise.report.charts.theme import FONT_SIZE, INK, MUTED, PAGE, kind_colour, kind_shape
from rankwise.report.measures import Measure, ModelSummary

Layers = alt.LayerChart | alt.FacetChart

WIDTH, HEIGHT = 440, 330
_MARGIN_SHARE = 0.08
_SEED_STEP = 0.13
_LINE_HEIGHT = 15.0
_MANY_RUNS = 7


class Axis(NamedTuple):
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


class _Point(NamedTuple):
    summary: ModelSummary
    x: Measure
    y: Measure


def trade_off_chart(
    summaries: Sequence[ModelSummary],
    unit: Unit,
    epsilon_points: float | None,
    title: alt.TitleParams,
) -> Layers:
    """Gain in-domain (up) against the change on the retention tasks (right); the base is (0, 0).

    Args:
        summaries: those with a gain and a retention change are drawn.
        unit: of the gain.
        epsilon_points: drawn as a line where it is given.
        title: with n in its subtitle.
    """
    points = [
        _Point(each, each.retention_change, each.gain)
        for each in summaries
        if each.retention_change is not None and each.gain is not None
    ]
    marked = [] if epsilon_points is None else [-epsilon_points]
    x_axis = _axis(
        "Change on retention tasks (points; left is forgotten)",
        [0.0, *marked, *(bound for point in points for bound in point.x.bounds)],
        WIDTH,
    )
    y_axis = _axis(
        f"In-domain gain ({'points' if unit == 'points' else 'nats per token'})",
        [0.0, *(bound for point in points for bound in point.y.bounds)],
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


def rank_chart(
    summaries: Sequence[ModelSummary], unit: Unit, y_title: str, title: alt.TitleParams
) -> Layers:
    """In-domain score by rank; base and full fine-tuning are lines in bands of their intervals."""
    ranked = [each for each in summaries if each.kind.isdigit() and each.in_domain is not None]
    across = [each for each in summaries if not each.kind.isdigit() and each.in_domain is not None]
    ranks = sorted({int(each.kind) for each in ranked})
    bounds = [b for each in (*ranked, *across) if each.in_domain for b in each.in_domain.bounds]
    y_axis = _axis(y_title, bounds, HEIGHT, flipped=True)
    x = alt.X(
        "x:Q",
        title="LoRA rank (log scale)",
        scale=alt.Scale(type="log", base=2, domain=[ranks[0] / 1.6, ranks[-1] * 1.6], nice=False),
        axis=alt.Axis(values=ranks, format="d", labelOverlap=False, grid=False),
    )
    y = alt.Y("y:Q", title=y_title, scale=y_axis.scale, axis=_value_axis(unit))
    values = _ranked_values(ranked)
    means = [
        {"x": rank, "y": _mean([v["y"] for v in values if v["kind"] == str(rank)])}
        for rank in ranks
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


def _axis(title: str, values: Sequence[float], length: float, flipped: bool = False) -> Axis:
    low, high = min(values), max(values)
    margin = (high - low or 1.0) * _MARGIN_SHARE
    return Axis(title, low - margin, high + margin, length, flipped)


def _value_axis(unit: Unit) -> alt.Axis:
    """Few ticks, and a grid that does not compete with the data."""
    return alt.Axis(tickCount=6, format="d" if unit == "points" else ".2f")


def _x(field: str, axis: Axis) -> alt.X:
    return alt.X(f"{field}:Q", title=axis.title, scale=axis.scale, axis=alt.Axis(tickCount=6))


def _y(field: str, axis: Axis) -> alt.Y:
    return alt.Y(f"{field}:Q", title=axis.title, scale=axis.scale, axis=alt.Axis(tickCount=6))


def _point_value(point: _Point) -> dict[str, Any]:
    x_low, x_high = point.x.bounds
    y_low, y_high = point.y.bounds
    return {
        "x": point.x.estimate,
        "x_low": x_low,
        "x_high": x_high,
        "y": point.y.estimate,
        "y_low": y_low,
        "y_high": y_high,
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


def _zero_lines(x_axis: Axis, y_axis: Axis) -> list[alt.Chart]:
    line: dict[str, Any] = {"color": MUTED.light, "strokeWidth": 1}
    origin = alt.Data(values=[{"x": 0.0, "y": 0.0}])
    return [
        alt.Chart(origin).mark_rule(**line).encode(_x("x", x_axis)),
        alt.Chart(origin).mark_rule(**line).encode(_y("y", y_axis)),
    ]


def _epsilon_line(epsilon: float, x_axis: Axis, y_axis: Axis) -> list[alt.Chart]:
    """The largest retention loss that is accepted, dashed, named at its foot."""
    line = (
        alt.Chart(alt.Data(values=[{"x": -epsilon}]))
        .mark_rule(color=MUTED.light, strokeDash=[5, 4], strokeWidth=1.2)
        .encode(_x("x", x_axis))
    )
    return [line, *_labels([_epsilon_label(epsilon, x_axis, y_axis)])]


def _epsilon_label(epsilon: float, x_axis: Axis, y_axis: Axis) -> Label:
    text = f"loss = ε ({quantities.score(epsilon, 'points')})"
    return Label(text, "base", x_axis.pixel(-epsilon) + 5, y_axis.length - 10)


def _error_bars(values: list[dict[str, Any]], x_axis: Axis, y_axis: Axis) -> list[alt.Chart]:
    data = alt.Data(values=values)
    colour = alt.Color("colour:N", scale=None)
    few = len(values) <= _MANY_RUNS
    across = alt.Chart(data).mark_rule(strokeWidth=1.6 if few else 1.2, opacity=1 if few else 0.5)
    upright = across.copy()
    return [
        across.encode(_x("x_low", x_axis), alt.X2("x_high:Q"), _y("y", y_axis), color=colour),
        upright.encode(_x("x", x_axis), _y("y_low", y_axis), alt.Y2("y_high:Q"), color=colour),
    ]


def _marks(values: list[dict[str, Any]], x_axis: Axis, y_axis: Axis) -> Layers:
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
    points: Sequence[_Point], epsilon: float | None, x_axis: Axis, y_axis: Axis
) -> tuple[Label, ...]:
    anchors: dict[str, list[tuple[float, float]]] = {"base": [(x_axis.pixel(0), y_axis.pixel(0))]}
    texts = {"base": "base"}
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
        texts[kind] = kind if kind == "full" else f"rank {kind}"
        (left, right), (low, high) = point.x.bounds, point.y.bounds
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


def _ranked_values(summaries: Sequence[ModelSummary]) -> list[dict[str, Any]]:
    """One value for each run; the runs of one rank stand side by side."""
    values: list[dict[str, Any]] = []
    for each in summaries:
        alike = [other for other in summaries if other.kind == each.kind]
        offset = (alike.index(each) - (len(alike) - 1) / 2) * _SEED_STEP
        assert each.in_domain is not None
        low, high = each.in_domain.bounds
        values.append(
            {
                "kind": each.kind,
                "x": int(each.kind) * math.pow(2.0, offset),
                "y": each.in_domain.estimate,
                "y_low": low,
                "y_high": high,
                "colour": kind_colour(each.kind).light,
                "recommended": each.is_recommended,
            }
        )
    return values


def _bands(summaries: Sequence[ModelSummary], y_axis: Axis) -> list[alt.Chart]:
    charts: list[alt.Chart] = []
    for each in summaries:
        assert each.in_domain is not None
        low, high = each.in_domain.bounds
        value = {"y": each.in_domain.estimate, "y_low": low, "y_high": high}
        data = alt.Data(values=[value])
        colour = kind_colour(each.kind).light
        alike = sum(other.kind == each.kind for other in summaries)
        dash = [1, 0] if each.kind == "base" else [6, 3]
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


def _band_labels(summaries: Sequence[ModelSummary], y_axis: Axis) -> list[Label]:
    """The names of the lines at their right ends, kept a line's height apart."""
    places: dict[str, list[float]] = {}
    for each in summaries:
        assert each.in_domain is not None
        places.setdefault(each.kind, []).append(y_axis.pixel(each.in_domain.estimate))
    heights = {kind: _mean(values) for kind, values in places.items()}
    if len(heights) == 2:
        upper, lower = sorted(heights, key=lambda kind: heights[kind])
        gap = max(_LINE_HEIGHT - (heights[lower] - heights[upper]), 0.0)
        heights[upper] -= gap / 2
        heights[lower] += gap / 2
    return [Label(kind, kind, WIDTH - 30 + 7, y) for kind, y in heights.items()]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
