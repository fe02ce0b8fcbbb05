"""Every trained task against every tested one: what a model gains or loses elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from typing import TypeVar

from rankwise.findings.options import OptionGains, OptionName, TaskMean
from rankwise.findings.statements import TRANSFER_ALARM_SHARE
from rankwise.records.base import Record
from rankwise.records.grouping import grouped
from rankwise.records.study import Relation, StudyRecord

AWAY: tuple[Relation, ...] = ("out_of_domain", "retention")
TESTED: tuple[Relation, ...] = ("in_domain", *AWAY)

MOST_LEAVES = 4
"""Groups with more tasks of one relation and domain than this are one column, their mean."""


class TransferColumn(Record):
    """A test task, or a group of them in one column; ``tasks`` identifies the column."""

    name: str
    tasks: tuple[str, ...]
    domain: str | None


class TransferCell(Record):
    """One option of one trained task on the tasks of a column, against the base.

    ``is_alarm`` is negative transfer: a drop, at its lower bound, of over
    ``TRANSFER_ALARM_SHARE`` of the base's score on tasks out of the trained domain.
    """

    train_task: str
    label: str
    tasks: tuple[str, ...]
    relation: Relation
    base_score: TaskMean
    change: TaskMean
    is_alarm: bool


class DomainMean(Record):
    """One option of one trained task over the tasks of a domain that it was not trained on."""

    train_task: str
    label: str
    domain: str
    tasks: tuple[str, ...]
    change: TaskMean


class TransferRow(Record):
    """A trained task with its domain."""

    name: str
    domain: str | None


Line = TypeVar("Line", TransferRow, TransferColumn)


class Transfer(Record):
    """The cross-domain matrix, by each task's own metric. Exploratory, every interval by itself.

    Rows and columns stand by domain, those without one last. ``left_out`` names, by trained
    task, options with a missing or diverged seed.
    """

    confidence: float
    rows: tuple[TransferRow, ...]
    columns: tuple[TransferColumn, ...]
    options: tuple[OptionName, ...]
    cells: tuple[TransferCell, ...]
    domain_means: tuple[DomainMean, ...]
    left_out: dict[str, tuple[str, ...]]


def transfer(trained: Sequence[OptionGains]) -> Transfer | None:
    """The matrix of a study; None where nothing is tested out of the trained domain.

    In accuracy, as the reference paper's is; p(right) may drop by less certainty alone.
    """
    study = trained[0].results.study
    sources = {source.results.train_task: source.by_accuracy for source in trained}
    if not any(source.tasks("out_of_domain") for source in sources.values()):
        return None
    columns = _columns(study, sources)
    trained_rows: list[TransferRow] = []
    for name, source in sources.items():
        # a trained task's own domain, or that of all its in-domain tasks
        domains = {study.domains.get(task) for task in source.results.tasks.get("in_domain", ())}
        shared = domains.pop() if len(domains) == 1 else None
        trained_rows.append(TransferRow(name=name, domain=study.domains.get(name, shared)))
    rows = _by_domain(trained_rows)
    cells: list[TransferCell] = []
    means: list[DomainMean] = []
    options: dict[str, OptionName] = {}
    for source in (sources[row.name] for row in rows):
        for option in source.options:
            options.setdefault(option.label, option.name)
        cells += _cells(source, columns)
        means += _domain_means(source, columns)
    if not cells:
        return None
    return Transfer(
        confidence=study.config.recommendation.confidence,
        rows=rows,
        columns=columns,
        options=tuple(sorted(options.values(), key=lambda each: each.rank is None)),
        cells=tuple(cells),
        domain_means=tuple(means),
        left_out={name: source.left_out for name, source in sources.items() if source.left_out},
    )


def _by_domain(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Domains together in the order of their first; those without one at the end."""
    first = [*dict.fromkeys(line.domain for line in lines if line.domain), None]
    return tuple(sorted(lines, key=lambda line: first.index(line.domain or None)))


def _relations(source: OptionGains) -> dict[str, Relation]:
    """The relation of every test task that is scored in points."""
    return {task: relation for relation in TESTED for task in source.tasks(relation)}


def _columns(study: StudyRecord, sources: Mapping[str, OptionGains]) -> tuple[TransferColumn, ...]:
    """Tasks that have the same relation to every trained task may share a column."""
    related = {name: _relations(source) for name, source in sources.items()}
    tasks = list(dict.fromkeys(task for relations in related.values() for task in relations))
    kind = {
        task: (study.domains.get(task), tuple(found.get(task) for found in related.values()))
        for task in tasks
    }
    columns: list[TransferColumn] = []
    placed: set[str] = set()
    for task in tasks:
        if task in placed:
            continue
        name, leaves = task, (task,)
        for group, members in study.groups.items():
            free = [t for t in tasks if t in members and t not in placed]
            alike = tuple(t for t in free if kind[t] == kind[task])
            if task in alike and len(alike) > max(MOST_LEAVES, len(leaves)):
                name, leaves = f"{group} ({len(alike)} tasks)", alike
        placed |= set(leaves)
        columns.append(TransferColumn(name=name, tasks=leaves, domain=kind[task][0]))
    return _by_domain(columns)


def _cells(source: OptionGains, columns: Sequence[TransferColumn]) -> Iterator[TransferCell]:
    relations = _relations(source)
    for option, column in product(source.options, columns):
        relation = relations.get(column.tasks[0])
        if relation is None:
            continue
        base, change = source.base_score(column.tasks), source.change(option.runs, column.tasks)
        alarm = TRANSFER_ALARM_SHARE * base.estimate
        is_drop = alarm > 0 and change.sign(at=-alarm) < 0
        yield TransferCell(
            train_task=source.results.train_task,
            label=option.label,
            tasks=column.tasks,
            relation=relation,
            base_score=base,
            change=change,
            is_alarm=relation == "out_of_domain" and is_drop,
        )


def _domain_means(source: OptionGains, columns: Sequence[TransferColumn]) -> Iterator[DomainMean]:
    """The means of domains with several columns; the trained task is left out."""
    relations = _relations(source)
    by_domain = grouped((column.domain, column.tasks) for column in columns)
    for option, (domain, its) in product(source.options, by_domain.items()):
        away = tuple(task for task in chain(*its) if relations.get(task) in AWAY)
        if domain is not None and len(its) > 1 and away:
            yield DomainMean(
                train_task=source.results.train_task,
                label=option.label,
                domain=domain,
                tasks=away,
                change=source.change(option.runs, away),
            )
