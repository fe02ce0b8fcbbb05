"""Some models against the base, and against others: what they gain, keep, lead by, and cost."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from rankwise.findings.options import DecidingTasks, Option, OptionGains, OptionName, Runs, TaskMean


class Group(NamedTuple):
    """Models that are no option, in the order of their seeds."""

    label: str
    rank: int | None
    runs: Runs


class Compared(OptionName):
    """What models that differ by seed alone gain, keep and cost, seeds averaged.

    ``gain`` (in-domain) and ``retention`` are changes from the base. The ``lead`` and the
    ``retention_lead`` are these models less those that ``against`` names, paired by item and seed;
    None where that is the base. All are positive where these models are better; what no task
    measures is None. ``num_tokens`` are those that one seed trained on, ``train_seconds`` those of
    all seeds; they and ``num_parameters`` are 0 of what was not trained.
    """

    num_seeds: int
    num_parameters: int
    num_tokens: int
    train_seconds: float
    gain: TaskMean
    retention: TaskMean | None
    against: str
    lead: TaskMean | None
    retention_lead: TaskMean | None


C = TypeVar("C", bound=Compared)


def compare(
    kind: type[C],
    source: OptionGains,
    tasks: DecidingTasks,
    models: Option | Group,
    against: Option | Group | None = None,
    **own: Any,
) -> C:
    """Compare models with the base, and with others where they are given.

    Args:
        kind: the record to make.
        source: of the trained task.
        tasks: those of the gain, one at least, and those of retention.
        models: at least one.
        against: as many, or one.
        own: what this kind of record says besides.

    Raises:
        RecordError: models were scored on different items.
    """
    runs, others = models.runs, None if against is None else against.runs
    records = [model.run for model in runs if model.run is not None]
    first = records[0] if records else None
    return kind(
        label=models.label,
        rank=models.rank,
        mean_rank=first.planned.mean_rank if first else None,
        num_seeds=len(runs),
        num_parameters=first.planned.num_trainable_parameters if first else 0,
        num_tokens=first.num_tokens if first else 0,
        train_seconds=sum(record.train_seconds for record in records),
        gain=source.change(runs, tasks.in_domain),
        retention=source.change(runs, tasks.retention) if tasks.retention else None,
        against=source.results.study.base_label if against is None else against.label,
        lead=source.lead_over(runs, others, tasks.in_domain),
        retention_lead=source.lead_over(runs, others, tasks.retention),
        **own,
    )
