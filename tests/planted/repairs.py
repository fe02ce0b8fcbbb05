"""What the repairs of one adapter scored, with planted gains and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rankwise.records.repair_scores import RepairedItems, RepairScores
from rankwise.records.repairs import AS_IT_IS, Repair
from rankwise.records.results import TaskItems
from rankwise.records.study import Unit
from tests.planted.results import PROVENANCE

OWN, KEPT = "kinship", "capitals"

SCALES = tuple(Repair(family="scale", value=tenths / 10) for tenths in range(10, 0, -1))
"""From the adapter as it is to a tenth of it."""


def planted_scores(
    changes: Mapping[str, Mapping[Repair, float]],
    *,
    num_items: int = 400,
    spread: float = 0.03,
    seed: int = 0,
    unit: Mapping[str, Unit] | None = None,
    clusters: Mapping[str, Sequence[int]] | None = None,
) -> list[RepairScores]:
    """Values around 0.5, to which each repair adds its change, and noise of this spread.

    Args:
        changes: task -> repair -> mean change of the share, ``AS_IT_IS`` first.
        num_items: of each task.
        spread: standard deviation of a change, item by item.
        seed: of the noise.
        unit: of tasks that are not in points.
        clusters: the base's, by task.
    """
    rng = np.random.default_rng(seed)
    scores: list[RepairScores] = []
    for task, by_repair in changes.items():
        assert next(iter(by_repair)) == AS_IT_IS
        base = rng.uniform(0.3, 0.7, num_items)

        def items(values: np.ndarray, task: str = task) -> TaskItems:
            its = (unit or {}).get(task, "points")
            return TaskItems(
                task=task,
                metric="p_right" if its == "points" else "loss_nats",
                unit=its,
                higher_is_better=its == "points",
                doc_ids=tuple(range(num_items)),
                values=tuple(values.tolist()),
            )

        of_base = items(base)
        if clusters is not None:
            of_base = of_base.model_copy(update={"clusters": tuple(clusters[task])})
        scores.append(
            RepairScores(
                fingerprint=f"{task}-{seed}",
                model="adapter",
                task=task,
                base=of_base,
                repaired=tuple(
                    RepairedItems(
                        repair=repair,
                        items=items(base + mean + rng.normal(scale=spread, size=num_items)),
                    )
                    for repair, mean in by_repair.items()
                ),
                score_seconds=1.0,
                provenance=PROVENANCE,
            )
        )
    return scores
