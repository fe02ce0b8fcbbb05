"""What a model gained and lost so far: looks at a training while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rankwise.findings.deployment import LossRule, verdict_of
from rankwise.findings.pairs import interval_of, pair_items
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.records import quantities
from rankwise.records.results import ModelResults
from rankwise.records.study import Interval, Unit


class MeanChange(NamedTuple):
    """The mean difference from the base over the tasks of one unit, each counting the same.

    Attributes:
        unit: of the bounds.
        tasks: names.
        shown: the bounds of this look by itself, at the rule's confidence; positive is better.
        deciding: the wider bounds by which this look may stop a training.
    """

    unit: Unit
    tasks: tuple[str, ...]
    shown: Interval
    deciding: Interval


class TrainingLook(NamedTuple):
    """A model after some steps against its base, paired over the same items.

    Attributes:
        number: 1 is the first look of a training.
        step: optimizer steps so far.
        alpha: the share of wrong stops that this look may add, 0..1.
        retention: by unit.
        gain: by unit; empty without tasks of the gain.
    """

    number: int
    step: int
    alpha: float
    retention: tuple[MeanChange, ...]
    gain: tuple[MeanChange, ...] = ()

    @property
    def logged(self) -> dict[str, float]:
        """Numbers for a log by name, such as ``retention_change_lower``, in points.

        Where tasks are scored by their loss, ``retention_change_nats`` and its bounds are theirs.
        """
        entries: dict[str, float] = {}
        for name, changes in (("retention_change", self.retention), ("gain", self.gain)):
            for unit, _, shown, _ in changes:
                key = name if unit == "points" else f"{name}_{unit}"
                bounds = {"": shown.estimate, "_lower": shown.lower, "_upper": shown.upper}
                entries |= {f"{key}{end}": value for end, value in bounds.items()}
        return entries

    def reason_to_stop(self, rule: LossRule) -> str | None:
        """Why the training should stop: a loss that is shown to be above the margin."""
        for change in self.retention:
            margin = rule.margin(change.unit)
            if verdict_of(change.deciding, margin) == "loses":
                return (
                    f"the training stops at step {self.step}: the retention loss is shown to be "
                    f"above {quantities.amount(margin, change.unit)}. The mean change over "
                    f"{quantities.listed(change.tasks)} is "
                    f"{quantities.with_interval(change.deciding, change.unit)}, with the bounds of "
                    f"look {self.number}."
                )
        return None


def training_look(
    step: int,
    every: int,
    base: Mapping[str, ModelResults],
    now: Mapping[str, ModelResults],
    confidence: float,
) -> TrainingLook:
    """Compare a model with its base after some steps.

    Nobody knows how many looks a training gets, so they share 1 - confidence without a plan: the
    first may spend four fifths of it, look k the share 1 / (k (k - 1)) of the last fifth. The
    number of a look follows from its step, so that a training that was resumed does not begin to
    count again.

    Args:
        step: at least 1.
        every: steps from one look to the next.
        base: relation (``retention``, ``gain``) -> what the base scored.
        now: likewise, the model.
        confidence: two-sided, of all looks together, 0..1.

    Raises:
        RecordError: a task has fewer than two items, or a score is not finite.
    """
    number = -(-step // every)
    share = 0.8 if number == 1 else 0.2 / (number * (number - 1))
    alpha = share * (1.0 - confidence)
    changes: dict[str, tuple[MeanChange, ...]] = dict.fromkeys(base, ())
    for relation, before in base.items():
        for unit, tasks in before.tasks_by_unit(before.items).items():
            pairs = [pair_items(before, now[relation], task).items for task in tasks]
            mean = mean_over_tasks(pairs)
            bounds = (interval_of(mean, level) for level in (confidence, 1.0 - alpha))
            changes[relation] += (MeanChange(unit, tuple(tasks), *bounds),)
    return TrainingLook(number, step, alpha, **changes)
