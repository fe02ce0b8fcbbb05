"""Boxes and words at given places, as a chart: for maps that no grammar of graphics lays out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.report.charts.theme import INK

Layers = alt.LayerChart | alt.FacetChart

LABEL_FONT, SMALL_FONT = 12, 10


class Text(NamedTuple):
    """Words, with their middle at this place; ``align`` says which end is at x."""

    x: float
    y: float
    text: str
    colour: str = INK.light
    size: int = LABEL_FONT
    align: str = "center"
    weight: str = "normal"


class Rect(NamedTuple):
    """A rectangle, from its left upper corner."""

    x: float
    y: float
    width: float
    height: float
    colour: str


class Drawing(NamedTuple):
    """What is drawn, in pixels from the left upper corner; y grows downwards."""

    fills: list[Rect]
    frames: list[Rect]
    texts: list[Text]


def drawn(drawing: Drawing, width: float, height: float, title: alt.TitleParams) -> Layers:
    """The drawing as a chart of this size in pixels."""

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", scale=alt.Scale(domain=[0, width], nice=False), axis=None)

    def y(field: str) -> alt.Y:
        scale = alt.Scale(domain=[0, height], nice=False, reverse=True)
        return alt.Y(f"{field}:Q", scale=scale, axis=None)

    def boxes(found: Sequence[Rect], style: dict[str, Any]) -> alt.Chart:
        values = [
            {"x": b.x, "x2": b.x + b.width, "y": b.y, "y2": b.y + b.height, "colour": b.colour}
            for b in found
        ]
        chart = alt.Chart(alt.Data(values=values)).mark_rect(**style)
        return chart.encode(x("x"), alt.X2("x2:Q"), y("y"), alt.Y2("y2:Q"))

    fill = alt.Fill("colour:N", scale=None)
    stroke = alt.Stroke("colour:N", scale=None)
    layers: list[Any] = [boxes(drawing.fills, {}).encode(fill)]
    if drawing.frames:
        framed = boxes(drawing.frames, {"strokeWidth": 2, "filled": False})
        layers.append(framed.encode(stroke))
    for style in dict.fromkeys((each.size, each.align, each.weight) for each in drawing.texts):
        alike = [t for t in drawing.texts if (t.size, t.align, t.weight) == style]
        size, align, weight = style
        look: dict[str, Any] = {"fontSize": size, "align": align, "fontWeight": weight}
        values = [{"x": t.x, "y": t.y, "text": t.text, "colour": t.colour} for t in alike]
        layers.append(
            alt.Chart(alt.Data(values=values))
            .mark_text(baseline="middle", **look)
            .encode(x("x"), y("y"), alt.Text("text:N"), alt.Color("colour:N", scale=None))
        )
    return alt.layer(*layers).properties(width=width, height=height, title=title)


def cut(text: str, letters: int) -> str:
    """The middle of a long text left out."""
    if len(text) <= letters:
        return text
    kept = max(letters - 1, 2)
    return f"{text[: kept - kept // 3]}…{text[len(text) - kept // 3 :]}"
