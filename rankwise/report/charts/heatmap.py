"""A matrix of differences from the base: colour says how large, text says it in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import altair as alt

from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.report.charts.drawing import SMALL_FONT, Drawing, Layers, Rect, Text, cut, drawn
from rankwise.report.charts.theme import (
    ALARM,
    FONT_SIZE,
    GAIN_STEPS,
    INK,
    LOSS_STEPS,
    MUTED,
    PAGE,
    UNSHOWN,
)

STEP_ENDS = (2.0, 5.0, 10.0, 20.0)
"""Points at which the colour changes; the same in every study."""

CELL_WIDTH, CELL_HEIGHT = 76.0, 36.0
_GAP, _GROUP_GAP = 2.0, 12.0
_LINE, _GROUP_LINE = 14.0, 20.0
_LETTER = 6.1
_ROW_LETTERS, _LONGEST_ROW = 20, 34
_COLUMN_LETTERS, _COLUMN_LINES = 12, 3
_SWATCH, _LEGEND_HEIGHT = 34.0, 74.0


class HeatCell(NamedTuple):
    """A difference in points. ``is_own`` marks the trained task, ``is_alarm`` negative transfer."""

    mean: TaskMean
    is_own: bool = False
    is_alarm: bool = False


class HeatColumn(NamedTuple):
    """A column with its group; a mean is set apart."""

    group: str
    label: str
    is_mean: bool = False


class HeatRow(NamedTuple):
    """A row with its group, and a cell or None for each column."""

    group: str
    label: str
    cells: tuple[HeatCell | None, ...]


def heatmap_width(rows: Sequence[HeatRow], columns: Sequence[HeatColumn]) -> float:
    """In pixels, with the rows' labels and the key."""
    right = _places(CELL_WIDTH, [column.group for column in columns], 0.0)[-1] + CELL_WIDTH
    return max(_label_width(rows) + right, _KEY_WIDTH)


def heatmap(
    rows: Sequence[HeatRow], columns: Sequence[HeatColumn], title: alt.TitleParams
) -> Layers:
    """The matrix, rows and columns together by group, with a key to its colours below.

    A cell whose interval holds zero has no colour and muted text.

    Args:
        rows: at least one; neighbours of one group stand together.
        columns: the same.
        title: with what the numbers are in its subtitle.
    """
    left = _label_width(rows)
    head = _head_height(columns)
    across = _places(CELL_WIDTH, [each.group for each in columns], left)
    groups = [each.group for each in rows]
    down = _places(CELL_HEIGHT, groups, head, above=_GROUP_LINE if any(groups) else 0.0)
    drawing = Drawing([], [], [])
    _column_heads(drawing, columns, across, head)
    _row_heads(drawing, rows, down, left)
    for row, y in zip(rows, down, strict=True):
        for cell, column, x in zip(row.cells, columns, across, strict=True):
            _cell(drawing, cell, column.is_mean, x, y)
    bottom = down[-1] + CELL_HEIGHT
    _key(drawing, bottom + 18.0, any_own=_any(rows, "is_own"), any_alarm=_any(rows, "is_alarm"))
    return drawn(drawing, heatmap_width(rows, columns), bottom + _LEGEND_HEIGHT, title)


def step_colour(mean: TaskMean) -> tuple[str, str]:
    """The colour of a difference's cell and of the text on it."""
    if mean.sign() == 0:
        return UNSHOWN.light, MUTED.light
    steps = GAIN_STEPS if mean.estimate > 0 else LOSS_STEPS
    step = sum(abs(mean.estimate) >= end for end in STEP_ENDS)
    return steps[step].light, (INK if step < len(steps) - 2 else PAGE).light


def _any(rows: Sequence[HeatRow], name: str) -> bool:
    return any(getattr(cell, name) for row in rows for cell in row.cells if cell is not None)


def _places(size: float, groups: Sequence[str], start: float, above: float = 0.0) -> list[float]:
    """Where each begins; groups are set apart, with room ``above`` each for its name."""
    places: list[float] = []
    at = start
    for index, group in enumerate(groups):
        if index == 0 or group != groups[index - 1]:
            at += above + (_GROUP_GAP if index else 0.0)
        places.append(at)
        at += size
    return places


def _label_width(rows: Sequence[HeatRow]) -> float:
    longest = max(len(line) for row in rows for line in _row_lines(row.label))
    return _LETTER * longest + 14.0


def _head_height(columns: Sequence[HeatColumn]) -> float:
    lines = max(len(_wrapped(column.label, _COLUMN_LETTERS, _COLUMN_LINES)) for column in columns)
    return lines * _LINE + 6.0 + (_GROUP_LINE if any(each.group for each in columns) else 0.0)


