"""How one training is set up, whatever tool says it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from rankwise.records.config.variants import VariantName

Schedule = Literal["linear", "cosine", "constant"]
Rows = Literal["messages", "prompt"]
"""What a row of a data file is: a conversation, or a prompt and its completion."""


class TrainingSetup(NamedTuple):
    """One training as a study file can say it; None is what nobody said.

    Attributes:
        base_model: a hub name or a folder.
        revision: of the hub's repository.
        data: a file of rows, or a hub's name of some.
        rows: what a row of ``data`` is.
        is_full: whether all weights are trained; then there is no rank and no alpha.
        rank: of LoRA.
        alpha: the numerator of its scaling.
        use_rslora: whether the scaling is alpha over the root of the rank.
        dropout: on LoRA's input.
        target_modules: the adapted layers, or ``all-linear``.
        variant: of LoRA; rsLoRA is ``use_rslora``.
        learning_rate: at the peak.
        epochs: passes over the rows.
        max_examples: train on this many rows at most.
        batch_size: examples that a device reads at once.
        gradient_accumulation_steps: a step sees ``batch_size`` times this many examples.
        schedule: how the rate falls after its peak.
        warmup_ratio: share of the steps before the peak.
        weight_decay: of AdamW.
        max_grad_norm: gradients of a larger norm are scaled down to it.
        seed: of the training.
        precision: of the products.
        base_precision: the frozen base's, where it is quantised.
        max_length: tokens of a row.
        loss_on: whether prompts are learned too.
        chat_template: whether plain prompts are written as conversations.
    """

    base_model: str
    revision: str | None = None
    data: str | None = None
    rows: Rows | None = None
    is_full: bool = False
    rank: int | None = None
    alpha: float | None = None
    use_rslora: bool = False
    dropout: float | None = None
    target_modules: tuple[str, ...] = ()
    variant: VariantName | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    max_examples: int | None = None
    batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    schedule: Schedule | None = None
    warmup_ratio: float | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    seed: int | None = None
    precision: Literal["float32", "bfloat16"] | None = None
    base_precision: Literal["8bit", "4bit"] | None = None
    max_length: int | None = None
    loss_on: Literal["completion", "all"] | None = None
    chat_template: bool | None = None


class Reading(NamedTuple):
    """What was read of a tool's config.

    Attributes:
        tool: its name, for a reader.
        source: the file or folder.
        setup: what a study file can say of it.
        not_carried: what it cannot say, one sentence or ``key: value`` each.
        to_check: what may differ, one sentence each.
        adapter: folder of the adapter that was trained so, where it is there.
    """

    tool: str
    source: Path
    setup: TrainingSetup
    not_carried: tuple[str, ...]
    to_check: tuple[str, ...]
    adapter: Path | None = None
