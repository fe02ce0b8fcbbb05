"""Heat maps: a coloured cell for each row and column, in panels side by side."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rankwise.report.charts import marks
from rankwise.report.charts.marks import Encoding
from rankwise.report.charts.theme import GAIN_STEPS, INK, LOSS_STEPS, MUTED, PAGE, UNSHOWN, Colour
from rankwise.report.parts import Chart, Drawing

MOST_PANELS = 4
"""The most panels of one chart of layers."""

_MOST_WIDE_COLUMNS, _MOST_NUMBERS = 16, 240
"""Where all panels have more columns, cells of layers are narrow; those and more hold no numbers.
"""

_SHARES = (0.3, 0.6, 0.85, 0.97)
_FONT, _SMALL_FONT, _LINE = 12, 11, 13
_GAP, _WIDEST = 1.5, 1440
_KEY_LENGTH, _LABEL_LIMIT = 300, 240


_UNSHOWN = "unshown"
_FILLS = {
    _UNSHOWN: UNSHOWN,
    **dict(enumerate(GAIN_STEPS)),
    **{-1 - step: colour for step, colour in enumerate(LOSS_STEPS)},
}
_INKS = {
    step: MUTED if step == _UNSHOWN else PAGE if step in (3, 4, -4, -5) else INK for step in _FILLS
}
"""The colours of a cell and of the text on it, by its step."""


def _by_step(colours: Mapping[int | str, Colour]) -> dict[str, Any]:
    domain, colours_of = list(colours), [colour.css for colour in colours.values()]
    return marks.category("step", scale={"domain": domain, "range": colours_of}, legend=None)


class HeatScale(NamedTuple):
    """How numbers are coloured and written.

    Attributes:
        ends: where the colour changes, ascending; below the first is the palest, above the last the
            darkest. Signed scales have as many steps below zero.
        words: a number in a cell and at the key.
        is_signed: negative numbers have their own colour.
        title: of the key, with the unit.
    """

    ends: tuple[float, ...]
    words: Callable[[float], str]
    is_signed: bool = False
    title: str = ""

    @classmethod
    def of(
        cls, values: Sequence[float], words: Callable[[float], str], *, is_signed: bool = False
    ) -> HeatScale:
        """Five steps that hold about as many of these values each, at round numbers."""
        sizes = np.array([abs(value) if is_signed else value for value in values])
        quantiles = np.quantile(sizes[sizes > 0], _SHARES) if (sizes > 0).any() else np.zeros(4)
        ends: list[float] = []
        for end in quantiles.tolist():
            rounded = float(f"{end:.1e}")
            ends.append(rounded if not ends or rounded > ends[-1] else ends[-1] * 1.1 or 1e-9)
        return cls(tuple(ends), words, is_signed)

    def step(self, value: float) -> int:
        """The place among ``GAIN_STEPS``, and below zero, from -1 on, among ``LOSS_STEPS``."""
        size = abs(value) if self.is_signed else value
        step = bisect.bisect_right(self.ends, size * (1 + 1e-9))  # an end with its rounding
        return -1 - step if self.is_signed and value < 0 else step


class HeatCell(NamedTuple):
    """A number with what is written there; one that is not ``is_shown`` is muted.

    ``small`` is a line below the text, ``frame`` the colour of a frame, ``task`` the one whose
    items a click shows; each may be empty. Without a value the cell is blank.
    """

    value: float | None
    text: str = ""
    small: str = ""
    is_shown: bool = True
    frame: str = ""
    task: str = ""


class HeatPanel(NamedTuple):
    """One map: cells by row and column; what is not there was not measured.

    ``rows_are`` says in front of a row's name what it is, where that alone would not.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Mapping[tuple[str, str], HeatCell]
    scale: HeatScale
    rows_are: str = ""


