"""In which settings several studies differ, and which of them differ in one axis alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.findings.rows import column_names
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.grouping import grouped
from rankwise.records.study import StudyRecord

Settings = Mapping[str, str]
"""Name, with dots as in a study file, -> value; what is not set is not in it."""

_WEIGHTS, _ITEMS, _STACK = "weights of the base model", "items of ", "software stack"
_SCORED = "the scored items"

_AXES = {
    _WEIGHTS: "the base model",
    "train.task": "the trained task",
    "train.data": "the trained task",
    "train.split": "the trained task",
    "evaluation.in_domain": "the trained task",
    "train.learning_rate": "the learning rate",
    "train.epochs": "the epochs",
    "methods.lora.ranks": "the ranks",
    "methods.lora.alpha": "alpha",
    "methods.lora.target_modules": "the target modules",
    "seeds": "the seeds",
    "evaluation.limit": "the number of scored items",
    _STACK: "the software stack",
}
"""Settings that are one axis, with all below them; every other setting is an axis of its own."""

_MOVE_ITEMS = {_AXES[name] for name in (_WEIGHTS, "train.task", "evaluation.limit", _STACK)}
"""Axes that change the fingerprints of scored items (which cover the precision) by themselves."""

# What neither the scores that are compared nor a choice depend on, but for rounding. Of the base
# model the weights count, whatever it is called; the precision is a part of the software stack.
_UNUSED: Any = {
    "name": True,
    "base_model": True,
    "tasks_path": True,
    "allow_task_code": True,
    "analysis": True,
    "tracking": True,
    "train": {"precision", "max_micro_batch_tokens", "gradient_checkpointing", "save_every"},
    "evaluation": {"domains", "trained_format", "num_train_items", "max_batch_tokens"},
}
_DIGITS = 8


class DifferingSetting(Record):
    """A setting that is not the same in all studies, with its value in each; None: not set."""

    name: str
    axis: str
    values: tuple[str | None, ...]


class AlikeStudies(Record):
    """Studies whose settings are equal but for one axis; None: they are equal in everything."""

    studies: tuple[str, ...]
    axis: str | None

    @property
    def statement(self) -> str:
        """In words."""
        names = quantities.listed(self.studies)
        if self.axis is None:
            return f"{names} have the same settings and the same software: they are repeats."
        return f"{names} have the same settings but for {self.axis}."


def settings_of(study: StudyRecord, stack: str) -> Settings:
    """Every setting of a study that its scores or its choice may depend on.

    Beside those of the study file: fingerprints of the base's weights and of the items of each task
    that decides, and the software stack. Of a folder or a file only the name counts, not where it
    is.
    """
    config = study.config.model_dump(mode="json", exclude=_UNUSED)
    tasks = {
        task
        for relations in study.tasks.values()
        for names in relations.values()
        for task in names
        if task in study.task_fingerprints
    }
    return {
        **dict(_flat(config)),
        _WEIGHTS: study.base_model_fingerprint.rpartition(":")[2][:_DIGITS],
        **{f"{_ITEMS}{task}": study.task_fingerprints[task][:_DIGITS] for task in sorted(tasks)},
        _STACK: stack,
    }


def differing(settings: Sequence[Settings]) -> tuple[DifferingSetting, ...]:
    """The settings in which studies differ, in the order of the study file.

    A task that only one of them scores is in its lists of tasks; its items are left out here.
    """
    rows = [
        DifferingSetting(
            name=name, axis=_axis(name), values=tuple(own.get(name) for own in settings)
        )
        for name in column_names(settings)
    ]
    return tuple(
        row
        for row in rows
        if len({*row.values} - ({None} if row.name.startswith(_ITEMS) else set())) > 1
    )


def alike(names: Sequence[str], settings: Sequence[Settings]) -> tuple[AlikeStudies, ...]:
    """Studies that differ in one axis alone, or in none."""
    axes = dict.fromkeys(row.axis for row in differing(settings))
    return tuple(
        AlikeStudies(studies=tuple(names[place] for place in places), axis=axis)
        for axis in (None, *axes)
        for places in _equal_without(settings, axis)
    )


def _equal_without(settings: Sequence[Settings], axis: str | None) -> Iterator[list[int]]:
    """Places of studies that are equal without an axis, and not equal on it.

    Where the axis moves items by itself, these may differ too, if they are the same wherever the
    axis is.
    """
    moves_items = axis is not None and (axis in _MOVE_ITEMS or axis.startswith("evaluation."))
    apart = (axis, _SCORED) if moves_items else (axis,)

    def part(own: Settings, axes: Sequence[str | None]) -> frozenset[tuple[str, str]]:
        return frozenset((name, value) for name, value in own.items() if _axis(name) in axes)

    groups = grouped(
        (frozenset(own.items()) - part(own, apart), place) for place, own in enumerate(settings)
    )
    for places in groups.values():
        on_axis = {part(settings[place], (axis,)) for place in places}
        with_items = {part(settings[place], apart) for place in places}
        if len(places) > 1 and (axis is None or 1 < len(on_axis) == len(with_items)):
            yield places


def _axis(name: str) -> str:
    if name.startswith(_ITEMS):
        return _SCORED
    for known, axis in _AXES.items():
        if name == known or name.startswith(f"{known}."):
            return axis
    return name


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Settings as text; a section is its settings, and what is empty is not set."""
    for name, part in value.items():
        if isinstance(part, Mapping):
            yield from _flat(part, f"{before}{name}.")
        elif part is not None and part != []:
            yield f"{before}{name}", _text(part)


def _text(value: Any) -> str:
    """As in a study file."""
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}" if float(f"{value:g}") == value else repr(value)
        case str():
            return Path(value).name if Path(value).is_absolute() else value
        case list():
            parts = (
                f"[{_text(part)}]" if isinstance(part, list) else _text(part) for part in value
            )
            return ", ".join(parts)
        case dict():
            pairs = (f"{name}: {_text(part)}" for name, part in value.items() if part is not None)
            return f"{{{', '.join(pairs)}}}"
        case _:
            return str(value)
