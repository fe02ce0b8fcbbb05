"""Maps of one number for every layer of a model and every part of a layer, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import altair as alt
import numpy as np

from rankwise.report.charts.drawing import (
    LABEL_FONT,
    SMALL_FONT,
    Drawing,
    Layers,
    Rect,
    Text,
    cut,
    drawn,
)
from rankwise.report.charts.theme import GAIN_STEPS, INK, LOSS_STEPS, MUTED, PAGE, UNSHOWN, Colour

T = TypeVar("T")

MOST_PANELS = 4
"""Of one chart."""

_MOST_TEXT_COLUMNS = 16
"""With more columns in all panels, cells are narrow and hold no numbers."""

_WIDE, _NARROW, _HEIGHT = 40.0, 20.0, 17.0
_GAP, _BETWEEN, _LEFT = 1.5, 22.0, 44.0
_LINE, _HEAD = 14.0, 40.0
_SWATCH, _KEY_HEIGHT = 64.0, 62.0
_KEY_WIDTH = 5 * _SWATCH + 20.0
_LETTER = 6.4
_SHARES = (0.3, 0.6, 0.85, 0.97)


class MapScale(NamedTuple):
    """How numbers are coloured and written, the same in all panels of a chart.

    Attributes:
        ends: where the colour changes, ascending; below the first is the palest, above the last the
            darkest. Signed scales have as many steps below zero.
        words: a number in the cells and at the key.
        signed: negative numbers have their own colour.
    """

    ends: tuple[float, ...]
    words: Callable[[float], str]
    signed: bool = False

    @classmethod
    def of(
        cls,
        values: Sequence[float],
        words: Callable[[float], str],
        *,
        signed: bool = False,
    ) -> MapScale:
        """Five steps that hold about as many of these values each, at round numbers."""
        sizes = np.array([abs(value) if signed else value for value in values])
        quantiles = np.quantile(sizes[sizes > 0], _SHARES) if (sizes > 0).any() else np.zeros(4)
        ends: list[float] = []
        for end in quantiles.tolist():
            rounded = float(f"{end:.1e}")
            ends.append(rounded if not ends or rounded > ends[-1] else ends[-1] * 1.1)
        return cls(tuple(ends), words, signed)


class MapPanel(NamedTuple):
    """One map: ``values`` by layer and column; what is not there was not measured.

    ``scale`` is its own, where that is not the chart's; then the key says whose it is.
    """

    title: str
    columns: tuple[str, ...]
    values: Mapping[tuple[int, str], float]
    scale: MapScale | None = None


def layer_map(panels: Sequence[MapPanel], scale: MapScale, title: alt.TitleParams) -> Layers:
    """The maps next to each other, one row for each layer, with a key to the colours below.

    Args:
        panels: at least one, with at least one value.
        scale: of panels without their own.
        title: with what the numbers are in its subtitle.
    """
    layers = sorted({layer for panel in panels for layer, _ in panel.values})
    num_columns = sum(len(panel.columns) for panel in panels)
    has_text = num_columns <= _MOST_TEXT_COLUMNS
    cell = _WIDE if has_text else _NARROW
    drawing = Drawing([], [], [])
    left = _LEFT
    for panel in panels:
        wanted = max(len(panel.columns) * cell, min(_LETTER * len(panel.title), 190.0))
        _panel(drawing, panel, layers, panel.scale or scale, left, cell, wanted, has_text=has_text)
        left += wanted + _BETWEEN
    bottom = _HEAD + len(layers) * _HEIGHT
    for number, layer in enumerate(layers):
        y = _HEAD + (number + 0.5) * _HEIGHT - _GAP / 2
        drawing.texts.append(_small(_LEFT - 8.0, y, str(layer), "right"))
    drawing.texts.append(_small(_LEFT - 8.0, _HEAD - 10.0, "layer", "right"))
    keys = [("", scale)] if any(panel.scale is None for panel in panels) else []
    keys += [(panel.title, panel.scale) for panel in panels if panel.scale is not None]
    across = max(1, int((left - _BETWEEN - _LEFT) // _KEY_WIDTH))
    right, first = left - _BETWEEN, bottom + 14.0 + (_LINE + 2.0 if len(keys) > 1 else 0.0)
    for place, (name, each) in enumerate(keys):
        x, y = _LEFT + place % across * _KEY_WIDTH, first + place // across * _KEY_HEIGHT
        if len(keys) > 1:
            drawing.texts.append(_small(x, y - _LINE / 2 - 2.0, name, "left"))
        right, bottom = max(right, _key(drawing, each, x, y)), y + _KEY_HEIGHT - 28.0
    return drawn(drawing, right, bottom + 14.0, title)


def _panel(
    drawing: Drawing,
    panel: MapPanel,
    layers: Sequence[int],
    scale: MapScale,
    left: float,
    cell: float,
    width: float,
    *,
    has_text: bool,
) -> None:
    name = cut(panel.title, int(width / (_LETTER - 0.6)))
    heading = Text(left, _LINE / 2, name, size=LABEL_FONT, align="left", weight="bold")
    drawing.texts.append(heading)
    drawing.fills.append(
        Rect(left, _LINE + 3.0, len(panel.columns) * cell - _GAP, 1.0, MUTED.light)
    )
    for place, column in enumerate(panel.columns):
        x = left + place * cell
        text = cut(column.removesuffix("_proj"), int(cell / 5.6))
        drawing.texts.append(_small(x + (cell - _GAP) / 2, _HEAD - 10.0, text, "center"))
        for number, layer in enumerate(layers):
            value = panel.values.get((layer, column))
            if value is None:
                continue
            y = _HEAD + number * _HEIGHT
            fill, ink = _colours(value, scale)
            drawing.fills.append(Rect(x, y, cell - _GAP, _HEIGHT - _GAP, fill.light))
            if has_text:
                middle = x + (cell - _GAP) / 2, y + (_HEIGHT - _GAP) / 2
                drawing.texts.append(Text(*middle, scale.words(value), ink.light, SMALL_FONT))


def _colours(value: float, scale: MapScale) -> tuple[Colour, Colour]:
    """Of a cell and of the text on it."""
    steps = LOSS_STEPS if scale.signed and value < 0 else GAIN_STEPS
    size = abs(value) if scale.signed else value
    step = sum(size >= end for end in scale.ends)
    if value == 0:
        return UNSHOWN, MUTED
    return steps[step], INK if step < len(steps) - 2 else PAGE


def _key(drawing: Drawing, scale: MapScale, x: float, y: float) -> float:
    """The colours with the numbers between them; returns where it ends."""
    steps = [*(reversed(LOSS_STEPS) if scale.signed else ()), *GAIN_STEPS]
    ends = [
        *([*(-end for end in reversed(scale.ends)), 0.0] if scale.signed else ()),
        *scale.ends,
    ]
    swatch = _SWATCH / 2 if scale.signed else _SWATCH
    for place, colour in enumerate(steps):
        drawing.fills.append(Rect(x + place * swatch, y, swatch, 11.0, colour.light))
    for place, end in enumerate(ends):
        text = scale.words(end)
        drawing.texts.append(_small(x + (place + 1) * swatch, y + 21.0, text, "center"))
    return x + len(steps) * swatch + 10.0


def _small(x: float, y: float, text: str, align: str) -> Text:
    return Text(x, y, text, MUTED.light, SMALL_FONT + 1, align)


def thinned(items: Sequence[T], most: int) -> list[T]:
    """So many at most, evenly from the first to the last; of one, the last."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def percent(value: float) -> str:
    """A share in two digits of a percent, as short as a cell is."""
    share = 100.0 * value
    return (f"{share:.0f}" if abs(share) >= 9.95 else f"{share:.2g}").replace("-", "−")
