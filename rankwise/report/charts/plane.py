"""Two quantities of each model against each other, such as what it gains and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

from rankwise.records.study import Interval
from rankwise.report.charts import marks
from rankwise.report.charts.marks import MarkStyle, Name
from rankwise.report.charts.theme import MUTED
from rankwise.report.parts import Chart, Drawing, some_of, thinned

_SIZE, _SMALL_SIZE = (360, 300), (310, 220)
"""The sizes of a plane: with its axis the first is as wide as a phone, in letters of 11 pixels."""

_MANY = 7
"""The number of marks above which bars are paler."""


MOST_NAMES = 12
"""The most names of marks: more have no room beside them."""

_CORNERS = 48


class PlaneMark(NamedTuple):
    """A model at (x, y). Marks of one ``name`` are named once; ``words`` say both numbers.

    ``model`` is the label of the one whose items a click shows.
    """

    name: str
    look: MarkStyle
    x: Interval | float
    y: Interval | float
    words: str
    is_ringed: bool = False
    model: str = ""


class Plane(NamedTuple):
    """Marks between two axes.

    Attributes:
        x_title: with the unit.
        y_title: with the unit.
        marks: at least one.
        has_origin: the base is at (0, 0), and lines go through it.
        limit: an x that is marked by a dashed line, and what it is called.
        path: the places of marks that a line joins; None stands for the origin.
        confidence: of the bounds, for regions around marks in which both numbers lie together;
            None: without regions.
    """

    x_title: str
    y_title: str
    marks: Sequence[PlaneMark]
    has_origin: bool = False
    limit: tuple[float, str] | None = None
    path: Sequence[int | None] = ()
    confidence: float | None = None


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of points that no other beats in one number and equals in the other, by x.

    Of equal points the first.
    """
    kept: list[int] = []
    for place in sorted(range(len(points)), key=lambda place: points[place], reverse=True):
        # those before it have at least its x
        if not kept or points[place][1] > points[kept[-1]][1]:
            kept.append(place)
    return kept[::-1]


def plane_chart(planes: Sequence[Plane]) -> Drawing:
    """Planes of two in a row.

    Args:
        planes: at least one; of very many marks some are drawn, and those of the path.
    """
    num_all = sum(len(plane.marks) for plane in planes)
    planes = [_thinned(plane) for plane in planes]
    size = _SIZE if len(planes) == 1 else _SMALL_SIZE
    charts = [_plane(plane, size) for plane in planes]
    words = "; ".join(dict.fromkeys(mark.words for plane in planes for mark in plane.marks))
    num_names = max(len({mark.name for mark in plane.marks}) for plane in planes)
    said = some_of(sum(len(plane.marks) for plane in planes), num_all, marks.ARE_DRAWN)
    said += " " + some_of(min(num_names, MOST_NAMES), num_names, "names are written")
    chart = charts[0] if len(charts) == 1 else {"concat": charts, "columns": 2}
    return Drawing(chart, f"{words}.", is_wide=len(charts) > 1, note=said.strip())


def _thinned(plane: Plane) -> Plane:
    """The plane with the marks that are drawn, and the path over them."""
    every, needed = range(len(plane.marks)), {*plane.path}
    drawn = thinned(every, marks.MOST_MARKS, lambda at: at in needed or plane.marks[at].is_ringed)
    path = [None if place is None else drawn.index(place) for place in plane.path]
    return plane._replace(marks=[plane.marks[place] for place in drawn], path=path)


