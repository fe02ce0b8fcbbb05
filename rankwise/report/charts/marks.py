"""What the charts share: axes, looks of a series, error bars, names that do not overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import altair as alt

from rankwise.records.axes import Kind
from rankwise.records.study import Interval
from rankwise.report.charts.theme import (
    FONT_SIZE,
    INK,
    PAGE,
    SERIES_SHAPES,
    Colour,
    key_columns,
    kind_colour,
    kind_shape,
)

LETTER = 0.56 * FONT_SIZE
"""The width of a letter in pixels, on average, for a bold sans serif."""

LINE = 16.0
"""The height of a line of text in pixels."""

ITEMS_LINK = "#items"
"""What links to items begin with; the page's script reads what follows as a query."""

_MARGIN_SHARE = 0.08
_BESIDE, _ABOVE = 6.0, 9.0
_MARK, _NEAR_MARK = 5.0, 12.0
_LEAST_LABEL = 240


class Look(NamedTuple):
    """The colour and the shape of a mark."""

    colour: Colour
    shape: str

    @classmethod
    def of(cls, kind: Kind) -> Look:
        """Of a rank, of full fine-tuning, or of the base."""
        return cls(kind_colour(kind), kind_shape(kind))

    @classmethod
    def of_each(cls, kinds: Mapping[str, Kind]) -> dict[str, Look]:
        """Of series by name; those of one kind differ in shape."""
        looks: dict[str, Look] = {}
        seen: dict[Kind, int] = {}
        for name, kind in kinds.items():
            place = seen[kind] = seen.get(kind, -1) + 1
            shapes = [kind_shape(kind)]
            shapes += [shape for shape in SERIES_SHAPES if shape not in ("circle", "square")]
            looks[name] = cls(kind_colour(kind), shapes[place % len(shapes)])
        return looks


COLOUR = alt.Color("colour:N", scale=None)
SHAPE = alt.Shape("shape:N", scale=None)
"""For rows that say their own."""


def bounds(value: Interval | float, axis: str) -> dict[str, float]:
    """An estimate under the name of an axis, and its bounds; a number alone is its own bounds."""
    if isinstance(value, Interval):
        low, at, high = value.lower, value.estimate, value.upper
    else:
        low = at = high = value
    return {axis: at, f"{axis}_low": low, f"{axis}_high": high}


def keyed(
    field: str, looks: Mapping[str, Look], width: float, title: str | None = None
) -> dict[str, Any]:
    """Colour and shape by the series that a field names, with one key above."""
    names = list(looks)
    legend = alt.Legend(
        title=title,
        orient="top",
        columns=key_columns(names, width),
        symbolOpacity=1,
        labelLimit=max(width, _LEAST_LABEL),
    )

    def by_name(values: list[str]) -> dict[str, Any]:
        return {"scale": alt.Scale(domain=names, range=values), "legend": legend}

    return {
        "color": alt.Color(f"{field}:N", **by_name([each.colour.light for each in looks.values()])),
        "shape": alt.Shape(f"{field}:N", **by_name([each.shape for each in looks.values()])),
    }


def links(named: Iterable[str]) -> dict[str, Any]:
    """The encoding of rows' ``items_link``, where any of them names a task or a model."""
    return {"href": "href:N"} if any(named) else {}


def items_link(task: str = "", model: str = "") -> str:
    """To the items of a task, and to those that a model changed; to all of them without."""
    asked = {name: value for name, value in (("task", task), ("model", model)) if value}
    return f"{ITEMS_LINK}?{urlencode(asked, quote_via=quote)}" if asked else ITEMS_LINK


def rows_chart(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A chart of these rows, still without marks."""
    return alt.Chart(alt.Data(values=[dict(row) for row in rows]))


def padded(values: Iterable[float]) -> tuple[float, float]:
    """The ends of an axis that holds these values, with a margin."""
    values = list(values)
    margin = (max(values) - min(values) or abs(values[0]) or 1.0) * _MARGIN_SHARE
    return min(values) - margin, max(values) + margin


def axis(title: str, domain: tuple[float, float]) -> dict[str, Any]:
    """Of a quantity, exactly between these ends."""
    scale = alt.Scale(domain=list(domain), nice=False, zero=False)
    return {"title": title, "scale": scale, "axis": alt.Axis(tickCount=6)}


def ring(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Around what is recommended, at the rows' x and y."""
    return rows_chart(rows).mark_point(
        filled=False, size=230, shape="circle", color=INK.light, strokeWidth=1.6
    )


class Name(NamedTuple):
    """What a mark is called: a text in its colour beside a place in pixels, y downwards."""

    text: str
    x: float
    y: float
    colour: Colour


def names_beside(names: Sequence[Name], width: float) -> list[Any]:
    """Names right above their places, or left where there is no room, and none over another.

    A name that has no room there is moved down, and a line leads to it.
    """
    charts: list[Any] = []
    # from, to, middle height, and how near a text may come; first every mark itself
    taken = [(name.x - _MARK, name.x + _MARK, name.y, _NEAR_MARK) for name in names]
    for name in sorted(names, key=lambda each: each.y):
        length = LETTER * len(name.text)
        fits = name.x + _BESIDE + length <= width or name.x - _BESIDE < length
        left = name.x + _BESIDE if fits else name.x - _BESIDE - length
        y = name.y - _ABOVE
        for start, end, other, reach in sorted(taken, key=lambda each: each[2]):
            if start < left + length and left < end and abs(other - y) < reach:
                y = other + reach
        taken.append((left, left + length, y, LINE))
        if y > name.y:
            ends = {"x": name.x, "y": name.y, "x2": left if fits else left + length, "y2": y}
            leader = rows_chart([{}]).mark_rule(color=name.colour.light, strokeDash=[2, 2])
            charts.append(leader.encode(**{key: alt.value(end) for key, end in ends.items()}))
        charts += on_halo(name._replace(x=left, y=y))
    return charts


def on_halo(name: Name, *, is_bold: bool = True) -> list[Any]:
    """Text that begins at its place, legible on any mark."""
    style: dict[str, Any] = {
        "align": "left",
        "baseline": "middle",
        "fontSize": FONT_SIZE,
        "fontWeight": "bold" if is_bold else "normal",
    }
    text = rows_chart([{"text": name.text}]).encode(
        x=alt.value(name.x), y=alt.value(name.y), text="text:N"
    )
    return [
        text.mark_text(**style, color=PAGE.light, stroke=PAGE.light, strokeWidth=4),
        text.mark_text(**style, color=name.colour.light),
    ]


def small_title(text: str) -> alt.TitleParams:
    """Of one panel among several."""
    return alt.TitleParams(text, fontSize=FONT_SIZE, fontWeight="normal", frame="group", offset=6)


def lines(text: str, letters: int, separator: str = ", ") -> str:
    """A text broken into lines of about so many letters, after separators alone."""
    broken: list[str] = []
    for part in text.split(separator):
        if broken and len(broken[-1]) + len(part) + len(separator) <= letters:
            broken[-1] += f"{separator}{part}"
        else:
            broken.append(part)
    return "\n".join(broken)
