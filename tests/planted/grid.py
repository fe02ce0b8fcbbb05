"""Studies with several trained tasks, axes beside rank, groups and domains; answers planted."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rankwise.records.config.methods import FullConfig, LoraConfig, MethodsConfig
from rankwise.records.config.study import BaseModelConfig, RecommendationConfig, StudyConfig
from rankwise.records.config.training import TrainConfig
from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.study import Imported, PlannedRun, Relation, StudyRecord
from tests.planted.results import (
    BASE_FINGERPRINT,
    PROVENANCE,
    planted_evaluation,
    planted_items,
    planted_run_record,
    task_fingerprint,
)

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

Relations = dict[Relation, tuple[str, ...]]


def grid_run(
    train_task: str,
    rank: int | None,
    *,
    alpha_labels: tuple[str, ...] = ("2r",),
    rate_labels: tuple[str, ...] = ("2e-4",),
    target_modules: tuple[str, ...] = ATTENTION,
    epochs: int = 2,
    seed: int = 0,
) -> PlannedRun:
    """One planned run; rank None is full fine-tuning, which has neither alpha nor modules."""
    number = alpha_labels[0].removesuffix("r")
    alpha = None if rank is None else float(number) * (rank if number != alpha_labels[0] else 1)
    identity = f"{train_task} {rank} {alpha} {rate_labels} {target_modules} {epochs} {seed}"
    digest = f"{zlib.crc32(identity.encode()):08x}" * 8
    parameters = 135_000_000 if rank is None else 115_200 * rank
    return PlannedRun(
        name=f"{train_task}-{'full' if rank is None else f'lora-r{rank:03d}'}-s{seed}-{digest[:8]}",
        fingerprint=digest,
        method="full" if rank is None else "lora",
        train_task=train_task,
        rank=rank,
        alpha=alpha,
        alpha_labels=() if rank is None else alpha_labels,
        scaling=None if rank is None or alpha is None else alpha / rank,
        learning_rate=float(rate_labels[0].split()[0]),
        rate_labels=rate_labels,
        epochs=epochs,
        target_modules=() if rank is None else target_modules,
        seed=seed,
        num_steps=60,
        num_examples=480,
        num_tokens=24_000,
        num_trainable_parameters=parameters,
        trainable_share=parameters / 135_000_000,
        estimated_memory_bytes=2_000_000_000,
    )


def imported(label: str) -> Imported:
    """A model from elsewhere."""
    return Imported(label=label, folder=Path("elsewhere") / label)


def planted_grid(
    plans: Sequence[PlannedRun],
    tasks: Mapping[str, Relations],
    score: Callable[[PlannedRun | None, str], float],
    *,
    sizes: Mapping[str, int] | int = 200,
    groups: Mapping[str, tuple[str, ...]] | None = None,
    domains: Mapping[str, str] | None = None,
    noise: float = 0.0,
    diverged: Sequence[str] = (),
    recommendation: RecommendationConfig | None = None,
) -> StudyResults:
    """A finished study of these runs, its items made as those of ``planted_study``.

    Plans that come to one run (alpha 2r and 16 at rank 8) are one, under both labels.

    Args:
        plans: every run, of every trained task.
        tasks: of each trained task, by their relation to it.
        score: a run's share of right items on a task; of the base, if the run is None.
        sizes: of each task, or of all.
        groups: the leaves of each group of tasks.
        domains: of the tasks that have one.
        noise: 0 plants nested items: what a worse model gets right, a better one does as well.
        diverged: the names of runs without evaluations.
        recommendation: margins and confidence.
    """

    plans = _each_once(plans)

    def model(plan: PlannedRun | None) -> ModelResults:
        name = "base" if plan is None else plan.name
        run = None if plan is None else planted_run_record(plan, plan.name in diverged)
        sources = tasks if plan is None else (plan.train_task,)
        scored = {task: None for s in sources for names in tasks[s].values() for task in names}
        if run is not None and run.status == "diverged":
            scored = {}
        items = {
            task: planted_items(
                task,
                name,
                score(plan, task),
                sizes if isinstance(sizes, int) else sizes[task],
                nats=False,
                noise=noise,
            )
            for task in scored
        }
        return ModelResults(
            name=name,
            run=run,
            evaluations={task: planted_evaluation(name, i, run) for task, i in items.items()},
            items=items,
        )

    every = {task for each in tasks.values() for names in each.values() for task in names}
    study = StudyRecord(
        num_parameters=0,
        fingerprint="f" * 64,
        config=_config(plans, tuple(tasks), recommendation or RecommendationConfig()),
        base_model_fingerprint=BASE_FINGERPRINT,
        task_fingerprints={task: task_fingerprint(task) for task in sorted(every)},
        precision="float32",
        tasks={name: dict(its) for name, its in tasks.items()},
        trained_formats={name: {} for name in tasks},
        trained_items={name: {} for name in tasks},
        ending_items={},
        overlaps={name: {} for name in tasks},
        groups=dict(groups or {}),
        domains=dict(domains or {}),
        models=tuple(plans),
        warnings=(),
        provenance=PROVENANCE,
    )
    return StudyResults(study=study, base=model(None), models=tuple(map(model, plans)))


def relations(
    in_domain: Sequence[str] = (),
    out_of_domain: Sequence[str] = (),
    retention: Sequence[str] = (),
) -> Relations:
    """Tasks by relation, without held-out text."""
    return {
        "in_domain": tuple(in_domain),
        "out_of_domain": tuple(out_of_domain),
        "retention": tuple(retention),
        "held_out_text": (),
    }


def _each_once(plans: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    once: dict[str, PlannedRun] = {}
    for plan in plans:
        same = once.setdefault(plan.name, plan)
        labels = tuple(dict.fromkeys((*same.alpha_labels, *plan.alpha_labels)))
        once[plan.name] = same.model_copy(update={"alpha_labels": labels})
    return tuple(once.values())


def _config(
    plans: Sequence[PlannedRun], train_tasks: tuple[str, ...], judged: RecommendationConfig
) -> StudyConfig:
    ranks = tuple(sorted({plan.rank for plan in plans if plan.rank is not None}))
    return StudyConfig(
        name="planted-grid",
        base_model=BaseModelConfig(name="smollm2-135m-instruct"),
        train=TrainConfig(task=train_tasks),
        methods=MethodsConfig(
            lora=LoraConfig(ranks=ranks) if ranks else None,
            full=FullConfig() if any(plan.rank is None for plan in plans) else None,
        ),
        seeds=tuple(dict.fromkeys(plan.seed for plan in plans if plan.seed is not None)),
        recommendation=judged,
    )


SUBJECTS = tuple(f"mmlu_subject_{number}" for number in range(24))
DOMAINS = {"sums": "mathematics", "terms": "mathematics", "organs": "medicine"}
ALPHAS = ("2r", "16")


def _score(plan: PlannedRun | None, task: str) -> float:
    """More rank helps on what was trained on and costs elsewhere, some tasks more than others."""
    base = 0.4 + 0.3 * (zlib.crc32(task.encode()) % 100) / 100
    if plan is None:
        return base
    size = math.log2(plan.rank or 512)
    if task == plan.train_task:
        return base + 0.02 * size
    return base - 0.012 * size * (1 + zlib.crc32(task.encode()) % 3)


def planted_domains() -> StudyResults:
    """Two trained tasks, three ranks by two alphas by two module sets, full, and 24 subjects."""
    plans = [
        grid_run(train, rank, alpha_labels=(alpha,), target_modules=modules)
        for train in ("sums", "organs")
        for alpha in ALPHAS
        for modules in (ATTENTION, ALL_LINEAR)
        for rank in (8, 32, 128)
    ]
    plans += [grid_run(train, None, rate_labels=("5e-5",)) for train in ("sums", "organs")]
    tasks = {
        "sums": relations(["sums"], ["organs", "terms"], SUBJECTS),
        "organs": relations(["organs"], ["sums", "terms"], SUBJECTS),
    }
    sizes = dict.fromkeys(("sums", "organs", "terms"), 150)
    sizes |= {task: 60 + 10 * (number % 4) for number, task in enumerate(SUBJECTS)}
    groups = {"mmlu": SUBJECTS, "mmlu_stem": SUBJECTS[:9]}
    return planted_grid(
        plans, tasks, _score, sizes=sizes, groups=groups, domains=DOMAINS, noise=0.1
    )
