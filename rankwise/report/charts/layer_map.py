"""Maps of one number for every layer of a model and every part of a layer, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from rankwise.report.charts.heatmap import (
    KEY_FONT,
    SMALL_FONT,
    HeatCell,
    HeatColumn,
    HeatLook,
    HeatRow,
    Key,
    cut,
    heat_map,
)
from rankwise.report.charts.theme import GAIN_STEPS, INK, LOSS_STEPS, MUTED, PAGE, UNSHOWN, Colour
from rankwise.report.parts import Chart, Figure

T = TypeVar("T")

MOST_PANELS = 4
"""Of one chart."""

_MOST_TEXT_COLUMNS = 16
"""With more columns in all panels, cells are narrow and hold no numbers."""

_WIDE, _NARROW, _HEIGHT, _SWATCH = 40.0, 20.0, 17.0, (64.0, 11.0)
_SHARES = (0.3, 0.6, 0.85, 0.97)


class MapScale(NamedTuple):
    """How numbers are coloured and written.

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
        cls, values: Sequence[float], words: Callable[[float], str], *, signed: bool = False
    ) -> MapScale:
        """Five steps that hold about as many of these values each, at round numbers."""
        sizes = np.array([abs(value) if signed else value for value in values])
        quantiles = np.quantile(sizes[sizes > 0], _SHARES) if (sizes > 0).any() else np.zeros(4)
        ends: list[float] = []
        for end in quantiles.tolist():
            rounded = float(f"{end:.1e}")
            ends.append(rounded if not ends or rounded > ends[-1] else ends[-1] * 1.1)
        return cls(tuple(ends), words, signed)

    def key(self, name: str) -> Key:
        """The colours with the numbers between them."""
        below = [*(-end for end in reversed(self.ends)), 0.0] if self.signed else []
        colours = [*(reversed(LOSS_STEPS) if self.signed else ()), *GAIN_STEPS]
        ends = [self.words(end) for end in (*below, *self.ends)]
        width, height = _SWATCH
        return Key(name, colours, ends, (width / 2 if self.signed else width, height))

    def colours(self, value: float) -> tuple[Colour, Colour]:
        """Of a cell and of the text on it."""
        steps = LOSS_STEPS if self.signed and value < 0 else GAIN_STEPS
        step = sum((abs(value) if self.signed else value) >= end for end in self.ends)
        if value == 0:
            return UNSHOWN, MUTED
        return steps[step], INK if step < len(steps) - 2 else PAGE


class MapPanel(NamedTuple):
    """One map: ``values`` by layer and column; what is not there was not measured."""

    title: str
    columns: tuple[str, ...]
    values: Mapping[tuple[int, str], float]
    scale: MapScale


def layer_map(panels: Sequence[MapPanel]) -> Chart:
    """The maps next to each other, one row for each layer, with their keys below.

    Args:
        panels: at least one, with at least one value each; of those that share one scale, its key
            stands below once.
    """
    layers = sorted({layer for panel in panels for layer, _ in panel.values})
    has_text = sum(len(panel.columns) for panel in panels) <= _MOST_TEXT_COLUMNS
    width = _WIDE if has_text else _NARROW

    def cell(panel: MapPanel, layer: int, column: str) -> HeatCell | None:
        value = panel.values.get((layer, column))
        if value is None:
            return None
        fill, ink = panel.scale.colours(value)
        return HeatCell(fill.light, panel.scale.words(value) if has_text else "", ink.light)

    columns = [
        HeatColumn(panel.title, (cut(column.removesuffix("_proj"), int(width / 5.6)),))
        for panel in panels
        for column in panel.columns
    ]
    rows = [
        HeatRow(
            "",
            (str(layer),),
            tuple(cell(panel, layer, column) for panel in panels for column in panel.columns),
        )
        for layer in layers
    ]
    is_shared = all(panel.scale is panels[0].scale for panel in panels)
    keys = [panel.scale.key(panel.title) for panel in (panels[:1] if is_shared else panels)]
    look = HeatLook(
        cell=(width, _HEIGHT),
        gap=1.5,
        group_gap=22.0,
        label_size=KEY_FONT,
        label_colour=MUTED,
        label_gap=3.0,
        text_size=SMALL_FONT,
        key_gap=14.0,
        left=44.0,
        title_room=190.0,
        cut_letter=5.8,
        corner="layer",
    )
    return heat_map(rows, columns, keys, look)


def map_figure(
    name: str,
    title: str,
    detail: str,
    caption: str,
    panels: Sequence[MapPanel],
    *,
    names_largest: bool = False,
) -> Figure:
    """Maps as a figure; in words the range of every panel, and where its largest number is.

    Args:
        name: for file names.
        title: of the figure.
        detail: what the numbers are.
        caption: what can be read from it.
        panels: at least one.
        names_largest: say which head has the largest number.
    """
    words: list[str] = []
    for panel in panels:
        values = sorted(panel.values.values())
        low, high = panel.scale.words(values[0]), panel.scale.words(values[-1])
        layer, head = max(panel.values, key=lambda place: abs(panel.values[place]))
        where = f", largest in layer {layer} head {head}" if names_largest else ""
        words.append(f"{panel.title}{':' if names_largest else ''} {low} to {high}{where}")
    return Figure(
        name, title, caption, f"{'; '.join(words)}.", layer_map(panels), detail, is_wide=True
    )


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


def plain(value: float) -> str:
    """Two digits."""
    return f"{value:.2g}".replace("-", "−")
