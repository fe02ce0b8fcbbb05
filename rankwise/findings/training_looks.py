"""What a model gained and lost so far: looks at a training while it runs."""

from __future__ import annotations

import statistics
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
        score: the model's mean score, in the unit.
        shown: the bounds of this look by itself, at the rule's confidence; positive is better.
        deciding: the wider bounds by which this look may stop a training.
    """

    unit: Unit
    tasks: tuple[str, ...]
    score: float
    shown: Interval
    deciding: Interval


class TrainingLook(NamedTuple):
    """A model after some steps against its base, paired over the same items.

    Attributes:
        number: 1 is the first look of a training.
        step: optimizer steps so far.
        alpha: the share of wrong stops that this look may add, 0..1.
        retention: by unit; empty without tasks of retention.
        gain: by unit; empty without tasks of the gain.
        own: each own set by itself.
    """

    number: int
    step: int
    alpha: float
    retention: tuple[MeanChange, ...] = ()
    gain: tuple[MeanChange, ...] = ()
    own: tuple[MeanChange, ...] = ()

    @property
    def logged(self) -> dict[str, float]:
        """Numbers for a log by name, such as ``retention_change_lower``, in points.

        An own set has ``own/<name>/score``, and ``own/<name>/change`` with its bounds. Where the
        loss decides, ``_nats`` stands behind the name: ``retention_change_nats_lower``.
        """
        named = [("retention_change", each) for each in self.retention]
        named += [("gain", each) for each in self.gain]
        named += [(f"own/{each.tasks[0]}/change", each) for each in self.own]
        entries: dict[str, float] = {}
        for name, (unit, _, _, shown, _) in named:
            bounds = {"": shown.estimate, "_lower": shown.lower, "_upper": shown.upper}
            key = _in_unit(name, unit)
            entries |= {f"{key}{end}": value for end, value in bounds.items()}
        scores = {
            _in_unit(f"own/{each.tasks[0]}/score", each.unit): each.score for each in self.own
        }
        return entries | scores

    def reason_to_stop(self, rule: LossRule) -> str | None:
        """Why the training should stop: a loss that is shown to be above its margin.

        ``rule.clauses`` has own sets with a margin of their own, in their unit.
        """
        for kind, changes in (("retention loss", self.retention), ("loss", self.own)):
            for change in changes:
                margin = rule.clauses.get(change.tasks[0]) or rule.margin(change.unit)
                if verdict_of(change.deciding, margin) == "loses":
                    where = f"over {quantities.listed(change.tasks)}"
                    return (
                        f"the training stops at step {self.step}: the {kind} is shown to be above "
                        f"{quantities.amount(margin, change.unit)}. The mean change {where} is "
                        f"{quantities.with_interval(change.deciding, change.unit)}, with the "
                        f"bounds of look {self.number}."
                    )
        return None


def _in_unit(name: str, unit: Unit) -> str:
    """A number's name in a log."""
    return name if unit == "points" else f"{name}_{unit}"


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
        base: relation (``retention``, ``gain``, ``own``) -> what the base scored.
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
        after = now[relation]
        groups: list[tuple[Unit, list[str]]] = [*before.tasks_by_unit(before.items).items()]
        if relation == "own":
            groups = [(items.unit, [task]) for task, items in before.items.items()]
        for unit, tasks in groups:
            pairs = [pair_items(before, after, task) for task in tasks]
            mean = mean_over_tasks([pair.items for pair in pairs])
            score = statistics.fmean(float(pair.adapted.mean()) for pair in pairs)
            bounds = (interval_of(mean, level) for level in (confidence, 1.0 - alpha))
            changes[relation] += (MeanChange(unit, tuple(tasks), score, *bounds),)
    return TrainingLook(number, step, alpha, **changes)
