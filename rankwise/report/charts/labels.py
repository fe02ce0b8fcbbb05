"""Where to write the labels of points so that they cover neither marks nor each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwise.records.axes import Kind


class Box(NamedTuple):
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def grown(self, by: float) -> Box:
        """The same with a margin on every side."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of this box that is nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)


class Label(NamedTuple):
    """A text whose left end and middle height are at (x, y) pixels.

    ``leader`` is a line (from x, y to x, y) to the point it names, where that is not next to it.
    """

    text: str
    group: Kind
    x: float
    y: float
    leader: tuple[float, float, float, float] | None = None


class _Candidate(NamedTuple):
    box: Box
    point: tuple[float, float]
    gap: float


CHARACTER_SHARE = 0.56
"""The width of a letter in shares of the font size, on average, for a bold sans serif."""

_MARK_RADIUS = 6.0
_GAPS = (9.0, 15.0, 24.0, 38.0, 56.0)
_LEADER_FROM = 20.0
_ROUNDS = 3
_OUTSIDE, _LABEL, _MARK, _OTHER_MARK_NEAR, _DISTANCE = 40.0, 20.0, 12.0, 3.0, 8.0


def place_labels(
    anchors: Mapping[Kind, Sequence[tuple[float, float]]],
    texts: Mapping[Kind, str],
    obstacles: Sequence[Box],
    size: tuple[float, float],
    font_size: float,
) -> tuple[Label, ...]:
    """One label for each group of points, next to the point of it where there is most room.

    Args:
        anchors: per group the positions of its points.
        texts: per group what to write.
        obstacles: what had better not be covered, such as error bars.
        size: width and height of the plot.
        font_size: in pixels.
    """
    marks: dict[Kind, list[Box]] = {
        group: [_mark(x, y) for x, y in points] for group, points in anchors.items()
    }
    places = {
        group: [
            place
            for point in points
            for place in _candidates(
                point, CHARACTER_SHARE * font_size * len(texts[group]), font_size
            )
        ]
        for group, points in anchors.items()
    }
    costs = {group: _costs(places[group], group, marks, obstacles, size) for group in anchors}
    chosen: dict[Kind, _Candidate] = {}
    for _ in range(_ROUNDS):
        for group in anchors:
            taken = [other.box for name, other in chosen.items() if name != group]
            boxes = _array(place.box.grown(2.0) for place in places[group])
            total = costs[group] + _LABEL * _covered(boxes, _array(taken))
            chosen[group] = places[group][int(total.argmin())]
    return tuple(_label(texts[group], group, place) for group, place in chosen.items())


def _mark(x: float, y: float) -> Box:
    return Box(x, y, x, y).grown(_MARK_RADIUS)


def _candidates(point: tuple[float, float], width: float, font_size: float) -> list[_Candidate]:
    """Beside, above and below the point, near before far."""
    x, y = point
    half = 0.6 * font_size
    candidates: list[_Candidate] = []
    for gap in _GAPS:
        for dx in (gap, -gap - width, -width / 2):
            for dy in (-gap - half, gap + half, 0.0):
                if dx == -width / 2 and dy == 0.0:
                    continue
                box = Box(x + dx, y + dy - half, x + dx + width, y + dy + half)
                candidates.append(_Candidate(box, point, gap))
    return candidates


def _costs(
    places: Sequence[_Candidate],
    group: Kind,
    marks: Mapping[Kind, Sequence[Box]],
    obstacles: Sequence[Box],
    size: tuple[float, float],
) -> NDArray[np.float64]:
    """Of each place for a group's label, whatever the other labels are."""
    boxes = _array(place.box for place in places)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    others = _array(box for name, of_name in marks.items() if name != group for box in of_name)
    return (
        _OUTSIDE * (area - _covered(boxes, _array([Box(0.0, 0.0, *size)])))
        + _MARK * (_covered(boxes, _array(marks[group])) + _covered(boxes, others))
        + _OTHER_MARK_NEAR * _covered(_array(place.box.grown(11.0) for place in places), others)
        + _covered(boxes, _array(obstacles))
        + _DISTANCE * np.array([place.gap for place in places])
    )


def _array(boxes: Iterable[Box]) -> NDArray[np.float64]:
    return np.array(list(boxes), dtype=np.float64).reshape(-1, 4)


def _covered(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area of each box that other boxes cover; what several cover counts several times."""
    ours = boxes[:, None, :]
    width = np.minimum(ours[..., 2], others[:, 2]) - np.maximum(ours[..., 0], others[:, 0])
    height = np.minimum(ours[..., 3], others[:, 3]) - np.maximum(ours[..., 1], others[:, 1])
    return (width.clip(0.0) * height.clip(0.0)).sum(axis=1)


def _label(text: str, group: Kind, chosen: _Candidate) -> Label:
    x, y = chosen.point
    near_x, near_y = chosen.box.nearest(x, y)
    distance = math.hypot(near_x - x, near_y - y)
    leader = None
    if distance > _LEADER_FROM:
        start = _MARK_RADIUS / distance
        leader = (near_x, near_y, x + (near_x - x) * start, y + (near_y - y) * start)
    box = chosen.box
    return Label(text, group, box.left, (box.top + box.bottom) / 2, leader)
