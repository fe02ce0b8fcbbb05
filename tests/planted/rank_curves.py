"""Rank curves of synthetic studies: the best rank follows a feature, or nothing does."""

from __future__ import annotations

import numpy as np

from benchmarks.prediction.collected import (
    CollectedItems,
    CollectedModel,
    CollectedRun,
    CollectedStudy,
    CollectedTraining,
    in_thousandths,
)
from benchmarks.prediction.curves import Part, Question, RankCurve
from rankwise.records.study import Relation

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
        "train_loss_tokens": 5.0 * train_rows,
        "train_steps": train_rows / 4,
        "rank_parameters": 100_000.0,
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


def collected(curve: RankCurve, rate: float = 2e-4) -> CollectedStudy:
    """A study with the items of a planted curve; every run has this rate, and alpha 2r."""
    runs, values = list[CollectedRun](), dict[str, list[str]]()
    tasks: dict[Part, tuple[str, Relation]] = {
        "gain": (curve.task, "in_domain"),
        "retention": ("capitals", "retention"),
    }
    for part, (task, _) in tasks.items():
        (array,) = curve.parts[part]
        values[task] = [in_thousandths([0.5] * NUM_ITEMS)]
        values[task] += [
            in_thousandths((0.5 + array[seed, :, place] / 100).tolist())
            for place in range(len(RANKS))
            for seed in range(NUM_SEEDS)
        ]
    for rank in RANKS:
        for seed in range(NUM_SEEDS):
            runs.append(_run(rank, rate, seed))
    return CollectedStudy(
        task=curve.task,
        source=curve.name * 8,
        base_model=CollectedModel(
            name="base", fingerprint="b" * 64, num_parameters=1000, parameters_per_rank=10
        ),
        training=CollectedTraining(
            num_rows=100, num_tokens=5000, num_steps=25, epochs=1, rows_per_step=4,
            target_modules=("q_proj",),
        ),
        features=curve.question.features,
        base_scores={},
        runs=tuple(runs),
        items=tuple(
            CollectedItems(
                task=task, relation=relation, unit="points", higher_is_better=True,
                values=tuple(values[task]), right=("",) * (len(runs) + 1),
            )
            for task, relation in tasks.values()
        ),
    )  # fmt: skip


def _run(rank: int, rate: float, seed: int) -> CollectedRun:
    return CollectedRun(
        method="lora", rank=rank, alpha=2.0 * rank, learning_rate=rate, seed=seed,
        status="trained", gain=None, retention=None, held_out_text=None, tasks={},
        losses_nats=(), energy_rank_90=None, intruders=None, update_norm=None,
    )  # fmt: skip
