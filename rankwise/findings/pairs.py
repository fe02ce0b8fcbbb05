"""Two models on one task, paired over the same items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rankwise.errors import RecordError
from rankwise.findings.stats.estimates import Estimate, mcnemar_exact, mean_over_tasks, zero_p_value
from rankwise.findings.stats.items import (
    POINTS,
    Clusters,
    Floats,
    Items,
    Mask,
    item_size,
    num_clusters,
    whole_item,
)
from rankwise.records.base import Record
from rankwise.records.recommendation import AccuracyDifference
from rankwise.records.results import ModelResults, TaskItems
from rankwise.records.study import Interval, RunRecord


class Scores(NamedTuple):
    """One model's values on some items, in the order of ``doc_ids``, as are their clusters."""

    name: str
    doc_ids: Sequence[int]
    values: Sequence[float]
    clusters: Sequence[int] | None = None


class Pair(NamedTuple):
    """Base and adapted values of the same items, in the task's unit, and what they mean.

    ``in_points`` says that the values are shares times 100. ``clusters`` are as in ``Items``.
    Where a part of the items was answered, ``scored`` says which and ``answers`` has them alone;
    the adapted values are estimates. ``num_labelled`` is that of ``TaskItems``.
    """

    base: Floats
    adapted: Floats
    sign: float
    in_points: bool
    clusters: Clusters | None = None
    scored: Mask | None = None
    answers: Pair | None = None
    num_labelled: int | None = None

    @property
    def answered(self) -> Pair:
        """What both models answered, without estimates."""
        return self.answers or self

    @property
    def gain(self) -> Floats:
        """Item by item, positive where the adapted model is better."""
        return self.sign * (self.adapted - self.base)

    @property
    def item_size(self) -> float:
        """What one whole item counts, judged by these differences alone."""
        return size_of([self])

    @property
    def items(self) -> Items:
        """The gain, item by item, as it enters an estimate."""
        return Items(self.gain, self.item_size, clusters=self.clusters, scored=self.scored)

    def over(self, other: Pair) -> Pair:
        """The adapted model less that of another pair, which has the same base and items."""
        pair = self._replace(base=other.adapted, scored=scored_by_all([self, other]), answers=None)
        if pair.scored is None:
            return pair
        before, after = (each.answers_at(pair.scored) for each in (other, self))
        return pair._replace(answers=Pair(before, after, self.sign, self.in_points))

    def answers_at(self, places: Mask) -> Floats:
        """What the adapted model answered on some of its answered items."""
        if self.scored is None:
            return self.adapted[places]
        return self.answered.adapted[places[self.scored]]

    @property
    def outcomes(self) -> tuple[Mask, Mask] | None:
        """(items,) each: where the base and where the adapted model is right.

        None where an item is neither right nor wrong.
        """
        both = np.concatenate([self.base, self.adapted])
        if not self.in_points or not np.isin(both, (0.0, POINTS)).all():
            return None
        best = POINTS if self.sign > 0 else 0.0
        return self.base == best, self.adapted == best


def scored_by_all(pairs: Iterable[Pair]) -> Mask | None:
    """The items of a task that every model answered; None where all were."""
    parts = [pair.scored for pair in pairs if pair.scored is not None]
    return np.logical_and.reduce(parts) if parts else None


def size_of(pairs: Sequence[Pair]) -> float:
    """What one whole item of a task counts, by the differences of these pairs together.

    An answered item stands for several where only a part was answered, and so does one that was
    not seen to differ: it counts as often, whatever the references predict. A rare change that one
    model alone has is predicted by no other.
    """
    in_points, scored = pairs[0].in_points, scored_by_all(pairs)
    if (labelled := pairs[0].num_labelled) is not None:  # a judge's error may not have been seen
        return whole_item(len(pairs[0].base), labelled)
    changes = np.concatenate([pair.answered.gain for pair in pairs])
    size = item_size(changes, in_points=in_points)
    if scored is None:
        return size
    if in_points and size == POINTS:
        return whole_item(len(scored), int(scored.sum()))
    return len(scored) / int(scored.sum()) * item_size(changes, in_points=False)


