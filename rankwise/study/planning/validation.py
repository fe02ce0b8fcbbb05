"""Validation items: what runs and checkpoints are chosen by, so that no test item is spent on it.

Items of the trained task come from its training split: rows that are not trained on because of
``train.max_examples`` where there are enough, else rows that are held out for it. Items of other
tasks come from a split of theirs that is not scored.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from rankwise.records.config.study import StudyConfig
from rankwise.records.study import Relation
from rankwise.tasks.resolution import LoadedTask
from rankwise.tasks.training_rows import num_documents, validation_items

CHOSEN_BY: tuple[Relation, ...] = ("in_domain", "retention")
"""The relations that a search looks at."""

MOST_HELD_OUT = 0.25
"""Of the rows to train on, at most: what is held out is not learned."""

_SEED = 20260103
"""Fixed, so that the same rows are held out whenever a study is planned."""


class Validation(NamedTuple):
    """The validation items of one task, and the rows that are left to train on.

    ``task`` is None where there are fewer than two items; ``rows`` is None of a task that is not
    trained on.
    """

    task: LoadedTask | None
    num_items: int
    rows: list[int] | None


def share_of(config: StudyConfig, num_tasks: int) -> int:
    """How many validation items each of the tasks of a relation has at most; two at least."""
    return max(math.ceil(config.search.validation_items / max(num_tasks, 1)), 2)


def of_trained(
    loaded: LoadedTask, split: str | None, rows: Sequence[int], num_rows: int, number: int
) -> Validation:
    """Validation items of a task that is trained on.

    Args:
        loaded: the task; of users' own rows, the task that scores the rows to train on.
        split: that is trained on; None: the task's training split.
        rows: places of the rows to train on.
        num_rows: how many rows of the split were read; those behind them are free.
        number: of items that are wanted.
    """
    free = range(num_rows, num_documents(loaded, split))
    if len(free) >= number:
        chosen = _chosen(loaded, free, number)
        return Validation(validation_items(loaded, split, chosen), len(chosen), [*rows])
    held_out = _chosen(loaded, rows, min(number, int(MOST_HELD_OUT * len(rows))))
    left = sorted(set(rows) - set(held_out))
    task = validation_items(loaded, split, held_out) if len(held_out) > 1 else None
    return Validation(task, len(held_out), left if task else [*rows])


def of_other(loaded: LoadedTask, number: int) -> Validation:
    """Validation items of a task that is not trained on, from a split that is not scored."""
    config = loaded.task.config
    scored = config.test_split or config.validation_split
    for split in (config.validation_split, config.training_split):
        if split is None or split == scored or split not in loaded.task.dataset:
            continue
        size = num_documents(loaded, split)
        if size > 1:
            rows = _chosen(loaded, range(size), min(number, size))
            return Validation(validation_items(loaded, split, rows), len(rows), None)
    return Validation(None, 0, None)


def _chosen(loaded: LoadedTask, places: Sequence[int], number: int) -> list[int]:
    """Some of the places at random, always the same, in order."""
    rng = random.Random(f"{_SEED} {loaded.name}")
    return sorted(rng.sample(list(places), min(number, len(places))))
