"""How well the scores at fewer rows say what twice the rows give, on curves that others measured.

    python -m benchmarks.rows [--data ../shared/data/curves/lora-rank-scaling-glue.csv]

1,680 runs: two encoders, four GLUE tasks, six ranks, 50 to 5,000 rows, five seeds. Each curve ends
at 500 or at 1,000 rows, and begins at 50, 100 or 200, with three sizes at least; what is predicted
is the mean accuracy at twice the rows. The error is the mean distance, in points, and is compared
with that of no change and of a straight line in log n. The reach of the interval is the residuals'
quantile, in standard errors of a point, on the *other* tasks; coverage is that on the task that was
left out. Epochs fall with n in these runs (10, 5, 3), which no law knows. So a study's axis of rows
shows what was measured, and no law continues it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from benchmarks.rows_laws import (
    MIN_SIZES,
    REACH,
    REACH_CONFIDENCE,
    fitted_laws,
)

DATA = Path("../shared/data/curves/lora-rank-scaling-glue.csv")
LAST = (500, 1000)
"""Of the sizes, those of which the double was measured and that have enough sizes before them."""


class Prediction(NamedTuple):
    """One curve, in points: what was said of twice the rows, and what was measured there."""

    task: str
    noise: float
    measured: float
    by_curve: float
    by_no_change: float
    by_line: float

    @property
    def residual(self) -> float:
        """Distance of the curve's value, in standard errors of a point."""
        return abs(self.by_curve - self.measured) / self.noise


def predictions(runs: Any) -> Iterator[Prediction]:
    """Every curve of a frame with model, task, rank, n, seed and accuracy (0..1)."""
    for (_, task, _), cell in runs.groupby(["model", "task", "rank"]):
        scores = 100.0 * cell.pivot_table(index="seed", columns="n", values="accuracy")
        for last in LAST:
            known = [n for n in scores.columns if n <= last]
            for begin in range(len(known) - MIN_SIZES + 1):
                yield _prediction(task, scores, known[begin:])


def _prediction(task: str, scores: Any, sizes: Sequence[int]) -> Prediction:
    # all sizes of a curve alike: five seeds tell too little of each alone
    values = scores[list(sizes)].mean().to_numpy()
    variances = scores[list(sizes)].var(ddof=1).to_numpy()
    noise = math.sqrt(variances.mean() / len(scores))
    laws = fitted_laws(sizes, values, noise)
    twice = 2 * sizes[-1]
    line = next(law for law in laws if law.name == "logarithm")
    return Prediction(
        task, noise, scores[twice].mean(), laws[0].at(twice), values[-1], line.at(twice)
    )


def reach_of(found: Sequence[Prediction], confidence: float) -> float:
    """The residual that is not exceeded so often, counted as if the next came from them too."""
    residuals = sorted(each.residual for each in found)
    place = math.ceil(confidence * (len(residuals) + 1))
    return residuals[min(place, len(residuals)) - 1]


def covered_by_task(found: Sequence[Prediction], confidence: float) -> dict[str, float]:
    """Task -> how often its measured values are within the reach of the other tasks."""
    covered: dict[str, float] = {}
    for task in dict.fromkeys(each.task for each in found):
        reach = reach_of([each for each in found if each.task != task], confidence)
        own = [each.residual <= reach for each in found if each.task == task]
        covered[task] = float(np.mean(own))
    return covered


def summary(found: Sequence[Prediction], confidence: float = REACH_CONFIDENCE) -> dict[str, float]:
    """The last line: mean errors in points, and the mean coverage over the tasks."""

    def error(of: str) -> float:
        return float(np.mean([abs(getattr(each, of) - each.measured) for each in found]))

    covered = covered_by_task(found, confidence)
    return {
        "curve_error_points": round(error("by_curve"), 3),
        "no_change_error_points": round(error("by_no_change"), 3),
        "line_error_points": round(error("by_line"), 3),
        "coverage_at_twice": round(float(np.mean([*covered.values()])), 3),
    }


def main() -> None:
    """Print the errors and the coverage of each task, and then the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    found = list(predictions(pd.read_csv(parser.parse_args().data)))
    for task, share in covered_by_task(found, REACH_CONFIDENCE).items():
        own = [each for each in found if each.task == task]
        error = np.mean([abs(each.by_curve - each.measured) for each in own])
        width = np.mean([each.noise for each in own]) * REACH
        about = f"{len(own)} curves, error {error:.2f} points"
        print(f"{task}: {about}, covered {share:.2f} within ±{width:.1f}")
    print(f"reach of all tasks: {reach_of(found, REACH_CONFIDENCE):.2f}")
    print(json.dumps(summary(found)))


if __name__ == "__main__":
    main()