class Counts(NamedTuple):
    """Items by what the base and the adapted model made of them."""

    learned: int
    forgotten: int
    kept_right: int
    kept_wrong: int


class PairedTest(NamedTuple):
    """The scores of a pair, their difference with its interval, and whether it could be chance.

    ``p_value`` is that of the interval: below 1 - confidence exactly where zero is outside.
    ``counts`` and McNemar's exact test are None unless every item is right or wrong.
    ``num_clusters`` is None where every item is its own.
    """

    num_examples: int
    base_score: float
    adapted_score: float
    estimate: Estimate
    difference: Interval
    p_value: float
    counts: Counts | None
    mcnemar_p_value: float | None
    has_differences: bool
    num_clusters: int | None

    def values(self, record: type[Record], outcomes: PairedTest | None = None) -> dict[str, Any]:
        """The fields of a record that this test fills.

        ``outcomes``, if given, has the counts of items and McNemar's test in its place.
        """
        counts = (outcomes or self).counts
        numbers = {
            **self._asdict(),
            "stderr": self.estimate.stderr,
            "mcnemar_p_value": (outcomes or self).mcnemar_p_value,
            **{f"num_{name}": getattr(counts, name, None) for name in Counts._fields},
        }
        return {name: number for name, number in numbers.items() if name in record.model_fields}


def pair_items(
    base: ModelResults, adapted: ModelResults, task: str, *, by_accuracy: bool = False
) -> Pair:
    """The values of two models on one task, item by item, matched by ``doc_id``.

    They are the deciding metric's, or with ``by_accuracy`` those of the task's own. The base
    answered every item, the adapted model all or some.

    Raises:
        RecordError: a model was not scored on the task, they were scored on other items or by
            another metric, there are fewer than two items, or a value is not finite.
    """
    first, second = _items(base, task), _items(adapted, task)
    if by_accuracy:
        first, second = first.by_accuracy, second.by_accuracy
    if (first.metric, first.unit) != (second.metric, second.unit):
        raise RecordError(
            f"task {task!r} was scored by {first.metric} in {first.unit} for {base.name} and by "
            f"{second.metric} in {second.unit} for {adapted.name}; score both the same way"
        )
    pair = pair_scores(
        f"task {task!r}",
        Scores(base.name, first.doc_ids, first.values, first.clusters),
        Scores(adapted.name, second.doc_ids, second.values),
        higher_is_better=first.higher_is_better,
        in_points=first.unit == "points",
    )
    pair = pair._replace(num_labelled=second.num_labelled)
    if second.scored is None:
        return pair
    ids, scale = second.scored.doc_ids, POINTS if pair.in_points else 1.0
    answers = scale * np.asarray(second.scored.values)[_order(ids)]
    scored = np.isin(np.sort(first.doc_ids), ids)
    if scored.all():
        return pair
    of_both = Pair(pair.base[scored], answers, pair.sign, pair.in_points)
    return pair._replace(scored=scored, answers=of_both)


def pair_scores(
    what: str, base: Scores, adapted: Scores, *, higher_is_better: bool, in_points: bool
) -> Pair:
    """The values of two models, item by item, matched by ``doc_id``.

    ``what`` begins the sentence of an error: "task 'arc'". Values ``in_points`` are shares in
    0..1, to be shown times 100. Clusters are the base's.

    Raises:
        RecordError: they were scored on other items, there are fewer than two, or a value is not
            finite.
    """
    ids, others = tuple(base.doc_ids), tuple(adapted.doc_ids)
    order, other = _order(ids), _order(others)
    if ids != others and sorted(ids) != sorted(others):
        raise RecordError(
            f"{what}: {base.name} was scored on {len(ids)} items and {adapted.name} on "
            f"{len(others)}, of which {len({*ids} & {*others})} are the same; "
            "only models scored on the same items can be compared"
        )
    if len(ids) < 2:
        raise RecordError(f"{what} has {len(ids)} items; two are needed for an error")
    before, after = (np.asarray(each.values, dtype=np.float64) for each in (base, adapted))
    for scores, values in ((base, before), (adapted, after)):
        if not np.isfinite(values).all():
            raise RecordError(f"{what}: a score of {scores.name} is not a finite number")
    scale = POINTS if in_points else 1.0
    return Pair(
        scale * before[order],
        scale * after[other],
        1.0 if higher_is_better else -1.0,
        in_points,
        None if base.clusters is None else _labels(tuple(base.clusters))[order],
    )


