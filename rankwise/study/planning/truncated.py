"""Adapters of the largest ranks, truncated to smaller ones: which, and what refines them."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.engine.training.memory import PassMemory, estimate_training_memory
from rankwise.records.axes import BesideRank, beside_rank
from rankwise.records.config.study import StudyConfig
from rankwise.records.fingerprints import truncation_fingerprint
from rankwise.records.study import PlannedRun


def plan_truncated(
    config: StudyConfig, runs: Sequence[PlannedRun], memory: PassMemory
) -> tuple[PlannedRun, ...]:
    """Every truncated adapter of a study, each refined right after it is as truncated.

    Args:
        config: the study.
        runs: those that are trained; the largest rank of each setting, task and seed is truncated.
        memory: of its passes.
    """
    section = config.methods.truncated
    if section is None:
        return ()
    models: list[PlannedRun] = []
    for run in largest_ranks(runs):
        steps = max(round(section.refine * run.num_steps), 1) if section.refine else 0
        for rank in config.methods.truncated_ranks:
            if run.rank is not None and rank < run.rank:
                models += _truncated(config, run, rank, steps, memory)
    return tuple(models)


def largest_ranks(runs: Sequence[PlannedRun]) -> tuple[PlannedRun, ...]:
    """The LoRA runs that are trained here, the largest rank of each setting, task and seed."""
    largest: dict[tuple[str, int | None, BesideRank], PlannedRun] = {}
    for run in runs:
        if run.rank is not None and run.role != "imported":
            for setting in beside_rank(run):
                other = largest.setdefault((run.train_task, run.seed, setting), run)
                if run.rank > (other.rank or 0):
                    largest[run.train_task, run.seed, setting] = run
    return tuple({run.name: run for run in largest.values()}.values())


def _truncated(
    config: StudyConfig, run: PlannedRun, rank: int, steps: int, memory: PassMemory
) -> tuple[PlannedRun, ...]:
    """A run's adapter at a lower rank: as truncated, and where ``steps`` refine it, after them.

    The first is the second's checkpoint before its first step. The scaling stays the run's, so
    that the rank alone differs: alpha is in proportion to the rank, whatever its policy.
    """
    assert run.rank is not None
    assert run.scaling is not None
    num_trainable = run.num_trainable_parameters * rank // run.rank
    cut = run.model_copy(
        update={
            "name": f"{run.name}-truncated-r{rank:03d}",
            "fingerprint": truncation_fingerprint(run.fingerprint, rank, 0),
            "rank": rank,
            "alpha": run.scaling * rank,
            "role": "truncated",
            "of": run.as_whole,
            "num_steps": 0,
            "num_tokens": 0,
            "num_trainable_parameters": num_trainable,
            "trainable_share": run.trainable_share * num_trainable / run.num_trainable_parameters,
            "estimated_memory_bytes": estimate_training_memory(
                memory,
                method="lora",
                rank=rank,
                num_trainable=num_trainable,
                max_tokens=config.train.max_micro_batch_tokens or memory.likely_tokens,
            ),
        }
    )
    if not steps:
        return (cut,)
    refined = cut.model_copy(
        update={
            "name": f"{cut.name}-refined{steps:05d}",
            "fingerprint": truncation_fingerprint(run.fingerprint, rank, steps),
            "num_steps": steps,
            "num_tokens": round(run.num_tokens * steps / run.num_steps),
        }
    )
    return cut.model_copy(update={"refined_in": refined.as_whole}), refined
