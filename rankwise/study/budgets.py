"""What a time is enough for: how long a plan takes here, and which differences it can tell."""

from __future__ import annotations

import json
import os
import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from rankwise.engine.models.devices import give_back_memory
from rankwise.engine.models.lanes import lanes_of
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.start import fetch_weights
from rankwise.findings.stats.detectable import Detectable, TaskSize, detectable
from rankwise.records import p_right
from rankwise.records.config.study import StudyConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.study import Relation, Unit
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.references import with_settled_references
from rankwise.study.speeds import remembered_speeds
from rankwise.study.stages.form import work_after_verdict
from rankwise.study.stages.graph import stages, study_outline
from rankwise.study.times import seconds_left
from rankwise.tasks.own_rows import rows_kept
from rankwise.tasks.questions import Continuation, Scorer
from rankwise.weights.session import ScoringSession

SURE_SHARE = 0.75
"""The share of a budget that is planned with: a machine is not always as quick as it was measured.
"""

FIXED_SECONDS = 45.0
"""The seconds of planning, loading, judging and the page, about; no plan's tokens say it."""

NOWHERE = StudyFolder(Path(os.devnull) / "nothing")
"""The folder of a study that nothing is done of."""

FEWEST_ITEMS, FEWEST_ROWS = 50, 100
"""The fewest items of a task, and the fewest rows to train on: a study is not made smaller than
that."""

_CONTEXT, _SCORED = 48, 16
"""Tokens of a text by which the speed is measured: about those of a short question and its answer.
"""

_FEW, _MANY = 2, 32
"""Texts; many are read only where few took less than ``_LONG`` seconds."""

_LONG = 2.0

Choice = TypeVar("Choice")


class StudyResolution(NamedTuple):
    """About which differences a study of this size can tell, before anything is seen.

    Attributes:
        unit: of the task that decides.
        in_domain: None where it decides by nats, whose spread no size tells.
        retention: None without retention tasks.
    """

    unit: Unit
    in_domain: Detectable | None
    retention: Detectable | None

    def content(self) -> dict[str, Any]:
        """The content for a program."""
        both = {"in_domain": self.in_domain, "retention": self.retention}
        parts = {f"{k}_detectable": v and v._asdict() for k, v in both.items()}
        return {"unit": self.unit, **parts}


def scoring_rate(plan: StudyPlan) -> float:
    """Tokens of random texts that a study's base scores in a second, alone, as the study scores.

    Its weights are fetched if they are not here.

    Raises:
        ModelError: the weights cannot be had, or the model cannot be scored.
    """
    model = load_frozen(fetch_weights(plan.base), plan.record.precision, plan.device)
    scorer = ScoringSession(model, plan.tokenizer, max_lanes=lanes_of(model)).scorer
    size = len(plan.tokenizer)
    try:
        scorer.log_likelihoods([None], _texts(_FEW, size))  # kernels are made
        seconds, number = _seconds(scorer, _texts(_FEW, size)), _FEW
        if seconds < _LONG:
            number = _MANY
            seconds = _seconds(scorer, _texts(_MANY, size))
    finally:
        del scorer, model
        give_back_memory(plan.device)
    return number * (_CONTEXT + _SCORED) / seconds


def _seconds(scorer: Scorer, texts: Sequence[Continuation]) -> float:
    """The seconds of one call, to its answers on the host."""
    started = time.perf_counter()
    scorer.log_likelihoods([None], texts)
    return time.perf_counter() - started


def _texts(number: int, vocabulary_size: int) -> list[Continuation]:
    """Texts that begin differently, so that all their tokens are read."""
    rng = random.Random(0)
    rows = [rng.choices(range(vocabulary_size), k=_CONTEXT + _SCORED) for _ in range(number)]
    return [Continuation(tuple(row[:_CONTEXT]), tuple(row[_CONTEXT:])) for row in rows]


