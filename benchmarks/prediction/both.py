"""What the collection says of rank, and whether a second model shows it: the table of both.

    python -m benchmarks.prediction.both

Of the three data sets that both models were trained on (160 rows, two seeds). Differences are means
over the seeds, paired by item, with intervals of 95 % over items: they are of these two seeds, for
one of other seeds would be up to 50 points wide. Prose, norms and directions are means too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.prediction.collected import (
    CollectedItems,
    CollectedRun,
    CollectedStudy,
    data_set_of,
)
from benchmarks.prediction.collection import SECOND, SHIPPED, read_collection
from benchmarks.prediction.pages import NAMES
from benchmarks.prediction.second import RANKS
from benchmarks.prediction.table import signed
from benchmarks.prediction.train import RULE
from rankwise.findings.model_card import markdown_table
from rankwise.findings.stats.estimates import Estimate, mean_over_tasks
from rankwise.findings.stats.items import Floats, Items, item_size
from rankwise.records.study import Relation

SMALL, LARGE = RANKS[0], RANKS[-1]
ROWS = 160
FULL = None
"""The rank of full fine-tuning."""


def pairs() -> dict[str, tuple[CollectedStudy, CollectedStudy]]:
    """Data set -> its study of either model, of all data sets that both were trained on."""
    first, second = (
        {data_set_of(each.task): each for each in read_collection(of) if is_of_design(each)}
        for of in (SHIPPED, SECOND)
    )
    return {name: (first[name], second[name]) for name in NAMES if name in second}


def is_of_design(study: CollectedStudy) -> bool:
    """Whether its rows are as many as the second model's."""
    return study.training.num_rows == ROWS


def places(study: CollectedStudy, rank: int | None) -> list[int]:
    """Those of a rank's runs at the rule's rate, or of full fine-tuning's, by seed."""
    rate = None if rank is None else RULE.rate_of(rank)
    return [
        place
        for place, run in enumerate(study.runs, 1)
        if run.rank == rank and rate in (None, run.learning_rate)
    ]


def lead(study: CollectedStudy, relation: Relation, rank: int | None, over: int | None) -> Estimate:
    """In points, the mean over the tasks of a relation; positive where ``rank`` is better."""

    def gains(rank: int | None, items: CollectedItems) -> Floats:
        return np.mean([items.gain_of(place) for place in places(study, rank)], axis=0)

    leads = [gains(rank, items) - gains(over, items) for items in study.items_of(relation)]
    parts = [Items(values, item_size(values, in_points=True)) for values in leads]
    return mean_over_tasks(parts)


def mean(study: CollectedStudy, rank: int | None, of: Callable[[CollectedRun], float]) -> float:
    """Over the seeds."""
    return statistics.fmean(of(study.runs[place - 1]) for place in places(study, rank))


def prose(run: CollectedRun) -> float:
    """The rise of its loss, in nats."""
    assert run.held_out_text is not None
    return -run.held_out_text.estimate


def tables() -> Iterator[str]:
    """The lines of the table: a statement in each block, a data set and model in each cell."""

    def shown(found: Estimate) -> str:
        lower, upper = found.interval(0.95)
        return f"{signed(found.value)} ({signed(lower)} to {signed(upper)})"

    def nats(study: CollectedStudy) -> str:
        small, large, full = (mean(study, rank, prose) for rank in (SMALL, LARGE, FULL))
        return ", ".join(signed(value, 2) for value in (small, large, full))

    def norms(study: CollectedStudy) -> str:
        of = [mean(study, r, lambda run: run.update_norm or 0.0) for r in (SMALL, LARGE, FULL)]
        return ", ".join(f"{value:.1f}" for value in of)

    def directions(study: CollectedStudy) -> str:
        return f"{mean(study, LARGE, lambda run: run.energy_rank_90 or 0.0):.1f}"

    def intruders(study: CollectedStudy) -> str:
        return f"{max(run.intruders or 0.0 for run in study.runs):.1f}"

    large, small = f"rank {LARGE}", f"rank {SMALL}"
    rows: dict[str, Callable[[CollectedStudy], str]] = {
        f"gain, {large} minus {small}": lambda s: shown(lead(s, "in_domain", LARGE, SMALL)),
        f"retention, {large} minus {small}": lambda s: shown(lead(s, "retention", LARGE, SMALL)),
        f"gain, full minus {large}": lambda s: shown(lead(s, "in_domain", FULL, LARGE)),
        f"retention, full minus {large}": lambda s: shown(lead(s, "retention", FULL, LARGE)),
        f"loss on prose, nats: {small}, {LARGE}, full": nats,
        f"norm of the update: {small}, {LARGE}, full": norms,
        f"directions (90 % energy), {large}": directions,
        "intruders a matrix, at most": intruders,
    }
    found = pairs()
    heads = ["", *(f"{NAMES[name]}, {model}" for name in found for model in ("SmolLM2", "Gemma"))]
    studies = [study for pair in found.values() for study in pair]
    yield from markdown_table(heads, [[text, *map(of, studies)] for text, of in rows.items()])


if __name__ == "__main__":
    print(*tables(), sep="\n")
