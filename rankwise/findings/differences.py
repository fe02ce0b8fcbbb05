"""Every run against the base on every task, with the item sizes of all runs together."""

from __future__ import annotations

from collections.abc import Iterator

from rankwise.findings.options import Decided, OptionGains
from rankwise.findings.pairs import accuracy_difference, interval_of, trained
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.records.recommendation import Comparison, FormatEffect
from rankwise.records.results import ModelResults
from rankwise.records.study import Interval, Relation


def comparisons(source: OptionGains, decided: Decided | None = None) -> Iterator[Comparison]:
    """Every trained run against the base on every task of the study, in the study's order.

    Exploratory: no p-value is corrected. What is in ``decided`` has its bounds.
    """
    for model, relation, task in _runs_on_tasks(source):
        items = source.results.base.items[task]
        test = own = source.test(model, task)
        if items.accuracy is not None:
            own = source.by_accuracy.test(model, task)
        values = test.values(Comparison, own)
        its = (decided or {}).get(((model.name,), (task,)))
        values["difference"] = test.difference.bounded_by(its)
        yield Comparison(
            run=model.name,
            task=task,
            relation=relation,
            unit=items.unit,
            **values,
            accuracy=items.accuracy and accuracy_difference(items.accuracy.metric, test, own),
        )


def format_effects(source: OptionGains) -> Iterator[FormatEffect]:
    """Every trained run on every task that was scored in both formats, in the study's order."""
    results = source.results
    for model, relation, task in _runs_on_tasks(source):
        if task not in results.trained_formats:
            continue
        scored_as = results.trained_formats[task]
        standard, trained_format = source.pair(model, task), source.pair(model, scored_as)
        test, own = source.test(model, scored_as), source.by_accuracy.test(model, scored_as)
        by_format: Interval | None = None
        metrics = {results.base.items[name].metric for name in (task, scored_as)}
        if len(metrics) == 1 and task not in results.base.labelled_tasks:
            (both,) = source.items([standard.gain - trained_format.gain], [task])
            both = both._replace(item_size=max(both.item_size, source.item_size(scored_as)))
            by_format = interval_of(mean_over_tasks([both]), source.confidence)
        yield FormatEffect(
            run=model.name,
            task=task,
            scored_as=scored_as,
            relation=relation,
            unit=results.base.items[scored_as].unit,
            **test.values(FormatEffect, own),
            standard_difference=float(standard.gain.mean()),
            by_format=by_format,
        )


def _runs_on_tasks(source: OptionGains) -> Iterator[tuple[ModelResults, Relation, str]]:
    """Every trained run on every task of the study, in the study's order."""
    for model in trained(source.results.runs):
        for relation, tasks in source.results.tasks.items():
            for task in tasks:
                yield model, relation, task
