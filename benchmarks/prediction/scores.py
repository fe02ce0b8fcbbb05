"""A collected study as a table of scores, as people have who trained with other tools.

``python -m benchmarks.prediction.scores local_sciq-160 docs/scores/sciq.csv`` writes the file that
the guide "You have trained already" reads: every rank at one learning rate, and full fine-tuning.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.prediction.collected import CollectedRun, CollectedStudy
from benchmarks.prediction.collection import SHIPPED, read_collection
from rankwise.records.grouping import grouped

COLUMNS: tuple[str, ...] = (
    "id",
    "task",
    "model",
    "seed",
    "learning_rate",
    "alpha",
    "p_right",
    "correct",
)


def table_of(study: CollectedStudy) -> Iterator[dict[str, Any]]:
    """A row an item and model; p(right) is a share, ``correct`` the task's own metric."""
    for items in study.items:
        for place, run in enumerate((None, *study.runs)):
            shares = items.value_of(place) / 100.0
            right = items.right[place] or [""] * len(shares)
            for number, (share, is_right) in enumerate(zip(shares, right, strict=True)):
                yield {
                    "id": f"{items.task}-{number}",
                    "task": items.task,
                    **_model(run),
                    "p_right": round(float(share), 6),
                    "correct": is_right,
                }


def _model(run: CollectedRun | None) -> dict[str, Any]:
    if run is None:
        return {"model": "base"}
    name = "full" if run.rank is None else f"r{run.rank}"
    alpha = None if run.alpha is None else round(run.alpha, 6)
    return {"model": name, "seed": run.seed, "learning_rate": run.learning_rate, "alpha": alpha}


def at_one_rate(study: CollectedStudy) -> CollectedStudy:
    """The runs of each rank at one learning rate: of several, the one in the middle."""
    rates = grouped((run.rank, run.learning_rate or 0.0) for run in study.runs)
    middle = {rank: sorted({*its})[len({*its}) // 2] for rank, its in rates.items()}
    kept = [
        place
        for place, run in enumerate(study.runs)
        if (run.learning_rate or 0.0) == middle[run.rank]
    ]
    models = [0, *(place + 1 for place in kept)]
    return study.model_copy(
        update={
            "runs": tuple(study.runs[place] for place in kept),
            "items": tuple(
                items.model_copy(
                    update={
                        "values": tuple(items.values[model] for model in models),
                        "right": tuple(items.right[model] for model in models),
                    }
                )
                for items in study.items
            ),
        }
    )


def main(name: str, output: str) -> None:
    """Write the table of the collected study whose file begins so."""
    (study,) = [each for each in read_collection(SHIPPED) if each.file_name.startswith(name)]
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(table_of(at_one_rate(study)))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(json.dumps({"file": output, "rows": len(rows)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
