"""How often a repair is said to keep enough where it truly does not."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from benchmarks.decision_studies import Family, Rate, Truth, draw_study, generator
from rankwise.findings.repairs import RepairTasks, choose_repair
from rankwise.findings.stats.items import Floats, Items
from rankwise.records.provenance import collect_provenance
from rankwise.records.repair_scores import RepairedItems, RepairScores
from rankwise.records.repairs import Repair
from rankwise.records.results import TaskItems
from rankwise.records.study import Provenance

LIMIT = 3.0  # points
GAIN = 10.0
REPAIRS = tuple(
    Repair(family=family, value=round(1.0 - step / 10.0, 1))
    for family in ("scale", "lines")
    for step in range(10)
    if family == "scale" or step
)
"""From the adapter as it is, every family towards the base."""

TASKS = RepairTasks(("own",), ("kept 1", "kept 2", "kept 3"))


class RepairCell(NamedTuple):
    """An adapter whose repairs truly lose a little too much: all of them, or the weaker half."""

    name: str
    num_items: int
    copies: int

    def __str__(self) -> str:
        return f"repairs, {self.name:12} n={self.num_items:<5} copies={self.copies}"


class RepairTally(NamedTuple):
    """A repair that loses too much is said to keep enough; any repair is."""

    wrong: Rate
    found: Rate

    def __str__(self) -> str:
        return f"wrong {self.wrong} (at most {self.wrong.upper:.3f}) found {self.found}"


def repair_cells() -> list[RepairCell]:
    """Single items, and items that are asked five times."""
    return [
        RepairCell(name, size, copies)
        for name in ("all beyond", "half beyond")
        for size in (100, 300)
        for copies in (1, 5)
    ]


def simulate_repairs(cell: RepairCell, studies: int, seed: int) -> RepairTally:
    """Every repair gains ten points."""
    rng, count = generator(cell, seed), len(REPAIRS)
    family = Family(
        "repairs", run_sd=(0.0, 0.0), copies=cell.copies, retention=(1.0,) * len(TASKS.retention)
    )
    strong = np.array(
        [cell.name == "half beyond" and (each.value or 0.0) < 0.5 for each in REPAIRS]
    )
    loss = np.where(strong, 0.0, 1.002 * LIMIT)
    truth = Truth(np.full(count, GAIN), np.tile(loss, (len(TASKS.retention), 1)))
    wrong = found = 0
    for _ in range(studies):
        study = draw_study(family, truth, cell.num_items, 1, rng)
        gains = [*study.gains, *(part._replace(values=-part.values) for part in study.losses)]
        names = (*TASKS.in_domain, *TASKS.retention)
        scores = [_scores(name, part) for name, part in zip(names, gains, strict=True)]
        repair = choose_repair(scores, TASKS, max_loss_points=LIMIT, confidence=0.95).repair
        found += repair is not None
        wrong += repair is not None and not strong[REPAIRS.index(repair)]
    return RepairTally(Rate(wrong, studies), Rate(found, studies))


@functools.cache
def _provenance() -> Provenance:
    return collect_provenance()


def _scores(task: str, part: Items) -> RepairScores:
    """The base is right where a repair forgets; where none changes, it does not matter."""
    changes: Floats = part.values[0] / 100.0
    base = (changes.min(axis=0) < 0.0).astype(np.float64)

    def items(values: Floats) -> TaskItems:
        return TaskItems(
            task=task,
            metric="acc",
            unit="points",
            higher_is_better=True,
            doc_ids=tuple(range(len(values))),
            values=tuple(values.tolist()),
            clusters=None if part.clusters is None else tuple(part.clusters.tolist()),
        )

    return RepairScores(
        fingerprint="",
        model="adapter",
        task=task,
        base=items(base),
        repaired=tuple(
            RepairedItems(repair=repair, items=items(base + change))
            for repair, change in zip(REPAIRS, changes, strict=True)
        ),
        score_seconds=0.0,
        provenance=_provenance(),
    )
