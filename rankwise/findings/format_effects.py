"""Tasks scored as the training asked, beside how they are asked by default."""

from __future__ import annotations

from rankwise.findings.pairs import pair_items, paired_test
from rankwise.findings.stats.estimates import Floats, crossed_difference
from rankwise.records.results import ModelResults, TrainTaskResults
from rankwise.records.study import Bound, FormatEffect, Relation


def format_effects(results: TrainTaskResults) -> tuple[FormatEffect, ...]:
    """Every trained run on every task that was scored in both formats, in the study's order.

    Raises:
        RecordError: the two formats were scored on other items, or a score is missing.
    """
    return tuple(
        _effect(results, model, relation, task)
        for model in results.runs
        if model.run is not None and model.run.status == "trained"
        for relation, tasks in results.tasks.items()
        for task in tasks
        if task in results.trained_formats
    )


def _effect(
    results: TrainTaskResults, model: ModelResults, relation: Relation, task: str
) -> FormatEffect:
    scored_as = results.trained_formats[task]
    confidence = results.study.config.recommendation.confidence
    standard = pair_items(results.base, model, task)
    trained = pair_items(results.base, model, scored_as)
    test = paired_test(trained, confidence)
    same_unit = standard.item_size == trained.item_size
    return FormatEffect(
        run=model.name,
        task=task,
        scored_as=scored_as,
        relation=relation,
        unit=results.base.items[scored_as].unit,
        num_examples=len(trained.base),
        base_score=float(trained.base.mean()),
        adapted_score=float(trained.adapted.mean()),
        difference=test.estimate.value,
        lower=test.lower,
        upper=test.upper,
        num_learned=None if test.counts is None else test.counts.learned,
        num_forgotten=None if test.counts is None else test.counts.forgotten,
        standard_difference=float(standard.gain.mean()),
        by_format=_bound(standard.gain - trained.gain, standard.item_size, confidence)
        if same_unit
        else None,
    )


def _bound(differences: Floats, item_size: float, confidence: float) -> Bound:
    estimate = crossed_difference(differences, item_size=item_size)
    lower, upper = estimate.interval(confidence)
    return Bound(estimate=estimate.value, lower=lower, upper=upper)
