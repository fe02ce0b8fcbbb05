"""Which repair of an adapter keeps the gain and brings retention back, and whether any does.

All items judge. The repairs of a kind are tested one after another, from the one that changes the
adapter most to the one that changes it least, and the first that is not shown to keep enough ends
it: so none of them needs a correction for the others, and only the number of kinds does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from rankwise.errors import RecordError
from rankwise.findings.options import DecidingTasks
from rankwise.findings.pairs import Pair, interval_of, pair_items
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.findings.stats.items import Floats, Items, item_size, num_clusters
from rankwise.records import quantities
from rankwise.records.folder import BASE
from rankwise.records.grouping import grouped
from rankwise.records.repair_scores import RepairScores
from rankwise.records.repairs import (
    AS_IT_IS,
    METHODS,
    AdapterRepair,
    JudgedTask,
    Repair,
    RepairChoice,
    RepairPoint,
)
from rankwise.records.results import ModelResults, TaskItems
from rankwise.records.study import Interval, Unit


class RepairTasks(NamedTuple):
    """What a repair is chosen and judged by: at least one task of each relation."""

    in_domain: tuple[str, ...]
    retention: tuple[str, ...]


def choose_repair(
    scores: Sequence[RepairScores],
    tasks: RepairTasks,
    *,
    max_loss_points: float,
    confidence: float,
    asked: Collection[Repair] = (),
) -> RepairChoice:
    """Choose the repair that gains most, of those that are shown to stay within a limit of loss.

    Of each kind, the weakest repair that is shown to keep enough is a candidate; the candidate that
    gains most is the one to use, if it is shown to gain. Everything that is shown holds together.

    Args:
        scores: of each task, with the same repairs; ``AS_IT_IS`` among them.
        tasks: by their relation to what was trained.
        max_loss_points: the limit, in points of the mean over the retention tasks.
        confidence: of all that is said together, 0..1.
        asked: the repairs that may be chosen; empty: all, and the adapter as it is.

    Raises:
        RecordError: there is no in-domain task, none of retention in points, or a task has fewer
            than two items or clusters.
    """
    compared = _RepairedScores(scores, tasks, confidence)
    points = {repair: compared.point(repair) for repair in compared.repairs}
    candidates: list[RepairPoint] = []
    for kind in compared.kinds:
        for repair in kind:
            if -points[repair].retention.lower > max_loss_points:
                break
            points[repair] = points[repair].model_copy(update={"keeps_enough": True})
        able = [repair for repair in kind if repair in asked] if asked else kind
        kept = [points[repair] for repair in able if points[repair].keeps_enough]
        candidates += [point for point in kept[-1:] if point.gain.lower > 0.0]
    best = max(candidates, key=lambda point: point.gain.estimate, default=None)
    curve = tuple(points.values())
    return RepairChoice(
        max_loss_points=max_loss_points,
        unit=compared.tasks.unit,
        confidence=confidence,
        num_kinds=len(compared.kinds),
        in_domain=compared.tasks.in_domain,
        retention=compared.tasks.retention,
        left_out=tuple(
            task for task in (*tasks.in_domain, *tasks.retention) if task not in compared.tasks.all
        ),
        num_items=sum(len(each.base.doc_ids) for each in scores if each.task in compared.tasks.all),
        curve=curve,
        repair=best and best.repair,
        tasks=compared.judged_tasks(best.repair) if best else (),
        statement=_statement(max_loss_points, compared.tasks.unit, best, curve),
    )


class _RepairedScores:
    """The scores of all repairs against the base."""

    def __init__(
        self, scores: Sequence[RepairScores], tasks: RepairTasks, confidence: float
    ) -> None:
        self._scores = {of_task.task: of_task for of_task in scores}
        self.tasks = _deciding_tasks(self._scores, tasks)
        self.repairs = tuple(each.repair for each in scores[0].repaired)
        # of a kind the one that changes the adapter most comes first
        by_strength = sorted(
            self.repairs,
            key=lambda repair: (
                (repair.value or 0.0)
                * (-1.0 if METHODS[repair.family].is_stronger_upwards else 1.0)
            ),
        )
        kinds = grouped(((repair.family, repair.how), repair) for repair in by_strength)
        self.kinds = tuple(kinds.values())
        self._confidence = 1.0 - (1.0 - confidence) / len(kinds)
        self._pairs: dict[tuple[Repair, str], Pair] = {}
        for task in self.tasks.all:
            base = _results(BASE, task, self._scores[task].base)
            for each in self._scores[task].repaired:
                model = _results(each.repair.label, task, each.items)
                self._pairs[each.repair, task] = pair_items(base, model, task)
            pair = self._pairs[AS_IT_IS, task]
            if num_clusters([pair.items]) == 1:
                raise RecordError(
                    f"all {len(pair.base)} items of task {task!r} are in one cluster, which has no "
                    "error. Score more, or leave the task out."
                )

    def point(self, repair: Repair) -> RepairPoint:
        """What a repair gains and keeps, and that less the adapter as it is."""

        def gain(task: str) -> Floats:
            return self._gain(repair, task)

        def lead(task: str) -> Floats:
            return self._gain(repair, task) - self._gain(AS_IT_IS, task)

        own, kept, is_changed = self.tasks.in_domain, self.tasks.retention, repair != AS_IT_IS
        return RepairPoint(
            repair=repair,
            gain=self._mean(own, gain),
            retention=self._mean(kept, gain),
            lead=self._mean(own, lead) if is_changed else None,
            retention_lead=self._mean(kept, lead) if is_changed else None,
        )

    def judged_tasks(self, repair: Repair) -> tuple[JudgedTask, ...]:
        """The repaired adapter on each task, beside the base and the adapter as it is."""

        def judged_task(task: str) -> JudgedTask:
            adapted, repaired = self._pairs[AS_IT_IS, task], self._pairs[repair, task]
            items = self._scores[task].base
            return JudgedTask(
                task=task,
                relation="in_domain" if task in self.tasks.in_domain else "retention",
                unit=items.unit,
                metric=items.metric,
                num_items=len(adapted.base),
                base_score=float(adapted.base.mean()),
                adapted_score=float(adapted.adapted.mean()),
                repaired_score=float(repaired.adapted.mean()),
            )

        return tuple(map(judged_task, self.tasks.all))

    def _gain(self, repair: Repair, task: str) -> Floats:
        return self._pairs[repair, task].gain

    def _mean(self, tasks: Sequence[str], values: Callable[[str], Floats]) -> Interval:
        """The mean over tasks, each counting the same."""
        parts: list[Items] = []
        for task in tasks:
            pair, own = self._pairs[AS_IT_IS, task], values(task)
            # of other values than right and wrong, equal ones are the same model's
            size = item_size(own, in_points=pair.outcomes is not None)
            parts.append(Items(own, size, clusters=pair.clusters))
        return interval_of(mean_over_tasks(parts), self._confidence)


def _deciding_tasks(scores: Mapping[str, RepairScores], tasks: RepairTasks) -> DecidingTasks:
    """In-domain ones of one unit, retention ones that are scored in points."""
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
    return DecidingTasks(own, kept, unit)


def _results(name: str, task: str, items: TaskItems) -> ModelResults:
    return ModelResults(name=name, run=None, evaluations={}, items={task: items})


def _statement(
    max_loss_points: float, unit: Unit, chosen: RepairPoint | None, curve: Sequence[RepairPoint]
) -> str:
    limit = quantities.amount(max_loss_points, "points")

    def kept(point: RepairPoint) -> str:
        return f"retention changes by {quantities.with_interval(point.retention, 'points')}"

    as_it_is = curve[0]
    gained = quantities.with_interval(as_it_is.gain, unit)
    if chosen is None and as_it_is.keeps_enough and as_it_is.gain.lower > 0.0:
        return (
            f"None of those does, and none is needed: as it is, the adapter gains {gained} and "
            f"{kept(as_it_is)}, so it loses at most {limit}."
        )
    if chosen is None:
        gaining = [point for point in curve if point.gain.lower > 0.0]
        nearest = "None is shown to gain at all."
        if gaining:
            least = max(gaining, key=lambda point: point.retention.lower)
            nearest = f"The nearest is the adapter {least.repair.label}: {kept(least)}."
        none = f"None does: no repair is shown to gain and to lose at most {limit} of retention."
        return f"{none} {nearest}"
    text = (
        f"{quantities.capital(chosen.repair.label)}, the adapter gains "
        f"{quantities.with_interval(chosen.gain, unit)} and {kept(chosen)}, so it loses at most "
        f"{limit}."
    )
    if chosen.repair == AS_IT_IS:
        return f"{text} No repair that keeps enough gains more."
    return f"{text} As it is, it gains {gained} and {kept(as_it_is)}."


def ranks_statement(record: AdapterRepair) -> str | None:
    """Which ranks a cut of the adapter's energy leaves; None of other repairs."""
    ranks = sorted(record.ranks.values())
    if not ranks:
        return None
    span = f"{ranks[0]} to {ranks[-1]}" if ranks[0] < ranks[-1] else f"{ranks[0]}"
    return (
        f"The {quantities.counted(len(ranks), 'layer')} that are adapted keep ranks of {span}, "
        f"{statistics.fmean(ranks):.1f} on average; r and rank_pattern in adapter_config.json say "
        "which."
    )
