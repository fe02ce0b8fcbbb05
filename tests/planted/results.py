"""Study results with planted answers: what the tests of decisions and reports start from."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rankwise.records.config.methods import FullConfig, LoraConfig, MethodsConfig
from rankwise.records.config.study import (
    BaseModelConfig,
    EvaluationConfig,
    RecommendationConfig,
    StudyConfig,
)
from rankwise.records.config.training import TrainConfig
from rankwise.records.fingerprints import fingerprint
from rankwise.records.results import ModelResults, StudyResults, TaskItems, TrainTaskResults
from rankwise.records.study import (
    MetricScore,
    PlannedRun,
    Provenance,
    Relation,
    RunRecord,
    StudyRecord,
    TaskEvaluation,
    Unit,
)

Key = int | Literal["full"]
Scores = Mapping[Key, float | Sequence[float]]

IN_DOMAIN = {4: 0.70, 16: 0.80, 64: 0.81, "full": 0.81}
OUT_OF_DOMAIN = {4: 0.50, 16: 0.49, 64: 0.47, "full": 0.44}
RETENTION = {4: 0.90, 16: 0.90, 64: 0.88, "full": 0.80}
HELD_OUT_NATS = {4: 2.51, 16: 2.54, 64: 2.60, "full": 2.75}
BASE = {
    "kinship": 0.50,
    "syllogism": 0.50,
    "capitals": 0.90,
    "elements": 0.90,
    "pydoc_topics": 2.50,
}
CHANCE = {"kinship": 0.25, "syllogism": 0.5, "capitals": 0.25, "elements": 0.25}

PROVENANCE = Provenance(
    rankwise_version="0.0.0",
    python_version="3.11.0",
    platform="planted",
    package_versions={},
    git_commit=None,
    device="cpu",
    created_at="2026-01-01T00:00:00+00:00",
)


BASE_FINGERPRINT = "b" * 64


def planted_study(
    in_domain_accuracy: Scores = IN_DOMAIN,
    retention_accuracy: Scores = RETENTION,
    out_of_domain_accuracy: Scores = OUT_OF_DOMAIN,
    held_out_loss_nats: Scores = HELD_OUT_NATS,
    base: Mapping[str, float] = BASE,
    *,
    in_domain_unit: Unit = "points",
    in_domain_tasks: Sequence[str] = ("kinship",),
    retention_tasks: Sequence[str] = ("capitals", "elements"),
    out_of_domain_tasks: Sequence[str] = ("syllogism",),
    held_out_tasks: Sequence[str] = ("pydoc_topics",),
    num_in_domain: int = 300,
    num_retention: int = 200,
    num_held_out: int = 50,
    seeds: Sequence[int] = (0,),
    noise: float = 0.05,
    diverged: Sequence[tuple[Key, int]] = (),
    recommendation: RecommendationConfig | None = None,
) -> StudyResults:
    """A finished study whose scores are given, with deterministic items.

    Every model gets exactly round(share * n) items of a task right: those with the smallest
    difficulty, after each model moved every difficulty (uniform in 0..1) by its own ``noise``.
    So the discordance of two models of equal accuracy grows with ``noise``, and ``noise=0``
    gives them identical outcomes. A loss is its mean plus a shared item effect.

    Args:
        in_domain_accuracy: per rank (and "full"), one number, or one for each seed; shares, or
            nats with ``in_domain_unit="nats"``. Its keys are the study's runs.
        retention_accuracy: the same, for every one of ``retention_tasks``.
        out_of_domain_accuracy: the same, for ``out_of_domain_tasks``.
        held_out_loss_nats: the same, for ``held_out_tasks``.
        base: the base's score on each task; 0.5 for a task that is not named.
        diverged: the (rank, seed) pairs that have no evaluations.
    """
    tasks: dict[Relation, tuple[str, ...]] = {
        "in_domain": tuple(in_domain_tasks),
        "out_of_domain": tuple(out_of_domain_tasks),
        "retention": tuple(retention_tasks),
        "held_out_text": tuple(held_out_tasks),
    }
    sizes: dict[Relation, int] = {
        "in_domain": num_in_domain,
        "out_of_domain": num_in_domain,
        "retention": num_retention,
        "held_out_text": num_held_out,
    }
    scores: dict[Relation, Scores] = {
        "in_domain": in_domain_accuracy,
        "out_of_domain": out_of_domain_accuracy,
        "retention": retention_accuracy,
        "held_out_text": held_out_loss_nats,
    }
    planned = [_planned(key, seed) for key in in_domain_accuracy for seed in seeds]

    def model(name: str, run: RunRecord | None, key: Key, seed_index: int) -> ModelResults:
        items: dict[str, TaskItems] = {}
        for relation, names in tasks.items():
            nats = relation == "held_out_text" or (
                relation == "in_domain" and in_domain_unit == "nats"
            )
            for task in names:
                if run is None:
                    score = base.get(task, 0.5)
                else:
                    score = _of_seed(scores[relation].get(key, base.get(task, 0.5)), seed_index)
                items[task] = planted_items(task, name, score, sizes[relation], nats, noise)
        done = run is None or run.status == "trained"
        return ModelResults(
            name=name,
            run=run,
            evaluations={t: planted_evaluation(name, i, run) for t, i in items.items()}
            if done
            else {},
            items=items if done else {},
        )

    runs = tuple(
        model(
            plan.name,
            planted_run_record(plan, (plan.rank or "full", plan.seed) in diverged),
            plan.rank or "full",
            list(seeds).index(plan.seed),
        )
        for plan in planned
    )
    config = _config(in_domain_accuracy, seeds, tasks, recommendation or RecommendationConfig())
    study = StudyRecord(
        fingerprint="f" * 64,
        config=config,
        base_model_fingerprint=BASE_FINGERPRINT,
        num_parameters=0,
        task_fingerprints={t: task_fingerprint(t) for names in tasks.values() for t in names},
        precision="float32",
        tasks={"kinship": tasks},
        trained_formats={"kinship": {}},
        trained_items={"kinship": {}},
        ending_items={},
        overlaps={"kinship": {}},
        groups={},
        domains={},
        models=tuple(planned),
        warnings=(),
        provenance=PROVENANCE,
    )
    return StudyResults(study=study, base=model("base", None, "full", 0), models=runs)


def planted_runs(*args: Any, **settings: Any) -> TrainTaskResults:
    """The only trained task of a planted study."""
    return planted_study(*args, **settings).of("kinship")


def planted_items(
    task: str, model: str, score: float, size: int, nats: bool, noise: float
) -> TaskItems:
    """The items of one model on one task: mean ``score`` (exactly, but for rounding).

    Option 0 is right, and of the others every model is drawn to the same one.
    """
    shared = np.random.default_rng(zlib.crc32(task.encode()))
    own = np.random.default_rng(zlib.crc32(f"{task} {model}".encode()))
    values: NDArray[np.float64]
    choices: tuple[int, ...] | None = None
    if nats:
        effect = shared.normal(0.0, 0.4, size)
        shift = own.normal(0.0, noise, size)
        values = score + (effect - effect.mean()) + (shift - shift.mean())
    else:
        difficulty = shared.uniform(0.0, 1.0, size) + own.normal(0.0, noise, size)
        values = np.zeros(size)
        values[np.argsort(difficulty, kind="stable")[: round(score * size)]] = 1.0
        wrong = shared.integers(1, 4, size)
        choices = tuple(0 if right else int(w) for right, w in zip(values, wrong, strict=True))
    return TaskItems(
        task=task,
        metric="loss_nats" if nats else "acc",
        unit="nats" if nats else "points",
        higher_is_better=not nats,
        doc_ids=tuple(range(size)),
        values=tuple(float(v) for v in values),
        choices=choices,
    )


def _of_seed(score: float | Sequence[float], seed_index: int) -> float:
    return score[seed_index] if isinstance(score, Sequence) else score


def task_fingerprint(task: str) -> str:
    return f"{zlib.crc32(task.encode()):08x}" * 8


def planted_evaluation(model: str, items: TaskItems, run: RunRecord | None) -> TaskEvaluation:
    weights = BASE_FINGERPRINT if run is None else run.planned.fingerprint
    values = np.asarray(items.values)
    nats = items.unit == "nats"
    return TaskEvaluation(
        model=model,
        task=items.task,
        task_version="1.0",
        fingerprint=fingerprint([weights, task_fingerprint(items.task)]),
        output_type="loglikelihood_rolling" if nats else "multiple_choice",
        domain=None,
        metrics=(
            MetricScore(
                metric=items.metric,
                filter="none",
                value=float(values.mean()),
                stderr=float(values.std(ddof=1) / math.sqrt(len(values)))
                if len(values) > 1
                else None,
                num_examples=len(values),
                higher_is_better=items.higher_is_better,
            ),
        ),
        decision_metric=items.metric,
        decision_filter="none",
        num_examples=len(values),
        num_fewshot=0,
        chat_template=False,
        limit=None,
        chance=None if nats else CHANCE.get(items.task, 0.25),
        predicted_shares=None if nats else (0.25, 0.25, 0.25, 0.25),
        num_unfinished=None,
        num_truncated=0,
        num_tokens=40 * len(values),
        score_seconds=1.0,
    )


def with_plans(results: StudyResults, change: Callable[[PlannedRun], PlannedRun]) -> StudyResults:
    """The same, whose runs were planned otherwise; their names follow."""

    def changed(model: ModelResults) -> ModelResults:
        assert model.run is not None
        planned = change(model.run.planned)
        run = model.run.model_copy(update={"planned": planned})
        return model.model_copy(update={"name": planned.name, "run": run})

    study = results.study.model_copy(update={"models": tuple(map(change, results.study.runs))})
    return results.model_copy(update={"study": study, "models": tuple(map(changed, results.runs))})


def with_rslora(results: StudyResults) -> StudyResults:
    """The same with every alpha divided by the root of its rank."""

    def changed(plan: PlannedRun) -> PlannedRun:
        if plan.rank is None or plan.alpha is None:
            return plan
        return plan.model_copy(update={"scaling": plan.alpha / math.sqrt(plan.rank)})

    return with_plans(results, changed)


def _planned(key: Key, seed: int) -> PlannedRun:
    rank = None if key == "full" else int(key)
    method: Literal["lora", "full"] = "full" if rank is None else "lora"
    label = "full" if rank is None else f"lora-r{rank:03d}-a{2 * rank:03d}"
    own_fingerprint = f"{zlib.crc32(f'{label} {seed}'.encode()):08x}" * 8
    parameters = 135_000_000 if rank is None else 115_200 * rank
    return PlannedRun(
        name=f"kinship-{label}-s{seed}-{own_fingerprint[:8]}",
        fingerprint=own_fingerprint,
        method=method,
        train_task="kinship",
        rank=rank,
        alpha=None if rank is None else 2.0 * rank,
        alpha_labels=() if rank is None else ("2r",),
        scaling=None if rank is None else 2.0,
        learning_rate=5e-5 if rank is None else 2e-4,
        rate_labels=("5e-5" if rank is None else "2e-4",),
        epochs=2,
        target_modules=() if rank is None else ("q_proj", "k_proj", "v_proj", "o_proj"),
        seed=seed,
        num_steps=60,
        num_examples=480,
        num_tokens=24_000,
        num_trainable_parameters=parameters,
        trainable_share=parameters / 135_000_000,
        estimated_memory_bytes=2_000_000_000,
    )


def planted_run_record(planned: PlannedRun, diverged: bool) -> RunRecord:
    return RunRecord(
        status="diverged" if diverged else "trained",
        message="the loss was not a finite number at step 7" if diverged else None,
        planned=planned,
        num_steps=7 if diverged else planned.num_steps,
        num_tokens=planned.num_tokens,
        num_loss_tokens=planned.num_tokens // 10,
        num_truncated=0,
        first_loss_nats=2.5,
        final_loss_nats=None if diverged else 0.4,
        update_is_zero=False,
        weights_bytes=2 * planned.num_trainable_parameters,
        train_seconds=30.0,
        peak_memory_bytes=1_500_000_000,
        provenance=PROVENANCE,
    )


def _config(
    scores: Scores,
    seeds: Sequence[int],
    tasks: Mapping[Relation, tuple[str, ...]],
    recommendation: RecommendationConfig,
) -> StudyConfig:
    ranks = tuple(int(key) for key in scores if key != "full")
    return StudyConfig(
        name="planted",
        base_model=BaseModelConfig(name="smollm2-135m-instruct"),
        train=TrainConfig(task=("kinship",)),
        methods=MethodsConfig(
            lora=LoraConfig(ranks=ranks) if ranks else None,
            full=FullConfig() if "full" in scores else None,
        ),
        seeds=tuple(seeds),
        evaluation=EvaluationConfig(
            in_domain=tasks["in_domain"],
            out_of_domain=tasks["out_of_domain"],
            retention=tasks["retention"],
            held_out_text=tasks["held_out_text"],
        ),
        recommendation=recommendation,
    )
