"""Whether models answer a task nearly perfectly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rankwise.errors import RecordError
from rankwise.findings.stats.estimates import POINTS, crossed_difference, wilson_interval
from rankwise.records.results import ModelResults
from rankwise.records.study import Unit

NEARLY_PERFECT_SHARE = 0.9

NEARLY_PERFECT_NATS = -math.log(NEARLY_PERFECT_SHARE)
"""0.105 nats per token: each token of the right text has 0.9 of the probability, on average."""


class Level(NamedTuple):
    """A score in its unit, averaged over seeds; ``worst`` is the bound on its bad side."""

    score: float
    worst: float
    unit: Unit

    @property
    def is_mastered(self) -> bool:
        """Whether the score is nearly perfect, by its bound."""
        if self.unit == "nats":
            return self.worst < NEARLY_PERFECT_NATS
        return self.worst > POINTS * NEARLY_PERFECT_SHARE


def level(models: Sequence[ModelResults], task: str, confidence: float) -> Level:
    """The score of models that differ by seed, with Wilson's bound, for a loss with Student's.

    Args:
        models: at least one, all scored on the task; the base alone, or the runs of one option.
        task: with at least two items.
        confidence: of a two-sided interval, 0..1.

    Raises:
        RecordError: a model was not scored on the task.
    """
    for model in models:
        if task not in model.items:
            raise RecordError(f"{model.name} was not scored on {task!r}; run the study again")
    items = [model.items[task] for model in models]
    values = np.array([each.values for each in items], dtype=np.float64)
    mean = float(values.mean())
    if items[0].unit == "nats":
        return Level(
            mean, crossed_difference(values, item_size=0.0).interval(confidence)[1], "nats"
        )
    num_items = values.shape[1]
    lower, _ = wilson_interval(mean * num_items, num_items, confidence)
    return Level(POINTS * mean, POINTS * lower, "points")
