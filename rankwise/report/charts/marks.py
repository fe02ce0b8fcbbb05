"""What the charts share: axes, looks of a series, error bars, names that do not overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from rankwise.records.axes import Kind
from rankwise.records.study import Interval
from rankwise.report.charts.theme import FONT_SIZE, INK, PAGE, Colour, kind_colour, kind_shape
from rankwise.report.parts import Chart

LETTER = 0.56 * FONT_SIZE
"""The width of a letter in pixels, on average, for a bold sans serif."""

LINE = 16.0
"""The height of a line of text in pixels."""

ITEMS_LINK = "#items"
"""What links to items begin with; the page's script reads what follows as a query."""

MOST_MARKS = 150
"""The most marks of one panel: more cannot be told apart."""

ARE_DRAWN = "points are drawn, evenly thinned out"

_MARGIN_SHARE, _ROUNDING = 0.08, 1e-9
_PIXELS = {axis: {"field": axis, "type": "quantitative", "scale": None} for axis in ("x", "y")}
_BESIDE, _ABOVE = 6.0, 9.0
_MARK, _NEAR_MARK = 5.0, 12.0
_LEAST_LABEL = 240


class MarkStyle(NamedTuple):
    """The colour and the shape of a mark."""

    colour: Colour
    shape: str

    @classmethod
    def of(cls, kind: Kind) -> MarkStyle:
        """The style of a rank, of full fine-tuning, or of the base."""
        return cls(kind_colour(kind), kind_shape(kind))

    @classmethod
    def of_each(cls, kinds: Mapping[str, Kind]) -> dict[str, MarkStyle]:
        """The styles of series by name; those of one kind differ in shape."""
        looks: dict[str, MarkStyle] = {}
        seen: dict[Kind, int] = {}
        for name, kind in kinds.items():
            place = seen[kind] = seen.get(kind, -1) + 1
            shapes = [kind_shape(kind)]
            shapes += [each.shape for each in SERIES if each.shape not in ("circle", "square")]
            looks[name] = cls(kind_colour(kind), shapes[place % len(shapes)])
        return looks


# Values of an axis other than rank, in their order.
SERIES = (
    MarkStyle(Colour("#0b6fa4", "#5db8ee"), "circle"),
    MarkStyle(Colour("#b5541c", "#f2a06b"), "square"),
    MarkStyle(Colour("#2e7d4f", "#74c796"), "triangle-up"),
    MarkStyle(Colour("#8a4fae", "#c99be8"), "diamond"),
    MarkStyle(Colour("#94750f", "#e0c464"), "cross"),
    MarkStyle(Colour("#b83a6b", "#f291b8"), "triangle-down"),
    MarkStyle(Colour("#4d5b6b", "#aab9c9"), "triangle-right"),
    MarkStyle(Colour("#5e3a1e", "#caa58a"), "triangle-left"),
)


Encoding = Mapping[str, Any]
"""What stands for what: by channel of Vega-Lite, a field of the rows or a value for all."""


def layer(kind: str, rows: Sequence[Mapping[str, Any]], encoding: Encoding, **look: Any) -> Chart:
    """A layer: a mark of Vega-Lite's for each row, or through all of them.

    What rows call themselves decides the rest: ``said`` is shown where the pointer is, of a ``run``
    that is hidden they are not drawn, and ``names`` are pale while it is.
    """
    fields = rows[0].keys() if rows else ()
    drawn: Chart = {"data": {"values": rows}, "mark": {"type": kind, **look}, "encoding": encoding}
    if "said" in fields and kind != "line":  # a line is one mark for all its rows
        drawn["encoding"] = {**encoding, "tooltip": category("said")}
    if "run" in fields:
        drawn["transform"] = [{"filter": _is_shown("run")}]
    if "names" in fields:
        drawn["mark"]["opacity"] = _paler("names")
    return drawn


HIDDEN = {"name": "hidden", "value": []}
"""The parameter of every chart: runs that are not drawn; the page's script adds to it."""


def _is_shown(field: str) -> str:
    return f"indexof(hidden, datum.{field}) < 0"


def _paler(field: str) -> dict[str, str]:
    """The opacity of what names a run, which stays where the run is hidden."""
    return {"expr": f"{_is_shown(field)} ? 1 : 0.35"}


KEY = {"symbolOpacity": _paler("value"), "labelOpacity": _paler("value")}
"""The title of every key to runs."""


def number(field: str, **how: Any) -> dict[str, Any]:
    """A channel for numbers of the rows."""
    return {"field": field, "type": "quantitative", **how}


def category(field: str, **how: Any) -> dict[str, Any]:
    """A channel for names of the rows."""
    return {"field": field, "type": "nominal", **how}


COLOUR, SHAPE = category("colour", scale=None), category("shape", scale=None)
"""Colour and shape for rows that say their own."""


def layered(layers: Iterable[Chart], width: float, height: float, **more: Any) -> Chart:
    """Layers on each other, the first below the others; those without rows are left out."""
    drawn = [each for each in layers if each["data"]["values"]]
    return {"layer": drawn, "width": width, "height": height, **more}


def with_datasets(chart: Chart, items_at: str | None = None) -> Chart:
    """A whole chart: all rows at its top, those that layers share once.

    Args:
        chart: whose layers have rows of their own.
        items_at: the page with the items that marks link to; empty: this one; None: there is none,
            and marks are no links.
    """
    names: dict[int, str] = {}
    datasets: dict[str, Any] = {}

    def linked(row: Mapping[str, Any]) -> dict[str, Any]:
        own = {key: value for key, value in row.items() if key != "href"}
        if items_at is not None and "href" in row:
            own["href"] = f"{items_at}{row['href']}"
        return own

    def named(part: Chart) -> Chart:
        part = dict(part)
        for key in part.keys() & {"layer", "concat", "vconcat"}:
            part[key] = [named(each) for each in part[key]]
        if "data" in part:
            rows = part["data"]["values"]
            if id(rows) not in names:
                names[id(rows)] = f"rows {len(names) + 1}"
                datasets[names[id(rows)]] = [linked(row) for row in rows]
            part["data"] = {"name": names[id(rows)]}
            if items_at is None:
                part["encoding"] = {
                    channel: how for channel, how in part["encoding"].items() if channel != "href"
                }
        return part

    return {**named(chart), "datasets": datasets, "params": [HIDDEN]}


