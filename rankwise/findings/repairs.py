"""Which repair of an adapter keeps the gain and brings retention back, and whether any does.

One half of the items chooses a repair, and the other half judges it: the best of many on the items
that chose it looks better than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwise.errors import RecordError
from rankwise.findings.gauges import MIN_MODELS, order_statement, over_answers
from rankwise.findings.pairs import Pair, bound_of, pair_items
from rankwise.findings.stats.estimates import Estimate, mean_over_tasks
from rankwise.findings.stats.items import Floats, Items, item_size, sharing
from rankwise.findings.trends import correlated
from rankwise.records import quantities
from rankwise.records.recommendation import Bound
from rankwise.records.repair_scores import RepairDivergences, RepairScores
from rankwise.records.repairs import (
    AS_IT_IS,
    MIN_REPAIR_ITEMS,
    JudgedRepair,
    JudgedTask,
    Repair,
    RepairChoice,
    RepairPoint,
)
from rankwise.records.results import ModelResults, TaskItems
from rankwise.records.study import Relation, State, Unit

_BASE = "base"


class RepairTasks(NamedTuple):
    """What a repair is chosen and judged by: at least one task of each relation."""

    in_domain: tuple[str, ...]
    retention: tuple[str, ...]


class _Judged(NamedTuple):
    """The tasks that count: in-domain ones of one unit, retention ones scored in points."""

    in_domain: tuple[str, ...]
    retention: tuple[str, ...]
    unit: Unit
    left_out: tuple[str, ...]

    @property
    def relations(self) -> Iterator[tuple[Relation, str]]:
        """Every task with its relation."""
        for task in self.in_domain:
            yield "in_domain", task
        for task in self.retention:
            yield "retention", task


def choose_repair(
    scores: Sequence[RepairScores],
    tasks: RepairTasks,
    *,
    max_loss_points: float,
    confidence: float,
    divergences: RepairDivergences | None = None,
) -> RepairChoice:
    """Choose the repair that gains most within a limit of retention loss, and judge it.

    On the choosing items a repair has to stay within the limit by one standard error of its loss
    (the rule of Breiman et al. 1984): of those whose estimate alone is within it, the one that
    gains most lies at the limit, and would fail on the judging items every second time. There, its
    estimate has to be within it, and its gain above zero.

    Args:
        scores: of each task, with the same repairs; ``AS_IT_IS`` among them.
        tasks: by their relation to what was trained.
        max_loss_points: the limit, in points of the mean over the retention tasks.
        confidence: of every interval, two-sided, 0..1.
        divergences: of the same repairs, on ``choosing_items``; they choose nothing.

    Raises:
        RecordError: there is no in-domain task, none of retention in points, or a task has fewer
            than four items (in clusters: than two clusters in a half).
    """
    halves = _Halves(scores, tasks, confidence)
    kl = {} if divergences is None else halves.kl(divergences)
    curve = tuple(halves.point(repair, max_loss_points, kl) for repair in halves.repairs)
    candidates = [point for point in curve if point.keeps_enough and point.gain.estimate > 0.0]
    judged: JudgedRepair | None = None
    if candidates:
        best = max(candidates, key=lambda point: point.gain.estimate)  # of equal ones the first
        judged = halves.judged(best.repair, max_loss_points)
    does = (
        judged is not None
        and judged.retention_loss.estimate <= max_loss_points
        and judged.gain.estimate > 0.0
    )
    found = RepairChoice(
        max_loss_points=max_loss_points,
        unit=halves.tasks.unit,
        confidence=confidence,
        in_domain=halves.tasks.in_domain,
        retention=halves.tasks.retention,
        left_out=halves.tasks.left_out,
        num_choosing_items=halves.num_items(choosing=True),
        num_judging_items=halves.num_items(choosing=False),
        curve=curve,
        judged=judged,
        repair=judged.repair if judged is not None and does else None,
        statement="",
    )
    return found.model_copy(update={"statement": _statement(found), **_kl_order(curve, confidence)})


def choosing_items(scores: Sequence[RepairScores], tasks: RepairTasks) -> dict[str, frozenset[int]]:
    """In-domain task -> numbers of the items by which a repair is chosen.

    Args:
        scores: as in ``choose_repair``.
        tasks: likewise.

    Raises:
        RecordError: likewise.
    """
    by_task = {of_task.task: of_task for of_task in scores}
    judged = _judged_tasks(by_task, tasks)
    pairs = {task: next(_pairs(by_task[task]))[1] for _, task in judged.relations}
    chooses = _choosing_items(pairs)
    doc_ids = {task: np.sort(by_task[task].base.doc_ids) for task in judged.in_domain}
    return {task: frozenset(numbers[chooses[task]].tolist()) for task, numbers in doc_ids.items()}


def _kl_order(curve: Sequence[RepairPoint], confidence: float) -> dict[str, Any]:
    """How well KL orders the retention loss over the curve."""
    pairs = [(kl.estimate, each.retention_loss.estimate) for each in curve if (kl := each.kl)]
    if not pairs:
        return {}
    repairs, gauge = quantities.counted(len(pairs), "repair"), "KL on the task's prompts"
    found, reason = None, f"{repairs}, {MIN_MODELS} are needed"
    if len(pairs) >= MIN_MODELS:
        x, y = zip(*pairs, strict=True)
        found, reason = correlated(x, y, confidence, "repair")
    if found is None:
        return {"kl_statement": f"No correlation of {gauge} with forgetting: {reason}."}
    return {"kl_correlation": found, "kl_statement": order_statement(repairs, gauge, found)}


class _Halves:
    """The scores of all repairs against the base, in two halves of the items."""

    def __init__(
        self, scores: Sequence[RepairScores], tasks: RepairTasks, confidence: float
    ) -> None:
        self._scores = {of_task.task: of_task for of_task in scores}
        self.tasks = _judged_tasks(self._scores, tasks)
        self._confidence = confidence
        self.repairs = tuple(each.repair for each in scores[0].repaired)
        self._pairs = {
            (repair, task): pair
            for _, task in self.tasks.relations
            for repair, pair in _pairs(self._scores[task])
        }
        self._chooses = _choosing_items(
            {task: self._pairs[AS_IT_IS, task] for _, task in self.tasks.relations}
        )

    def num_items(self, *, choosing: bool) -> int:
        """Items of one half, all tasks together."""
        return sum(int((its == choosing).sum()) for its in self._chooses.values())

    def kl(self, divergences: RepairDivergences) -> dict[Repair, Bound]:
        """KL to the base of every repair; empty where that has no standard error."""
        answers = list(zip(divergences.tasks, divergences.doc_ids, strict=True))
        base = {task: of_task.base for task, of_task in self._scores.items()}
        found: dict[Repair, Bound] = {}
        for each in divergences.repaired:
            own = list(zip(each.kl_nats, divergences.item_tokens, strict=True))
            items = over_answers([own], answers, base)
            if items is not None:
                bound = self._bound(mean_over_tasks([items]))
                found[each.repair] = bound.model_copy(update={"lower": max(bound.lower, 0.0)})
        return found

    def point(
        self, repair: Repair, max_loss_points: float, kl: Mapping[Repair, Bound]
    ) -> RepairPoint:
        """A repair on the choosing items."""
        loss = self._loss(repair, choosing=True)
        return RepairPoint(
            repair=repair,
            gain=self._bound(self._gain(repair, choosing=True)),
            retention_loss=self._bound(loss),
            keeps_enough=loss.value + loss.stderr <= max_loss_points,
            kl=kl.get(repair),
        )

    def judged(self, repair: Repair, max_loss_points: float) -> JudgedRepair:
        """The repair on the judging items, beside the adapter as it is."""
        loss = self._bound(self._loss(repair, choosing=False))
        keeps: State = "undecided"
        if loss.upper <= max_loss_points:
            keeps = "yes"
        elif loss.lower > max_loss_points:
            keeps = "no"

        def lead(task: str) -> Floats:
            return self._pairs[repair, task].gain - self._pairs[AS_IT_IS, task].gain

        return JudgedRepair(
            repair=repair,
            gain=self._bound(self._gain(repair, choosing=False)),
            retention_loss=loss,
            keeps_enough=keeps,
            adapter_gain=self._bound(self._gain(AS_IT_IS, choosing=False)),
            adapter_loss=self._bound(self._loss(AS_IT_IS, choosing=False)),
            gain_difference=self._bound(self._mean(self.tasks.in_domain, lead, choosing=False)),
            retention_difference=self._bound(
                self._mean(self.tasks.retention, lead, choosing=False)
            ),
            tasks=tuple(self._task(repair, *each) for each in self.tasks.relations),
        )

    def _task(self, repair: Repair, relation: Relation, task: str) -> JudgedTask:
        adapted, repaired = self._pairs[AS_IT_IS, task], self._pairs[repair, task]
        judging = ~self._chooses[task]
        items = self._scores[task].base
        return JudgedTask(
            task=task,
            relation=relation,
            unit=items.unit,
            metric=items.metric,
            num_items=int(judging.sum()),
            base_score=float(adapted.base[judging].mean()),
            adapted_score=float(adapted.adapted[judging].mean()),
            repaired_score=float(repaired.adapted[judging].mean()),
        )

    def _bound(self, estimate: Estimate) -> Bound:
        return bound_of(estimate, self._confidence)

    def _gain(self, repair: Repair, *, choosing: bool) -> Estimate:
        return self._mean(
            self.tasks.in_domain, lambda task: self._pairs[repair, task].gain, choosing=choosing
        )

    def _loss(self, repair: Repair, *, choosing: bool) -> Estimate:
        return self._mean(
            self.tasks.retention, lambda task: -self._pairs[repair, task].gain, choosing=choosing
        )

    def _mean(
        self, tasks: Sequence[str], values: Callable[[str], Floats], *, choosing: bool
    ) -> Estimate:
        """The mean over tasks, each counting the same, of one half of their items."""
        parts: list[Items] = []
        for task in tasks:
            pair, its = self._pairs[AS_IT_IS, task], self._chooses[task] == choosing
            own = values(task)[its]
            clusters = None if pair.clusters is None else pair.clusters[its]
            size = item_size(own, in_points=pair.in_points)
            parts.append(Items(own, size, clusters=clusters))
        return mean_over_tasks(parts)


def _judged_tasks(scores: Mapping[str, RepairScores], tasks: RepairTasks) -> _Judged:
    if not tasks.in_domain:
        raise RecordError("a repair needs a task that was trained; name one in-domain.")
    unit = scores[tasks.in_domain[0]].base.unit
    own = tuple(task for task in tasks.in_domain if scores[task].base.unit == unit)
    kept = tuple(task for task in tasks.retention if scores[task].base.unit == "points")
    if not kept:
        raise RecordError(
            "a repair needs a retention task that is scored in points; name one that the base "
            "can do and the adapter should not forget."
        )
    left_out = tuple(t for t in (*tasks.in_domain, *tasks.retention) if t not in (*own, *kept))
    return _Judged(own, kept, unit, left_out)


def _pairs(of_task: RepairScores) -> Iterator[tuple[Repair, Pair]]:
    """Base and each repaired adapter on one task, in the order of ``doc_id``."""
    base = _results(_BASE, of_task.task, of_task.base)
    for repair, items in ((each.repair, each.items) for each in of_task.repaired):
        yield repair, pair_items(base, _results(repair.label, of_task.task, items), of_task.task)


def _results(name: str, task: str, items: TaskItems) -> ModelResults:
    return ModelResults(name=name, run=None, evaluations={}, items={task: items})


def _choosing_items(pairs: Mapping[str, Pair]) -> dict[str, NDArray[np.bool_]]:
    """Task -> (items,), whether an item chooses: every other one, in the order of ``doc_id``.

    Of items that come in clusters, every other cluster does, over all tasks that share them: two
    halves of one cluster would not be independent.
    """
    found: dict[str, NDArray[np.bool_]] = {}
    names = list(pairs)
    for places in sharing([pair.items for pair in pairs.values()]):
        group = {names[place]: pairs[names[place]] for place in places}
        labels = [pair.clusters for pair in group.values() if pair.clusters is not None]
        known = np.unique(np.concatenate(labels)) if labels else None
        for task, pair in group.items():
            place = np.arange(len(pair.base))
            if known is not None and pair.clusters is not None:
                place = np.searchsorted(known, pair.clusters)
            found[task] = place % 2 == 0
            _refuse_too_few(task, place, "items" if known is None else "clusters")
    return found


def _refuse_too_few(task: str, places: NDArray[np.intp], what: str) -> None:
    """Refuse a task that leaves a half without two items, or clusters."""
    of_halves = [np.unique(places[places % 2 == half]) for half in (0, 1)]
    if min(map(len, of_halves)) < MIN_REPAIR_ITEMS // 2:
        raise RecordError(
            f"task {task!r} has {sum(map(len, of_halves))} {what}; half of them choose a repair "
            f"and half judge it, which takes {MIN_REPAIR_ITEMS} at least. Score more, or leave "
            "the task out."
        )


def _statement(found: RepairChoice) -> str:
    limit = quantities.amount(found.max_loss_points, "points")
    judged = found.judged
    if judged is None:
        return (
            f"None does: on the choosing items, no repair that gains stays within a loss of "
            f"{limit} of retention by a standard error. {_nearest(found)}"
        )
    gain = quantities.with_interval(judged.gain, found.unit)
    loss = quantities.with_interval(judged.retention_loss, "points")
    what = f"{judged.repair.label}, the adapter gains {gain} and loses {loss} of retention"
    if found.repair is None:
        why = f"more than {limit}" if judged.gain.estimate > 0.0 else "it keeps no gain"
        return f"None does: the choosing items chose one, but on the judging items, {what}: {why}."
    shown = "which is shown"
    if judged.keeps_enough != "yes":
        shown = "which is not shown, for the interval goes further"
    text = f"{quantities.capital(what)}: at most {limit}, {shown}."
    if judged.repair == AS_IT_IS:
        return f"{text} No repair that keeps enough gains more."
    before = quantities.with_interval(judged.adapter_gain, found.unit)
    lost = quantities.with_interval(judged.adapter_loss, "points")
    return f"{text} As it is, it gains {before} and loses {lost}."


def _nearest(found: RepairChoice) -> str:
    """Of the repairs that gain, the one with the least loss."""
    gaining = [point for point in found.curve if point.gain.estimate > 0.0]
    if not gaining:
        return "None gains at all."
    least = min(gaining, key=lambda point: point.retention_loss.upper)
    loss = quantities.with_interval(least.retention_loss, "points")
    return f"The nearest is the adapter {least.repair.label}: it loses {loss}."
