"""The course of the training loss, a line for each run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rankwise.records.axes import Kind
from rankwise.report.charts.marks import MarkStyle, keyed, layer, layered, number
from rankwise.report.parts import Drawing

MOST_RUNS = 12
"""More lines than this cannot be told apart; the first and every so many are drawn."""

_SIZE = (520, 260)
_MOST_POINTS = 60
"""The most points of a line: losses of single batches jump, so a point is the mean of neighbours.
"""

Course = Sequence[tuple[int, float]]
"""Step and loss in nats per token of each step, in order."""


def loss_chart(courses: Mapping[str, tuple[Kind, Course]]) -> Drawing:
    """Means of neighbouring steps.

    Args:
        courses: by label, at least one; each has at least one step.
    """
    looks = MarkStyle.of_each({label: kind for label, (kind, _) in courses.items()})
    means = {label: averaged(course) for label, (_, course) in courses.items()}
    rows = [
        {"run": label, "step": step, "loss": loss, "said": f"{label}, step {step:.0f}: {loss:.3f}"}
        for label, points in means.items()
        for step, loss in points
        if math.isfinite(loss)  # a run that diverged has others
    ]
    width, height = _SIZE
    encoding = {
        "x": number("step", title="Optimizer step", axis={"tickCount": 6, "grid": False}),
        "y": number("loss", title="Training loss (nats per token)", scale={"zero": False}),
        "color": keyed(looks, width)["color"],
    }
    layers = [
        layer("line", rows, encoding, strokeWidth=1.6, opacity=0.85),
        layer("point", rows, encoding, filled=True, size=60, opacity=0),  # for the pointer
    ]
    words = [
        f"{label} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for label, points in means.items()
    ]
    return Drawing(layered(layers, width, height), f"{'; '.join(words)}.")


def averaged(course: Course) -> list[tuple[float, float]]:
    """The line at so many points at most, each the mean of as many neighbouring steps."""
    steps, losses = (np.array(part, dtype=float) for part in zip(*course, strict=True))
    parts = np.array_split(np.arange(len(steps)), min(_MOST_POINTS, len(steps)))
    return [(float(steps[part].mean()), float(losses[part].mean())) for part in parts]