def bounds(value: Interval | float, axis: str) -> dict[str, float]:
    """An estimate under the name of an axis, and its bounds; a number alone is its own bounds."""
    if isinstance(value, Interval):
        low, at, high = value.lower, value.estimate, value.upper
    else:
        low = at = high = value
    return {axis: at, f"{axis}_low": low, f"{axis}_high": high}


def between(
    kind: str, rows: Sequence[Mapping[str, Any]], axis: str, encoding: Encoding, **look: Any
) -> Chart:
    """A layer from the lower to the upper ``bounds`` along an axis."""
    low = {**encoding[axis], "field": f"{axis}_low"}
    return layer(kind, rows, {**encoding, axis: low, f"{axis}2": {"field": f"{axis}_high"}}, **look)


def keyed(looks: Mapping[str, MarkStyle], width: float, title: str | None = None) -> dict[str, Any]:
    """Colour and shape by the run of a row, with one key above."""
    names = list(looks)
    # as many entries of the key as fit next to each other
    columns = int(width / (0.55 * FONT_SIZE * max(map(len, names)) + 36))
    key = {
        "title": title,
        "orient": "top",
        "columns": max(columns, 1),
        **KEY,
        "labelLimit": max(width, _LEAST_LABEL),
    }

    def by_name(values: list[str]) -> dict[str, Any]:
        return category("run", scale={"domain": names, "range": values}, legend=key)

    return {
        "color": by_name([each.colour.css for each in looks.values()]),
        "shape": by_name([each.shape for each in looks.values()]),
    }


def links(named: Iterable[str]) -> dict[str, Any]:
    """The encoding of rows' ``items_link``, where any of them names a task or a model."""
    return {"href": category("href")} if any(named) else {}


def items_link(task: str = "", model: str = "") -> str:
    """A link to the items of a task, and to those that a model changed; to all of them without."""
    asked = {name: value for name, value in (("task", task), ("model", model)) if value}
    return f"{ITEMS_LINK}?{urlencode(asked, quote_via=quote)}" if asked else ITEMS_LINK


def padded(values: Iterable[float]) -> tuple[float, float]:
    """The ends of an axis that holds these values, with a margin."""
    values = list(values)
    low, high = min(values), max(values)
    spread = high - low if high - low > _ROUNDING * abs(high) else abs(high) or 1.0
    return low - _MARGIN_SHARE * spread, high + _MARGIN_SHARE * spread


def axis(field: str, title: str, domain: tuple[float, float]) -> dict[str, Any]:
    """A channel for a quantity, exactly between these ends."""
    scale = {"domain": list(domain), "nice": False, "zero": False}
    return number(field, title=title, scale=scale, axis={"tickCount": 6})


def ring(rows: Iterable[Mapping[str, Any]], at: Encoding) -> Chart:
    """Around what is recommended."""
    look = {"filled": False, "size": 230, "shape": "circle", "color": INK.css}
    return layer("point", [row for row in rows if row["is_ringed"]], at, **look, strokeWidth=1.6)


class Name(NamedTuple):
    """What a mark is called: a text in its colour beside a place in pixels, y downwards."""

    text: str
    x: float
    y: float
    colour: Colour


def names_beside(names: Sequence[Name], width: float) -> list[Chart]:
    """Names right above their places, or left where there is no room, and none over another.

    A name that has no room there is moved down, and a line leads to it.
    """
    moved: list[Name] = []
    leaders: list[dict[str, Any]] = []
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
            end = {"x2": left if fits else left + length, "y2": y}
            leaders.append({"x": name.x, "y": name.y, **end, "colour": name.colour.css})
        moved.append(name._replace(x=left, y=y))
    ends = {**_PIXELS, "x2": {"field": "x2"}, "y2": {"field": "y2"}}
    dashed = layer("rule", leaders, {**ends, "color": COLOUR}, strokeDash=[2, 2])
    return [dashed, *on_halo(moved)]


def on_halo(names: Sequence[Name]) -> list[Chart]:
    """Texts that begin at their places, legible on any mark."""
    rows = [
        {"names": name.text, "x": name.x, "y": name.y, "colour": name.colour.css} for name in names
    ]
    text = {**_PIXELS, "text": category("names")}
    look = {"align": "left", "baseline": "middle", "fontSize": FONT_SIZE, "fontWeight": "bold"}
    halo = {"color": PAGE.css, "stroke": PAGE.css, "strokeWidth": 4}
    return [
        layer("text", rows, text, **look, **halo),
        layer("text", rows, {**text, "color": COLOUR}, **look),
    ]


def small_title(text: str | Sequence[str]) -> dict[str, Any]:
    """The title of one panel among several."""
    look = {"fontSize": FONT_SIZE, "fontWeight": "normal", "frame": "group", "offset": 6}
    return {"text": text, **look}


def lines(text: str, letters: int, separator: str = ", ") -> str:
    """A text broken into lines of about so many letters, after separators alone."""
    broken: list[str] = []
    for part in text.split(separator):
        if broken and len(broken[-1]) + len(part) + len(separator) <= letters:
            broken[-1] += f"{separator}{part}"
        else:
            broken.append(part)
    return "\n".join(broken)
