"""Arms against forgetting, each judged against a lower learning rate alone.

A lower rate forgets less and gains less, and costs nothing. So an arm is worth having where it
gains more and forgets less than the lower rate that is nearest to it, item by item.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from rankwise.findings.comparison import Compared, compare
from rankwise.findings.options import DecidingTasks, Option, OptionGains, TaskMean, TrainTaskFinding
from rankwise.findings.shares import Share, share_of, share_of_gain
from rankwise.findings.stats.estimates import holm, zero_p_value
from rankwise.records import quantities
from rankwise.records.grouping import grouped
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import PlannedRun, Unit

ArmKind = Literal["as trained", "rate", "kl", "replay", "other"]
Dominance = Literal["better", "worse", "not shown"]

AS_TRAINED = "as trained"


class Arm(Compared):
    """An option's setting as trained, or trained again with something changed.

    All but the lower rates are set against the nearest of those, where any was trained.
    ``dominance`` is better where both leads are shown to be above zero, worse where both are below,
    after Holm's correction over the arms of the option. ``kept_gain`` is the arm's gain over that
    of the run as trained, ``regained`` the part of the run's retention loss that the arm does not
    have; None as trained. It ``keeps_enough`` where it loses no more than ε of retention, by its
    bounds; None without ε.
    """

    option: str
    changed: ArmKind
    kept_gain: Share | None
    regained: Share | None
    dominance: Dominance | None
    keeps_enough: bool | None = None

    @property
    def is_of_rates(self) -> bool:
        """Whether it is the run as trained or its rate alone was lowered."""
        return self.changed in ("as trained", "rate")


class TrainTaskMitigations(TrainTaskFinding):
    """The arms of one trained task.

    Those of an option together: first as trained, then lower rates, then the others, best first.
    ``epsilon_points`` is the largest retention loss that is accepted.
    """

    unit: Unit
    epsilon_points: float | None
    arms: tuple[Arm, ...]


def mitigations(source: OptionGains, recommendation: Recommendation) -> TrainTaskMitigations | None:
    """The arms of every LoRA option; None where there are none, or nothing is to be retained.

    Args:
        source: the options of a trained task.
        recommendation: of the same task, for the unit in-domain and ε.
    """
    trained, left_out = source.of_role("mitigated")
    tasks = source.deciding_tasks(recommendation.unit)
    if not (trained or left_out) or not tasks.retention:
        return None
    arms_of = grouped((source.label_of_whole(arm.plan), arm) for arm in trained)
    epsilon, arms, statements = recommendation.epsilon_points, list[Arm](), list[str]()
    for option in source.options:
        if again := arms_of.pop(option.label, None):
            own = _arms(source, tasks, option, again, epsilon)
            arms += own
            statements += _statements(own, epsilon)
    return source.found(
        TrainTaskMitigations,
        unit=recommendation.unit,
        epsilon_points=epsilon,
        arms=tuple(arms),
        statements=tuple(statements),
        left_out=(*left_out, *(arm.label for again in arms_of.values() for arm in again)),
    )


def _kind(model: PlannedRun) -> ArmKind:
    arm = model.mitigation
    if arm is None:
        return AS_TRAINED
    changed = set(arm.model_dump(exclude={"name"}, exclude_none=True))
    if changed == {"learning_rate_factor"}:
        return "rate" if (arm.learning_rate_factor or 0.0) < 1.0 else "other"
    return "kl" if "kl" in changed else "replay" if "replay" in changed else "other"


def _arms(
    source: OptionGains,
    tasks: DecidingTasks,
    option: Option,
    again: Sequence[Option],
    epsilon: float | None,
) -> list[Arm]:
    """An option and what was trained again, in their order."""
    again = [arm._replace(label=arm.label.removeprefix(f"{option.label}, ")) for arm in again]
    rates = [arm for arm in again if _kind(arm.plan) == "rate"]
    rates.sort(key=lambda arm: -(arm.plan.learning_rate or 0.0))
    others = [arm for arm in again if arm not in rates]

    def made(arm: Option, against: Option | None = None, shown: Dominance | None = None) -> Arm:
        plain = [source.gains(option.runs, task) for task in tasks.retention]
        back = source.leads(arm.runs, option.runs, tasks.retention)
        shares = {
            "kept_gain": share_of_gain(source, arm.runs, option.runs, tasks.in_domain),
            "regained": share_of(source, back, [-loss for loss in plain], tasks.retention),
        }
        if (kind := _kind(arm.plan)) == AS_TRAINED:
            shares = dict.fromkeys(shares)
        own = {"option": option.label, "changed": kind, "dominance": shown, **shares}
        found = compare(Arm, source, tasks, arm, against, **own)
        keeps = None if epsilon is None else _kept(found).lower >= -epsilon
        return found.model_copy(update={"keeps_enough": keeps})

    line = [made(arm) for arm in (option._replace(label=AS_TRAINED), *rates)]
    if not rates:
        return line + [made(arm) for arm in others]
    nearest = [_nearest(source, tasks, arm, rates) for arm in others]
    adjusted = holm([p_value for *_, p_value in nearest])
    judged: list[Arm] = []
    for arm, (rate, gain, _), p_value in zip(others, nearest, adjusted, strict=True):
        shown: Dominance = "better" if gain > 0 else "worse"
        judged.append(made(arm, rate, shown if p_value <= 1.0 - source.confidence else "not shown"))
    return line + sorted(judged, key=lambda arm: -(arm.lead.estimate if arm.lead else 0.0))


def _kept(arm: Arm) -> TaskMean:
    assert arm.retention is not None  # arms are judged only where something is to be retained
    return arm.retention


def _nearest(
    source: OptionGains, tasks: DecidingTasks, arm: Option, rates: Sequence[Option]
) -> tuple[Option, float, float]:
    """The nearest lower rate, the arm's lead in-domain, and a p-value.

    The nearest is that of the least lead in retention, among the rates over which that lead is a
    standard error or more; where there is none, among all. The p-value, that the arm is not better
    or worse in both, is the larger of both leads' (an intersection-union test), 1 where they differ
    in sign: an arm that lies on the curve of rates, wherever between two of them, is not better
    than either in both.
    """
    leads = [
        tuple(
            source.estimate(source.leads(arm.runs, rate.runs, names), names)
            for names in (tasks.in_domain, tasks.retention)
        )
        for rate in rates
    ]
    distances = [(kept.value < kept.stderr, abs(kept.value)) for _, kept in leads]
    place = distances.index(min(distances))
    gain, retention = leads[place]
    is_one_way = gain.value * retention.value > 0.0
    p_value = max(zero_p_value(gain), zero_p_value(retention)) if is_one_way else 1.0
    return rates[place], gain.value, p_value


def _statements(arms: Sequence[Arm], epsilon: float | None) -> Iterator[str]:
    plain, option = _kept(arms[0]), arms[0].option
    if plain.upper >= 0.0:
        yield (
            f"{option}: retention changes by {quantities.with_interval(plain, 'points')} as "
            "trained, so no forgetting is shown that a repair could undo."
        )
    judged = [arm for arm in arms if arm.dominance is not None]
    for arm in judged:
        if arm.dominance != "not shown" and arm.lead is not None and arm.retention_lead is not None:
            more, less = ("more", "less") if arm.dominance == "better" else ("less", "more")
            yield (
                f"{option}: {arm.label} gains {more} and forgets {less} than {arm.against}: "
                f"{quantities.with_interval(arm.lead, arm.lead.unit)} in-domain, "
                f"{quantities.with_interval(arm.retention_lead, 'points')} on retention."
            )
    tied = [arm.label for arm in judged if arm.dominance == "not shown"]
    if tied:
        names = quantities.listed(tied)
        yield f"{option}: {names}: not shown to be better than a lower learning rate."
    if not judged and not all(arm.is_of_rates for arm in arms):
        yield (
            f"{option}: no lower learning rate was trained, so whether an arm is better than "
            "one is not known: list some (mitigations: [{learning_rate_factor: 0.5}])."
        )
    if epsilon is None:
        return
    limit = quantities.amount(epsilon, "points")
    enough = [arm for arm in arms if arm.keeps_enough]
    if not enough:
        yield f"{option}: no arm is shown to lose less than {limit} of retention."
        return
    best = max(enough, key=lambda arm: arm.gain.estimate)
    gain = quantities.with_interval(best.gain, best.gain.unit)
    yield (
        f"{option}: of the arms that are shown to lose less than {limit} of retention, "
        f"{best.label} gains the most: {gain}."
    )
