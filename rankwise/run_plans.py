"""The runs of a study: what each trains, what it costs, and the fingerprint that names it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rankwise.config import StudyConfig
from rankwise.devices import ResolvedPrecision
from rankwise.memory import estimate_training_memory
from rankwise.models import LinearShape
from rankwise.records import Method, PlannedRun
from rankwise.store import fingerprint
from rankwise.training import Example, num_optimizer_steps

# Raised when a change to the code changes what is trained from equal settings.
TRAINING_REVISION = 1

# What of the train section reaches a run through its examples or its own fields instead.
_NOT_IN_FINGERPRINT = {
    "task",
    "split",
    "data",
    "max_examples",
    "held_out_fraction",
    "exact_match",
    "learning_rate",
    "precision",
}
_IDENTITY = {"method", "rank", "alpha", "scaling", "learning_rate", "target_modules", "seed"}


def planned_runs(
    config: StudyConfig,
    base_fingerprint: str,
    precision: ResolvedPrecision,
    skeleton: Any,
    shapes: Mapping[str, LinearShape],
    examples: Sequence[Example],
) -> tuple[PlannedRun, ...]:
    """One run per seed and rank, and one per seed for full fine-tuning.

    Args:
        config: the study.
        base_fingerprint: of the base model.
        precision: that the runs compute in.
        skeleton: the base model on the meta device.
        shapes: of the layers that LoRA adapts.
        examples: that every run trains on; at least one.
    """
    maker = _RunMaker(config, base_fingerprint, precision, skeleton, examples)
    sides = sum(sum(shape) for shape in shapes.values())
    ranks = config.methods.lora.ranks if config.methods.lora else ()
    runs: list[PlannedRun] = []
    for seed in config.seeds:
        runs += [maker.run("lora", rank, seed, num_trainable=rank * sides) for rank in ranks]
        if config.methods.full is not None:
            runs.append(maker.run("full", None, seed, num_trainable=maker.num_parameters))
    return tuple(runs)


class _RunMaker:
    """What all runs of a study share."""

    def __init__(
        self,
        config: StudyConfig,
        base_fingerprint: str,
        precision: ResolvedPrecision,
        skeleton: Any,
        examples: Sequence[Example],
    ) -> None:
        self._config, self._base_fingerprint = config, base_fingerprint
        self._precision: ResolvedPrecision = precision
        self._skeleton, self._examples = skeleton, examples
        self.num_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
        self._digest_of_examples = fingerprint(
            [(example.tokens, example.num_loss_tokens) for example in examples]
        )

    def run(self, method: Method, rank: int | None, seed: int, *, num_trainable: int) -> PlannedRun:
        train, lora, examples = self._config.train, self._config.methods.lora, self._examples
        rates = train.learning_rate
        adapts = lora if rank is not None else None
        run = PlannedRun(
            name="",
            fingerprint="",
            method=method,
            train_task=self._label(),
            rank=rank,
            alpha=adapts.alpha.alpha_of(rank) if adapts and rank else None,
            scaling=adapts.alpha.scaling_of(rank) if adapts and rank else None,
            learning_rate=rates.lora if adapts else rates.full,
            target_modules=adapts.target_modules if adapts else (),
            seed=seed,
            num_steps=num_optimizer_steps(len(examples), train),
            num_examples=len(examples),
            num_tokens=sum(len(example.tokens) for example in examples) * train.epochs,
            num_trainable_parameters=num_trainable,
            trainable_share=num_trainable / self.num_parameters,
            estimated_memory_bytes=estimate_training_memory(
                self._skeleton,
                method=method,
                num_trainable=num_trainable,
                batch_size=train.batch_size,
                max_tokens=max(len(example.tokens) for example in examples),
                max_loss_tokens=max(example.num_loss_tokens for example in examples),
                precision=self._precision,
            ),
        )
        digest = self._fingerprint(run, adapts.alpha.policy if adapts else None)
        return run.model_copy(update={"name": _name(run, digest), "fingerprint": digest})

    def _label(self) -> str:
        train = self._config.train
        return train.data.stem if train.data is not None else str(train.task)

    def _fingerprint(self, run: PlannedRun, alpha_policy: str | None) -> str:
        unused = _NOT_IN_FINGERPRINT | ({"dropout"} if run.method == "full" else set())
        train = self._config.train.model_dump(mode="json", exclude=unused)
        return fingerprint(
            {
                "training_revision": TRAINING_REVISION,
                "base_model": self._base_fingerprint,
                "precision": self._precision,
                "train": train,
                "examples": self._digest_of_examples,
                "alpha_policy": alpha_policy,
                "run": run.model_dump(mode="json", include=_IDENTITY),
            }
        )


def _name(run: PlannedRun, digest: str) -> str:
    size = f"r{run.rank:03d}-a{run.alpha:03g}-" if run.rank else ""
    name = f"{run.train_task}-{run.method}-{size}s{run.seed}-{digest[:8]}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)
