"""Variants trained on a tiny model, without a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rankwise.engine.models.variant_models import VariantModel, variant_on
from rankwise.engine.models.variants import Variant, VariantSetting
from rankwise.engine.training import loop as training
from rankwise.engine.training.trainees import effective_batches
from rankwise.engine.training.variants import VariantTrainee
from rankwise.records.config.training import TrainConfig
from rankwise.records.study import PlannedRun
from rankwise.tasks.training_rows import Example
from tests.support.passes import TARGETS, Heard, planned

RANK, SCALING = 4, 2.0


def trained(
    base: Any,
    variant: Variant,
    examples: Sequence[Example],
    train: TrainConfig,
    *,
    heard: Heard | None = None,
    state: Path | None = None,
    targets: Sequence[str] = TARGETS,
    gradient_checkpointing: bool = False,
    use: Callable[[VariantModel], Any] = lambda _: None,
    **run_options: Any,
) -> tuple[Heard, Any]:
    """Train a variant on a base to its end, or until ``heard`` interrupts; then ``use`` it.

    A state that exists is gone on from, and one is saved where the training is interrupted.
    """
    heard = Heard() if heard is None else heard
    steps = training.num_optimizer_steps(len(examples), train, train.epochs[0])
    run = planned(steps, name="variant", epochs=train.epochs[0], **run_options)
    assert run.seed is not None
    setting = VariantSetting(run.rank or 1, SCALING, tuple(targets), run.seed, steps)
    with variant_on(base, variant, setting, in_order(examples, run, train)) as model:
        trainee = VariantTrainee(run, examples, train, model)
        if state is not None and state.exists():
            trainee.load_state(state)
        try:
            training.train_pass(
                base,
                [trainee],
                bank=None,
                max_tokens=128,
                precision="float32",
                gradient_checkpointing=gradient_checkpointing,
                compile_layers=False,
                observer=heard,
            )
        except KeyboardInterrupt:
            assert state is not None
            trainee.save_state(state)
            return heard, None
        return heard, use(model)


def in_order(examples: Sequence[Example], run: PlannedRun, train: TrainConfig) -> list[Example]:
    """The examples as the first epoch reads them."""
    batches = effective_batches(examples, run, train)
    return [example for batch in batches for example in batch][: len(examples)]


@torch.no_grad()
def logits(model: Any, examples: Sequence[Example]) -> list[torch.Tensor]:
    """(tokens, vocab) of each example."""
    return [
        model(torch.tensor([example.tokens]), use_cache=False).logits[0] for example in examples
    ]


def same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], tolerance: float) -> bool:
    return all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance)
        for a, b in zip(ours, theirs, strict=True)
    )
