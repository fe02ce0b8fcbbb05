"""Two numbers of each model on a plane: the front, and regions for both numbers together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rankwise.records.study import Interval
from rankwise.report.charts.marks import MarkStyle
from rankwise.report.charts.plane import Plane, PlaneMark, front, plane_chart


def test_the_front_is_what_none_beats_in_both() -> None:
    points = [(-4.0, 27.0), (-7.0, 23.0), (0.0, 0.0), (-1.0, 10.0), (-1.0, 9.0), (-4.0, 27.0)]
    assert front(points) == [0, 3, 2]
    assert front([(1.0, 5.0), (0.0, 0.0)]) == [0]


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_a_region_holds_both_numbers_as_often_as_it_says(confidence: float) -> None:
    from scipy.stats import norm

    half = norm.ppf((1 + confidence) / 2)
    x = Interval(estimate=0.0, lower=-2 * half, upper=2 * half)  # standard error 2
    y = Interval(estimate=0.0, lower=-half, upper=half)  # and 1
    mark = PlaneMark("rank 8", MarkStyle.of(8), x, y, "")
    drawn = plane_chart([Plane("x", "y", [mark], confidence=confidence)]).chart
    layers: list[dict[str, Any]] = drawn["layer"]
    (shaded,) = [
        layer for layer in layers if layer["mark"].get("filled") and "detail" in layer["encoding"]
    ]
    edges = np.array([[row["x"], row["y"]] for row in shaded["data"]["values"]])
    draws = np.random.default_rng(0).normal(size=(40_000, 2)) * [2.0, 1.0]
    radius = np.hypot(edges[0, 0] / 2, edges[0, 1])
    assert np.allclose(np.hypot(edges[:, 0] / 2, edges[:, 1]), radius)
    inside = np.hypot(draws[:, 0] / 2, draws[:, 1]) < radius
    assert inside.mean() == pytest.approx(confidence, abs=0.01)
