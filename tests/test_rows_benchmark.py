"""The benchmark of learning curves on planted ones: errors, reach and coverage are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import rows

SIZES = (50, 100, 200, 500, 1000, 2000, 5000)


def runs(jump: dict[str, float]) -> Any:
    """A tenth of a point for each doubling, at each of 5 seeds; a jump from 1000 to 2000."""
    cells = [
        {
            "model": "m", "task": task, "rank": rank, "n": n, "seed": seed,
            "accuracy": 0.5 + 0.001 * math.log2(n / 50) + 0.01 * (seed - 2)
            + (jump[task] if n >= 2000 else 0.0),
        }
        for task in jump
        for rank in (2, 4)
        for n in SIZES
        for seed in range(5)
    ]  # fmt: skip
    return pd.DataFrame(cells)


def test_every_curve_with_its_double_is_predicted() -> None:
    found = list(rows.predictions(runs({"a": 0.0, "b": 0.0})))
    # to 500 it begins at 50 or 100, to 1,000 at 50, 100 or 200
    assert len(found) == 2 * 2 * (2 + 3)
    assert [each.by_line for each in found] == pytest.approx([each.measured for each in found])


def test_errors_are_mean_distances_in_points() -> None:
    summary = rows.summary(list(rows.predictions(runs({"a": 0.0, "b": 0.0}))))
    assert summary["line_error_points"] == 0.0
    assert summary["no_change_error_points"] == pytest.approx(0.1)
    assert summary["coverage_at_twice"] == 1.0


def test_coverage_is_by_the_residuals_of_the_other_tasks() -> None:
    found = list(rows.predictions(runs({"calm": 0.0, "wild": 0.2})))
    covered = rows.covered_by_task(found, 0.95)
    assert covered["calm"] == 1.0
    # of its curves those to 500 are calm; the others jump, which the calm task does not know
    assert covered["wild"] <= 0.4


def test_the_reach_counts_one_more() -> None:
    def prediction(residual: float) -> rows.Prediction:
        return rows.Prediction("t", 1.0, 0.0, residual, 0.0, 0.0)

    found = [prediction(float(each)) for each in np.arange(1, 20)]
    assert rows.reach_of(found, 0.9) == 18.0
    assert rows.reach_of(found, 0.95) == 19.0
    assert rows.reach_of(found, 0.99) == 19.0
