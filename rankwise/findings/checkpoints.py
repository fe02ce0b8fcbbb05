"""Checkpoints of runs: what a training gains and loses on its way, and where it might have ended.

Which checkpoint is the best is chosen on validation items, and said of test items, so that the
choice does not flatter what is said of it. Exploratory: the recommendation is about ends.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rankwise.findings.comparison import Compared, compare
from rankwise.findings.decision import Margins
from rankwise.findings.gauges import kl_on_prompts
from rankwise.findings.odds import point_in, worth
from rankwise.findings.options import (
    DecidingTasks,
    Option,
    OptionGains,
    Runs,
    TaskMean,
    TrainTaskFinding,
)
from rankwise.records import quantities
from rankwise.records.grouping import grouped
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import Relation, Unit


class CheckpointPoint(Compared):
    """An option after some of its steps, on test items; the last point of an option is its end.

    ``validation_worth`` is the gain on validation items less twice the retention loss beyond ε, in
    the unit of the gain: the checkpoint that is worth most is chosen. One that is chosen and is not
    the end has its leads over the end. ``kl_prompts`` is the gauge KL(base || model) on the trained
    task's prompts, in nats per token.
    """

    step: int
    num_steps: int
    """Steps of the whole training."""
    validation_worth: float
    is_chosen: bool
    kl_prompts: TaskMean | None


class TrainTaskCheckpoints(TrainTaskFinding):
    """The checkpoints of the runs on one trained task, with a statement for each option."""

    points: tuple[CheckpointPoint, ...]


def checkpoints(source: OptionGains, recommendation: Recommendation) -> TrainTaskCheckpoints | None:
    """What the checkpoints of a trained task show; None where it has none.

    Raises:
        RecordError: models were scored on different items.
    """
    done, left_out = source.of_role("checkpoint")
    if not (done or left_out):
        return None
    by_option = grouped((source.label_of_whole(each.plan), each) for each in done)
    points: list[CheckpointPoint] = []
    for option in source.in_study_order(source.options):
        if on_the_way := by_option.get(option.label):
            on_the_way.sort(key=lambda each: each.plan.num_steps)
            points += _points(source, recommendation, [*on_the_way, option])
    return source.found(
        TrainTaskCheckpoints,
        points=tuple(points),
        statements=tuple(map(_statement, (point for point in points if point.is_chosen))),
    )


def _points(
    source: OptionGains, recommendation: Recommendation, models: list[Option]
) -> Iterator[CheckpointPoint]:
    """The checkpoints of an option, the last of which is its end."""
    unit, delta = recommendation.unit, recommendation.delta
    margins, point = Margins(delta, recommendation.epsilon_points), point_in(unit, delta)
    end, num_steps = models[-1], models[-1].records[0].num_steps
    tasks = DecidingTasks(source.shown("in_domain"), source.shown("retention"), unit)
    worths: list[float] = []
    for model in models:
        gain = _validation_mean(source, model.runs, "in_domain", unit)
        loss = -_validation_mean(source, model.runs, "retention", "points")
        worths.append(float(worth(gain, loss, margins, point)))
    # of points that are worth the same the last: a tie is no reason to stop before the end
    best = max(range(len(worths)), key=lambda place: (worths[place], place))
    for place, model in enumerate(models):
        yield compare(
            CheckpointPoint,
            source,
            tasks,
            model._replace(label=end.label),
            end if place == best and model is not end else None,
            step=num_steps if model is end else model.plan.num_steps,
            num_steps=num_steps,
            validation_worth=worths[place],
            is_chosen=place == best,
            kl_prompts=kl_on_prompts(source, model.runs),
        )


def _validation_mean(source: OptionGains, models: Runs, relation: Relation, unit: Unit) -> float:
    """Adapted - base over the validation items of a relation, each task counting the same."""
    names = source.results.validation_items.get(relation, {})
    means = [
        float(source.pair(model, names[task]).gain.mean())
        for task in source.tasks(relation, unit)
        if task in names
        for model in models
    ]
    return float(np.mean(means)) if means else 0.0


def _statement(chosen: CheckpointPoint) -> str:
    count, label = quantities.count, quantities.capital(chosen.label)
    if chosen.step == chosen.num_steps:
        return f"{label}: on validation items no checkpoint is worth more than its end."
    shown = {1: "more", -1: "less", 0: "neither more nor less, as far as can be told,"}
    parts = [
        f"{verb} {shown[lead.sign()]} ({quantities.with_interval(lead, lead.unit)})"
        for verb, lead in (("gains", chosen.lead), ("keeps", chosen.retention_lead))
        if lead is not None
    ]
    return (
        f"{label}: on validation items step {count(chosen.step)} of {count(chosen.num_steps)} is "
        f"worth most. On test items it {' and '.join(parts)} than at its end."
    )
