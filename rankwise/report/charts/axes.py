"""A change from the base against rank, one line for each value of another axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.findings.options import TaskMean
from rankwise.report.charts.theme import FONT_SIZE, MUTED, SERIES, SERIES_SHAPES, key_columns

Layers = alt.LayerChart | alt.FacetChart

MOST_VALUES = len(SERIES)

_WIDTH, _HEIGHT = 440, 290
_SMALL_WIDTH, _SMALL_HEIGHT = 205, 165
_COLUMNS = 2
_SPREAD_SHARE, _STEP_SHARE = 0.62, 0.16
"""Of the space between two ranks, how much all values of one rank take, and two at most."""

_PANEL_LETTERS = 32


class AxisMark(NamedTuple):
    """One combination: its rank, its value on the axis, and the panel of all other settings.

    A panel's title is broken into lines.
    """

    panel: str
    rank: int
    value: str
    mean: TaskMean


def axis_chart(
    marks: Sequence[AxisMark],
    values: Sequence[str],
    axis_name: str,
    y_title: str,
    title: alt.TitleParams,
) -> Layers:
    """Marks with intervals; the values of one rank stand side by side, in their order.

    Args:
        marks: at least one.
        values: of the axis, at most ``MOST_VALUES``.
        axis_name: the title of the key.
        y_title: with the unit.
        title: with n in its subtitle.
    """
    panels = list(dict.fromkeys(_panel_title(mark.panel) for mark in marks))
    ranks = sorted({mark.rank for mark in marks})
    reach = _reach(ranks)
    x = alt.X(
        "x:Q",
        title="LoRA rank (log scale)",
        scale=alt.Scale(
            type="log", base=2, domain=[ranks[0] / 2**reach, ranks[-1] * 2**reach], nice=False
        ),
        axis=alt.Axis(values=ranks, format="d", labelOverlap=False, grid=False),
    )
    colours = [colour.light for colour in SERIES[: len(values)]]
    legend = alt.Legend(
        title=axis_name, orient="top", columns=key_columns(values, _WIDTH), symbolOpacity=1
    )
    colour = alt.Color(
        "value:N", scale=alt.Scale(domain=list(values), range=colours), legend=legend
    )
    shapes = list(SERIES_SHAPES[: len(values)])
    shape = alt.Shape("value:N", scale=alt.Scale(domain=list(values), range=shapes), legend=legend)
    small = len(panels) > 1
    y: dict[str, Any] = {
        "title": y_title,
        "scale": alt.Scale(zero=True, padding=6),
        "axis": alt.Axis(tickCount=5),
    }
    layers = alt.layer(
        alt.Chart().mark_rule(color=MUTED.light).encode(alt.Y("zero:Q", **y)),
        alt.Chart()
        .mark_line(strokeWidth=1.4, opacity=0.75)
        .encode(x, alt.Y("y:Q", **y), colour, alt.Order("x:Q")),
        alt.Chart()
        .mark_rule(strokeWidth=1.6)
        .encode(x, alt.Y("low:Q", **y), alt.Y2("high:Q"), colour),
        alt.Chart()
        .mark_point(filled=True, size=48 if small else 70, opacity=1)
        .encode(x, alt.Y("y:Q", **y), colour, shape),
        data=alt.Data(values=_values(marks, values, reach)),
    )
    if not small:
        return layers.properties(width=_WIDTH, height=_HEIGHT, title=title)
    header = alt.Header(
        labelAnchor="start",
        labelPadding=4,
        labelFontWeight="normal",
        labelFontSize=FONT_SIZE - 1,
        labelExpr="split(datum.label, '\\n')",
        title=None,
    )
    return (
        layers.properties(width=_SMALL_WIDTH, height=_SMALL_HEIGHT)
        .facet(facet=alt.Facet("panel:N", sort=panels, header=header), columns=_COLUMNS)
        .properties(title=title)
    )


def _panel_title(text: str) -> str:
    """Broken between settings, never within one."""
    lines: list[str] = []
    for part in text.split(", "):
        if lines and len(lines[-1]) + len(part) + 2 <= _PANEL_LETTERS:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return "\n".join(lines)


def _reach(ranks: Sequence[int]) -> float:
    """Half the room of one rank, in powers of two."""
    steps = [math.log2(high / low) for low, high in itertools.pairwise(ranks)]
    return min([*steps, 2.0]) / 2.0


def _values(marks: Sequence[AxisMark], values: Sequence[str], reach: float) -> list[dict[str, Any]]:
    step = 2.0 * reach * min(_SPREAD_SHARE / len(values), _STEP_SHARE)
    return [
        {
            "panel": _panel_title(mark.panel),
            "value": mark.value,
            "x": mark.rank
            * 2.0 ** (step * (list(values).index(mark.value) - (len(values) - 1) / 2)),
            "y": mark.mean.estimate,
            "low": mark.mean.lower,
            "high": mark.mean.upper,
            "zero": 0.0,
        }
        for mark in marks
    ]
