"""Studies as the planner of several devices sees them: work, memory and disk, without a model.

Work is in scored tokens and by the planner's own figures; a model is its size and shape. Speeds are
assumed (``needs.assumed_rate``), so hours say how cost grows rather than what a card takes.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rankwise.study.costs import PASS_WORK, TRAINING_WORK
from rankwise.study.needs import assumed_rate
from rankwise.study.planning.schedule import Job, Schedule, Task, lower_bound, packed, scheduled

CARD_BYTES = 80e9 * 0.85
"""Of a card, what passes are planned for."""

TOKENS_IN_MEMORY = 8192
"""Of a micro-batch for which the planner keeps room on a card."""

ACTIVATION_BYTES = 36
"""Kept per token, layer and hidden unit without recomputing; a sixteenth where layers recompute."""

STATE_BYTES, ADAPTER_BYTES, ANSWER_BYTES = 18, 4, 8
"""Of a trained weight in memory and on disk, and of a scored token on disk."""

BASE = "base"


class Shape(NamedTuple):
    """Of a base model."""

    num_parameters: float
    hidden: int
    layers: int

    @property
    def scored_per_second(self) -> float:
        """Tokens that a card is assumed to score."""
        return assumed_rate(round(self.num_parameters)) * TRAINING_WORK["lora"]

    def trained(self, rank: int) -> int:
        """Weights of an adapter on q, k, v and o, all taken for square."""
        return 8 * rank * self.hidden * self.layers

    @property
    def room(self) -> float:
        """Bytes that a pass has for its adapters."""
        free = CARD_BYTES - 2 * self.num_parameters
        kept = ACTIVATION_BYTES * TOKENS_IN_MEMORY * self.hidden * self.layers
        return free - (kept if kept < free / 2 else kept / 16)


SHAPES = {
    "0.5B": Shape(0.5e9, 896, 24),
    "1.5B": Shape(1.5e9, 1536, 28),
    "3B": Shape(3.1e9, 2048, 36),
    "8B": Shape(8.0e9, 4096, 32),
}


class Setting(NamedTuple):
    """A study: every rank and, where it is asked for, full fine-tuning, by task and seed.

    Attributes:
        shape: of the base.
        ranks: of LoRA.
        seeds: how many.
        trained_tokens: that a run of each task reads.
        scored_tokens: that each model answers.
        compared_tokens: of the right answers on which runs are compared with full fine-tuning.
        has_full: whether there are full fine-tunings.
    """

    shape: Shape
    ranks: tuple[int, ...]
    seeds: int
    trained_tokens: tuple[float, ...]
    scored_tokens: float
    compared_tokens: float
    has_full: bool


class Study(NamedTuple):
    """The task of a setting, and the rank of each adapter in its order."""

    task: Task
    ranks: tuple[int, ...]
    setting: Setting

    @property
    def has_room(self) -> Callable[[Sequence[int], int], bool]:
        """Whether a pass has memory for one more adapter."""
        shape = self.setting.shape
        sizes = [STATE_BYTES * shape.trained(rank) for rank in self.ranks]
        return lambda group, place: sum(map(sizes.__getitem__, (*group, place))) <= shape.room


def study_of(setting: Setting, num_devices: int) -> Study:
    """What a study of this setting has to do on so many cards."""
    adapters, ranks = list[Job](), list[int]()
    alone = [Job(BASE, setting.scored_tokens)]
    for number, tokens in enumerate(setting.trained_tokens):
        names: list[str] = []
        for seed in range(setting.seeds):
            loras = [f"r{rank} {number} {seed}" for rank in setting.ranks]
            trained = tokens * TRAINING_WORK["lora"]
            adapters += [
                Job(name, trained + setting.scored_tokens, (BASE,), trained) for name in loras
            ]
            ranks += setting.ranks
            names += loras
            if setting.has_full:
                full = f"full {number} {seed}"
                trained = PASS_WORK["cuda"] + tokens * TRAINING_WORK["full"]
                alone.append(Job(full, trained + setting.scored_tokens, (BASE,), trained))
                compared = 2 * setting.compared_tokens * (len(loras) + 1)
                alone.append(Job(f"divergence from {full}", compared, (full, *loras)))
                names.append(full)
        heads = setting.compared_tokens / 10 * (len(names) + 1)
        alone.append(Job(f"heads {number}", heads, tuple(names)))
    return Study(Task(adapters, alone, num_devices, PASS_WORK["cuda"]), tuple(ranks), setting)


class Planned(NamedTuple):
    """A study with its schedule."""

    passes: list[list[int]]
    schedule: Schedule
    least: float


def planned(study: Study) -> Planned:
    """Pack and schedule a study."""
    passes = packed(study.task, study.has_room)
    named = {f"pass {number}": places for number, places in enumerate(passes)}
    made = scheduled(study.task.jobs(named), study.task.num_devices)
    return Planned(passes, made, lower_bound(study.task))


def random_setting(rng: random.Random) -> tuple[Setting, int]:
    """A study of some size, and some number of devices, 1 to 64."""
    ranks = sorted(rng.sample([4, 8, 16, 32, 64, 128, 256, 512], rng.randint(2, 8)))
    setting = Setting(
        shape=SHAPES[rng.choice(list(SHAPES))],
        ranks=tuple(ranks),
        seeds=rng.randint(1, 5),
        trained_tokens=tuple(_log_uniform(rng, 2e5, 2e7) for _ in range(rng.randint(1, 5))),
        scored_tokens=_log_uniform(rng, 1e5, 5e6),
        compared_tokens=_log_uniform(rng, 1e4, 5e5),
        has_full=rng.random() < 0.7,
    )
    return setting, round(_log_uniform(rng, 1, 64))


def disk_bytes(study: Study, plan: Planned) -> float:
    """What stays, and the saved states of as many passes as are trained at once."""
    shape, setting = study.setting.shape, study.setting
    weights = [shape.trained(rank) for rank in study.ranks]
    num_full = len(setting.trained_tokens) * setting.seeds * setting.has_full
    stay = ADAPTER_BYTES * sum(weights) + 2 * shape.num_parameters * num_full
    stay += ANSWER_BYTES * setting.scored_tokens * (1 + len(weights) + num_full)
    states = [
        3
        * ADAPTER_BYTES
        * (sum(weights[place] for place in each) + max(map(weights.__getitem__, each)))
        for each in plan.passes
    ]
    states += [2 * 4 * shape.num_parameters] * num_full
    return stay + sum(heapq.nlargest(study.task.num_devices, states))


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return low * (high / low) ** rng.random()
