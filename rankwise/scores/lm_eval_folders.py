"""Output folders of lm-evaluation-harness: which sample files of which model and task they hold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rankwise.errors import DataError
from rankwise.records.grouping import grouped
from rankwise.records.json_reading import MOST_BYTES, parse_json
from rankwise.records.lm_eval_samples import task_of

_DEPTH = 3
"""lm-eval writes OUTPUT/MODEL/samples_TASK_DATE.jsonl, and users one OUTPUT for each model."""

_MOST_ENTRIES = 20_000
"""Entries that are looked at; no output folder has as many."""


class ModelSamples(NamedTuple):
    """The sample files of one model."""

    model: str
    files: tuple[Path, ...]


class FoundSamples(NamedTuple):
    """The sample files of some models; ``has_order`` says that the user gave the base first."""

    models: tuple[ModelSamples, ...]
    has_order: bool
    notes: tuple[str, ...]


def holds_samples(folder: Path) -> bool:
    """Whether a folder has sample files of lm-eval, in it or below it."""
    return next(_samples_below(folder), None) is not None


def samples_in(folders: Sequence[Path]) -> FoundSamples:
    """The sample files of folders, one for each model; of a single one, of the folders in it.

    Of several files of a task and model the last is taken, which is the newest by its name.

    Raises:
        DataError: a folder has no sample file, or two have one name.
    """
    has_order = len(folders) > 1
    if not has_order:
        below = grouped((path.relative_to(folders[0]).parts[0], path) for path in _sorted(folders))
        inner = [folders[0] / name for name in below if (folders[0] / name).is_dir()]
        if len(inner) > 1 and len(inner) < len(below):
            raise DataError(
                f"{folders[0]} has sample files beside folders that have some; give one folder for "
                "each model."
            )
        folders = inner if len(inner) > 1 else folders
    names = [folder.resolve().name for folder in folders]
    if len({*names}) < len(names):
        names = [str(folder) for folder in folders]
    models: list[ModelSamples] = []
    notes: list[str] = []
    for name, folder in zip(names, folders, strict=True):
        found = grouped((task_of(path) or "", path) for path in _sorted([folder]))
        if not found:
            raise DataError(
                f"{folder} has no sample file of lm-eval (samples_TASK_DATE.jsonl); run lm_eval "
                "with --log_samples."
            )
        for task, files in found.items():
            if len({file.parent for file in files}) > 1:
                raise DataError(
                    f"{folder} has sample files of {task} in several folders, which may be several "
                    "models: give each model's own folder."
                )
            if len(files) > 1:
                notes.append(f"{folder} has {len(files)} sample files of {task}; the last is read")
        models.append(ModelSamples(name, tuple(files[-1] for files in found.values())))
    return FoundSamples(tuple(models), has_order, tuple(notes))


def refuse_results(path: Path) -> None:
    """Refuse a results file of lm-eval: it has means only.

    Raises:
        DataError: it is one.
    """
    if path.suffix != ".json" or not path.name.startswith("results"):
        return
    try:
        with path.open("rb") as file:
            content = parse_json(file.read(MOST_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError):
        return  # what reads it as a table says what is wrong with it
    if isinstance(content, dict) and isinstance(content.get("results"), dict):
        raise DataError(
            f"{path} has means of tasks, of which nobody knows how sure they are. Run lm_eval with "
            "--log_samples, and give its output folder, or its samples_*.jsonl."
        )


def _sorted(folders: Sequence[Path]) -> list[Path]:
    """By their names, which end with the date."""
    found = (path for folder in folders for path in _samples_below(folder))
    return sorted(found, key=lambda path: (path.name, path))


def _samples_below(folder: Path) -> Iterator[Path]:
    seen, top = 0, len(folder.parts)
    for place, inner, files in os.walk(folder):  # follows no links
        if len(Path(place).parts) - top >= _DEPTH:
            inner.clear()
        seen += len(inner) + len(files)
        if seen > _MOST_ENTRIES:
            raise DataError(
                f"{folder} has more than {_MOST_ENTRIES:,} files; give the folders of the models."
            )
        for file in files:
            path = Path(place) / file
            if task_of(path) is not None:
                yield path