def heat_map(panels: Sequence[HeatPanel], size: tuple[float, float]) -> Drawing:
    """Panels side by side with the same rows; those of one scale have one key.

    Args:
        panels: at least one; each name of a row or column is there once, its lines in line feeds.
        size: the width and the height of a cell in pixels.
    """
    widest = max(len(panel.columns) for panel in panels)
    in_a_row = max(1, int(_WIDEST / (size[0] * widest)))
    charts = [
        _panel(panel, size, is_first=place % in_a_row == 0) for place, panel in enumerate(panels)
    ]
    keys = {id(panel.scale): panel for panel in panels}
    named = [_key(panel, has_title=len(keys) > 1) for panel in keys.values()]
    width = sum(size[0] * len(panel.columns) for panel in panels)
    maps = {"concat": charts, "spacing": 18, "columns": in_a_row}
    chart = {"vconcat": [maps, {"concat": named, "columns": 2}]}
    return Drawing(chart, "", is_wide=width > 440)


def _key(panel: HeatPanel, *, has_title: bool) -> Chart:
    """The colours of a scale, with the numbers between them."""
    scale = panel.scale
    ends = [*(-end for end in reversed(scale.ends)), 0.0] if scale.is_signed else []
    ends += scale.ends
    colours = [*(reversed(LOSS_STEPS) if scale.is_signed else ()), *GAIN_STEPS]
    size = _KEY_LENGTH / len(colours)
    boxes = [
        {"x": size * place, "x2": size * (place + 1), "colour": colour.css}
        for place, colour in enumerate(colours)
    ]
    texts = [{"x": size * place, "text": scale.words(end)} for place, end in enumerate(ends, 1)]
    x = marks.number("x", scale={"domain": [0, _KEY_LENGTH], "nice": False}, axis=None)
    box = {"x": x, "x2": {"field": "x2"}, "y": {"value": 0}, "fill": marks.COLOUR}
    text = {"x": x, "y": {"value": 14}, "text": marks.category("text")}
    look = {"fontSize": _SMALL_FONT, "color": MUTED.css}
    title = ", ".join(part for part in (panel.title if has_title else "", scale.title) if part)
    layers = [
        marks.layer("rect", boxes, box, height=11, baseline="top"),
        marks.layer("text", texts, text, baseline="top", **look),
    ]
    own = {"text": title, **look, "fontWeight": "normal", "offset": 4}
    return marks.layered(layers, _KEY_LENGTH, 26, title=own)


def _panel(panel: HeatPanel, size: tuple[float, float], *, is_first: bool) -> Chart:
    width, height = size
    labels: dict[str, Any] = {
        "domain": False,
        "ticks": False,
        "labelExpr": "split(datum.label, '\\n')",
        "labelFontSize": _FONT - 1,
        "labelOverlap": False,
    }
    more = max(column.count("\n") for column in panel.columns)
    above = {
        "labelPadding": 5 + _LINE * more,
        "orient": "top",
        "labelAngle": 0,
        "labelLimit": width * 1.2,
        "labelLineHeight": _LINE,
    }
    left = {**labels, "labelPadding": 5, "labelLimit": _LABEL_LIMIT} if is_first else None
    at = {
        "x": _channel("column", panel.columns, {**labels, **above}),
        "y": _channel("row", panel.rows, left),
    }
    link = {**at, **marks.links(cell.task for cell in panel.cells.values())}
    rows = [_row(panel, place, cell) for place, cell in panel.cells.items()]
    boxes = [row for row in rows if "step" in row]
    frames = [row for row in rows if "frame" in row]
    box = {"width": width - _GAP, "height": height - _GAP}
    frame = {"width": width - 4, "height": height - 4, "filled": False, "strokeWidth": 2}
    layers = [
        marks.layer("rect", boxes, {**link, "fill": _by_step(_FILLS)}, **box),
        marks.layer("rect", frames, {**at, "stroke": marks.category("frame", scale=None)}, **frame),
        *_texts(rows, link),
    ]
    title = marks.small_title(panel.title) if panel.title else {"text": ""}
    whole = width * len(panel.columns), height * len(panel.rows)
    return marks.layered(layers, *whole, title=title)


def _channel(field: str, names: Sequence[str], axis: dict[str, Any] | None) -> dict[str, Any]:
    """The places of rows or of columns, in this order."""
    scale = {"domain": list(names), "paddingInner": 0, "paddingOuter": 0}
    return marks.category(field, sort=list(names), title=None, scale=scale, axis=axis)


