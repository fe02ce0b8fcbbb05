"""Every run against the base on every task, paired over the same items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rankwise.errors import RecordError
from rankwise.records import (
    Comparison,
    ModelResults,
    Relation,
    RetentionRatio,
    RunRecord,
    StudyResults,
    TaskItems,
)
from rankwise.stats import (
    Floats,
    crossed_difference,
    holm,
    mcnemar_exact,
    paired_t_p_value,
    retention_ratio,
)

POINTS = 100.0


class Pair(NamedTuple):
    """Base and adapted values of the same items, in points or in nats, and what they mean."""

    base: Floats
    adapted: Floats
    sign: float
    item_size: float

    @property
    def gain(self) -> Floats:
        """Item by item, positive where the adapted model is better."""
        return self.sign * (self.adapted - self.base)


def pair_items(base: ModelResults, adapted: ModelResults, task: str) -> Pair:
    """The values of two models on one task, item by item, matched by ``doc_id``.

    Raises:
        RecordError: a model was not scored on the task, they were scored on other items or by
            another metric, there are fewer than two items, or a value is not finite.
    """
    first, second = _items(base, task), _items(adapted, task)
    if (first.metric, first.unit) != (second.metric, second.unit):
        raise RecordError(
            f"task {task!r} was scored by {first.metric} in {first.unit} for {base.name} and by "
            f"{second.metric} in {second.unit} for {adapted.name}; score both the same way"
        )
    order, other = np.argsort(first.doc_ids), np.argsort(second.doc_ids)
    ids, others = np.asarray(first.doc_ids)[order], np.asarray(second.doc_ids)[other]
    if not np.array_equal(ids, others):
        raise RecordError(
            f"task {task!r}: {base.name} was scored on {len(ids)} items and {adapted.name} on "
            f"{len(others)}, of which {len(np.intersect1d(ids, others))} are the same; "
            "only models scored on the same items can be compared"
        )
    if len(ids) < 2:
        raise RecordError(f"task {task!r} has {len(ids)} items; two are needed for an error")
    for name, values in ((base.name, first.values), (adapted.name, second.values)):
        if not np.isfinite(values).all():
            raise RecordError(f"task {task!r}: a score of {name} is not a finite number")
    scale = POINTS if first.unit == "points" else 1.0
    return Pair(
        scale * np.asarray(first.values, dtype=np.float64)[order],
        scale * np.asarray(second.values, dtype=np.float64)[other],
        1.0 if first.higher_is_better else -1.0,
        POINTS if first.unit == "points" else 0.0,
    )


def compare(results: StudyResults) -> tuple[Comparison, ...]:
    """Every trained run against the base on every task of the study, in the study's order.

    Holm's correction is over the confirmatory family: each LoRA run on each in-domain task, by
    McNemar's exact test, or by the paired t-test where an item is not right or wrong.
    Everything else is exploratory and carries no corrected p-value.

    Raises:
        RecordError: as ``pair_items``.
    """
    rows: list[Comparison] = []
    family: list[tuple[int, float]] = []
    for model in results.runs:
        run = model.run
        if run is None or run.status != "trained":
            continue
        for relation, tasks in results.study.tasks.items():
            for task in tasks:
                row, p_value = _comparison(results, model, relation, task)
                if relation == "in_domain" and run.planned.method == "lora":
                    family.append((len(rows), p_value))
                rows.append(row)
    adjusted = holm([p_value for _, p_value in family])
    for (place, _), p_value in zip(family, adjusted, strict=True):
        rows[place] = rows[place].model_copy(update={"holm_p_value": p_value})
    return tuple(rows)


def run_record(model: ModelResults) -> RunRecord:
    """The record of a model that is a run.

    Raises:
        RecordError: it is the base.
    """
    if model.run is None:
        raise RecordError(f"{model.name} stands among the runs and has no run record")
    return model.run


def _comparison(
    results: StudyResults, model: ModelResults, relation: Relation, task: str
) -> tuple[Comparison, float]:
    pair = pair_items(results.base, model, task)
    estimate = crossed_difference(pair.gain, item_size=pair.item_size)
    lower, upper = estimate.interval(results.study.config.recommendation.confidence)
    counts = _counts(pair)
    mcnemar = None if counts is None else mcnemar_exact(counts[0], counts[1])
    row = Comparison(
        run=model.name,
        task=task,
        relation=relation,
        unit=results.base.items[task].unit,
        num_examples=len(pair.base),
        base_score=float(pair.base.mean()),
        adapted_score=float(pair.adapted.mean()),
        difference=estimate.value,
        stderr=estimate.stderr,
        lower=lower,
        upper=upper,
        num_learned=None if counts is None else counts[0],
        num_forgotten=None if counts is None else counts[1],
        num_kept_right=None if counts is None else counts[2],
        num_kept_wrong=None if counts is None else counts[3],
        mcnemar_p_value=mcnemar,
        holm_p_value=None,
        retention_ratio=_ratio(results, task, pair) if relation == "retention" else None,
    )
    return row, paired_t_p_value(pair.gain) if mcnemar is None else mcnemar


def _counts(pair: Pair) -> tuple[int, int, int, int] | None:
    """Items learned, forgotten, kept right, kept wrong; None unless each is right or wrong."""
    both = np.concatenate([pair.base, pair.adapted])
    if pair.item_size == 0.0 or not np.isin(both, (0.0, POINTS)).all():
        return None
    before, after = pair.base > 0.0, pair.adapted > 0.0
    if pair.sign < 0:
        before, after = ~before, ~after
    return (
        int((~before & after).sum()),
        int((before & ~after).sum()),
        int((before & after).sum()),
        int((~before & ~after).sum()),
    )


def _ratio(results: StudyResults, task: str, pair: Pair) -> RetentionRatio | None:
    if pair.item_size == 0.0:
        return None
    evaluation = results.base.evaluations.get(task)
    ratio = retention_ratio(
        pair.base / POINTS,
        pair.adapted / POINTS,
        None if evaluation is None else evaluation.chance,
        results.study.config.recommendation.confidence,
    )
    return RetentionRatio(
        estimate=ratio.value, lower=ratio.lower, upper=ratio.upper, reason=ratio.reason
    )


def _items(model: ModelResults, task: str) -> TaskItems:
    if task not in model.items:
        raise RecordError(
            f"{model.name} was not scored on {task!r}; run the study again to finish it"
        )
    return model.items[task]
