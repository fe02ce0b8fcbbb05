"""What trials showed, put together: evidence over settings and seeds, and what a trial is worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankwise.findings import odds
from rankwise.findings.decision import Margins
from rankwise.findings.stats.items import Floats, Items, item_size
from rankwise.findings.stats.simultaneous import StudyEvidence, study_evidence
from rankwise.study.searches.policy import Shown, Terms


def evidence(shown: Sequence[Sequence[Shown]], terms: Terms) -> StudyEvidence:
    """Of K settings with the same m seeds, paired by item.

    Args:
        shown: m rows of K, all on the same items and tasks.
        terms: retention takes part where they have an epsilon.
    """

    def stacked(kind: str, is_share: bool) -> list[Items]:
        num_tasks = len(getattr(shown[0][0], kind))
        values: list[Floats] = [
            np.array([[getattr(of, kind)[task] for of in row] for row in shown])
            for task in range(num_tasks)
        ]
        return [Items(task, item_size(task, in_points=is_share)) for task in values]

    losses = [] if terms.epsilon is None else stacked("losses", True)
    return study_evidence(stacked("gains", terms.unit == "points"), losses, terms.point)


def worth(shown: Shown, terms: Terms) -> float:
    """What a trial is worth, by the price of the best bet; macro-means over tasks."""
    gain = float(np.mean([task.mean() for task in shown.gains]))
    if terms.epsilon is None or not shown.losses:
        return gain
    loss = float(np.mean([task.mean() for task in shown.losses]))
    return float(odds.worth(gain, loss, Margins(terms.delta, terms.epsilon), terms.point))