def planned_seconds(plan: StudyPlan, scored_per_second: float | None) -> float:
    """Seconds of a whole study, where so many tokens are scored in a second.

    None: as in the last study of this base on this machine, which there must be.
    """
    outline = study_outline(stages(plan.record), NOWHERE, remembered_speeds(plan.record))
    left = seconds_left(outline, scored_per_second, work_after_verdict(plan.record))
    return FIXED_SECONDS + sum(left.values())


def resolution(plan: StudyPlan) -> StudyResolution:
    """What this many items and ranks can tell."""
    record, margins = plan.record, plan.record.config.recommendation
    relations = next(iter(record.tasks.values()))
    num_options = max(1, len({(r.rank, r.mean_rank) for r in record.runs if r.method == "lora"}))

    def of(names: Sequence[str], margin_for: Callable[[Iterable[str]], float]) -> Detectable | None:
        tasks: list[TaskSize] = []
        for name in (name for name in names if _unit(plan, name) == "points"):
            is_choice = plan.tasks[name].loaded.output_type == "multiple_choice"
            is_p_right = is_choice and p_right.is_wanted(record.config.evaluation.metric_of(name))
            tasks.append(TaskSize(_num_answered(plan, name), is_p_right))
        margin = margin_for(p_right.P_RIGHT if task.is_p_right else "" for task in tasks)
        return detectable(tasks, num_options, margins.confidence, margin) if tasks else None

    unit = _unit(plan, relations["in_domain"][0])
    deciding = relations["in_domain"] if unit == "points" else ()
    return StudyResolution(
        unit, of(deciding, margins.delta_for), of(relations["retention"], margins.epsilon_for)
    )


class MarginCost(NamedTuple):
    """About what it takes to tell a margin: items of all tasks of a kind together.

    ``num_tokens`` of them are scored, by all models; ``seconds`` is None where no speed is known.
    """

    relation: Relation
    margin: float
    num_items: int
    num_planned: int
    num_available: int
    num_tokens: int
    seconds: float | None

    def items_for(self, margin: float) -> int:
        """Items that another margin takes: the variance of a mean falls with its items."""
        return round(self.num_items * (self.margin / margin) ** 2)


def margin_costs(
    plan: StudyPlan, able: StudyResolution, scored_per_second: float | None
) -> Iterator[MarginCost]:
    """What half, all and twice δ and ε cost; unknown for tasks that are decided by nats.

    Args:
        plan: of the study.
        able: the plan's ``resolution``.
        scored_per_second: tokens; None: unknown.
    """
    record = plan.record
    relations = next(iter(record.tasks.values()))
    kinds: dict[Relation, Detectable | None] = {
        "in_domain": able.in_domain,
        "retention": able.retention,
    }
    for relation, its in kinds.items():
        if its is None:
            continue
        tasks = [name for name in relations[relation] if _unit(plan, name) == "points"]
        planned = sum(_num_answered(plan, name) for name in tasks)
        available = sum(plan.tasks[name].num_available for name in tasks)
        tokens = sum(
            record.tokens_of(model, {*tasks} & {*record.tasks_of(model)})
            for model in (None, *record.tested)
        )
        for share in (0.5, 1.0, 2.0):
            # the variance of a mean falls with its items: half the margin takes four times as many
            items = its.num_items / share**2
            scored = round(tokens * items / planned)
            seconds = None if scored_per_second is None else scored / scored_per_second
            yield MarginCost(
                relation, share * its.margin, round(items), planned, available, scored, seconds
            )


def _unit(plan: StudyPlan, task: str) -> Unit:
    by_loss = ("loglikelihood", "loglikelihood_rolling")
    return "nats" if plan.tasks[task].loaded.output_type in by_loss else "points"


def _num_answered(plan: StudyPlan, task: str) -> int:
    """Items of a task that all runs answer."""
    part = plan.record.references.parts.get(task)
    return plan.tasks[task].num_items if part is None else part.num_items


