"""How near the least makespan do schedules come, what do failures cost, and how does cost grow?

    python -m benchmarks.schedule [--instances 200] [--runs 10000] [--devices 1000]

- 200 random studies on 1 to 64 cards: ranks 4 to 512, several seeds and tasks, most with full
  fine-tunings. The planner packs and schedules them; its makespan is divided by
  ``schedule.lower_bound``, which no schedule beats. So a ratio of 1 is an optimum, and the
  distance from the optimum is never more than what the ratio says.
- 10,000 adapters on 1,000 cards that fail, 1 % an hour each (``schedule_failures``), as the planner
  packs them for 1,000 cards, and for two and four times as many.
- Tables of one study that grows in one direction at a time, for docs/SCALING.md.

No model, no card: hours follow from the planner's figures of work and from an assumed speed. Tables
go to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.schedule_failures import HOUR, Outcome, Trouble, simulated
from benchmarks.schedule_studies import (
    SHAPES,
    Setting,
    disk_bytes,
    planned,
    random_setting,
    study_of,
)
from rankwise.study.costs import PASS_WORK, TRAINING_WORK
from rankwise.study.planning.schedule import Job, Task, packed

SEED = 24
REPEATS = 5
"""Simulations of the same passes with other failures."""

SAVE_EVERY, NOTICED, REPAIR = 900.0, 60.0, HOUR
"""Seconds: ``train.save_every``; until it is known that a card failed; until it is replaced."""

ONE = Setting(SHAPES["8B"], (8, 32, 128), 3, (5e6, 5e6), 1e6, 5e4, has_full=True)
"""The study that grows: 18 adapters and 6 full fine-tunings of 5 million tokens each."""

ONE_DEVICES = 4


def say(text: str) -> None:
    """A line of a table."""
    print(text, file=sys.stderr, flush=True)


def ratios(number: int) -> list[float]:
    """Makespan over lower bound of random studies."""
    rng, found = random.Random(SEED), list[float]()
    for _ in range(number):
        setting, num_devices = random_setting(rng)
        plan = planned(study_of(setting, num_devices))
        found.append(plan.schedule.makespan / plan.least)
    return found


def with_failures(num_runs: int, num_devices: int) -> dict[str, Any]:
    """What failures do to many runs, by how many passes a device gets."""
    rng, shape = random.Random(SEED), SHAPES["8B"]
    works = [1e7 * 10 ** rng.random() * TRAINING_WORK["lora"] + 1e6 for _ in range(num_runs)]
    adapters = [Job(f"a{number}", work) for number, work in enumerate(works)]
    found: dict[str, Any] = {}
    say("\n| passes a card | passes | hours without failures | hours | lost | of all | failures |")
    say("|---:|---:|---:|---:|---:|---:|---:|")
    for times in (1, 2, 4):
        task = Task(adapters, [], times * num_devices, PASS_WORK["cuda"])
        passes = packed(task, lambda *_: True)
        seconds = [sum(works[place] for place in each) / shape.scored_per_second for each in passes]
        load = PASS_WORK["cuda"] / shape.scored_per_second
        calm = simulated(seconds, num_devices, Trouble(0.0, REPAIR, NOTICED, SAVE_EVERY, load))
        trouble = Trouble(0.01, REPAIR, NOTICED, SAVE_EVERY, load)
        outcomes = [simulated(seconds, num_devices, trouble, rng) for _ in range(REPEATS)]
        found[f"{times}_passes_per_device"] = row = _in_hours(len(passes), calm, outcomes)
        say(
            f"| {times} | {row['num_passes']:,} | {row['makespan_hours_without_failures']:.1f} | "
            f"{row['makespan_hours']:.1f} | {row['lost_device_hours']:.1f} | "
            f"{row['lost_share']:.2%} | {row['num_failures']:.0f} |"
        )
    return found


def _in_hours(num_passes: int, calm: Outcome, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means over simulations."""
    lost, worked = (
        statistics.fmean(values)
        for values in zip(*((o.lost, o.worked) for o in outcomes), strict=True)
    )
    return {
        "num_passes": num_passes,
        "makespan_hours_without_failures": calm.makespan / HOUR,
        "makespan_hours": statistics.fmean(outcome.makespan for outcome in outcomes) / HOUR,
        "lost_device_hours": lost / HOUR,
        "lost_share": lost / worked,
        "num_failures": statistics.fmean(outcome.num_failures for outcome in outcomes),
    }


def growth() -> None:
    """How the cost of one study grows, a table for each direction."""
    tables: dict[str, list[tuple[str, Setting, int]]] = {
        "ranks": [
            (f"{', '.join(map(str, ranks))}", ONE._replace(ranks=ranks), ONE_DEVICES)
            for ranks in (
                (8,),
                (8, 32),
                ONE.ranks,
                (8, 16, 32, 64, 128),
                (8, 16, 32, 64, 128, 256, 512),
            )
        ],
        "seeds": [(str(n), ONE._replace(seeds=n), ONE_DEVICES) for n in (1, 2, 3, 5, 10)],
        "tasks": [
            (str(n), ONE._replace(trained_tokens=(5e6,) * n), ONE_DEVICES) for n in (1, 2, 4, 8)
        ],
        "model": [(name, ONE._replace(shape=shape), ONE_DEVICES) for name, shape in SHAPES.items()],
        "cards": [(str(n), ONE, n) for n in (1, 2, 4, 8, 16, 32, 64)],
    }
    for name, rows in tables.items():
        say(f"\n| {name} | runs | passes | hours | at best | card-hours | at work | disk |")
        say("|---:|---:|---:|---:|---:|---:|---:|---:|")
        for label, setting, num_devices in rows:
            say(f"| {label} | {_grown(setting, num_devices)} |")


def _grown(setting: Setting, num_devices: int) -> str:
    study = study_of(setting, num_devices)
    plan = planned(study)
    a_second = setting.shape.scored_per_second
    makespan, held = plan.schedule.makespan, plan.schedule.held
    num_full = len(setting.trained_tokens) * setting.seeds * setting.has_full
    work = sum(slot.job.work for slot in plan.schedule.slots)
    hours = (value / a_second / HOUR for value in (makespan, plan.least, held))
    cells = [
        str(len(study.ranks) + num_full),
        f"{len(plan.passes)} + {num_full}",
        *(f"{value:.2f}" for value in hours),
        f"{work / (num_devices * makespan):.0%}",
        f"{disk_bytes(study, plan) / 1e9:.0f} GB",
    ]
    return " | ".join(cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Say all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=1_000)
    options = parser.parse_args(arguments)
    found = ratios(options.instances)
    growth()
    failures = with_failures(options.runs, options.devices)
    summary = {
        "makespan_over_bound_median": round(statistics.median(found), 4),
        "makespan_over_bound_max": round(max(found), 4),
        "optimal_share": sum(ratio < 1 + 1e-6 for ratio in found) / len(found),
        "instances": len(found),
        "runs": options.runs,
        "devices": options.devices,
        "failures_per_device_hour": 0.01,
        "with_failures": failures,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
