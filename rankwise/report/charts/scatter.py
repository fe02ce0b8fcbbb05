"""Two numbers of each run against each other, panel beside panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import altair as alt

from rankwise.records.axes import Kind
from rankwise.report.charts.ranks import small_title
from rankwise.report.charts.theme import FONT_SIZE, kind_colour, kind_shape
from rankwise.report.parts import Chart

_WIDTH, _HEIGHT, _IN_A_ROW = 300, 220, 2


class Scatter(NamedTuple):
    """The kind of each run, and its two numbers, with what they are."""

    x_title: str
    y_title: str
    marks: Sequence[tuple[Kind, float, float]]


def scatters(panels: Sequence[Scatter]) -> Chart:
    """Panels of two in a row, every run with its rank written next to it.

    Args:
        panels: at least one, each with at least one mark.
    """
    charts = [_scatter(panel) for panel in panels]
    rows = [charts[start : start + _IN_A_ROW] for start in range(0, len(charts), _IN_A_ROW)]
    return alt.vconcat(*(alt.hconcat(*row, title=alt.TitleParams("")) for row in rows))


def _scatter(panel: Scatter) -> Chart:
    rows = [
        {
            "x": x,
            "y": y,
            "text": str(kind),
            "colour": kind_colour(kind).light,
            "shape": kind_shape(kind),
        }
        for kind, x, y in panel.marks
    ]
    axis = alt.Axis(tickCount=5)
    _, xs, ys = zip(*panel.marks, strict=True)
    colour = alt.Color("colour:N", scale=None)
    base = alt.Chart(alt.Data(values=rows)).encode(
        alt.X("x:Q", title=panel.x_title, axis=axis, scale=_around(xs)),
        alt.Y("y:Q", title=panel.y_title, axis=axis, scale=_around(ys)),
        colour,
    )
    shape = alt.Shape("shape:N", scale=None)
    marks = base.mark_point(filled=True, size=75, opacity=1).encode(shape)
    words = base.mark_text(align="left", dx=8, fontSize=FONT_SIZE - 1).encode(text="text:N")
    return alt.layer(marks, words).properties(width=_WIDTH, height=_HEIGHT, title=small_title(""))


def _around(values: Sequence[float]) -> alt.Scale:
    low, high = min(values), max(values)
    margin = (high - low) * 0.1 or max(math.fabs(high) * 0.1, 1.0)
    return alt.Scale(domain=[low - margin, high + margin * 1.6], nice=False, zero=False)
