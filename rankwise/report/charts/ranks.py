"""A quantity by rank: estimates with intervals, what has no rank as lines across, fitted curves."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from rankwise.findings.trends import means_by_rank
from rankwise.records import quantities
from rankwise.records.axes import Kind
from rankwise.records.grouping import grouped
from rankwise.records.study import Interval, Unit
from rankwise.report.charts import marks
from rankwise.report.charts.marks import SERIES, Encoding, Name
from rankwise.report.charts.theme import MUTED, kind_colour
from rankwise.report.parts import Chart, Drawing, some_of, thinned

MOST_SERIES = len(SERIES)
"""Each has a colour and a shape."""

_SIZE, _SMALL_SIZE = (350, 260), (205, 165)
_STEP = 0.13
"""Between two marks of one rank and no series, in powers of two."""

_REACH = math.log2(1.6)
"""How far the axis reaches beyond the smallest and the largest rank, in powers of two."""

_SPREAD_SHARE, _STEP_SHARE = 0.62, 0.16
"""How much of the space between two ranks all series of one rank take, and two at most."""

_ALIKE_SHARE = 0.8
"""How much of the same space all marks of one rank take."""

_MOST_BANDS = 8
"""The most bands of lines of one name: a paler band has no colour."""

_TICK_ROOM = 28
"""Between two labels of the axis in pixels, at least."""

_BESIDE, _TITLE_LETTERS = 7, 32
_DASHES = ([1, 0], [6, 3], [2, 3])
_CURVE_POINTS = 40


class RankMark(NamedTuple):
    """A value at a rank; ``is_ringed`` marks what is recommended.

    ``name`` is in words, and that of the model whose items a click shows.
    """

    rank: int
    value: Interval | float
    series: str = ""
    is_ringed: bool = False
    name: str = ""


class RankLine(NamedTuple):
    """What has no rank, drawn across in a band of its interval; one text is named once."""

    text: str
    kind: Kind
    value: Interval | float


RankCurve = Sequence[tuple[float, float]]
"""A law or an expectation over the ranks, from its smallest to its largest."""


class RankPanel(NamedTuple):
    """One measure.

    Attributes:
        y_title: with the unit.
        marks: at least one; all are in the means, and of very many some are drawn.
        lines: across.
        curves: by name, at most three, which differ in dash.
        title: of the panel, where there are several.
        has_zero: zero is in sight, as a line.
        write: a value in words.
    """

    y_title: str
    marks: Sequence[RankMark]
    lines: Sequence[RankLine] = ()
    curves: Mapping[str, RankCurve] = MappingProxyType({})
    title: str = ""
    has_zero: bool = False
    write: Callable[[Interval | float], str] = lambda value: f"{value:.3g}"

    @property
    def drawn(self) -> list[RankMark]:
        """The marks that are drawn: of very many some of each rank, and what is recommended."""
        return thinned(self.marks, marks.MOST_MARKS, lambda mark: mark.is_ringed)


def curve_of(law: Callable[[float], float], ranks: Sequence[int]) -> RankCurve:
    """A law at many ranks between the smallest and the largest, evenly on the log scale."""
    low, high = min(ranks), max(ranks)
    steps = (low * (high / low) ** (step / (_CURVE_POINTS - 1)) for step in range(_CURVE_POINTS))
    return [(rank, law(rank)) for rank in steps]


def in_unit(unit: Unit, *, signed: bool = True) -> Callable[[Any], str]:
    """Writes estimates with their intervals."""
    return lambda value: quantities.with_interval(value, unit, signed=signed)


def rank_chart(
    panels: Sequence[RankPanel],
    series: Sequence[str] = (),
    series_title: str = "",
    x_title: str = "LoRA rank (log scale)",
) -> Drawing:
    """Panels with one axis of ranks, two in a row; what has the same title has the same axis.

    Args:
        panels: at least one.
        series: of the marks, at most ``MOST_SERIES``, in order: a line through each. Without, marks
            have the colours of their ranks and the line goes through the means.
        series_title: of the key.
        x_title: of the axis; numbers of rows may take the place of ranks.
    """
    ranks = sorted({mark.rank for panel in panels for mark in panel.marks})
    size = _SIZE if len(panels) == 1 else _SMALL_SIZE
    gap = min([*(math.log2(high / low) for low, high in itertools.pairwise(ranks)), 2.0])
    reach = gap / 2.0 if series else _REACH
    ends = [ranks[0] / 2**reach, ranks[-1] * 2**reach]
    scale = {"type": "log", "base": 2, "domain": ends, "nice": False}
    ticks = {"values": _ticks(ranks, size[0]), "format": "d", "labelOverlap": False, "grid": False}
    x = marks.number("x", title=x_title, scale=scale, axis=ticks)
    ends_of = grouped((panel.y_title, end) for panel in panels for end in _ends(panel))
    domains = {title: marks.padded(own) for title, own in ends_of.items()}
    look: Encoding = {"color": marks.COLOUR}
    if series:
        look = marks.keyed(dict(zip(series, SERIES, strict=False)), size[0], series_title)
    charts = [
        _panel(panel, x, domains[panel.y_title], size, look, list(_places(panel, series, gap)))
        for panel in panels
    ]
    words = "; ".join(
        f"{panel.title}, {said}" if panel.title else said
        for panel in panels
        for said in (
            *(_said(panel, mark) for mark in panel.drawn),
            *(f"{line.text} {panel.write(line.value)}" for line in panel.lines),
        )
    )
    num_all = sum(len(panel.marks) for panel in panels)
    note = some_of(sum(len(panel.drawn) for panel in panels), num_all, marks.ARE_DRAWN)
    chart = charts[0] if len(charts) == 1 else {"concat": charts, "columns": 2}
    return Drawing(chart, f"{words}.", note=note)


def _places(panel: RankPanel, series: Sequence[str], gap: float) -> Iterator[float]:
    """Where marks stand beside their ranks: with their series, or side by side."""
    alike, before = Counter(mark.rank for mark in panel.drawn), Counter[int]()
    for mark in panel.drawn:
        if series:
            place, count = series.index(mark.series), len(series)
            step = gap * min(_SPREAD_SHARE / count, _STEP_SHARE)
        else:
            place, count = before[mark.rank], alike[mark.rank]
            step = min(_STEP, gap * _ALIKE_SHARE / count)
        before[mark.rank] += 1
        yield mark.rank * 2.0 ** (step * (place - (count - 1) / 2))


def _ticks(ranks: Sequence[int], width: float) -> list[int]:
    """The ranks whose labels have room."""
    octave = width / (math.log2(ranks[-1] / ranks[0]) + 2 * _REACH)
    kept = [ranks[0]]
    for rank in ranks:
        if octave * math.log2(rank / kept[-1]) >= _TICK_ROOM:
            kept.append(rank)
    return kept


def _ends(panel: RankPanel) -> Iterator[float]:
    for drawn in (*panel.marks, *panel.lines):
        yield from marks.bounds(drawn.value, "y").values()
    for curve in panel.curves.values():
        yield from (value for _, value in curve)
    if panel.has_zero:
        yield 0.0


def _panel(
    panel: RankPanel,
    x: dict[str, Any],
    domain: tuple[float, float],
    size: tuple[int, int],
    look: Encoding,
    places: Sequence[float],
) -> Chart:
    """Marks at their places; a key in their look is one to series, each of which has a line."""
    at = {"x": x, "y": marks.axis("y", panel.y_title, domain)}
    rows = [
        {
            "x": place,
            "run": mark.series,
            "said": _said(panel, mark),
            "colour": kind_colour(mark.rank).css,
            "is_ringed": mark.is_ringed,
            "href": marks.items_link(model=mark.name),
            **marks.bounds(mark.value, "y"),
        }
        for mark, place in zip(panel.drawn, places, strict=True)
    ]
    layers: list[Chart] = []
    if panel.has_zero:
        layers.append(marks.layer("rule", [{"y": 0.0}], {"y": at["y"]}, color=MUTED.css))
    across: _Lines = grouped(
        (
            (line.text, line.kind),
            {
                "run": line.text,
                "said": f"{line.text} {panel.write(line.value)}",
                **marks.bounds(line.value, "y"),
            },
        )
        for line in panel.lines
    )
    layers += _across(across, {"y": at["y"]})
    layers.append(_curves(panel.curves, at))
    if "shape" in look:
        through = {**at, "color": look["color"], "order": marks.number("x")}
        layers.append(marks.layer("line", rows, through, strokeWidth=1.4, opacity=0.75))
    elif not panel.curves:
        ends = ((mark.rank, marks.bounds(mark.value, "y")["y"]) for mark in panel.marks)
        through = [{"x": rank, "y": mean} for rank, mean in means_by_rank(ends).items()]
        layers.append(marks.layer("line", through, at, color=MUTED.css, strokeWidth=1.2))
    point = {**at, **look, **marks.links(mark.name for mark in panel.marks)}
    layers += [
        marks.between("rule", rows, "y", {**at, "color": look["color"]}, strokeWidth=1.7),
        marks.ring(rows, at),
        marks.layer("point", rows, point, filled=True, size=75, opacity=1),
        *_line_names(across, domain, size),
    ]
    title = marks.lines(panel.title, _TITLE_LETTERS).split("\n")
    titled = {"title": marks.small_title(title)} if panel.title else {}
    return marks.layered(layers, *size, **titled)


_Lines = Mapping[tuple[str, Kind], Sequence[dict[str, Any]]]
"""The rows of the lines across, by what they are called."""


def _across(drawn: _Lines, at: Encoding) -> Iterator[Chart]:
    """Estimates across, in bands of their intervals; dashed for full fine-tuning."""
    for (_, kind), rows in drawn.items():
        colour = kind_colour(kind).css
        dash = [1, 0] if kind == "base" else [6, 3]
        bands = thinned(rows, _MOST_BANDS)
        yield marks.between("rect", bands, "y", at, color=colour, opacity=0.16 / len(bands))
        yield marks.layer("rule", rows, at, color=colour, strokeWidth=1.6, strokeDash=dash)


def _curves(curves: Mapping[str, RankCurve], at: Encoding) -> Chart:
    names = list(curves)
    dash = marks.category(
        "run",
        sort=names,
        scale={"domain": names, "range": list(_DASHES[: len(names)])},
        legend={"title": None, "orient": "bottom", "symbolStrokeColor": MUTED.css, **marks.KEY},
    )
    rows = [{"x": rank, "y": value, "run": name} for name in names for rank, value in curves[name]]
    return marks.layer("line", rows, {**at, "strokeDash": dash}, color=MUTED.css, strokeWidth=1.6)


def _line_names(drawn: _Lines, domain: tuple[float, float], size: tuple[int, int]) -> list[Chart]:
    """The names at the right ends of the lines, a line's height apart; of several at their mean."""
    low, high = domain
    width, height = size
    means = {
        key: height * (high - statistics.fmean(row["y"] for row in rows)) / (high - low)
        for key, rows in drawn.items()
    }
    last = -math.inf
    names: list[Name] = []
    for text, kind in sorted(means, key=lambda key: means[key]):
        last = max(means[text, kind], last + marks.LINE)
        names.append(Name(text, width + _BESIDE, last, kind_colour(kind)))
    return marks.on_halo(names)


def _said(panel: RankPanel, mark: RankMark) -> str:
    series = f", {mark.series}" if mark.series else ""
    return f"{mark.name or f'rank {mark.rank}'}{series} {panel.write(mark.value)}"
