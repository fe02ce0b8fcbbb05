"""Rank curves of synthetic studies: the best rank follows a feature, or nothing does."""

from __future__ import annotations

import numpy as np

from rankwise.prediction.curves import Part, Question, RankCurve

RANKS = (2, 4, 8, 16, 32, 64)
NUM_TASKS, PER_TASK, NUM_SEEDS, NUM_ITEMS = 10, 2, 2, 200


def planted_curve(
    name: str, task: str, best: float, base_accuracy: float, rng: np.random.Generator
) -> RankCurve:
    """A gain that falls by 3 points for each doubling away from ``best``, squared.

    Items have a standard deviation of 30 points that all ranks share, and of 10 of their own. Every
    doubling of the rank loses half a point of retention.
    """
    train_rows = float(2.0 ** rng.uniform(np.log2(50), np.log2(1000)))
    shape = 20.0 - 3.0 * (np.log2(RANKS) - np.log2(best)) ** 2
    shared = rng.normal(0.0, 30.0, (1, NUM_ITEMS, 1))
    items = shape + shared + rng.normal(0.0, 10.0, (NUM_SEEDS, NUM_ITEMS, len(RANKS)))
    lost = -0.5 * np.log2(RANKS) + rng.normal(0.0, 2.0, (NUM_SEEDS, NUM_ITEMS, len(RANKS)))
    parts: dict[Part, tuple[np.ndarray, ...]] = {"gain": (items,), "retention": (lost,)}
    features = {
        "train_rows": train_rows,
        "train_tokens": 50.0 * train_rows,
        "train_steps": train_rows / 4,
        "train_epochs": 1.0,
        "parameters_per_rank": 100_000.0,
        "base_accuracy": base_accuracy,
    }
    return RankCurve(name, task, Question(features, RANKS), parts)


def planted_curves(rule: bool, seed: int = 0) -> list[RankCurve]:
    """Studies whose best rank follows the base's accuracy with ``rule``, else is drawn by lot.

    It goes from 2 at an accuracy of 0.3 to 64 at 0.8.
    """
    rng = np.random.default_rng(seed)
    found = list[RankCurve]()
    for task in range(NUM_TASKS):
        for each in range(PER_TASK):
            accuracy, lot = rng.uniform(0.3, 0.8, 2)
            best = 2.0 ** (1.0 + 5.0 * ((accuracy if rule else lot) - 0.3) / 0.5)
            found.append(planted_curve(f"{task}-{each}", f"task-{task}", best, accuracy, rng))
    return found