def _column_heads(
    drawing: Drawing, columns: Sequence[HeatColumn], across: Sequence[float], head: float
) -> None:
    for index, (column, x) in enumerate(zip(columns, across, strict=True)):
        lines = _wrapped(column.label, _COLUMN_LETTERS, _COLUMN_LINES)
        for place, line in enumerate(lines):
            y = head - 6.0 - (len(lines) - place - 0.5) * _LINE
            colour = MUTED.light if column.is_mean else INK.light
            drawing.texts.append(Text(x + CELL_WIDTH / 2, y, line, colour))
        if column.group and (index == 0 or columns[index - 1].group != column.group):
            last = max(i for i, each in enumerate(columns) if each.group == column.group)
            width = across[last] + CELL_WIDTH - x - _GAP
            letters = int(width / (_LETTER + 0.6))
            name = cut(column.group, letters)
            drawing.texts.append(Text(x, _LINE / 2, name, align="left", weight="bold"))
            drawing.fills.append(Rect(x, _GROUP_LINE - 3.0, width, 1.0, MUTED.light))


def _row_heads(
    drawing: Drawing, rows: Sequence[HeatRow], down: Sequence[float], left: float
) -> None:
    for index, (row, y) in enumerate(zip(rows, down, strict=True)):
        lines = _row_lines(row.label)
        for place, line in enumerate(lines):
            at = y + CELL_HEIGHT / 2 + (place - (len(lines) - 1) / 2) * _LINE
            drawing.texts.append(Text(left - 8.0, at, line, align="right"))
        if row.group and (index == 0 or rows[index - 1].group != row.group):
            text = Text(0.0, y - _GROUP_LINE / 2, row.group, align="left", weight="bold")
            drawing.texts.append(text)


def _cell(drawing: Drawing, cell: HeatCell | None, is_mean: bool, x: float, y: float) -> None:
    centre = x + CELL_WIDTH / 2 - _GAP / 2
    if cell is None:
        if not is_mean:
            text = Text(centre, y + CELL_HEIGHT / 2, quantities.NOT_MEASURED, MUTED.light)
            drawing.texts.append(text)
        return
    mean = cell.mean
    colour, ink = step_colour(mean)
    box = Rect(x, y, CELL_WIDTH - _GAP, CELL_HEIGHT - _GAP, colour)
    drawing.fills.append(box)
    if cell.is_own or cell.is_alarm:
        frame = ALARM.light if cell.is_alarm else INK.light
        drawing.frames.append(Rect(x + 1.0, y + 1.0, box.width - 2.0, box.height - 2.0, frame))
    sign = "▼ " if cell.is_alarm else ""
    value = f"{sign}{quantities.change(mean.estimate, mean.unit)}"
    interval = quantities.change_interval(mean.lower, mean.upper, mean.unit)
    weight = "bold" if mean.sign() else "normal"
    drawing.texts.append(Text(centre, y + 12.0, value, ink, FONT_SIZE, weight=weight))
    drawing.texts.append(Text(centre, y + 25.5, interval, ink, SMALL_FONT))


_KEY_WIDTH = 10 * _SWATCH + 150.0


def _key(drawing: Drawing, y: float, *, any_own: bool, any_alarm: bool) -> None:
    """The colours with the points at which they change, and what frames mean."""
    steps = [*reversed(LOSS_STEPS), *GAIN_STEPS]
    ends = [*(-end for end in reversed(STEP_ENDS)), 0.0, *STEP_ENDS]
    x = 0.0
    for index, colour in enumerate(steps):
        drawing.fills.append(Rect(x + index * _SWATCH, y, _SWATCH, 12.0, colour.light))
    for index, end in enumerate(ends):
        text = quantities.change(end, "points").removesuffix(".0")
        place = x + (index + 1) * _SWATCH
        drawing.texts.append(Text(place, y + 21.0, text, MUTED.light, SMALL_FONT + 1))
    after = len(steps) * _SWATCH + 14.0
    drawing.fills.append(Rect(after, y, 20.0, 12.0, UNSHOWN.light))
    drawing.texts.append(
        Text(after + 26.0, y + 6.0, "interval holds 0", MUTED.light, SMALL_FONT + 1, "left")
    )
    words = [("points", MUTED.light)]
    words += [("framed: trained on", INK.light)] if any_own else []
    words += [("▼ negative transfer", ALARM.light)] if any_alarm else []
    for text, ink in words:
        drawing.texts.append(Text(x, y + 42.0, text, ink, SMALL_FONT + 1, "left"))
        x += _LETTER * len(text) + 18.0


def _row_lines(text: str) -> list[str]:
    """Two lines at most, which may be longer where the text is."""
    letters = min(max(_ROW_LETTERS, len(text) // 2 + 6), _LONGEST_ROW)
    return [text] if len(text) <= _ROW_LETTERS else _wrapped(text, letters, 2)


def _wrapped(text: str, letters: int, most: int) -> list[str]:
    """A text broken into lines after spaces, hyphens and underscores; both counts are limits."""
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > letters:
            lines.append("")
        lines[-1] += piece
    lines = [cut(line.strip(), letters) for line in lines]
    return lines if len(lines) <= most else [*lines[: most - 1], f"…{lines[-1]}"]


def _pieces(text: str) -> list[str]:
    pieces = [""]
    for letter in text:
        pieces[-1] += letter
        if letter in " -_":
            pieces.append("")
    return [piece for piece in pieces if piece]
