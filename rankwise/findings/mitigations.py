"""Arms against forgetting, each judged against a lower learning rate alone.

A lower rate forgets less and gains less, and costs nothing. So an arm is worth having where its
gain lies above the line through the run as trained, its lower rates, and the base (a rate of zero),
at the retention that the arm has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from rankwise.findings.options import (
    DecidingTasks,
    Option,
    OptionGains,
    OptionName,
    Runs,
    TaskMean,
    trained_of,
)
from rankwise.findings.pairs import run_record
from rankwise.findings.shares import Share, share_of
from rankwise.findings.stats.estimates import holm, mean_over_tasks, zero_p_value
from rankwise.findings.stats.items import Floats, Items
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import PlannedRun, Unit

ArmKind = Literal["as trained", "rate", "kl", "replay", "other"]

AS_TRAINED = "as trained"


class Arm(Record):
    """A run's setting as trained, or trained again with something changed.

    ``kept_gain`` is the arm's gain over that of the run as trained, ``regained`` the part of the
    run's retention loss that the arm does not have. ``above_rates`` is its gain less that of the
    line of lower rates at its retention; ``is_told_apart`` says whether that is shown not to be
    zero, after Holm's correction over the arms of the option. They are None of what makes up the
    line. Tokens are those of one seed, seconds those of all.
    """

    label: str
    kind: ArmKind
    num_tokens: int
    train_seconds: float
    gain: TaskMean
    retention: TaskMean
    kept_gain: Share | None
    regained: Share | None
    above_rates: TaskMean | None
    is_told_apart: bool = False

    @property
    def is_of_line(self) -> bool:
        """Whether it is the run as trained or its rate alone was lowered."""
        return self.kind in ("as trained", "rate")


class MitigatedOption(Record):
    """A LoRA option and its arms: first as trained, then lower rates, then the others, best first.

    ``meeting`` are the arms that lose no more than ε of retention, by their bounds.
    """

    source: OptionName
    num_seeds: int
    arms: tuple[Arm, ...]
    meeting: tuple[str, ...]
    statements: tuple[str, ...]


class TrainTaskMitigations(Record):
    """The repairs of one trained task. Exploratory.

    ``epsilon_points`` is the largest retention loss that is accepted. ``left_out`` names the arms
    of which a seed diverged or is missing.
    """

    train_task: str
    unit: Unit
    confidence: float
    epsilon_points: float | None
    options: tuple[MitigatedOption, ...]
    left_out: tuple[str, ...]


class _Arm(NamedTuple):
    """An arm with its models, in the order of the seeds."""

    label: str
    kind: ArmKind
    runs: Runs


def mitigations(source: OptionGains, recommendation: Recommendation) -> TrainTaskMitigations | None:
    """The arms of every LoRA option; None where there are none, or nothing is to be retained.

    Args:
        source: the options of a trained task.
        recommendation: of the same task, for the unit in-domain and ε.
    """
    train_task = source.results.train_task
    planned = [m for m in source.results.study.mitigated if m.train_task == train_task]
    tasks = source.deciding_tasks(recommendation.unit)
    if not planned or not tasks.retention:
        return None
    options: list[MitigatedOption] = []
    left_out: list[str] = []
    for option in source.planned:
        names = {run.name for run in option.runs}
        of_option = [m for m in planned if m.mitigates and m.mitigates.name in names]
        if not option.is_complete:
            labels = dict.fromkeys(m.mitigation.label for m in of_option if m.mitigation)
            left_out += [f"{option.label}, {label}" for label in labels]
            continue
        arms, missing = _arms(source, option, of_option)
        left_out += [f"{option.label}, {label}" for label in missing]
        if arms:
            options.append(_option(source, tasks, option, arms, recommendation.epsilon_points))
    return TrainTaskMitigations(
        train_task=train_task,
        unit=recommendation.unit,
        confidence=source.confidence,
        epsilon_points=recommendation.epsilon_points,
        options=tuple(options),
        left_out=tuple(left_out),
    )


def _arms(
    source: OptionGains, option: Option, planned: Sequence[PlannedRun]
) -> tuple[list[_Arm], list[str]]:
    """The arms of an option that are complete over its seeds, and the labels of the rest."""
    order = [run.name for run in option.runs]
    by_arm: dict[str, list[PlannedRun]] = {}
    for model in planned:
        assert model.mitigation is not None
        by_arm.setdefault(model.mitigation.label, []).append(model)
    complete: list[_Arm] = []
    missing: list[str] = []
    for label, models in by_arm.items():
        models.sort(key=lambda model: order.index(_source_name(model)))
        runs = trained_of(models, source.results.mitigated)
        if len(runs) == len(order):
            complete.append(_Arm(label, _kind(models[0]), runs))
        else:
            missing.append(label)
    return complete, missing


def _source_name(model: PlannedRun) -> str:
    assert model.mitigates is not None
    return model.mitigates.name


def _kind(model: PlannedRun) -> ArmKind:
    arm = model.mitigation
    assert arm is not None
    changed = set(arm.model_dump(exclude={"name"}, exclude_none=True))
    if changed == {"learning_rate_factor"}:
        return "rate" if (arm.learning_rate_factor or 0.0) < 1.0 else "other"
    return "kl" if "kl" in changed else "replay" if "replay" in changed else "other"


def _option(
    source: OptionGains,
    tasks: DecidingTasks,
    option: Option,
    arms: Sequence[_Arm],
    epsilon: float | None,
) -> MitigatedOption:
    plain = _Arm(AS_TRAINED, AS_TRAINED, option.runs)
    rates = sorted(
        (arm for arm in arms if arm.kind == "rate"),
        key=lambda arm: -(run_record(arm.runs[0]).planned.learning_rate or 0.0),
    )
    line = _RateLine(source, tasks, [plain.runs, *(arm.runs for arm in rates)])
    members = [plain, *rates, *(arm for arm in arms if arm.kind != "rate")]
    made = [_arm(source, tasks, option, line, member) for member in members]
    judged = [(arm, p) for arm, p in made if p is not None]
    adjusted = holm([p for _, p in judged]) if judged else ()
    shown = [
        arm.model_copy(update={"is_told_apart": p <= 1.0 - source.confidence})
        for (arm, _), p in zip(judged, adjusted, strict=True)
    ]
    shown.sort(key=lambda arm: -(arm.above_rates.estimate if arm.above_rates else 0.0))
    all_arms = (*(arm for arm, p in made if p is None), *shown)
    meeting = [
        arm.label for arm in all_arms if epsilon is not None and arm.retention.lower >= -epsilon
    ]
    return MitigatedOption(
        source=option.name,
        num_seeds=len(option.runs),
        arms=all_arms,
        meeting=tuple(meeting),
        statements=tuple(_statements(option, all_arms, meeting, epsilon)),
    )


def _arm(
    source: OptionGains, tasks: DecidingTasks, option: Option, line: _RateLine, arm: _Arm
) -> tuple[Arm, float | None]:
    """An arm, and the p-value that it is on the line of lower rates; None of what makes it up."""
    records = [run_record(model) for model in arm.runs]
    is_plain = arm.kind == AS_TRAINED
    above, p_value = (None, None) if arm.kind in (AS_TRAINED, "rate") else line.above(arm.runs)
    gains, plain = (
        {task: source.gains(runs, task) for task in (*tasks.in_domain, *tasks.retention)}
        for runs in (arm.runs, option.runs)
    )
    kept = share_of(
        source,
        [gains[task] for task in tasks.in_domain],
        [plain[task] for task in tasks.in_domain],
        tasks.in_domain,
    )
    regained = share_of(
        source,
        [gains[task] - plain[task] for task in tasks.retention],
        [-plain[task] for task in tasks.retention],
        tasks.retention,
    )
    return Arm(
        label=arm.label,
        kind=arm.kind,
        num_tokens=records[0].num_tokens,
        train_seconds=sum(record.train_seconds for record in records),
        gain=source.change(arm.runs, tasks.in_domain),
        retention=source.change(arm.runs, tasks.retention),
        kept_gain=None if is_plain else kept,
        regained=None if is_plain else regained,
        above_rates=above,
    ), p_value


class _Piece(NamedTuple):
    """The line between two neighbours, at some retention.

    Attributes:
        place: of the first one.
        weight: of the first one in the mean of both that has this retention.
        slope: gain for each of retention.
        gain: of that mean.
    """

    place: int
    weight: float
    slope: float
    gain: float

    @classmethod
    def through(
        cls, place: int, retention: float, at: Sequence[float], gains: Sequence[float]
    ) -> _Piece:
        """The piece whose ends have these two retentions and gains, at a retention."""
        weight = (retention - at[1]) / (at[0] - at[1])
        slope = (gains[0] - gains[1]) / (at[0] - at[1])
        return cls(place, weight, slope, weight * gains[0] + (1.0 - weight) * gains[1])


class _RateLine:
    """Gain against retention from the run as trained, over its lower rates, to the base."""

    def __init__(self, source: OptionGains, tasks: DecidingTasks, runs: Sequence[Runs]) -> None:
        self._source, self._tasks = source, tasks
        self._ends = [self._values(each) for each in runs]
        self._ends.append({task: 0.0 * values for task, values in self._ends[0].items()})

    def _values(self, runs: Runs) -> dict[str, Floats]:
        tasks = (*self._tasks.in_domain, *self._tasks.retention)
        return {task: self._source.gains(runs, task) for task in tasks}

    def above(self, runs: Runs) -> tuple[TaskMean, float]:
        """The gain of some runs less that of the line at their retention, and its p-value.

        Between two neighbours a and b of the line, it is at w·a + (1 - w)·b, where w is such that
        the retention is the runs'. With the slope s of the line there (points of gain for each of
        retention), the estimate is (gain - line's) - s (retention - line's), whose second part is
        zero; so to first order it does not depend on the errors of w and s, but on those of both
        parts. Beyond the line's ends its last piece goes on (w is below 0 or above 1). Of several
        pieces at that retention, the one of the highest gain counts.
        """
        own = self._values(runs)
        retention = self._mean(own, self._tasks.retention)
        at = [self._mean(end, self._tasks.retention) for end in self._ends]
        gains = [self._mean(end, self._tasks.in_domain) for end in self._ends]
        pieces = [
            _Piece.through(place, retention, at[place : place + 2], gains[place : place + 2])
            for place in range(len(at) - 1)
            if at[place] != at[place + 1]
        ]
        if not pieces:  # nothing changes what is retained
            return self._contrast(own, _Piece(0, 1.0, 0.0, gains[0]))
        there = [piece for piece in pieces if 0.0 <= piece.weight <= 1.0]
        if there:
            return self._contrast(own, max(there, key=lambda piece: piece.gain))
        beyond = min(pieces, key=lambda piece: max(-piece.weight, piece.weight - 1.0))
        return self._contrast(own, beyond)

    def _mean(self, values: dict[str, Floats], tasks: Sequence[str]) -> float:
        return sum(float(values[task].mean()) for task in tasks) / len(tasks)

    def _contrast(self, own: dict[str, Floats], piece: _Piece) -> tuple[TaskMean, float]:
        source, tasks, weight, slope = self._source, self._tasks, piece.weight, piece.slope
        first, second = self._ends[piece.place : piece.place + 2]
        # a mean over all parts is to be the sum of two means, each over its own tasks
        number = len(tasks.in_domain) + (len(tasks.retention) if slope else 0)
        factors = dict.fromkeys(tasks.in_domain, number / len(tasks.in_domain))
        if slope:
            factors |= dict.fromkeys(tasks.retention, -slope * number / len(tasks.retention))
        parts = [
            Items(
                factor * (own[task] - weight * first[task] - (1.0 - weight) * second[task]),
                abs(factor) * source.item_size(task),
                clusters=source.clusters(task),
            )
            for task, factor in factors.items()
        ]
        estimate = mean_over_tasks(parts)
        unit = source.results.base.items[tasks.in_domain[0]].unit
        bounds = estimate.interval(source.confidence)
        return TaskMean.over(parts, unit, estimate.value, *bounds), zero_p_value(estimate)


def _statements(
    option: Option, arms: Sequence[Arm], meeting: Sequence[str], epsilon: float | None
) -> Iterator[str]:
    plain = arms[0]
    loss = quantities.with_interval(plain.retention, "points")
    if plain.retention.upper >= 0.0:
        yield (
            f"{option.label}: retention changes by {loss} as trained, so no forgetting is shown "
            "that a repair could undo."
        )
    judged = [(arm, arm.above_rates) for arm in arms if arm.above_rates is not None]
    for arm, above in judged:
        if arm.is_told_apart:
            by = quantities.amount(abs(above.estimate), above.unit)
            bounds = quantities.change_interval(above.lower, above.upper, above.unit)
            side = "above" if above.estimate > 0 else "below"
            yield (
                f"{option.label}: {arm.label} gains {by} {side} the line of lower learning rates, "
                f"at its retention ({bounds})."
            )
    tied = [arm.label for arm, _ in judged if not arm.is_told_apart]
    if tied:
        names = quantities.listed(tied)
        yield f"{option.label}: {names} cannot be told from a lower learning rate."
    if epsilon is None:
        return
    limit = quantities.amount(epsilon, "points")
    if not meeting:
        yield f"{option.label}: no arm is shown to lose less than {limit} of retention."
        return
    best = max((arm for arm in arms if arm.label in meeting), key=lambda arm: arm.gain.estimate)
    gain = quantities.with_interval(best.gain, best.gain.unit)
    yield (
        f"{option.label}: of the arms that are shown to lose less than {limit} of retention, "
        f"{best.label} gains the most: {gain}."
    )
