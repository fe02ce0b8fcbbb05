"""A quantity by rank: estimates with intervals, what has no rank as lines across, fitted curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import altair as alt

from rankwise.findings.trends import means_by_rank
from rankwise.records import quantities
from rankwise.records.axes import Kind
from rankwise.records.study import Interval, Unit
from rankwise.report.charts.marks import (
    COLOUR,
    LINE,
    Look,
    Name,
    axis,
    bounds,
    items_link,
    keyed,
    lines,
    links,
    on_halo,
    padded,
    ring,
    rows_chart,
    small_title,
)
from rankwise.report.charts.theme import (
    MUTED,
    SERIES,
    SERIES_SHAPES,
    kind_colour,
)
from rankwise.report.parts import Chart, Drawing

MOST_SERIES = len(SERIES)
"""Each has a colour and a shape."""

_SIZE, _SMALL_SIZE = (420, 280), (205, 165)
_STEP = 0.13
"""Between two marks of one rank and no series, in powers of two."""

_REACH = math.log2(1.6)
"""Of the axis beyond the smallest and the largest rank, in powers of two."""

_SPREAD_SHARE, _STEP_SHARE = 0.62, 0.16
"""Of the space between two ranks, how much all series of one rank take, and two at most."""

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


class RankCurve(NamedTuple):
    """A law or an expectation over the ranks, from its smallest to its largest."""

    name: str
    points: Sequence[tuple[float, float]]

    @classmethod
    def of(cls, name: str, ranks: Sequence[int], law: Callable[[float], float]) -> RankCurve:
        """A law at many ranks between the smallest and the largest, evenly on the log scale."""
        low, high = min(ranks), max(ranks)
        steps = [
            low * (high / low) ** (step / (_CURVE_POINTS - 1)) for step in range(_CURVE_POINTS)
        ]
        return cls(name, [(rank, law(rank)) for rank in steps])


class RankPanel(NamedTuple):
    """One measure.

    Attributes:
        y_title: with the unit.
        marks: at least one, unless there are curves.
        lines: across.
        curves: at most three, which differ in dash.
        title: of the panel, where there are several.
        has_zero: zero is in sight, as a line.
        write: a value in words.
    """

    y_title: str
    marks: Sequence[RankMark]
    lines: Sequence[RankLine] = ()
    curves: Sequence[RankCurve] = ()
    title: str = ""
    has_zero: bool = False
    write: Callable[[Interval | float], str] = lambda value: f"{value:.3g}"


def in_unit(unit: Unit, *, signed: bool = True) -> Callable[[Any], str]:
    """Writes estimates with their intervals."""
    return lambda value: quantities.with_interval(value, unit, signed=signed)


def rank_chart(
    panels: Sequence[RankPanel], series: Sequence[str] = (), series_title: str = ""
) -> Drawing:
    """Panels with one axis of ranks, two in a row; what has the same title has the same axis.

    Args:
        panels: at least one.
        series: of the marks, at most ``MOST_SERIES``, in order: a line through each. Without, marks
            have the colours of their ranks and the line goes through the means.
        series_title: of the key.
    """
    ranks = sorted({mark.rank for panel in panels for mark in panel.marks})
    ranks = ranks or sorted({round(rank) for p in panels for c in p.curves for rank, _ in c.points})
    size = _SIZE if len(panels) == 1 else _SMALL_SIZE
    steps = [math.log2(high / low) for low, high in itertools.pairwise(ranks)]
    reach = min([*steps, 2.0]) / 2.0 if series else _REACH
    scale = alt.Scale(
        type="log", base=2, domain=[ranks[0] / 2**reach, ranks[-1] * 2**reach], nice=False
    )
    ticks = alt.Axis(values=_ticks(ranks), format="d", labelOverlap=False, grid=False)
    x = alt.X("x:Q", title="LoRA rank (log scale)", scale=scale, axis=ticks)
    domains = {
        panel.y_title: padded(
            [end for other in panels if other.y_title == panel.y_title for end in _ends(other)]
        )
        for panel in panels
    }
    charts = [
        _panel(panel, x, domains[panel.y_title], size, _Series(series, series_title, reach))
        for panel in panels
    ]
    words = "; ".join(said for panel in panels for said in _in_words(panel))
    if len(charts) == 1:
        return Drawing(charts[0], f"{words}.")
    return Drawing(alt.concat(*charts, columns=2), f"{words}.")


class _Series(NamedTuple):
    names: Sequence[str]
    title: str
    reach: float

    def encodings(self, width: float) -> dict[str, Any]:
        """The colour and the shape of a mark, and what is told by colour alone."""
        if not self.names:
            return {"color": COLOUR}
        looks = map(Look, SERIES, SERIES_SHAPES)
        return keyed("series", dict(zip(self.names, looks, strict=False)), width, self.title)

    def offset(self, mark: RankMark, marks: Sequence[RankMark]) -> float:
        """Where a mark stands beside its rank, in powers of two."""
        if self.names:
            step = 2.0 * self.reach * min(_SPREAD_SHARE / len(self.names), _STEP_SHARE)
            return step * (self.names.index(mark.series) - (len(self.names) - 1) / 2)
        alike = [other for other in marks if other.rank == mark.rank]
        place = next(place for place, other in enumerate(alike) if other is mark)
        return _STEP * (place - (len(alike) - 1) / 2)


def _ticks(ranks: Sequence[int]) -> list[int]:
    """Every rank, or of many only each so many."""
    step = math.ceil(len(ranks) / 9)
    return list(ranks[::step])


def _ends(panel: RankPanel) -> Iterator[float]:
    for drawn in (*panel.marks, *panel.lines):
        yield from bounds(drawn.value, "y").values()
    for curve in panel.curves:
        yield from (value for _, value in curve.points)
    if panel.has_zero:
        yield 0.0


def _panel(
    panel: RankPanel,
    x: alt.X,
    domain: tuple[float, float],
    size: tuple[int, int],
    series: _Series,
) -> Chart:
    width, height = size
    y = axis(panel.y_title, domain)
    at = {"x": x, "y": alt.Y("y:Q", **y)}
    look = series.encodings(width)
    rows = [
        {
            "x": mark.rank * 2.0 ** series.offset(mark, panel.marks),
            "series": mark.series,
            "colour": kind_colour(mark.rank).light,
            "is_ringed": mark.is_ringed,
            "href": items_link(model=mark.name),
            **bounds(mark.value, "y"),
        }
        for mark in panel.marks
    ]
    layers: list[Any] = []
    if panel.has_zero:
        layers.append(rows_chart([{"y": 0.0}]).mark_rule(color=MUTED.light).encode(at["y"]))
    for line in panel.lines:
        alike = sum(other.text == line.text for other in panel.lines)
        layers += _across(line, y, opacity=0.16 / alike)
    layers += _curves(panel.curves, x, y)
    data = rows_chart(rows)
    if series.names:
        through = data.mark_line(strokeWidth=1.4, opacity=0.75).encode(color=look["color"], **at)
        layers.append(through.encode(order=alt.Order("x:Q")))
    elif not panel.curves:
        means = means_by_rank((row["x"], row["y"]) for row in _at_ranks(panel, rows))
        through = rows_chart([{"x": rank, "y": mean} for rank, mean in means.items()])
        layers.append(through.mark_line(color=MUTED.light, strokeWidth=1.2).encode(**at))
    layers += [
        data.mark_rule(strokeWidth=1.7).encode(
            x, alt.Y("y_low:Q", **y), alt.Y2("y_high:Q"), look["color"]
        ),
        ring(row for row in rows if row["is_ringed"]).encode(**at),
        data.mark_point(filled=True, size=75, opacity=1).encode(
            **look, **at, **links(mark.name for mark in panel.marks)
        ),
        *_line_names(panel.lines, domain, size),
    ]
    chart = alt.layer(*layers).properties(width=width, height=height)
    if not panel.title:
        return chart
    title = lines(panel.title, _TITLE_LETTERS).split("\n")
    return chart.properties(title=small_title(title))  # pyright: ignore[reportArgumentType]


def _at_ranks(panel: RankPanel, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for mark, row in zip(panel.marks, rows, strict=True):
        yield {**row, "x": mark.rank}


def _across(line: RankLine, y: dict[str, Any], opacity: float) -> list[Any]:
    """The estimate across, in a band of its interval; dashed for full fine-tuning."""
    colour = kind_colour(line.kind).light
    data = rows_chart([bounds(line.value, "y")])
    dash = [1, 0] if line.kind == "base" else [6, 3]
    return [
        data.mark_rect(color=colour, opacity=opacity).encode(
            alt.Y("y_low:Q", **y), alt.Y2("y_high:Q")
        ),
        data.mark_rule(color=colour, strokeWidth=1.6, strokeDash=dash).encode(alt.Y("y:Q", **y)),
    ]


def _curves(curves: Sequence[RankCurve], x: alt.X, y: dict[str, Any]) -> list[Any]:
    if not curves:
        return []
    names = [curve.name for curve in curves]
    dash = alt.StrokeDash(
        "name:N",
        sort=names,
        scale=alt.Scale(domain=names, range=list(_DASHES[: len(names)])),
        legend=alt.Legend(title=None, orient="bottom", symbolStrokeColor=MUTED.light),
    )
    rows = [
        {"x": rank, "y": value, "name": curve.name}
        for curve in curves
        for rank, value in curve.points
    ]
    line = rows_chart(rows).mark_line(color=MUTED.light, strokeWidth=1.6)
    return [line.encode(x, alt.Y("y:Q", **y), dash)]


def _line_names(
    drawn: Sequence[RankLine], domain: tuple[float, float], size: tuple[int, int]
) -> Iterator[Any]:
    """At the right ends of the lines, a line's height apart; of several at their mean."""
    low, high = domain
    width, height = size
    heights: dict[tuple[str, Kind], list[float]] = {}
    for line in drawn:
        place = height * (high - bounds(line.value, "y")["y"]) / (high - low)
        heights.setdefault((line.text, line.kind), []).append(place)
    means = {key: sum(places) / len(places) for key, places in heights.items()}
    last = -math.inf
    for text, kind in sorted(means, key=lambda key: means[key]):
        last = max(means[text, kind], last + LINE)
        name = Name(text, width + _BESIDE, last, kind_colour(kind))
        yield from on_halo(name, is_bold=kind != "base")


def _in_words(panel: RankPanel) -> Iterator[str]:
    before = f"{panel.title}, " if panel.title else ""
    for mark in panel.marks:
        name = mark.name or f"rank {mark.rank}"
        series = f", {mark.series}" if mark.series else ""
        yield f"{before}{name}{series} {panel.write(mark.value)}"
    for line in panel.lines:
        yield f"{before}{line.text} {panel.write(line.value)}"
