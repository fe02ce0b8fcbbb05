"""How often does a contract err, and how large a drift does it find? Simulated answers.

    python -m benchmarks.checks [--contracts 1000]

Every item has a probability of a right answer. The base draws an answer from it, and the adapter
draws another one from the same probability (nothing changed) or from a smaller one (a drift). Both
are judged by the functions behind ``rankwise check``: exit 1 if a clause is shown to lose more than
its margin, 0 if each is shown to lose less, else 3.

- ``unchanged``: base against base. Exit 1 is a false alarm; exit 3 is a set too small for its
  margin. ``passes_at`` is the margin at which four of five such contracts would exit with 0.
- ``at the margin``: the loss is the margin itself. Exit 0 is a loss that was overlooked.
- ``drift``: 4 points are lost. Exit 1 finds them; ``seen`` is a difference that is shown to be one.

A contract of five clauses has the loss in its first one. A table goes to stderr; the last line of
stdout is one JSON object, in which rates of errors are exact upper 95 % bounds of the worst cell.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.decision_studies import Rate, generator
from rankwise.findings.deployment import TaskGroup, judged_mean
from rankwise.findings.pairs import Pair, Scores, pair_scores
from rankwise.findings.stats.items import POINTS
from rankwise.records.deployment import MeanDifference, worst

CONFIDENCE = 0.95
"""That of ``weights.session``, which needs torch."""

SIZES = (200, 400, 1000)
MARGIN, DRIFT = 1.0, 4.0  # of --max-loss by default, in points; and what should be found
PASSING = 0.8


class Rows(NamedTuple):
    """How the items of a set vary.

    Attributes:
        name: of such a set.
        alpha: of the Beta law from which the items' probabilities are drawn.
        beta: likewise.
        alike: share of the items that are decoded alike by both models.
    """

    name: str
    alpha: float
    beta: float
    alike: float = 0.0


ROWS = (
    Rows("hard, sampled", 0.6, 0.3),  # two thirds are right; two draws disagree on 21 %
    Rows("easy, sampled", 0.9, 0.1),  # nine tenths are right; two draws disagree on 9 %
    Rows("easy, greedy", 0.9, 0.1, alike=0.8),  # the fine-tuned model changes 2 % at random
)


class Cell(NamedTuple):
    """Contracts of sets of one kind, whose first clause truly loses so many points."""

    rows: Rows
    num_items: int
    loss: float
    num_clauses: int = 1

    def __str__(self) -> str:
        size = f"{self.num_clauses} x {self.num_items}"
        return f"{self.rows.name:14} {size:>9}  loses {self.loss:g}"


class Tally(NamedTuple):
    """Contracts by their exit code; ``seen``: the first clause's difference is shown to be a loss.

    ``passes_at`` is in points.
    """

    exits_0: Rate
    exits_1: Rate
    seen: Rate
    passes_at: float

    def __str__(self) -> str:
        return (
            f"exit 0 {self.exits_0}  exit 1 {self.exits_1}  seen {self.seen}  "
            f"passes at {self.passes_at:.1f}"
        )


def cells() -> Iterator[Cell]:
    """Unchanged, at the margin and drifted, of every kind and size; and five clauses."""
    for rows, size, loss in itertools.product(ROWS, SIZES, (0.0, MARGIN, DRIFT)):
        yield Cell(rows, size, loss)
    for rows, loss in itertools.product(ROWS, (0.0, DRIFT)):
        yield Cell(rows, SIZES[0], loss, num_clauses=5)


def simulate(cell: Cell, contracts: int, seed: int = 0) -> Tally:
    """Draw contracts, and judge each of them at the default margin."""
    rng = generator(cell, seed)
    judged = [
        [
            _judged(draw(cell.rows, cell.num_items, 0.0 if other else cell.loss, rng))
            for other in range(cell.num_clauses)
        ]
        for _ in range(contracts)
    ]
    verdicts = [worst([clause.verdict for clause in clauses]) for clauses in judged]
    needed = [-min(clause.difference.lower for clause in clauses) for clauses in judged]
    return Tally(
        Rate(verdicts.count("keeps"), contracts),
        Rate(verdicts.count("loses"), contracts),
        Rate(sum(first.difference.upper < 0.0 for first, *_ in judged), contracts),
        float(np.quantile(needed, PASSING)),
    )


def draw(rows: Rows, num_items: int, loss: float, rng: np.random.Generator) -> Pair:
    """A set, asked of the base and of an adapter that loses so many points of it on average."""
    right = rng.beta(rows.alpha, rows.beta, num_items)
    kept = 1.0 - loss / POINTS * (rows.alpha + rows.beta) / rows.alpha
    luck = rng.random((2, num_items))
    luck[1] = np.where(rng.random(num_items) < rows.alike, luck[0], luck[1])
    ids = range(num_items)
    return pair_scores(
        "a simulated set",
        Scores("base", ids, (luck[0] < right).astype(float).tolist()),
        Scores("adapter", ids, (luck[1] < right * kept).astype(float).tolist()),
        higher_is_better=True,
        in_points=True,
    )


def _judged(pair: Pair) -> MeanDifference:
    return judged_mean(TaskGroup("points", ("a clause",), MARGIN), [pair], CONFIDENCE)


def summary(tallies: dict[Cell, Tally]) -> dict[str, Any]:
    """The worst of the errors, and what is found, by the number of items."""
    one = {cell: tally for cell, tally in tallies.items() if cell.num_clauses == 1}
    many = {cell: tally for cell, tally in tallies.items() if cell.num_clauses > 1}

    def by_size(loss: float, read: Any) -> dict[str, dict[str, float]]:
        """Kind of rows -> number of items -> a number."""
        found: dict[str, dict[str, float]] = {rows.name: {} for rows in ROWS}
        for cell, tally in one.items():
            if cell.loss == loss:
                found[cell.rows.name][str(cell.num_items)] = round(read(tally), 3)
        return found

    def upper(of: dict[Cell, Tally], loss: float, code: str) -> float:
        rates = [getattr(tally, code).upper for cell, tally in of.items() if cell.loss == loss]
        return round(max(rates), 4)

    return {
        "margin_points": MARGIN,
        "false_alarms_upper95": upper(one, 0.0, "exits_1"),
        "false_alarms_5_clauses_upper95": upper(many, 0.0, "exits_1"),
        "overlooked_at_the_margin_upper95": upper(one, MARGIN, "exits_0"),
        "unchanged_passes": by_size(0.0, lambda tally: tally.exits_0.share),
        "unchanged_passes_at_points": by_size(0.0, lambda tally: tally.passes_at),
        "drift_of_4_found": by_size(DRIFT, lambda tally: tally.exits_1.share),
        "drift_of_4_seen": by_size(DRIFT, lambda tally: tally.seen.share),
        "drift_of_4_passes": by_size(DRIFT, lambda tally: tally.exits_0.share),
    }


def main() -> None:
    """Simulate every cell, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contracts", type=int, default=1000, help="in each cell")
    asked = parser.parse_args()
    started = time.perf_counter()
    tallies: dict[Cell, Tally] = {}
    for cell in cells():
        tallies[cell] = simulate(cell, asked.contracts)
        print(cell, tallies[cell], sep="  ", file=sys.stderr)
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps(summary(tallies) | {"contracts": asked.contracts, "seconds": seconds}))


if __name__ == "__main__":
    main()
