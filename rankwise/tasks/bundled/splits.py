"""Train and test splits of generated tasks that share no question, by normalised text."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import TypedDict

from datasets import Dataset, DatasetDict

from rankwise.errors import DataError

# Draws in a row that may repeat a known question before a split counts as exhausted.
_MAX_REPEATS = 1000


class ChoiceRow(TypedDict):
    """One multiple-choice item; ``label`` is the index of the right option in ``choices``."""

    question: str
    choices: list[str]
    label: int


Draw = Callable[[random.Random, str], ChoiceRow]


def normalised(text: str) -> str:
    """``text`` in lower case with everything but letters and digits folded into single spaces."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def choice_dataset(rows: Sequence[ChoiceRow]) -> Dataset:
    """The rows as a data set with the columns question, choices and label."""
    return Dataset.from_list([{**row} for row in rows])


def balanced_splits(
    name: str, draw: Draw, classes: Sequence[str], *, train: int, test: int, seed: int
) -> DatasetDict:
    """Draw a train and a test split of distinct questions, every class equally often in each.

    Where a size is not a multiple of the number of classes, the first classes get one more row. The
    test split is drawn first, so that it does not depend on the size of the train split. The rows
    depend on the arguments only: neither on the global random state nor on string hashing.

    Args:
        name: name of the task; two tasks with one seed draw independently.
        draw: makes one row of the named class from a random state.
        classes: the answer classes.
        train: rows of the train split.
        test: rows of the test split.
        seed: chooses the questions.

    Raises:
        DataError: a size is not positive, or there are not that many different questions.
    """
    if train < 1 or test < 1:
        raise DataError(
            f"{name}: {train} training and {test} test rows are asked for. Ask for at least 1 each."
        )
    seen: set[str] = set()
    rows = {
        split: _draw_split(draw, classes, size, random.Random(f"{name}/{split}/{seed}"), seen)
        for split, size in (("test", test), ("train", train))
    }
    if len(seen) < train + test:
        raise DataError(
            f"{name}: these settings give {len(seen)} different questions, fewer than the "
            f"{train + test} asked for. Ask for fewer, or make the questions more varied."
        )
    return DatasetDict({split: choice_dataset(rows[split]) for split in ("train", "test")})


def _draw_split(
    draw: Draw, classes: Sequence[str], size: int, rng: random.Random, seen: set[str]
) -> list[ChoiceRow]:
    """Draw ``size`` new rows at most, in random order; fewer when new questions have run out."""
    order = [classes[index % len(classes)] for index in range(size)]
    rng.shuffle(order)
    rows: list[ChoiceRow] = []
    for answer_class in order:
        for _ in range(_MAX_REPEATS):
            row = draw(rng, answer_class)
            key = normalised(row["question"])
            if key not in seen:
                seen.add(key)
                rows.append(row)
                break
    return rows
