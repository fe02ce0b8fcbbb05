"""Estimates with their intervals, one below the other: by task, pair or subject, and by series."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rankwise.records import quantities
from rankwise.records.axes import Kind
from rankwise.records.grouping import grouped
from rankwise.records.study import Interval, Unit
from rankwise.report.charts import marks
from rankwise.report.charts.marks import MarkStyle
from rankwise.report.charts.theme import FONT_SIZE, GRID, INK, MUTED
from rankwise.report.parts import Chart, Drawing

_STEP, _GAP = 12.0, 9.0
_LINE_OF_LABEL = 15.0
_LABEL_LIMIT, _WIDTH = 260, 340
_LETTERS, _ENDING = 30, 11


class Bar(NamedTuple):
    """An estimate in the row ``group`` (its lines end in line feeds), of the model ``series``.

    ``task`` is the one whose items a click shows, where it is one, of which those that the model
    changed.
    """

    group: str
    series: str
    kind: Kind
    value: Interval
    task: str = ""


class BarPanel(NamedTuple):
    """Rows under a title, which may be empty, with an axis of their own."""

    title: str
    x_title: str
    unit: Unit
    bars: Sequence[Bar]

    def written(self, bar: Bar) -> str:
        """The estimate and its interval."""
        return quantities.with_interval(bar.value, self.unit)


def interval_chart(panels: Sequence[BarPanel]) -> Drawing:
    """Panels under each other; every row has one bar for each series that was measured there.

    Args:
        panels: at least one, each with at least one bar.
    """
    looks = MarkStyle.of_each({bar.series: bar.kind for panel in panels for bar in panel.bars})
    charts = [
        _panel(panel, looks, has_key=place == 0 and len(looks) > 1)
        for place, panel in enumerate(panels)
    ]
    return Drawing({"vconcat": charts}, " ".join(map(_in_words, panels)))


def _panel(panel: BarPanel, looks: dict[str, MarkStyle], *, has_key: bool) -> Chart:
    groups = list(dict.fromkeys(bar.group for bar in panel.bars))
    names = list(dict.fromkeys(bar.series for bar in panel.bars))
    label_lines = max(group.count("\n") + 1 for group in groups)
    room = max(len(names) * _STEP, label_lines * _LINE_OF_LABEL) + _GAP
    y = marks.category(
        "group",
        sort=groups,
        title=None,
        scale={"domain": groups, "paddingInner": _GAP / room, "paddingOuter": _GAP / room / 2},
        axis={
            "domain": False,
            "ticks": False,
            "grid": True,
            "gridColor": GRID.css,
            "bandPosition": 0,
            "labelLimit": _LABEL_LIMIT,
            "labelPadding": 8,
            "labelExpr": "split(datum.label, '\\n')",
            "labelLineHeight": _LINE_OF_LABEL,
        },
    )
    offset = marks.category("run", sort=names, scale={"domain": names})
    rows = [
        {
            "group": bar.group,
            "run": bar.series,
            "said": ", ".join(
                filter(None, (bar.series, *bar.group.split("\n"), panel.written(bar)))
            ),
            "colour": look.colour.css,
            "shape": look.shape,
            "href": marks.items_link(bar.task, bar.series if bar.task else ""),
            **marks.bounds(bar.value, "x"),
        }
        for bar in panel.bars
        for look in [looks[bar.series] if bar.series else MarkStyle.of(bar.kind)]
    ]
    ends = [0.0, *(end for bar in panel.bars for end in (bar.value.lower, bar.value.upper))]
    margin = 0.03 * (max(ends) - min(ends) or 1.0)
    x: dict[str, Any] = {
        "title": panel.x_title,
        "axis": {"tickCount": 6, "labelFlush": False},
        "scale": {"domain": [min(ends) - margin, max(ends) + margin], "nice": False},
    }
    where, which = {"y": y, "yOffset": offset}, {"color": marks.COLOUR, "shape": marks.SHAPE}
    if has_key:
        which = marks.keyed(looks, _WIDTH)
    at = {"x": marks.number("x", **x), **where}
    point = {**at, **which, **marks.links(bar.task for bar in panel.bars)}
    title = {"text": panel.title, "fontSize": FONT_SIZE + 1, "color": INK.css, "offset": 6}
    layers = [
        marks.layer("rule", [{"x": 0.0}], {"x": at["x"]}, color=MUTED.css),
        marks.between("rule", rows, "x", {**at, "color": which["color"]}, strokeWidth=1.8),
        marks.layer("point", rows, point, filled=True, size=55, opacity=1),
    ]
    return marks.layered(layers, _WIDTH, room * len(groups), title=title)


def _in_words(panel: BarPanel) -> str:
    words = grouped((bar.group, f"{bar.series} {panel.written(bar)}".strip()) for bar in panel.bars)
    said = [f"{group.replace(chr(10), ', ')}: {'; '.join(its)}" for group, its in words.items()]
    return f"{f'{panel.title}: ' if panel.title else ''}{'. '.join(said)}."


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Names that have room at a chart; as they are, where short ones would be alike."""
    short = {name: _cut(name) for name in names}
    return short if len({*short.values()}) == len(short) else {name: name for name in short}


def _cut(name: str) -> str:
    """A name as it has room: the middle of a long one is left out."""
    if len(name) <= _LETTERS:
        return name
    return f"{name[: _LETTERS - _ENDING - 1]}…{name[-_ENDING:]}"
