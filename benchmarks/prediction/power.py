"""How often the comparison of predictors finds a rule that is planted, and one that is not there.

    python -m benchmarks.prediction.power [--draws N]

Synthetic collections of 4 and 7 tasks, one to three studies each, as large and as noisy as those
of docs/studies/collection.md: ranks 2 to 64, two seeds, 60 items. The gain of a study is a parabola
over log2 of the rank. Its top lies where the base's score says (``rule``), or by lot (``none``);
five doublings away from the top it is lower by ``points``. A row for each: in how many of N
collections the ridge beats all four constants. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.prediction.curves import Question, RankCurve
from benchmarks.prediction.judge import judge
from benchmarks.prediction.learned import RIDGE
from benchmarks.prediction.predictors import CONSTANTS

RANKS = (2, 4, 8, 16, 32, 64)
TASKS, SEEDS, ITEMS = (4, 7), 2, 60
PER_TASK = (3, 2, 2, 2, 1, 1, 1)
POINTS = (0.0, 2.5, 5.0, 10.0, 20.0)
# In points, of what ranks do not share: of a rank's mean from seed to seed, and of one item of one
# run. The twelve studies of the collection show 0 to 1.5, and 1.8 to 7.9: these are root mean
# squares.
SEED_SD, ITEM_SD = 0.7, 5.2


def curves(num_tasks: int, points: float, *, rule: bool, draw: int) -> Iterator[RankCurve]:
    """The studies of a synthetic collection."""
    rng = np.random.default_rng([draw, num_tasks, int(points), rule])
    places = np.log2(RANKS)
    studies = [(task, each) for task in range(num_tasks) for each in range(PER_TASK[task])]
    for task, each in studies:
        score, lot, size = rng.random(3)
        top = 1.0 + 5.0 * (score if rule else lot)
        shape = -points * ((places - top) / 5.0) ** 2
        of_seeds = rng.normal(0.0, SEED_SD, (SEEDS, 1, len(RANKS)))
        of_items = rng.normal(0.0, ITEM_SD, (SEEDS, ITEMS, len(RANKS)))
        features = {"train_rows": 40.0 * 25.0**size, "base_accuracy": score}
        question = Question(features, RANKS)
        yield RankCurve(
            f"{task}-{each}", f"task-{task}", question, {"gain": (shape + of_seeds + of_items,)}
        )


def number_found(num_tasks: int, points: float, draws: int, *, rule: bool) -> int:
    """In how many collections the ridge beats all constants."""
    number = 0
    for draw in range(draws):
        own = list(curves(num_tasks, points, rule=rule, draw=draw))
        ridge = judge(own, "gain", (*CONSTANTS, RIDGE)).of(RIDGE.name)
        number += ridge is not None and ridge.beats_the_constants
    return number


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=100)
    draws, started = parser.parse_args(arguments).draws, time.monotonic()
    print("| tasks | planted | points | found |")
    print("|---|---|---|---|")
    rows = []
    for num_tasks, rule, points in itertools.product(TASKS, (False, True), POINTS):
        if rule and not points:
            continue
        number = number_found(num_tasks, points, draws, rule=rule)
        planted = "rule" if rule else "none"
        print(f"| {num_tasks} | {planted} | {points:g} | {number} of {draws} |", flush=True)
        row = {"tasks": num_tasks, "planted": planted, "points": points, "found": number}
        rows.append(row)
    print(json.dumps({"draws": draws, "rows": rows, "seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
