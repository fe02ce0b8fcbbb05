"""A person's labels beside a judge: are the bounds honest, and what are the labels worth?

    python -m benchmarks.labels [--repeats 2000] [--items 300] [--labels 50]

Two models answer the same items; the second is right on 20 points more of them. A judge agrees with
a person on 70 to 95 % of all answers. *Alike*: it errs at random, equally on both models.
*Flattered*: it takes wrong answers of the second model alone for right ones. Intervals are those of
a study (``paired_test``, 95 %). Three ways to judge the same answers: the judge's numbers alone,
these corrected by a person's labels of some items, and the labels of these items without a judge.

The last line of output is one JSON object: ``lowest_coverage`` of the corrected intervals over all
settings, ``coverage_of_the_judge_alone`` where it is lowest, and ``width_ratio``, the corrected
intervals' mean width over that of the labels alone, by agreement where the judge errs alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.findings.pairs import Pair, paired_test
from rankwise.records.results import TaskItems
from rankwise.study.labels import corrected

AGREEMENTS = (0.7, 0.8, 0.9, 0.95)
SHARES_RIGHT = (0.4, 0.6)
"""Of the items, what each model has right."""

Values = NDArray[np.float64]


def judged_wrongly(
    rng: np.random.Generator, right: NDArray[np.bool_], agreement: float, *, flatters: bool
) -> Values:
    """(2, N) what the judge says of both models' answers.

    Where it flatters, it disagrees as often over both models' answers together, on wrong answers of
    the second model alone; there are too few of them for an agreement below 0.8.
    """
    if not flatters:
        return (right ^ (rng.random(right.shape) > agreement)).astype(np.float64)
    share = min(2.0 * (1.0 - agreement) / (1.0 - SHARES_RIGHT[1]), 1.0)
    judged = right.copy()
    judged[1] |= rng.random(right.shape[1]) < share
    return judged.astype(np.float64)


def items(values: Values) -> TaskItems:
    """Items in the form of a study."""
    return TaskItems(
        task="judged",
        metric="score",
        unit="points",
        higher_is_better=True,
        doc_ids=tuple(range(len(values))),
        values=tuple(map(float, values)),
    )


def interval(values: Values, num_labelled: int | None = None) -> tuple[float, float]:
    """The bounds of the second model's lead in points; ``values`` are (2, N)."""
    base, adapted = values * 100.0
    pair = Pair(base, adapted, 1.0, in_points=True, num_labelled=num_labelled)
    difference = paired_test(pair, 0.95).difference
    return difference.lower, difference.upper


def simulated(options: argparse.Namespace, agreement: float, *, flatters: bool) -> dict[str, Any]:
    """Coverage and mean width, in points, of the three ways."""
    rng = np.random.default_rng([int(100 * agreement), flatters])
    truth = 100.0 * (SHARES_RIGHT[1] - SHARES_RIGHT[0])
    bounds: dict[str, list[tuple[float, float]]] = {"judge": [], "corrected": [], "labels": []}
    for _ in range(options.repeats):
        right = rng.random((2, options.items)) < np.asarray(SHARES_RIGHT)[:, None]
        judged = judged_wrongly(rng, right, agreement, flatters=flatters)
        drawn = rng.choice(options.items, options.labels, replace=False)
        both = [
            corrected(items(judged[model]), {int(n): float(right[model, n]) for n in drawn}).values
            for model in range(2)
        ]
        bounds["judge"].append(interval(judged))
        bounds["corrected"].append(interval(np.asarray(both), options.labels))
        bounds["labels"].append(interval(right[:, drawn].astype(np.float64)))
    return {
        way: {
            "coverage": float(np.mean([low <= truth <= high for low, high in its])),
            "width": float(np.mean([high - low for low, high in its])),
        }
        for way, its in bounds.items()
    }


def main() -> None:
    """Simulate every setting."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--labels", type=int, default=50)
    options = parser.parse_args()
    found: dict[tuple[float, bool], Mapping[str, Any]] = {}
    for flatters in (False, True):
        for agreement in AGREEMENTS[1:] if flatters else AGREEMENTS:
            its = found[agreement, flatters] = simulated(options, agreement, flatters=flatters)
            texts = (f"{w}: {v['coverage']:.3f}, {v['width']:.1f} points" for w, v in its.items())
            print(f"{'flattered' if flatters else 'alike'}, {agreement:.2f}: {'; '.join(texts)}")
    lowest = min(its["corrected"]["coverage"] for its in found.values())
    alone = min(its["judge"]["coverage"] for its in found.values())
    ratios = {
        str(agreement): round(its["corrected"]["width"] / its["labels"]["width"], 3)
        for (agreement, flatters), its in found.items()
        if not flatters
    }
    result = {"lowest_coverage": lowest, "coverage_of_the_judge_alone": alone}
    print(json.dumps(result | {"width_ratio": ratios}))


if __name__ == "__main__":
    main()