class Smaller(NamedTuple):
    """A study as a study file has it, or with fewer seeds, items, ranks or rows.

    Attributes:
        config: of the study.
        overrides: what is changed, as ``rankwise run`` takes it; empty: nothing.
    """

    config: StudyConfig
    overrides: tuple[str, ...]


class Fitted(NamedTuple, Generic[Choice]):
    """The largest of some studies that fits into a time, or the smallest, which does not.

    Attributes:
        choice: what it is.
        plan: of the study.
        seconds: that it takes, about.
        fits: whether that is within the time.
    """

    choice: Choice
    plan: StudyPlan
    seconds: float
    fits: bool


def largest_that_fits(
    choices: Sequence[Choice],
    plan: Callable[[Choice], StudyPlan],
    budget_seconds: float,
    scored_per_second: float | None,
) -> Fitted[Choice]:
    """The first of ever smaller studies that fits into a time, or the last.

    Args:
        choices: at least one.
        plan: makes the plan of one.
        budget_seconds: the time.
        scored_per_second: tokens; see ``planned_seconds``.

    Raises:
        PlanError: one cannot be planned.
    """

    @cache
    def fitted(place: int) -> Fitted[Choice]:
        made = plan(choices[place])
        seconds = planned_seconds(made, scored_per_second)
        return Fitted(choices[place], made, seconds, seconds <= SURE_SHARE * budget_seconds)

    places = range(len(choices) - 1)
    with rows_kept():
        return fitted(bisect_left(places, True, key=lambda place: fitted(place).fits))


def affordable(
    config: StudyConfig,
    planned: StudyPlan,
    budget_seconds: float,
    scored_per_second: float | None,
    plan: Callable[[StudyConfig], StudyPlan],
) -> Fitted[Smaller]:
    """What of a study fits into a time: as it is, or fewer seeds, items, ranks and rows, in turn.

    Args:
        config: of the study as it is.
        planned: its plan.
        budget_seconds: the time.
        scored_per_second: tokens; see ``planned_seconds``.
        plan: makes the plan of another config.
    """

    def planned_as(choice: Smaller) -> StudyPlan:
        its = plan(choice.config) if choice.overrides else planned
        return replace(its, record=with_settled_references(its.record, NOWHERE))

    smaller = [Smaller(config, ()), *smaller_studies(config, planned)]
    return largest_that_fits(smaller, planned_as, budget_seconds, scored_per_second)


def smaller_studies(config: StudyConfig, planned: StudyPlan) -> Iterator[Smaller]:
    """Ever smaller studies: one seed, half the items, three ranks and two, half the rows.

    Items and rows are halved as long as ``FEWEST_ITEMS`` and ``FEWEST_ROWS`` are left.
    """
    changes: dict[str, Any] = {}

    def step(key: str, value: Any) -> Smaller:
        changes[key] = value
        content = config.model_dump(by_alias=True)
        for place, changed in changes.items():
            *parents, last = place.split(".")
            section = content
            for parent in parents:
                section = section[parent]
            section[last] = changed
        texts = (
            f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in changes.items()
        )
        return Smaller(StudyConfig.model_validate(content), tuple(texts))

    if len(config.seeds) > 1:
        yield step("seeds", [config.seeds[0]])
    num_items = max(planned.tasks[name].num_items for name in planned.record.scored_tasks())
    while num_items // 2 >= FEWEST_ITEMS:
        num_items //= 2
        yield step("evaluation.limit", num_items)
    ranks = list(config.methods.lora.ranks) if config.methods.lora is not None else []
    for number in (3, 2):
        if len(ranks) > number:
            chosen = [ranks[0], *ranks[len(ranks) // 2 :][: number - 2], ranks[-1]]
            yield step("methods.lora.ranks", chosen)
    num_rows = max(map(len, planned.examples.values()))
    while num_rows // 2 >= FEWEST_ROWS:
        num_rows //= 2
        fewer = [number for number in config.train.max_examples if number < num_rows]
        yield step("train.max_examples", [*fewer, num_rows] if fewer else num_rows)
