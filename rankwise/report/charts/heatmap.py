"""Heat maps: coloured cells with numbers in them, in groups of rows and columns, above a key."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.report.charts.theme import INK, MUTED, Colour
from rankwise.report.parts import Chart

LABEL_FONT, SMALL_FONT, KEY_FONT = 12, 10, 11
_LINE, _GROUP_LINE = 14.0, 20.0
_KEY_HEIGHT, _KEY_BESIDE, _SINGLE_WIDTH = 62.0, 20.0, 140.0
_LETTER = 6.1


class HeatCell(NamedTuple):
    """A coloured cell: a text, a smaller one below it, and a frame; each may be empty."""

    colour: str
    text: str
    ink: str
    interval: str = ""
    frame: str = ""
    is_bold: bool = False


class HeatColumn(NamedTuple):
    """A column with its group and the lines of its label; a mean is set apart."""

    group: str
    lines: tuple[str, ...]
    is_mean: bool = False


class HeatRow(NamedTuple):
    """A row with its group, the lines of its label, and a cell or None for each column."""

    group: str
    lines: tuple[str, ...]
    cells: tuple[HeatCell | None, ...]


class Key(NamedTuple):
    """Colours with the texts at which they change, and single colours with what they mean.

    ``swatch`` is the width and the height of one in pixels.
    """

    name: str
    colours: Sequence[Colour]
    ends: Sequence[str]
    swatch: tuple[float, float]
    singles: Sequence[tuple[Colour, str]] = ()

    @property
    def width(self) -> float:
        """Of its colours in pixels."""
        return self.swatch[0] * len(self.colours)


class HeatLook(NamedTuple):
    """Sizes of a map in pixels.

    Attributes:
        cell: width and height of a cell, with the gap behind it.
        gap: between cells; between groups of columns and of rows it is wider.
        label_size: of the font of rows' and columns' labels.
        label_colour: theirs.
        label_gap: between columns' labels and cells.
        text_size: of the font in the cells.
        key_gap: between cells and keys.
        left: where cells begin; 0 for as far right as the rows' labels need.
        title_room: a group of columns is as wide as its title, up to this.
        title_letter: the width of a letter of that title, on average.
        cut_letter: the same where a title is cut to fit.
        corner: a word over the rows' labels.
    """

    cell: tuple[float, float]
    gap: float
    group_gap: float
    label_size: int
    label_colour: Colour
    label_gap: float
    text_size: int
    key_gap: float = 18.0
    left: float = 0.0
    title_room: float = 0.0
    title_letter: float = 6.4
    cut_letter: float = 6.7
    corner: str = ""


class _Drawing:
    """Boxes and words in pixels from the left upper corner; y grows downwards."""

    def __init__(self) -> None:
        self.fills: list[dict[str, Any]] = []
        self.frames: list[dict[str, Any]] = []
        self.texts: dict[tuple[int, str, str], list[dict[str, Any]]] = {}

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, *, framed: bool = False
    ) -> None:
        boxes = self.frames if framed else self.fills
        boxes.append({"x": x, "x2": x + width, "y": y, "y2": y + height, "colour": colour})

    def text(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = MUTED.light,
        size: int = KEY_FONT,
        align: str = "left",
        *,
        is_bold: bool = False,
    ) -> None:
        """With its middle height at y, and the end that ``align`` names at x."""
        look = (size, align, "bold" if is_bold else "normal")
        self.texts.setdefault(look, []).append({"x": x, "y": y, "text": text, "colour": colour})

    def chart(self, width: float, height: float) -> Chart:
        def chart_of(values: list[dict[str, Any]]) -> alt.Chart:
            across = alt.Scale(domain=[0, width], nice=False)
            down = alt.Scale(domain=[0, height], nice=False, reverse=True)
            return alt.Chart(alt.Data(values=values)).encode(
                alt.X("x:Q", scale=across, axis=None), alt.Y("y:Q", scale=down, axis=None)
            )

        ends: dict[str, Any] = {"x2": alt.X2("x2:Q"), "y2": alt.Y2("y2:Q")}
        fill, stroke = alt.Fill("colour:N", scale=None), alt.Stroke("colour:N", scale=None)
        layers = [chart_of(self.fills).mark_rect().encode(fill, **ends)]
        if self.frames:
            framed = chart_of(self.frames).mark_rect(strokeWidth=2, filled=False)
            layers.append(framed.encode(stroke, **ends))
        for (size, align, weight), values in self.texts.items():
            look: dict[str, Any] = {"fontSize": size, "align": align, "fontWeight": weight}
            words = chart_of(values).mark_text(baseline="middle", **look)
            layers.append(words.encode(alt.Text("text:N"), alt.Color("colour:N", scale=None)))
        return alt.layer(*layers).properties(width=width, height=height)


def heat_map(
    rows: Sequence[HeatRow],
    columns: Sequence[HeatColumn],
    keys: Sequence[Key],
    look: HeatLook,
    words: Sequence[tuple[str, Colour]] = (),
) -> Chart:
    """Rows and columns by group, with keys to the colours below.

    Args:
        rows: at least one; neighbours of one group stand together.
        columns: the same.
        keys: at least one; several are named.
        look: its sizes.
        words: below the keys.
    """
    drawing = _Drawing()
    left = look.left or _LETTER * max(len(line) for row in rows for line in row.lines) + 14.0
    head = _GROUP_LINE * any(column.group for column in columns) + 6.0
    head += _LINE * max(len(column.lines) for column in columns)
    across, right = _column_heads(drawing, columns, look, left, head)
    bottom = _rows(drawing, rows, across, look, left, head)
    if look.corner:
        drawing.text(left - 8.0, head - 10.0, look.corner, align="right")
    top = bottom + look.key_gap + (_LINE + 2.0 if len(keys) > 1 else 0.0)
    in_a_row = max(1, int((right - left) // (keys[0].width + _KEY_BESIDE)))
    for place, key in enumerate(keys):
        x = look.left + place % in_a_row * (key.width + _KEY_BESIDE)
        y = top + place // in_a_row * _KEY_HEIGHT
        if len(keys) > 1:
            drawing.text(x, y - _LINE / 2 - 2.0, key.name)
        right, bottom = max(right, _key(drawing, key, x, y)), y + 48.0
    x = 0.0
    for text, colour in words:
        drawing.text(x, bottom - 6.0, text, colour.light)
        x += _LETTER * len(text) + 18.0
    return drawing.chart(right, bottom + (8.0 if words else 0.0))


def _column_heads(
    drawing: _Drawing, columns: Sequence[HeatColumn], look: HeatLook, left: float, head: float
) -> tuple[list[float], float]:
    """Draws labels and groups; where each column begins, and where the last group ends."""
    across: list[float] = []
    right = left
    for group, own in itertools.groupby(columns, key=lambda column: column.group):
        start = right + (look.group_gap if across else 0.0)
        right = start
        for column in own:
            middle = right + (look.cell[0] - look.gap) / 2
            colour = MUTED if column.is_mean else look.label_colour
            for place, line in enumerate(reversed(column.lines), start=1):
                y = head - look.label_gap - (place - 0.5) * _LINE
                drawing.text(middle, y, line, colour.light, look.label_size, "center")
            across.append(right)
            right += look.cell[0]
        if group:
            width = right - start - look.gap
            room = max(right - start, min(look.title_letter * len(group), look.title_room))
            drawing.box(start, _GROUP_LINE - 3.0, width, 1.0, MUTED.light)
            title = cut(group, int((room if look.title_room else width) / look.cut_letter))
            drawing.text(start, _LINE / 2, title, INK.light, LABEL_FONT, is_bold=True)
            right = start + room
    return across, right


def _rows(
    drawing: _Drawing,
    rows: Sequence[HeatRow],
    across: Sequence[float],
    look: HeatLook,
    left: float,
    top: float,
) -> float:
    """Draws labels, groups and cells; where the last row ends."""
    is_grouped = any(row.group for row in rows)
    for number, (group, own) in enumerate(itertools.groupby(rows, key=lambda row: row.group)):
        top += look.group_gap if number else 0.0
        if is_grouped:
            drawing.text(0.0, top + _GROUP_LINE / 2, group, INK.light, LABEL_FONT, is_bold=True)
            top += _GROUP_LINE
        for row in own:
            middle = top + (look.cell[1] - look.gap) / 2
            for place, line in enumerate(row.lines):
                y = middle + (place - (len(row.lines) - 1) / 2) * _LINE
                drawing.text(left - 8.0, y, line, look.label_colour.light, look.label_size, "right")
            for x, cell in zip(across, row.cells, strict=True):
                if cell is not None:
                    _cell(drawing, cell, x, top, look)
            top += look.cell[1]
    return top


def _cell(drawing: _Drawing, cell: HeatCell, x: float, y: float, look: HeatLook) -> None:
    width, height = look.cell[0] - look.gap, look.cell[1] - look.gap
    if cell.colour:
        drawing.box(x, y, width, height, cell.colour)
    if cell.frame:
        drawing.box(x + 1.0, y + 1.0, width - 2.0, height - 2.0, cell.frame, framed=True)
    middle = x + width / 2
    at = y + 12.0 if cell.interval else y + height / 2
    if cell.text:
        drawing.text(
            middle, at, cell.text, cell.ink, look.text_size, "center", is_bold=cell.is_bold
        )
    if cell.interval:
        drawing.text(middle, y + 25.5, cell.interval, cell.ink, SMALL_FONT, "center")


def _key(drawing: _Drawing, key: Key, x: float, y: float) -> float:
    """The colours with the texts between them; returns where it ends."""
    width, height = key.swatch
    for place, colour in enumerate(key.colours):
        drawing.box(x + place * width, y, width, height, colour.light)
    for place, end in enumerate(key.ends, start=1):
        drawing.text(x + place * width, y + 21.0, end, align="center")
    right = x + key.width + 10.0
    for colour, meaning in key.singles:
        drawing.box(right + 4.0, y, 20.0, height, colour.light)
        drawing.text(right + 30.0, y + 6.0, meaning)
        right += _SINGLE_WIDTH
    return right


def cut(text: str, letters: int) -> str:
    """The middle of a long text left out."""
    if len(text) <= letters:
        return text
    kept = max(letters - 1, 2)
    return f"{text[: kept - kept // 3]}…{text[len(text) - kept // 3 :]}"
