"""How sure a base model is of its choices: which items can flip."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from typing import NamedTuple

from benchmarks.prediction.feature_table import NEAR_TIE_NATS
from rankwise.records.folder import BASE
from rankwise.records.p_right import highest, option_nats, p_right, right_options
from rankwise.tasks.evaluation import ScoredModel, evaluate
from rankwise.tasks.questions import Scorer
from rankwise.tasks.requests import PreparedTask


class Choices(NamedTuple):
    """A model's answers to items with options, means over tasks; all are shares.

    Attributes:
        accuracy: of items whose right option has the highest log-likelihood.
        p_right: the probability of the right option among the options.
        chance: of guessing right.
        near_tie_share: of items whose margin is within ``NEAR_TIE_NATS`` of 0.
    """

    accuracy: float
    p_right: float
    chance: float
    near_tie_share: float


def choices(scorer: Scorer, tasks: Sequence[PreparedTask]) -> Choices | None:
    """How the resident model answers the tasks that have options; None where none has.

    Raises:
        TaskError: a task cannot judge its answers.
    """
    read = [found for task in tasks if (found := _of_task(scorer, task)) is not None]
    return Choices(*map(statistics.fmean, zip(*read, strict=True))) if read else None


def _of_task(scorer: Scorer, task: PreparedTask) -> Choices | None:
    if task.loaded.output_type != "multiple_choice" or task.chance is None:
        return None
    ((record, samples),) = evaluate(scorer, [ScoredModel(BASE, "")], task, metric=None)
    lines = [line for line in samples if line["filter"] == record.decision_filter]
    right = right_options(lines)
    if right is None:
        return None
    items = [(option_nats(line), places) for line, places in zip(lines, right, strict=True)]
    near = [abs(margin(nats, places)) < NEAR_TIE_NATS for nats, places in items]
    return Choices(
        accuracy=statistics.fmean(highest(nats) in places for nats, places in items),
        p_right=statistics.fmean(p_right(nats, places) for nats, places in items),
        chance=task.chance,
        near_tie_share=statistics.fmean(near),
    )


def margin(nats: Sequence[float], right: Collection[int]) -> float:
    """The best right option's log-likelihood less that of the best wrong one, in nats.

    Args:
        nats: of each option, at least two; -inf is allowed.
        right: places of the right options.
    """
    own = max((x for place, x in enumerate(nats) if place in right), default=-math.inf)
    other = max((x for place, x in enumerate(nats) if place not in right), default=-math.inf)
    return 0.0 if own == other else own - other
