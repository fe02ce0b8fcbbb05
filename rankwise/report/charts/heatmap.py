"""Heat maps: a coloured cell for each row and column, in panels side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import altair as alt
import numpy as np

from rankwise.report.charts.marks import items_link, links, rows_chart, small_title
from rankwise.report.charts.theme import GAIN_STEPS, INK, LOSS_STEPS, MUTED, PAGE, UNSHOWN
from rankwise.report.parts import Chart, Drawing

T = TypeVar("T")

MOST_PANELS = 4
"""Of one chart of layers."""

_MOST_TEXT_COLUMNS = 16
"""With more columns in all panels, cells of layers are narrow and hold no numbers."""

_SHARES = (0.3, 0.6, 0.85, 0.97)
_FONT, _SMALL_FONT, _LINE = 12, 10, 13
_GAP, _WIDEST = 1.5, 1440
_KEY_LENGTH, _LABEL_LIMIT = 300, 240


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

    @property
    def steps(self) -> tuple[list[float], list[str]]:
        """Where the colour changes, and the colours, of which there is one more."""
        below = [*(-end for end in reversed(self.ends)), 0.0] if self.is_signed else []
        colours = [*(reversed(LOSS_STEPS) if self.is_signed else ()), *GAIN_STEPS]
        return [*below, *self.ends], [colour.light for colour in colours]

    def ink(self, value: float) -> str:
        """Of the text on a cell: the last two colours are dark."""
        size = abs(value) if self.is_signed else value
        return (PAGE if sum(size >= end for end in self.ends) >= len(self.ends) - 1 else INK).light


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
    """One map: cells by row and column; what is not there was not measured."""

    title: str
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Mapping[tuple[str, str], HeatCell]
    scale: HeatScale


class HeatSize(NamedTuple):
    """The width and the height of a cell in pixels."""

    width: float
    height: float


def heat_map(panels: Sequence[HeatPanel], size: HeatSize) -> Drawing:
    """Panels side by side with the same rows; those of one scale have one key.

    Args:
        panels: at least one; each name of a row or column is there once, its lines in line feeds.
        size: of cells.
    """
    widest = max(len(panel.columns) for panel in panels)
    in_a_row = max(1, int(_WIDEST / (size.width * widest)))
    charts = [
        _panel(panel, size, is_first=place % in_a_row == 0) for place, panel in enumerate(panels)
    ]
    maps = alt.concat(*charts, spacing=18, columns=in_a_row).resolve_scale(fill="independent")
    keys = {id(panel.scale): panel for panel in panels}
    named = [_key(panel, has_title=len(keys) > 1) for panel in keys.values()]
    width = sum(size.width * len(panel.columns) for panel in panels)
    return Drawing(alt.vconcat(maps, alt.concat(*named, columns=2)), "", is_wide=width > 440)


def _key(panel: HeatPanel, *, has_title: bool) -> Chart:
    """The colours of a scale, with the numbers between them."""
    ends, colours = panel.scale.steps
    size = _KEY_LENGTH / len(colours)
    boxes = [
        {"x": size * place, "x2": size * (place + 1), "colour": colour}
        for place, colour in enumerate(colours)
    ]
    texts = [
        {"x": size * place, "text": panel.scale.words(end)}
        for place, end in enumerate(ends, start=1)
    ]
    x: dict[str, Any] = {"scale": alt.Scale(domain=[0, _KEY_LENGTH], nice=False), "axis": None}
    title = ", ".join(
        part for part in (panel.title if has_title else "", panel.scale.title) if part
    )
    return alt.layer(
        rows_chart(boxes)
        .mark_rect(height=11, baseline="top")
        .encode(
            alt.X("x:Q", **x),
            x2="x2:Q",
            y=alt.value(0),
            fill=alt.Fill("colour:N", scale=None),
        ),
        rows_chart(texts)
        .mark_text(baseline="top", fontSize=_SMALL_FONT + 1, color=MUTED.light)
        .encode(alt.X("x:Q", **x), y=alt.value(14), text="text:N"),
    ).properties(
        width=_KEY_LENGTH,
        height=26,
        title=alt.TitleParams(
            title, fontSize=_SMALL_FONT + 1, fontWeight="normal", color=MUTED.light, offset=4
        ),
    )


def _panel(panel: HeatPanel, size: HeatSize, *, is_first: bool) -> Chart:
    labels: dict[str, Any] = {
        "domain": False,
        "ticks": False,
        "labelExpr": "split(datum.label, '\\n')",
        "labelFontSize": _FONT - 1,
        "labelOverlap": False,
    }
    more = max(column.count("\n") for column in panel.columns)
    x = alt.X(
        "column:N",
        sort=list(panel.columns),
        title=None,
        scale=alt.Scale(domain=list(panel.columns), paddingInner=0, paddingOuter=0),
        axis=alt.Axis(
            **labels,
            labelPadding=5 + _LINE * more,
            orient="top",
            labelAngle=0,
            labelLimit=size.width * 1.2,
            labelLineHeight=_LINE,
        ),
    )
    y = alt.Y(
        "row:N",
        sort=list(panel.rows),
        title=None,
        scale=alt.Scale(domain=list(panel.rows), paddingInner=0, paddingOuter=0),
        axis=alt.Axis(**labels, labelPadding=5, labelLimit=_LABEL_LIMIT) if is_first else None,
    )
    rows = [_row(panel, place, cell) for place, cell in panel.cells.items()]
    drawn = [row for row in rows if row["value"] is not None]
    ends, colours = panel.scale.steps
    scale = alt.Scale(type="threshold", domain=ends, range=colours)
    fill = alt.Fill("value:Q", scale=scale, legend=None)
    box: dict[str, Any] = {"width": size.width - _GAP, "height": size.height - _GAP}
    link = links(cell.task for cell in panel.cells.values())
    shown = rows_chart(row for row in drawn if row["is_shown"])
    muted = rows_chart(row for row in drawn if not row["is_shown"])
    layers: list[Any] = [
        shown.mark_rect(**box).encode(x, y, fill, **link),
        muted.mark_rect(**box, color=UNSHOWN.light).encode(x, y, **link),
        rows_chart(row for row in rows if row["frame"])
        .mark_rect(width=size.width - 4, height=size.height - 4, filled=False, strokeWidth=2)
        .encode(x, y, stroke=alt.Stroke("frame:N", scale=None)),
    ]
    return alt.layer(*layers, *_texts(rows, {"x": x, "y": y, **link})).properties(
        width=size.width * len(panel.columns),
        height=size.height * len(panel.rows),
        title=small_title(panel.title) if panel.title else alt.TitleParams(""),
    )


def _texts(rows: Sequence[Mapping[str, Any]], where: Mapping[str, Any]) -> Iterator[Any]:
    """What is written in the cells, with the small line below it."""
    has_small = any(row["small"] for row in rows)
    looks = {"text": (_FONT if has_small else _SMALL_FONT, -6), "small": (_SMALL_FONT, 8)}
    for field, (font, dy) in looks.items():
        own = [row for row in rows if row[field]]
        if own:
            shift = dy if has_small else 0
            words = rows_chart(own).mark_text(fontSize=font, dy=shift, baseline="middle")
            ink = alt.Color("ink:N", scale=None)
            yield words.encode(color=ink, text=f"{field}:N", **where)


def _row(panel: HeatPanel, place: tuple[str, str], cell: HeatCell) -> dict[str, Any]:
    is_muted = cell.value is None or not cell.is_shown
    return {
        "row": place[0],
        "column": place[1],
        # at an end, a loss has the colour that a gain of its size has
        "value": None if cell.value is None else cell.value * (1 + 1e-9),
        "text": cell.text,
        "small": cell.small,
        "is_shown": cell.is_shown,
        "frame": cell.frame,
        "href": items_link(cell.task),
        "ink": MUTED.light if is_muted else panel.scale.ink(cell.value or 0.0),
    }


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
    names = _short({part for own_parts in parts for part in own_parts})
    has_text = sum(map(len, parts)) <= _MOST_TEXT_COLUMNS
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
    drawing = heat_map(panels, HeatSize(40.0 if has_text else 20.0, 17.0))
    return drawing._replace(words=f"{'; '.join(words)}.", is_wide=True)


def _short(parts: Collection[str]) -> dict[str, str]:
    """What stands over a column: q for q_proj, the end of a long name; all where ends are alike."""
    names = {part: part.removesuffix("_proj")[-9:] for part in parts}
    return names if len(set(names.values())) == len(names) else {part: part for part in parts}


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