def clusters_of(items: TaskItems) -> Clusters | None:
    """The cluster of each item in the order of ``doc_id``, as in a ``Pair``; None without any."""
    if items.clusters is None:
        return None
    return _labels(items.clusters)[_order(items.doc_ids)]


@lru_cache(maxsize=256)
def _labels(clusters: tuple[int, ...]) -> Clusters:
    return np.asarray(clusters, dtype=np.int64)


@lru_cache(maxsize=256)  # all models of a study have the items of a task in one order
def _order(doc_ids: tuple[int, ...]) -> NDArray[np.intp]:
    return np.argsort(doc_ids)


def paired_test(pair: Pair, confidence: float, items: Items | None = None) -> PairedTest:
    """The difference of one pair of models.

    Args:
        pair: the two models.
        confidence: two-sided, 0..1.
        items: the pair's gain as it enters the estimate; None: judged by these two models alone.
    """
    items = pair.items if items is None else items
    estimate = mean_over_tasks([items])
    outcomes, clusters = pair.answered.outcomes, num_clusters([items])
    counts: Counts | None = None
    mcnemar: float | None = None
    if outcomes is not None:
        before, after = outcomes
        of_items = (~before & after, before & ~after, before & after, ~before & ~after)
        counts = Counts(*(int(items.sum()) for items in of_items))
        if clusters is None:  # it takes items as independent
            mcnemar = mcnemar_exact(counts.learned, counts.forgotten)
    return PairedTest(
        num_examples=len(pair.base),
        base_score=float(pair.base.mean()),
        adapted_score=float(pair.adapted.mean()),
        estimate=estimate,
        difference=interval_of(estimate, confidence),
        p_value=zero_p_value(estimate),
        counts=counts,
        mcnemar_p_value=mcnemar,
        has_differences=bool(pair.gain.any()),
        num_clusters=clusters,
    )


def accuracy_difference(metric: str, judged: PairedTest, own: PairedTest) -> AccuracyDifference:
    """The task's own metric beside p(right), of the same two models on the same items."""
    return AccuracyDifference(
        metric=metric,
        **own.values(AccuracyDifference),
        is_opposite=are_opposite(judged.difference, own.difference),
    )


def are_opposite(one: Interval, other: Interval) -> bool:
    """Whether two differences have opposite signs, of which one at least is shown."""
    return one.estimate * other.estimate < 0.0 and (one.sign(), other.sign()) != (0, 0)


def interval_of(estimate: Estimate, confidence: float) -> Interval:
    """An estimate with its own two-sided interval."""
    lower, upper = estimate.interval(confidence)
    return Interval(estimate=estimate.value, lower=lower, upper=upper)


def run_record(model: ModelResults) -> RunRecord:
    """The record of a model that is a run.

    Raises:
        RecordError: it is the base.
    """
    if model.run is None:
        raise RecordError(f"{model.name} is listed as a run but has no run record")
    return model.run


def trained(models: Iterable[ModelResults]) -> tuple[ModelResults, ...]:
    """The runs among them that were trained to their end, and did not diverge."""
    return tuple(model for model in models if run_record(model).status == "trained")


def _items(model: ModelResults, task: str) -> TaskItems:
    if task not in model.items:
        raise RecordError(
            f"{model.name} was not scored on {task!r}; run the study again to finish it"
        )
    return model.items[task]