def _texts(rows: Sequence[Mapping[str, Any]], at: Encoding) -> Iterator[Chart]:
    """What is written in the cells, with the small line below it."""
    has_small = any("small" in row for row in rows)
    looks = {"text": (_FONT if has_small else _SMALL_FONT, -6), "small": (_SMALL_FONT, 8)}
    for field, (font, dy) in looks.items():
        own = [row for row in rows if field in row]
        text = {**at, "color": _by_step(_INKS), "text": marks.category(field)}
        shift = dy if has_small else 0
        yield marks.layer("text", own, text, fontSize=font, dy=shift, baseline="middle")


def _row(panel: HeatPanel, place: tuple[str, str], cell: HeatCell) -> dict[str, Any]:
    row, column = place
    drawn: dict[str, Any] = {"row": row, "column": column, "said": _said(panel, place, cell)}
    if cell.value is not None:
        drawn["step"] = panel.scale.step(cell.value) if cell.is_shown else _UNSHOWN
    for name, value in (("text", cell.text), ("small", cell.small), ("frame", cell.frame)):
        if value:
            drawn[name] = value
    return {**drawn, "href": marks.items_link(cell.task)} if cell.task else drawn


def _said(panel: HeatPanel, place: tuple[str, str], cell: HeatCell) -> str:
    """The names and the number of a cell, in words."""
    text = panel.scale.words(cell.value) if cell.value is not None else cell.text
    row, column = (name.replace("\n", " ") for name in place)
    where = [panel.title, f"{panel.rows_are} {row}".strip(), column]
    number = f"{text} ({cell.small})" if cell.small else text
    return f"{', '.join(filter(None, where))}: {number}"


class LayerMap(NamedTuple):
    """A number for every layer and part of a layer; what is not there was not measured."""

    title: str
    values: Mapping[tuple[int, str], float]
    scale: HeatScale


def layer_maps(maps: Sequence[LayerMap], *, names_largest: bool = False) -> Drawing:
    """Maps next to each other, one row for each layer.

    Args:
        maps: at least one, with at least one value each.
        names_largest: say in words which head has the largest number.
    """
    layers = [str(layer) for layer in sorted({layer for own in maps for layer, _ in own.values})]
    parts = [list(dict.fromkeys(part for _, part in own.values)) for own in maps]
    # over a column stands q for q_proj, or the end of a long name; all where ends are alike
    every = {part for own_parts in parts for part in own_parts}
    names = {part: part.removesuffix("_proj")[-9:] for part in every}
    if len(set(names.values())) < len(names):
        names = {part: part for part in every}
    is_wide = sum(map(len, parts)) <= _MOST_WIDE_COLUMNS
    has_text = is_wide and sum(len(own.values) for own in maps) <= _MOST_NUMBERS
    panels = [
        HeatPanel(
            own.title,
            [names[part] for part in own_parts],
            layers,
            {
                (str(layer), names[part]): HeatCell(
                    value, own.scale.words(value) if has_text else "", is_shown=value != 0
                )
                for (layer, part), value in own.values.items()
            },
            own.scale,
            "layer",
        )
        for own, own_parts in zip(maps, parts, strict=True)
    ]
    words: list[str] = []
    for own in maps:
        values = sorted(own.values.values())
        low, high = own.scale.words(values[0]), own.scale.words(values[-1])
        layer, head = max(own.values, key=lambda place: abs(own.values[place]))
        where = f", largest in layer {layer} head {head}" if names_largest else ""
        words.append(f"{own.title}{':' if names_largest else ''} {low} to {high}{where}")
    drawing = heat_map(panels, (40.0 if is_wide else 20.0, 17.0))
    return drawing._replace(words=f"{'; '.join(words)}.", is_wide=True)


def percent(value: float) -> str:
    """A share in two digits of a percent, as short as a cell is."""
    share = 100.0 * value
    return (f"{share:.0f}" if abs(share) >= 9.95 else f"{share:.2g}").replace("-", "−")


def plain(value: float) -> str:
    """Two digits."""
    return f"{value:.2g}".replace("-", "−")
