"""Published rank curves as domains of their own, for predictors of the best rank.

What each column means, and what the curves cannot tell, is in docs/studies/prediction.md.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.prediction.curves import Question, RankCurve
from benchmarks.search_curves import read_curves

GLUE_RUNS, TINKER_RUNS = "lora-rank-scaling-glue.csv", "tinker-sft-sweep.csv"


def glue_curves(path: Path) -> Iterator[RankCurve]:
    """One for each encoder, task and number of rows: test accuracy in points, by seed."""
    parameters = _glue_parameters(path)
    for curve in read_curves(path):
        model, task, rows = curve.name.split()
        features = {
            "train_rows": float(rows),
            "rank_parameters": parameters[model],
        }
        gain = curve.accuracy[:, None, :]
        yield RankCurve(curve.name, task, Question(features, curve.ranks), {"gain": (gain,)})


def _glue_parameters(path: Path) -> dict[str, float]:
    """Model -> trained parameters that a further rank adds; the classifier's are in each count."""
    found: dict[str, dict[int, int]] = defaultdict(dict)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["model"]][int(row["rank"])] = int(row["trainable_params"])
    return {model: (of[max(of)] - of[min(of)]) / (max(of) - min(of)) for model, of in found.items()}


def tinker_curves(path: Path) -> Iterator[RankCurve]:
    """One for each model: less its test loss in nats, the best over the rates of all its ranks."""
    losses: dict[str, dict[int, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rate, loss = float(row["learning_rate"]), float(row["test_nll"])
            losses[row["model"]][int(row["rank"])][rate] = loss
    for model, by_rank in sorted(losses.items()):
        ranks = tuple(sorted(by_rank))
        shared = set.intersection(*(set(by_rank[rank]) for rank in ranks))
        if len(ranks) > 1 and shared:
            best = [min(by_rank[rank][rate] for rate in shared) for rank in ranks]
            gain = -np.array(best)[None, None, :]
            organisation = model.partition("/")[0]
            yield RankCurve(model, organisation, Question({}, ranks), {"gain": (gain,)})


def domains(folder: Path) -> dict[str, tuple[str, Iterable[RankCurve]]]:
    """Name -> unit and curves; of those whose files are there."""
    readers = {
        "GLUE": ("points", GLUE_RUNS, glue_curves),
        "tinker": ("nats", TINKER_RUNS, tinker_curves),
    }
    return {
        name: (unit, tuple(read(folder / file)))
        for name, (unit, file, read) in readers.items()
        if (folder / file).exists()
    }