def _plane(plane: Plane, size: tuple[int, int]) -> Chart:
    width, height = size
    rows = _rows(plane)
    edges = list(_regions(rows, plane.confidence)) if plane.confidence else []
    origin = [0.0] if plane.has_origin else []
    limits = [] if plane.limit is None else [plane.limit[0]]

    def extent(key: str, *more: float) -> tuple[float, float]:
        ends = (row[f"{key}_{end}"] for row in rows for end in ("low", "high"))
        return marks.padded([*origin, *more, *ends, *(edge[key] for edge in edges)])

    across, up = extent("x", *limits), extent("y")
    at = {"x": marks.axis("x", plane.x_title, across), "y": marks.axis("y", plane.y_title, up)}

    def pixel(row: dict[str, Any]) -> tuple[float, float]:
        return (
            width * (row["x"] - across[0]) / (across[1] - across[0]),
            height * (up[1] - row["y"]) / (up[1] - up[0]),
        )

    base = MarkStyle.of("base")
    zero: dict[str, Any] = {
        "x": 0.0,
        "y": 0.0,
        "colour": base.colour.css,
        "shape": base.shape,
        "run": "base",
        "said": "base: no change",
        "href": marks.items_link(),
    }
    points = [*rows, zero] if plane.has_origin else rows
    few = len(rows) <= _MANY
    thin: dict[str, Any] = {"strokeWidth": 1.6 if few else 1.2, "opacity": 1 if few else 0.5}
    look = {
        "color": marks.COLOUR,
        "shape": marks.SHAPE,
        **marks.links(mark.model for mark in plane.marks),
    }
    of_region = {
        **at,
        "fill": marks.COLOUR,
        "detail": marks.category("place"),
        "order": marks.number("order"),
    }
    layers = [
        marks.layer("line", edges, of_region, filled=True, fillOpacity=0.07, strokeWidth=0),
        *_lines(plane, rows, zero, at),
        *(
            marks.between("rule", rows, axis_name, {**at, "color": marks.COLOUR}, **thin)
            for axis_name in at
        ),
        marks.ring(rows, at),
        marks.layer("point", points, {**at, **look}, filled=True, size=80, opacity=1),
    ]
    names = list(_names(plane, [pixel(row) for row in rows]))
    if plane.has_origin:
        names.append(Name("base", *pixel(zero), base.colour))
    if plane.limit is not None:
        left, top = pixel({"x": plane.limit[0], "y": up[1]})
        names.append(Name(plane.limit[1], left, top + marks.LINE, base.colour))
    return marks.layered([*layers, *marks.names_beside(names, width)], width, height)


def _rows(plane: Plane) -> list[dict[str, Any]]:
    return [
        {
            "run": mark.name,
            "said": mark.words,
            "colour": mark.look.colour.css,
            "shape": mark.look.shape,
            "is_ringed": mark.is_ringed,
            "href": marks.items_link(model=mark.model),
            **marks.bounds(mark.x, "x"),
            **marks.bounds(mark.y, "y"),
        }
        for mark in plane.marks
    ]


def _lines(
    plane: Plane, rows: Sequence[dict[str, Any]], zero: dict[str, Any], at: dict[str, Any]
) -> Iterator[Chart]:
    """Through the origin, at the limit, and along the path."""
    look: dict[str, Any] = {"color": MUTED.css}
    if plane.has_origin:
        for axis_name, channel in at.items():
            yield marks.layer(
                "rule", [{"x": 0.0, "y": 0.0}], {axis_name: channel}, **look, strokeWidth=1
            )
    if plane.limit is not None:
        place, name = plane.limit
        dashed = {"strokeDash": [5, 4], "strokeWidth": 1.2}
        yield marks.layer("rule", [{"x": place, "run": name}], {"x": at["x"]}, **look, **dashed)
    if plane.path:
        stops = [
            {**(zero if place is None else rows[place]), "order": n}
            for n, place in enumerate(plane.path)
        ]
        yield marks.layer(
            "line", stops, {**at, "order": marks.number("order")}, **look, strokeWidth=1.5
        )


def _regions(rows: Sequence[Mapping[str, Any]], confidence: float) -> Iterator[dict[str, Any]]:
    """The edges of ellipses in which x and y lie together, as two independent normal numbers do.

    Half axes are those of the bounds times sqrt(chi-squared's quantile with two degrees of freedom)
    over the normal's. Bounds need not be symmetric, so each side has half axes of its own.
    """
    scale = math.sqrt(-2 * math.log(1 - confidence)) / NormalDist().inv_cdf((1 + confidence) / 2)
    for place, row in enumerate(rows):
        for n in range(_CORNERS):
            angle = 2 * math.pi * n / _CORNERS
            edge = {"run": row["run"], "colour": row["colour"], "place": place, "order": n}
            for key, part in (("x", math.cos(angle)), ("y", math.sin(angle))):
                bound = row[f"{key}_high"] if part > 0 else row[f"{key}_low"]
                edge[key] = row[key] + scale * abs(part) * (bound - row[key])
            yield edge


def _names(plane: Plane, places: Sequence[tuple[float, float]]) -> Iterator[Name]:
    """Each name once, at the rightmost mark that has it; of many names some."""
    rightmost: dict[str, tuple[float, float]] = {}
    looks = {mark.name: mark.look for mark in plane.marks}
    for mark, place in zip(plane.marks, places, strict=True):
        rightmost[mark.name] = max(place, rightmost.get(mark.name, place))
    ringed = {mark.name for mark in plane.marks if mark.is_ringed}
    for name in thinned(list(rightmost), MOST_NAMES, lambda name: name in ringed):
        yield Name(name, *rightmost[name], looks[name].colour)
