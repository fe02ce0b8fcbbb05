"""How much general knowledge is kept, by subject and by group of subjects."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.findings.options import OptionGains, OptionName, TaskMean, TrainTaskFinding
from rankwise.records.base import Record

ALL = "all retention tasks"


class SubjectChange(Record):
    """One option's change, every task counting the same.

    ``by_items`` counts every item the same, as lm-eval aggregates mmlu; it decides nothing, and
    is None where the tasks have equally many items.
    """

    label: str
    change: TaskMean
    by_items: TaskMean | None


class RetentionLine(Record):
    """A subject, or a group of them: the base's score and the change of each option."""

    name: str
    tasks: tuple[str, ...]
    base_score: TaskMean
    base_score_by_items: TaskMean | None
    changes: tuple[SubjectChange, ...]


class TrainTaskRetention(TrainTaskFinding):
    """The retention tasks of one trained task, as groups and one by one."""

    options: tuple[OptionName, ...]
    groups: tuple[RetentionLine, ...]
    subjects: tuple[RetentionLine, ...]


def retention_groups(source: OptionGains, *_: object) -> TrainTaskRetention | None:
    """All groups with at least two of the retention tasks; None with fewer than two tasks."""
    tasks = source.tasks("retention")
    if len(tasks) < 2 or not source.options:
        return None
    groups: dict[tuple[str, ...], str] = {tasks: ALL}
    for name, leaves in source.results.study.groups.items():
        members = tuple(task for task in tasks if task in leaves)
        if len(members) > 1:
            groups[members] = f"{name}, {ALL}" if members == tasks else name
    return source.found(
        TrainTaskRetention,
        options=tuple(option.name for option in source.options),
        groups=tuple(_line(source, name, members) for members, name in groups.items()),
        subjects=tuple(_line(source, task, (task,)) for task in tasks),
        left_out=source.left_out,
    )


def _line(source: OptionGains, name: str, tasks: Sequence[str]) -> RetentionLine:
    differ = len({len(source.results.base.items[task].doc_ids) for task in tasks}) > 1
    return RetentionLine(
        name=name,
        tasks=tuple(tasks),
        base_score=source.base_score(tasks),
        base_score_by_items=source.base_score(tasks, by_items=True) if differ else None,
        changes=tuple(
            SubjectChange(
                label=option.label,
                change=source.change(option.runs, tasks),
                by_items=source.change(option.runs, tasks, by_items=True) if differ else None,
            )
            for option in source.options
        ),
    )
