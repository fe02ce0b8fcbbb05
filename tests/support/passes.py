"""Trainings without a study: planned runs, adapters and passes on a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rankwise.engine.models.loading import load_frozen, load_tokenizer
from rankwise.engine.models.placed import layer_devices
from rankwise.engine.models.structure import adaptable_shapes, target_shapes
from rankwise.engine.models.trained_adapters import Adapter, adapted
from rankwise.engine.models.variants import VARIANTS
from rankwise.engine.training import loop as training
from rankwise.engine.training.loop import TrainingResult
from rankwise.engine.training.trainees import (
    NOTHING_BESIDE,
    AdapterTrainee,
    Beside,
    FullTrainee,
    StepMetrics,
    Trainee,
    effective_batches,
)
from rankwise.errors import DivergedError, RewardError
from rankwise.records.config.training import LearningRateConfig, TrainConfig
from rankwise.records.study import OptimizerName, PlannedRun
from rankwise.tasks.training_rows import Example, TrainingRow, tokenise_rows

CPU = torch.device("cpu")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
# of ragged lengths
ROWS = [
    TrainingRow(f"Question: {a} and {b}?{' Say it.' * (a % 3)}\nAnswer:", f" {a + b}<|im_end|>")
    for a in range(5)
    for b in range(4)
]


def config(**options: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "task": "sums",
        "epochs": 2,
        "batch_size": 2,
        "gradient_accumulation_steps": 4,
        "learning_rate": LearningRateConfig(lora=1e-2, full=1e-3),
    }
    return TrainConfig(**(settings | options))


def planned(num_steps: int, method: str = "lora", **options: Any) -> PlannedRun:
    is_lora = method == "lora"
    rank = options.get("rank", 4)
    settings: dict[str, Any] = {
        "name": f"run-{rank}",
        "fingerprint": "f",
        "method": method,
        "train_task": "sums",
        "rank": rank if is_lora else None,
        "alpha": 2.0 * rank if is_lora else None,
        "alpha_labels": ("2r",) if is_lora else (),
        "scaling": 2.0 if is_lora else None,
        "learning_rate": 1e-2 if is_lora else 1e-3,
        "rate_labels": ("1e-2" if is_lora else "1e-3",),
        "epochs": 2,
        "target_modules": TARGETS if is_lora else (),
        "seed": 0,
        "num_steps": num_steps,
        "num_examples": len(ROWS),
        "num_tokens": 0,
        "num_trainable_parameters": 0,
        "trainable_share": 0.0,
        "estimated_memory_bytes": 0,
    }
    return PlannedRun(**(settings | options))


def in_order(examples: Sequence[Example], run: PlannedRun, train: TrainConfig) -> list[Example]:
    """The examples as the first epoch reads them."""
    batches = effective_batches(examples, run, train)
    return [example for batch in batches for example in batch][: len(examples)]


class Heard:
    """Remembers what a pass told of, and saves states where it is asked to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.losses: dict[str, list[float]] = {}
        self.lines: dict[str, list[StepMetrics]] = {}
        self.results: dict[str, TrainingResult] = {}
        self.errors: dict[str, str] = {}
        self.budgets: list[int] = []
        self._stop_at = stop_at

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None:
        self.losses.setdefault(trainee.run.name, []).append(metrics.loss_nats)
        self.lines.setdefault(trainee.run.name, []).append(metrics)
        if metrics.step == self._stop_at:
            raise KeyboardInterrupt

    def reached(self, trainee: Trainee, result: TrainingResult) -> None:
        self.results[trainee.run.name] = result

    def dropped(self, trainee: Trainee, error: DivergedError | RewardError) -> None:
        self.errors[trainee.run.name] = str(error)

    def shrunk(self, max_tokens: int) -> None:
        self.budgets.append(max_tokens)


class Setting:
    """A model with tokenised rows, and ways to train on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer: Any = load_tokenizer(folder)
        self.base: Any = load_frozen(folder, "float32", CPU)

    def examples(self, train: TrainConfig, rows: Sequence[TrainingRow] = ROWS) -> list[Example]:
        return tokenise_rows(rows, self.tokenizer, train, 256)

    def trainee(
        self,
        train: TrainConfig,
        *,
        rows: Sequence[TrainingRow] = ROWS,
        dtype: torch.dtype = torch.float32,
        targets: Sequence[str] = TARGETS,
        beside: Beside = NOTHING_BESIDE,
        **run_options: Any,
    ) -> AdapterTrainee:
        examples = self.examples(train, rows)
        epochs = run_options.get("epochs", train.epochs[0])
        steps = training.num_optimizer_steps(len(examples), train, epochs)
        run = planned(
            steps, epochs=epochs, **{k: v for k, v in run_options.items() if k != "epochs"}
        )
        shapes = adaptable_shapes(self.base)
        assert run.rank is not None
        assert run.scaling is not None
        assert run.seed is not None
        variant = None if run.variant is None else VARIANTS[run.variant]
        targeted = target_shapes(shapes, targets)
        adapter = Adapter(
            targeted,
            rank=run.rank,
            scaling=run.scaling,
            dropout=train.dropout,
            seed=run.seed,
            device=CPU,
            dtype=dtype,
            elsewhere=layer_devices(self.base, targeted),
        )
        if variant is not None and variant.initialise is not None:
            initial = variant.initialise(self.base, adapter, in_order(examples, run, train))
            adapter.start_from(initial.factors, is_in_base=variant.is_in_base)
        own = None if variant is None else variant.optimizer
        return AdapterTrainee(run, examples, train, adapter, (), beside, own)

    def full(
        self,
        train: TrainConfig,
        model: Any,
        optimizer: OptimizerName = "adamw",
        rows: Sequence[TrainingRow] = ROWS,
        **run_options: Any,
    ) -> FullTrainee:
        examples = self.examples(train, rows)
        steps = training.num_optimizer_steps(len(examples), train, train.epochs[0])
        run = planned(steps, "full", epochs=train.epochs[0], **run_options)
        return FullTrainee(run, examples, train, model, optimizer)

    def train(self, *trainees: AdapterTrainee, heard: Heard | None = None, **options: Any) -> Heard:
        heard = Heard() if heard is None else heard
        layers = dict.fromkeys(name for t in trainees for name in t.adapter.factors)
        writer = options.pop("writer", None)
        settings: dict[str, Any] = {
            "max_tokens": 128,
            "precision": "float32",
            "gradient_checkpointing": False,
        }
        with adapted(self.base, list(layers)) as bank:
            training.train_pass(
                self.base,
                trainees,
                bank=bank,
                observer=heard,
                writer=None if writer is None else writer(self.base),
                **(settings | options),
            )
        return heard
