"""Two quantities of each model against each other, such as what it gains and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import altair as alt

from rankwise.records.study import Interval
from rankwise.report.charts.marks import (
    COLOUR,
    LINE,
    SHAPE,
    Look,
    Name,
    axis,
    bounds,
    items_link,
    links,
    names_beside,
    padded,
    ring,
    rows_chart,
)
from rankwise.report.charts.theme import MUTED
from rankwise.report.parts import Chart, Drawing

_SIZE, _SMALL_SIZE = (470, 350), (310, 220)
_MANY = 7
"""With more marks than this, bars are paler."""


_CORNERS = 48


class PlaneMark(NamedTuple):
    """A model at (x, y). Marks of one ``name`` are named once; ``words`` say both numbers.

    ``model`` is the label of the one whose items a click shows.
    """

    name: str
    look: Look
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
    """The places of points that no other beats in one number and equals in the other, by x."""

    def is_beaten(place: int) -> bool:
        x, y = points[place]
        return any((a, b) != (x, y) and a >= x and b >= y for a, b in points)

    kept = [place for place in range(len(points)) if not is_beaten(place)]
    return sorted(kept, key=lambda place: points[place])


def plane_chart(planes: Sequence[Plane]) -> Drawing:
    """Planes of two in a row.

    Args:
        planes: at least one.
    """
    size = _SIZE if len(planes) == 1 else _SMALL_SIZE
    charts = [_plane(plane, size) for plane in planes]
    words = "; ".join(dict.fromkeys(mark.words for plane in planes for mark in plane.marks))
    if len(charts) == 1:
        return Drawing(charts[0], f"{words}.")
    return Drawing(alt.concat(*charts, columns=2), f"{words}.", is_wide=True)


def _plane(plane: Plane, size: tuple[int, int]) -> Chart:
    width, height = size
    rows: list[dict[str, Any]] = [
        {
            "colour": mark.look.colour.light,
            "shape": mark.look.shape,
            "is_ringed": mark.is_ringed,
            "href": items_link(model=mark.model),
            **bounds(mark.x, "x"),
            **bounds(mark.y, "y"),
        }
        for mark in plane.marks
    ]
    edges = list(_regions(rows, plane.confidence)) if plane.confidence else []
    origin = [0.0] if plane.has_origin else []
    limits = [] if plane.limit is None else [plane.limit[0]]
    across = padded([*origin, *limits, *_extent("x", rows, edges)])
    up = padded([*origin, *_extent("y", rows, edges)])
    x, y = axis(plane.x_title, across), axis(plane.y_title, up)
    at = {"x": alt.X("x:Q", **x), "y": alt.Y("y:Q", **y)}

    def pixel(row: dict[str, Any]) -> tuple[float, float]:
        return (
            width * (row["x"] - across[0]) / (across[1] - across[0]),
            height * (up[1] - row["y"]) / (up[1] - up[0]),
        )

    layers: list[Any] = [_shaded(edges).encode(**at)] if edges else []
    base = Look.of("base")
    zero: dict[str, Any] = {"x": 0.0, "y": 0.0, "colour": base.colour.light, "shape": base.shape}
    zero["href"] = items_link()
    points = [*rows, zero] if plane.has_origin else rows
    layers += _lines(plane, rows, zero, at)
    few = len(rows) <= _MANY
    bars = rows_chart(rows).mark_rule(strokeWidth=1.6 if few else 1.2, opacity=1 if few else 0.5)
    layers += [
        bars.encode(alt.X("x_low:Q", **x), alt.X2("x_high:Q"), at["y"], COLOUR),
        bars.encode(alt.Y("y_low:Q", **y), alt.Y2("y_high:Q"), at["x"], COLOUR),
        ring(row for row in rows if row["is_ringed"]).encode(**at),
        rows_chart(points)
        .mark_point(filled=True, size=80, opacity=1)
        .encode(COLOUR, SHAPE, **at, **links(mark.model for mark in plane.marks)),
    ]
    names = list(_names(plane, [pixel(row) for row in rows]))
    if plane.has_origin:
        names.append(Name("base", *pixel(zero), base.colour))
    if plane.limit is not None:
        left, top = pixel({"x": plane.limit[0], "y": up[1]})
        names.append(Name(plane.limit[1], left, top + LINE, base.colour))
    return alt.layer(*layers, *names_beside(names, width)).properties(width=width, height=height)


def _lines(
    plane: Plane, rows: Sequence[dict[str, Any]], zero: dict[str, Any], at: dict[str, Any]
) -> Iterator[Any]:
    """Through the origin, at the limit, and along the path."""
    if plane.has_origin:
        line = rows_chart([zero]).mark_rule(color=MUTED.light, strokeWidth=1)
        yield from (line.encode(at["x"]), line.encode(at["y"]))
    if plane.limit is not None:
        line = rows_chart([{"x": plane.limit[0]}])
        dashed = line.mark_rule(color=MUTED.light, strokeDash=[5, 4], strokeWidth=1.2)
        yield dashed.encode(at["x"])
    if plane.path:
        stops = [
            {**(zero if place is None else rows[place]), "order": n}
            for n, place in enumerate(plane.path)
        ]
        path = rows_chart(stops).mark_line(color=MUTED.light, strokeWidth=1.5)
        yield path.encode(order="order:Q", **at)


def _extent(
    key: str, rows: Sequence[Mapping[str, Any]], edges: Sequence[Mapping[str, Any]]
) -> Iterator[float]:
    for row in rows:
        yield from (row[f"{key}_low"], row[f"{key}_high"])
    yield from (edge[key] for edge in edges)


def _regions(rows: Sequence[Mapping[str, Any]], confidence: float) -> Iterator[dict[str, Any]]:
    """The edges of ellipses in which x and y lie together, as two independent normal numbers do.

    Half axes are those of the bounds times sqrt(chi-squared's quantile with two degrees of freedom)
    over the normal's. Bounds need not be symmetric, so each side has half axes of its own.
    """
    scale = math.sqrt(-2 * math.log(1 - confidence)) / NormalDist().inv_cdf((1 + confidence) / 2)
    for place, row in enumerate(rows):
        for n in range(_CORNERS):
            angle = 2 * math.pi * n / _CORNERS
            edge: dict[str, Any] = {"colour": row["colour"], "place": place, "order": n}
            for key, part in (("x", math.cos(angle)), ("y", math.sin(angle))):
                bound = row[f"{key}_high"] if part > 0 else row[f"{key}_low"]
                edge[key] = row[key] + scale * abs(part) * (bound - row[key])
            yield edge


def _shaded(edges: Sequence[Mapping[str, Any]]) -> Any:
    """Regions in the colours of their marks, still without axes."""
    shaded = rows_chart(edges).mark_line(filled=True, fillOpacity=0.07, strokeWidth=0)
    return shaded.encode(alt.Fill("colour:N", scale=None), alt.Detail("place:N"), order="order:Q")


def _names(plane: Plane, places: Sequence[tuple[float, float]]) -> Iterator[Name]:
    """Each name once, at the rightmost mark that has it."""
    rightmost: dict[str, tuple[float, float]] = {}
    looks = {mark.name: mark.look for mark in plane.marks}
    for mark, place in zip(plane.marks, places, strict=True):
        rightmost[mark.name] = max(place, rightmost.get(mark.name, place))
    for name, (x, y) in rightmost.items():
        yield Name(name, x, y, looks[name].colour)
