"""Arms against forgetting, each judged against a lower learning rate alone.

A lower rate forgets less and gains less, and costs nothing. So an arm is worth having where it
gains more and forgets less than the lower rate that is nearest to it, item by item.
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
    over_seeds,
)
from rankwise.findings.pairs import run_record
from rankwise.findings.rows import Row, flat
from rankwise.findings.shares import Share, share_of, share_of_gain
from rankwise.findings.stats.estimates import holm, zero_p_value
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import PlannedRun, Unit

ArmKind = Literal["as trained", "rate", "kl", "replay", "other"]
Dominance = Literal["better", "worse", "not shown"]

AS_TRAINED = "as trained"


class RateLead(Record):
    """An arm less the lower rate that is nearest to it, paired by item and seed.

    ``dominance`` is better where both leads are shown to be above zero, worse where both are below,
    after Holm's correction over the arms of the option.
    """

    rate: str
    gain: TaskMean
    retention: TaskMean
    dominance: Dominance = "not shown"


class Arm(Record):
    """A run's setting as trained, or trained again with something changed.

    ``kept_gain`` is the arm's gain over that of the run as trained, ``regained`` the part of the
    run's retention loss that the arm does not have. ``over_rate`` is None of lower rates, and where
    none was trained. Tokens are those of one seed, seconds those of all.
    """

    label: str
    kind: ArmKind
    num_tokens: int
    train_seconds: float
    gain: TaskMean
    retention: TaskMean
    kept_gain: Share | None
    regained: Share | None
    over_rate: RateLead | None = None

    @property
    def is_of_rates(self) -> bool:
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


class _TrainedArm(NamedTuple):
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

    def place(model: PlannedRun) -> tuple[str, str]:
        """The labels of the option whose run it repeats, and of its arm."""
        assert model.of is not None
        assert model.mitigation is not None
        return source.labels[model.of.name], model.mitigation.label

    arms_of = over_seeds(source.results, "mitigated", place)
    tasks = source.deciding_tasks(recommendation.unit)
    if not arms_of or not tasks.retention:
        return None
    options: list[MitigatedOption] = []
    left_out: list[str] = []
    for option in source.planned:
        arms: list[_TrainedArm] = []
        for (of, label), arm in arms_of.items():
            if of == option.label and option.is_complete and arm.is_complete:
                arms.append(_TrainedArm(label, _kind(arm.plans[0]), arm.runs))
            elif of == option.label:
                left_out.append(f"{option.label}, {label}")
        if arms:
            options.append(_option(source, tasks, option, arms, recommendation.epsilon_points))
    return TrainTaskMitigations(
        train_task=source.results.train_task,
        unit=recommendation.unit,
        confidence=source.confidence,
        epsilon_points=recommendation.epsilon_points,
        options=tuple(options),
        left_out=tuple(left_out),
    )


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
    arms: Sequence[_TrainedArm],
    epsilon: float | None,
) -> MitigatedOption:
    plain = _TrainedArm(AS_TRAINED, AS_TRAINED, option.runs)
    rates = sorted(
        (arm for arm in arms if arm.kind == "rate"),
        key=lambda arm: -(run_record(arm.runs[0]).planned.learning_rate or 0.0),
    )
    line = [_arm(source, tasks, option, member) for member in (plain, *rates)]
    others = [arm for arm in arms if arm.kind != "rate"]
    made = [_arm(source, tasks, option, arm) for arm in others]
    if rates:
        leads = [_over_rate(source, tasks, arm, rates) for arm in others]
        adjusted = holm([p for _, p in leads])
        for place, ((lead, _), p_value) in enumerate(zip(leads, adjusted, strict=True)):
            shown: Dominance = "better" if lead.gain.estimate > 0 else "worse"
            if p_value <= 1.0 - source.confidence:
                lead = lead.model_copy(update={"dominance": shown})
            made[place] = made[place].model_copy(update={"over_rate": lead})
        made.sort(key=lambda arm: -(arm.over_rate.gain.estimate if arm.over_rate else 0.0))
    all_arms = (*line, *made)
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


def _arm(source: OptionGains, tasks: DecidingTasks, option: Option, arm: _TrainedArm) -> Arm:
    records = [run_record(model) for model in arm.runs]
    is_plain = arm.kind == AS_TRAINED
    kept = share_of_gain(source, arm.runs, option.runs, tasks.in_domain)
    plain = [source.gains(option.runs, task) for task in tasks.retention]
    back = source.leads(arm.runs, option.runs, tasks.retention)
    regained = share_of(source, back, [-loss for loss in plain], tasks.retention)
    return Arm(
        label=arm.label,
        kind=arm.kind,
        num_tokens=records[0].num_tokens,
        train_seconds=sum(record.train_seconds for record in records),
        gain=source.change(arm.runs, tasks.in_domain),
        retention=source.change(arm.runs, tasks.retention),
        kept_gain=None if is_plain else kept,
        regained=None if is_plain else regained,
    )


def _over_rate(
    source: OptionGains, tasks: DecidingTasks, arm: _TrainedArm, rates: Sequence[_TrainedArm]
) -> tuple[RateLead, float]:
    """An arm less the nearest lower rate, and the p-value that it is not better or worse in both.

    The nearest is that of the least lead in retention, among the rates over which that lead is a
    standard error or more; where there is none, among all. The p-value is the larger of both
    leads' (an intersection-union test), 1 where they differ in sign: an arm that lies on the curve
    of rates, wherever between two of them, is not better than either in both.
    """
    leads = {
        rate.label: tuple(
            source.estimate(source.leads(arm.runs, rate.runs, names), names)
            for names in (tasks.in_domain, tasks.retention)
        )
        for rate in rates
    }

    distances = [(kept.value < kept.stderr, abs(kept.value)) for _, kept in leads.values()]
    nearest = rates[distances.index(min(distances))]
    gain, retention = leads[nearest.label]
    is_one_way = gain.value * retention.value > 0.0
    p_value = max(zero_p_value(gain), zero_p_value(retention)) if is_one_way else 1.0
    return RateLead(
        rate=nearest.label,
        gain=source.difference(arm.runs, nearest.runs, tasks.in_domain),
        retention=source.difference(arm.runs, nearest.runs, tasks.retention),
    ), p_value


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
    judged = [(arm, arm.over_rate) for arm in arms if arm.over_rate is not None]
    for arm, lead in judged:
        if lead.dominance != "not shown":
            more, less = ("more", "less") if lead.dominance == "better" else ("less", "more")
            yield (
                f"{option.label}: {arm.label} gains {more} and forgets {less} than {lead.rate}: "
                f"{quantities.with_interval(lead.gain, lead.gain.unit)} in-domain, "
                f"{quantities.with_interval(lead.retention, 'points')} on retention."
            )
    tied = [arm.label for arm, lead in judged if lead.dominance == "not shown"]
    if tied:
        names = quantities.listed(tied)
        yield f"{option.label}: {names}: not shown to be better than a lower learning rate."
    if not judged and not all(arm.is_of_rates for arm in arms):
        yield (
            f"{option.label}: no lower learning rate was trained, so whether an arm is better than "
            "one is not known: list some (mitigations: [{learning_rate_factor: 0.5}])."
        )
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


def mitigation_rows(found: Sequence[TrainTaskMitigations], _: object) -> Iterator[Row]:
    """Every arm of every option."""
    for part in found:
        for option in part.options:
            before = {"option": option.source.label, "seeds": option.num_seeds}
            yield from (flat(arm, train_task=part.train_task, **before) for arm in option.arms)
