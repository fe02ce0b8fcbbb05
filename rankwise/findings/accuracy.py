"""Accuracy beside p(right), where p(right) decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankwise.findings.options import Option, OptionGains
from rankwise.records import quantities


def accuracy_reasons(
    source: OptionGains,
    options: Sequence[Option],
    in_domain: Sequence[str],
    retention: Sequence[str],
) -> Iterator[str]:
    """Which tasks p(right) decides on, and what each option gains and loses by accuracy.

    The intervals hold one at a time. Nothing is said where p(right) decides on no task.
    """
    items = source.results.base.items
    judged = [task for task in (*in_domain, *retention) if items[task].accuracy is not None]
    if not judged:
        return
    yield (
        f"On {quantities.listed(judged)}, points are of p(right): the probability of the right "
        "option among the options, times 100."
    )
    where = {"in-domain": in_domain, "on retention": retention}
    compared = {name: tasks for name, tasks in where.items() if set(tasks) & set(judged)}

    def changes(option: Option) -> str:
        means = {
            name: source.by_accuracy.change(option.runs, tasks) for name, tasks in compared.items()
        }
        return ", ".join(
            f"{quantities.with_interval(mean, mean.unit)} {name}" for name, mean in means.items()
        )

    if options:
        parts = [f"{option.label} {changes(option)}" for option in options]
        yield f"By accuracy, each interval by itself: {'; '.join(parts)}."
