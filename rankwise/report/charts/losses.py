"""The course of the training loss, a line for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np

from rankwise.records.axes import Kind
from rankwise.report.charts.marks import Look, rows_chart
from rankwise.report.charts.theme import key_columns
from rankwise.report.parts import Drawing

MOST_RUNS = 12
"""More lines than this cannot be told apart; the first and every so many are drawn."""

_SIZE = (520, 260)
_MOST_POINTS = 60
"""Of a line: losses of single batches jump, so a point is the mean of neighbours."""

Course = Sequence[tuple[int, float]]
"""Step and loss in nats per token of each step, in order."""


def loss_chart(courses: Mapping[str, tuple[Kind, Course]]) -> Drawing:
    """Means of neighbouring steps.

    Args:
        courses: by label, at least one; each has at least one step.
    """
    looks = Look.of_each({label: kind for label, (kind, _) in courses.items()})
    rows = [
        {"run": label, "step": step, "loss": loss}
        for label, (_, course) in courses.items()
        for step, loss in averaged(course)
    ]
    width, height = _SIZE
    names = list(courses)
    key = alt.Legend(
        title=None, orient="top", columns=key_columns(names, width), labelLimit=width, symbolSize=60
    )
    colours = [look.colour.light for look in looks.values()]
    scale = alt.Scale(domain=names, range=colours)
    chart = rows_chart(rows).mark_line(strokeWidth=1.6, opacity=0.85)
    drawn = chart.encode(
        alt.X("step:Q", title="Optimizer step", axis=alt.Axis(tickCount=6, grid=False)),
        alt.Y("loss:Q", title="Training loss (nats per token)", scale=alt.Scale(zero=False)),
        alt.Color("run:N", scale=scale, legend=key),
    )
    words = [
        f"{label} from {ends[0][1]:.3g} to {ends[-1][1]:.3g}"
        for label, (_, course) in courses.items()
        for ends in [averaged(course)]
    ]
    chart = alt.layer(drawn).properties(width=width, height=height)
    return Drawing(chart, f"{'; '.join(words)}.")


def averaged(course: Course) -> list[tuple[float, float]]:
    """At most so many points, each the mean of as many neighbouring steps."""
    steps, losses = (np.array(part, dtype=float) for part in zip(*course, strict=True))
    parts = np.array_split(np.arange(len(steps)), min(_MOST_POINTS, len(steps)))
    return [(float(steps[part].mean()), float(losses[part].mean())) for part in parts]
