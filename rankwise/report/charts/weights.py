"""What the weights of runs show against rank, with fitted laws; and against forgetting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.records.axes import Kind
from rankwise.report.charts.theme import FONT_SIZE, MUTED, PAGE, kind_colour, kind_shape

Layers = alt.LayerChart | alt.FacetChart

_WIDTH, _HEIGHT = 410, 250
_SMALL_WIDTH, _SMALL_HEIGHT = 300, 220
_DASHES = ([1, 0], [6, 3], [2, 3])
_POINTS = 40


class RankPoint(NamedTuple):
    """One run's value; of LoRA only."""

    rank: int
    value: float


class RankCurve(NamedTuple):
    """A law or an expectation over the ranks, from its smallest to its largest."""

    name: str
    points: tuple[tuple[float, float], ...]


class Scatter(NamedTuple):
    """Two numbers of each run with its label and its kind, and a title."""

    title: str
    x_title: str
    y_title: str
    marks: tuple[tuple[str, Kind, float, float], ...]


def sampled(low: int, high: int, law: Any) -> tuple[tuple[float, float], ...]:
    """A law at many ranks between two, evenly on the log scale."""
    steps = [low * (high / low) ** (step / (_POINTS - 1)) for step in range(_POINTS)]
    return tuple((rank, float(law(rank))) for rank in steps)


def points_by_rank_chart(
    points: Sequence[RankPoint],
    curves: Sequence[RankCurve],
    y_title: str,
    title: alt.TitleParams,
    *,
    across: float | None = None,
) -> Layers:
    """Runs against rank, and curves.

    Args:
        points: at least one.
        curves: at most three, which differ in dash.
        y_title: with the unit.
        title: with what the points are in its subtitle.
        across: full fine-tuning's value, drawn as a line.
    """
    ranks = sorted({point.rank for point in points})
    heights = [point.value for point in points] + [y for c in curves for _, y in c.points]
    heights += [] if across is None else [across]
    margin = (max(heights) - min(heights) or 1.0) * 0.08
    low = 0.0 if 0.0 <= min(heights) < margin * 6 else min(heights) - margin
    y: dict[str, Any] = {
        "title": y_title,
        "scale": alt.Scale(domain=[low, max(heights) + margin], nice=False, zero=False),
        "axis": alt.Axis(tickCount=5),
    }
    x = alt.X(
        "x:Q",
        title="LoRA rank (log scale)",
        scale=alt.Scale(type="log", base=2, domain=[ranks[0] / 1.6, ranks[-1] * 1.6], nice=False),
        axis=alt.Axis(values=ranks, format="d", labelOverlap=False, grid=False),
    )
    names = [curve.name for curve in curves]
    layers: list[Any] = []
    if across is not None:
        colour = kind_colour("full").light
        line = alt.Chart(alt.Data(values=[{"y": across, "text": "full"}]))
        layers.append(
            line.mark_rule(color=colour, strokeDash=[6, 3], strokeWidth=1.6).encode(
                alt.Y("y:Q", **y)
            )
        )
        label: dict[str, Any] = {"align": "left", "dx": _WIDTH / 2 + 7, "fontSize": FONT_SIZE}
        layers.append(
            line.mark_text(**label, color=colour).encode(alt.Y("y:Q", **y), alt.Text("text:N"))
        )
    if curves:
        rows = [
            {"x": rank, "y": value, "name": curve.name}
            for curve in curves
            for rank, value in curve.points
        ]
        dash = alt.StrokeDash(
            "name:N",
            sort=names,
            scale=alt.Scale(domain=names, range=list(_DASHES[: len(names)])),
            legend=alt.Legend(title=None, orient="bottom", symbolStrokeColor=MUTED.light),
        )
        layers.append(
            alt.Chart(alt.Data(values=rows))
            .mark_line(color=MUTED.light, strokeWidth=1.6)
            .encode(x, alt.Y("y:Q", **y), dash)
        )
    rows = [{"x": p.rank, "y": p.value, "colour": kind_colour(p.rank).light} for p in points]
    layers.append(
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=75, opacity=1, stroke=PAGE.light, strokeWidth=0.8)
        .encode(x, alt.Y("y:Q", **y), alt.Fill("colour:N", scale=None))
    )
    return alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT, title=title)


def scatters(panels: Sequence[Scatter], title: alt.TitleParams) -> alt.HConcatChart:
    """Panels side by side, every run with its rank written next to it.

    Args:
        panels: at least one, each with at least one mark.
        title: with what the marks are in its subtitle.
    """
    return alt.hconcat(*(_scatter(panel) for panel in panels)).properties(title=title)


def _scatter(panel: Scatter) -> Layers:
    rows: list[dict[str, Any]] = [
        {
            "x": x,
            "y": y,
            "text": str(kind),
            "colour": kind_colour(kind).light,
            "shape": kind_shape(kind),
            "label": label,
        }
        for label, kind, x, y in panel.marks
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        alt.X(
            "x:Q",
            title=panel.x_title,
            axis=alt.Axis(tickCount=5),
            scale=_around([r["x"] for r in rows]),
        ),
        alt.Y(
            "y:Q",
            title=panel.y_title,
            axis=alt.Axis(tickCount=5),
            scale=_around([r["y"] for r in rows]),
        ),
    )
    marks = base.mark_point(filled=True, size=75, opacity=1).encode(
        alt.Color("colour:N", scale=None), alt.Shape("shape:N", scale=None)
    )
    words = base.mark_text(align="left", dx=8, fontSize=FONT_SIZE - 1).encode(
        alt.Text("text:N"), alt.Color("colour:N", scale=None)
    )
    heading = alt.TitleParams(
        panel.title, fontSize=FONT_SIZE, fontWeight="normal", frame="group", offset=6
    )
    return alt.layer(marks, words).properties(
        width=_SMALL_WIDTH, height=_SMALL_HEIGHT, title=heading
    )


def _around(values: Sequence[float]) -> alt.Scale:
    low, high = min(values), max(values)
    margin = (high - low) * 0.1 or max(math.fabs(high) * 0.1, 1.0)
    return alt.Scale(domain=[low - margin, high + margin * 1.6], nice=False, zero=False)
