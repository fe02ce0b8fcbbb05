"""The axes of a study, one at a time: the effect of a setting, all other settings being equal.

Each value of an axis is compared with the axis' first one, over all combinations of the other
axes that were trained with both. Runs on fewer rows are on the axis of rows; the verdict is about
those on all rows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import numpy as np

from rankwise.findings.comparison import Compared, compare
from rankwise.findings.options import DecidingTasks, Option, OptionGains, TaskMean, TrainTaskFinding
from rankwise.findings.stats.estimates import holm, zero_p_value
from rankwise.findings.stats.items import Floats
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.recommendation import Recommendation
from rankwise.records.study import Method, PlannedRun, Relation, Unit

AxisName = Literal["rank", "alpha", "learning rate", "target modules", "epochs", "rows"]

AxisState = Literal["different", "slightly different", "alike", "undecided"]
"""A value is shown to differ from the first, by more than the margin or by less; all are shown
to be within the margin of the first; or neither."""

Setting = tuple[str, ...]
"""The value of every axis, in the order of ``_AXES``."""

_AXES: dict[AxisName, tuple[str, Callable[[PlannedRun], tuple[str, ...]]]] = {
    "rank": ("rank ", lambda plan: (quantities.rank_value(plan),)),
    "alpha": ("alpha ", lambda plan: plan.alpha_labels or ("",)),
    "learning rate": ("rate ", lambda plan: plan.rate_labels),
    "target modules": ("on ", lambda plan: (quantities.modules(plan.target_modules),)),
    "epochs": ("epochs ", lambda plan: (str(plan.epochs),)),
    "rows": ("rows ", lambda plan: (str(plan.num_examples),)),
}
"""What stands before a value in the labels of options, and the values of a planned run."""


class AxisLead(TaskMean):
    """A value's score less that of the first, and the p-values that it is zero.

    ``holm_p_value`` is corrected over the values of the axis.
    """

    p_value: float
    holm_p_value: float


class AxisEffect(Record):
    """One value of an axis against the first, which is ``against``.

    ``num_combinations`` of the other axes were trained with both. In ``num_same_runs`` of them
    both values come to one run (alpha 2r and 16 at rank 8), whose difference is zero. The leads are
    None where no two runs can be compared.
    """

    against: str
    value: str
    num_combinations: int
    num_same_runs: int
    lead: AxisLead | None
    retention_lead: AxisLead | None


class Axis(Record):
    """One axis with its values in order, the first being what the others are compared with.

    The states, in-domain and on retention, are None where nothing was compared.
    """

    name: AxisName
    method: Method
    values: tuple[str, ...]
    effects: tuple[AxisEffect, ...]
    state: AxisState | None
    retention_state: AxisState | None


class AxisPoint(Compared):
    """One combination of values against the base; ``settings`` by axis."""

    settings: dict[AxisName, str]

    def in_words(self, axes: Iterable[AxisName]) -> str:
        """Its values on some axes."""
        return ", ".join(f"{_AXES[name][0]}{self.settings[name]}" for name in axes)


class TrainTaskAxes(TrainTaskFinding):
    """The axes of one trained task that have several values.

    ``points`` are LoRA's. ``delta`` is in ``unit``, ``epsilon_points`` None without retention
    tasks; ``rows_at`` says what runs on fewer rows share with those on all, None without any.
    """

    unit: Unit
    delta: float
    epsilon_points: float | None
    axes: tuple[Axis, ...]
    points: tuple[AxisPoint, ...]
    rows_at: Literal["epochs", "steps"] | None = None

    @property
    def of_rows(self) -> str | None:
        """What the most rows gain over the fewest, in words; None where rows are no axis."""
        axis = next((each for each in self.axes if each.name == "rows"), None)
        effect = None if axis is None else axis.effects[-1].lead
        if axis is None or effect is None:
            return None
        few, many = (f"{int(value):,}" for value in (axis.values[0], axis.values[-1]))
        lead = quantities.with_interval(effect, self.unit)
        if effect.holm_p_value < 1.0 - self.confidence:
            more = "more" if effect.estimate > 0 else "less"
            return f"{many} training rows gain {more} than {few}: by {lead}."
        return f"That {many} training rows gain more than {few} is not shown: {lead}."


_Judged = dict[Relation, tuple[tuple[str, ...], float]]
"""Relation -> the tasks that are averaged, and the difference that matters on them."""


def axis_effects(source: OptionGains, recommendation: Recommendation) -> TrainTaskAxes | None:
    """Every axis with several values; None where there is none but the rank."""
    unit, epsilon = recommendation.unit, recommendation.epsilon_points
    tasks = source.deciding_tasks(unit)
    judged: _Judged = {"in_domain": (tasks.in_domain, recommendation.delta)}
    if epsilon is not None and tasks.retention:
        judged["retention"] = tasks.retention, epsilon
    on_fewer, left_out = _on_fewer_rows(source)
    options = (*source.in_study_order(source.options), *on_fewer)
    lora, full = (_Method(source, options, judged, name) for name in get_args(Method))
    axes = (*lora.axes(), *full.axes())
    if all(axis.name == "rank" for axis in axes):
        return None
    return source.found(
        TrainTaskAxes,
        unit=unit,
        delta=recommendation.delta,
        epsilon_points=epsilon,
        axes=axes,
        points=lora.points([axis for axis in axes if axis.method == "lora"], tasks),
        rows_at=source.results.study.config.train.rows_at if on_fewer else None,
        left_out=(*source.left_out, *left_out),
    )


def _on_fewer_rows(source: OptionGains) -> tuple[list[Option], tuple[str, ...]]:
    """The complete options as trained on fewer rows, and what is left out.

    Each has the settings of the option on all rows: at equal steps it reads its rows more often.
    """
    whole = {option.label: option.plan for option in source.options}
    groups, left_out = source.of_role("fewer_rows")
    options: list[Option] = []
    for group in groups:
        plan = group.plan
        if (of := whole.get(source.label_of_whole(plan))) is not None:
            fewer = of.model_copy(update={"num_examples": plan.num_examples})
            options.append(group._replace(plan=fewer))
    return options, left_out


class _Method:
    """The options of a method by their settings, and the tasks that judge them.

    One with several labels is under each.
    """

    def __init__(
        self, source: OptionGains, options: Sequence[Option], judged: _Judged, name: Method
    ) -> None:
        self.source, self.judged = source, judged
        self.name: Method = name
        self.trained: dict[Setting, Option] = {
            setting: option
            for option in options
            if option.plan.method == name and option.plan.role != "imported"
            for setting in itertools.product(*(read(option.plan) for _, read in _AXES.values()))
        }

    def axes(self) -> tuple[Axis, ...]:
        """Those with several values, where any two can be compared."""
        found = [
            self._axis(place, name, values)
            for place, name in enumerate(_AXES)
            if len(values := _ordered(name, [setting[place] for setting in self.trained])) > 1
        ]
        compared = any(effect.lead for axis in found for effect in axis.effects)
        return tuple(found) if compared else ()

    def _axis(self, place: int, name: AxisName, values: Sequence[str]) -> Axis:
        matched = [self._matched(place, values[0], value) for value in values[1:]]
        leads: dict[Relation, list[AxisLead | None]] = {
            relation: self._leads(tasks, matched) for relation, (tasks, _) in self.judged.items()
        }
        effects = tuple(
            AxisEffect(
                against=values[0],
                value=value,
                num_combinations=len(pairs),
                num_same_runs=sum(one is other for one, other in pairs),
                lead=leads["in_domain"][index],
                retention_lead=leads["retention"][index] if "retention" in leads else None,
            )
            for index, (value, pairs) in enumerate(zip(values[1:], matched, strict=True))
        )
        states: dict[Relation, AxisState | None] = {
            relation: _state(found, self.judged[relation][1], 1.0 - self.source.confidence)
            for relation, found in leads.items()
        }
        return Axis(
            name=name,
            method=self.name,
            values=tuple(values),
            effects=effects,
            state=states["in_domain"],
            retention_state=states.get("retention"),
        )

    def _matched(self, place: int, first: str, value: str) -> list[tuple[Option, Option]]:
        """The first and the other value of every combination of the other axes that has both."""
        return [
            (option, self.trained[other])
            for setting, option in self.trained.items()
            if (other := (*setting[:place], value, *setting[place + 1 :])) in self.trained
            and setting[place] == first
        ]

    def _leads(
        self, tasks: Sequence[str], matched: Sequence[Sequence[tuple[Option, Option]]]
    ) -> list[AxisLead | None]:
        """The lead of every value; None where there are no two runs to compare."""
        found: dict[int, tuple[TaskMean, float]] = {}
        for place, pairs in enumerate(matched):
            if any(one is not other for one, other in pairs):
                # (seeds, items) of each task: the mean over the pairs of second - first
                leads = [self.source.leads(other.runs, one.runs, tasks) for one, other in pairs]
                values: list[Floats] = [np.mean(its, axis=0) for its in zip(*leads, strict=True)]
                estimate = self.source.estimate(values, tasks)
                found[place] = self.source.mean(values, tasks), zero_p_value(estimate)
        corrected = holm([p_value for _, p_value in found.values()])
        made: list[AxisLead | None] = [None] * len(matched)
        for (place, (mean, p_value)), holm_p_value in zip(found.items(), corrected, strict=True):
            made[place] = AxisLead(**dict(mean), p_value=p_value, holm_p_value=holm_p_value)
        return made

    def points(self, axes: Sequence[Axis], tasks: DecidingTasks) -> tuple[AxisPoint, ...]:
        """Every setting, by the places of its values on these axes; none without any."""
        order = {axis.name: axis.values for axis in axes}
        points = [
            compare(
                AxisPoint,
                self.source,
                tasks,
                option,
                settings=dict(zip(_AXES, setting, strict=True)),
            )
            for setting, option in (self.trained if order else {}).items()
        ]
        points.sort(
            key=lambda p: [order[name].index(p.settings[name]) for name in _AXES if name in order]
        )
        return tuple(points)


def _state(leads: Sequence[AxisLead | None], margin: float, alpha: float) -> AxisState | None:
    found = [each for each in leads if each is not None]
    if not found:
        return None
    within = len(found) == len(leads) and all(
        -margin < each.lower and each.upper < margin for each in found
    )
    if any(each.holm_p_value < alpha for each in found):
        return "slightly different" if within else "different"
    return "alike" if within else "undecided"


def _ordered(name: AxisName, found: Sequence[str]) -> tuple[str, ...]:
    """Each value once: module sets smallest first, settings of one kind by their number.

    2r comes before 4r, and both before 16, if a setting of that kind is the first in the study.
    """
    values = list(dict.fromkeys(found))
    if name == "target modules":
        return tuple(sorted(values, key=lambda value: (len(re.findall(r"[/,]", value)), value)))
    kinds = list(dict.fromkeys(_split(value)[1] for value in values))
    return tuple(
        sorted(values, key=lambda value: (kinds.index(_split(value)[1]), _split(value)[0]))
    )


def _split(value: str) -> tuple[float, str]:
    """2r as (2.0, r), 2e-4 × (r/32)^-1/2 as (2e-4, the rest); without a number (0.0, value)."""
    match = re.match(r"\d+(\.\d+)?(e[+-]?\d+)?", value)
    return (0.0, value) if match is None else (float(match[0]), value[match.end() :])
