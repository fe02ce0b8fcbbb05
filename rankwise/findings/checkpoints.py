"""Checkpoints of runs: what a training gains and loses on its way, and where it might have ended.

Which checkpoint is the best is chosen on validation items, and said of test items, so that the
choice does not flatter what is said of it. Exploratory: the recommendation is about ends.
"""

from __future__ import annotations

import numpy as np

from rankwise.findings.decision import Margins
from rankwise.findings.gauges import change_on, kl_on_prompts
from rankwise.findings.odds import point_in, worth
from rankwise.findings.options import Option, OptionGains, OptionName, Runs, TaskMean, over_seeds
from rankwise.findings.pairs import run_record
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import Relation, Unit


class CheckpointPoint(Record):
    """An option after some of its steps, seeds averaged; the last one is its end.

    ``gain`` and ``retention`` are adapted - base on test items, positive better.
    ``validation_worth`` is the gain on validation items less twice the retention loss beyond ε, in
    the unit of the gain: what the checkpoint is chosen by. ``kl_prompts`` is the gauge
    KL(base || model) on the trained task's prompts, in nats per token.
    """

    option: OptionName
    step: int
    num_steps: int
    """Steps of the whole training."""
    gain: TaskMean | None
    retention: TaskMean | None
    validation_worth: float
    kl_prompts: TaskMean | None = None


class CheckpointChoice(Record):
    """The checkpoint of an option that is worth most on validation items, against its end.

    The differences are checkpoint - end on test items, positive where the checkpoint is better;
    None where the end itself is chosen.
    """

    option: OptionName
    step: int
    num_steps: int
    gain: TaskMean | None
    retention: TaskMean | None
    statement: str


class TrainTaskCheckpoints(Record):
    """The checkpoints of the runs on one trained task."""

    train_task: str
    confidence: float
    points: tuple[CheckpointPoint, ...]
    choices: tuple[CheckpointChoice, ...]


def checkpoints(source: OptionGains, recommendation: Recommendation) -> TrainTaskCheckpoints | None:
    """What the checkpoints of a trained task show; None where it has none.

    Raises:
        RecordError: models were scored on different items.
    """
    by_step = over_seeds(
        source.results,
        "checkpoint",
        lambda plan: (source.labels[plan.training.name], plan.num_steps),
    )
    if not by_step:
        return None
    unit, delta = recommendation.unit, recommendation.delta
    margins, point = Margins(delta, recommendation.epsilon_points), point_in(unit, delta)
    points: list[CheckpointPoint] = []
    choices: list[CheckpointChoice] = []
    for option in source.in_study_order(source.options):
        of_option = [
            (step, group.runs)
            for (of, step), group in sorted(by_step.items(), key=lambda item: item[0][1])
            if of == option.label and group.is_complete
        ]
        num_steps = run_record(option.runs[0]).num_steps
        of_option.append((num_steps, option.runs))
        if len(of_option) < 2:
            continue
        worths: list[float] = []
        for step, models in of_option:
            gain = _validation_mean(source, models, "in_domain", unit)
            loss = -_validation_mean(source, models, "retention", "points")
            worths.append(float(worth(gain, loss, margins, point)))
            points.append(
                CheckpointPoint(
                    option=option.name,
                    step=step,
                    num_steps=num_steps,
                    gain=change_on(source, models, "in_domain"),
                    retention=change_on(source, models, "retention"),
                    validation_worth=worths[-1],
                    kl_prompts=kl_on_prompts(source, models),
                )
            )
        # of points that are worth the same the last: a tie is no reason to stop before the end
        best = max(range(len(worths)), key=lambda place: (worths[place], place))
        choices.append(_choice(source, option, num_steps, *of_option[best]))
    return TrainTaskCheckpoints(
        train_task=source.results.train_task,
        confidence=source.confidence,
        points=tuple(points),
        choices=tuple(choices),
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


def _choice(
    source: OptionGains, option: Option, num_steps: int, step: int, models: Runs
) -> CheckpointChoice:
    count, label = quantities.count, quantities.capital(option.label)
    differences: dict[Relation, TaskMean | None] = {"in_domain": None, "retention": None}
    statement = f"{label}: on validation items no checkpoint is worth more than its end."
    if step != num_steps:
        for relation in differences:  # checkpoint - end, paired by seed and item
            tasks = source.tasks(relation) or source.tasks(relation, "nats")
            differences[relation] = source.lead_over(models, option.runs, tasks)
        words: dict[Relation, str] = {"in_domain": "gains", "retention": "keeps"}
        shown = {1: "more", -1: "less", 0: "neither more nor less, as far as can be told,"}
        parts = [
            f"{words[relation]} {shown[mean.sign()]} ({quantities.with_interval(mean, mean.unit)})"
            for relation, mean in differences.items()
            if mean is not None
        ]
        statement = (
            f"{label}: on validation items step {count(step)} of {count(num_steps)} is worth most. "
            f"On test items it {' and '.join(parts)} than at its end."
        )
    return CheckpointChoice(
        option=option.name,
        step=step,
        num_steps=num_steps,
        gain=differences["in_domain"],
        retention=differences["retention"],
        statement=statement,
    )
