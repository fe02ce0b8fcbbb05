"""Studies with planted answers, written out as tables of scores."""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.records.results import StudyResults

Row = dict[str, Any]


def name_of(rank: int | None, seed: int | None) -> str:
    return f"{'full' if rank is None else f'r{rank}'}_s{seed}"


def long_table(
    results: StudyResults, documents: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
) -> list[Row]:
    """A row an item and model, in no order; ``documents`` describe the items of a task."""
    rows: list[Row] = []
    for model in (results.base, *results.runs):
        plan = model.run and model.run.planned
        name = "base" if plan is None else name_of(plan.rank, plan.seed)
        for task, items in model.items.items():
            for number, value in zip(items.doc_ids, items.values, strict=True):
                score = {"loss_nats": value} if items.unit == "nats" else {"acc": value}
                described = (documents or {}).get(task, [{}] * len(items.doc_ids))[number]
                row = {"id": f"q{number:04}", "task": task, "model": name, **score, **described}
                rows.append(row)
    random.Random(0).shuffle(rows)
    return rows


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def scores(**by_model: Sequence[float]) -> list[Row]:
    """One task's scores of each model, by the order of its items."""
    return [
        {"id": f"q{number}", "model": model, "acc": value}
        for model, values in by_model.items()
        for number, value in enumerate(values)
    ]
