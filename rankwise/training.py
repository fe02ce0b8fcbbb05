"""Train one run: a LoRA adapter on the frozen base, or a full copy of it.

The plain loop: one run at a time, micro-batches of the configured size, the loss averaged over
the loss tokens of the whole effective batch (as transformers' Trainer averages it).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import get_scheduler

from rankwise import adapters
from rankwise.batching import left_padded
from rankwise.config import TrainConfig
from rankwise.devices import PeakMemory, ResolvedPrecision
from rankwise.errors import DataError, DivergedError
from rankwise.records import PlannedRun, Record
from rankwise.store import writing
from rankwise.tasks.encoding import TextEncoder
from rankwise.tasks.training_rows import TrainingRow

Advance = Callable[[int], None]

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class Example(NamedTuple):
    """One tokenised example.

    Attributes:
        tokens: prompt and completion; at least one prompt token is kept.
        num_loss_tokens: how many of the last tokens are learned.
        is_truncated: the prompt did not fit and lost tokens on its left.
    """

    tokens: tuple[int, ...]
    num_loss_tokens: int
    is_truncated: bool


class StepMetrics(Record):
    """One line of ``metrics.jsonl``: one optimizer step.

    ``num_tokens`` are read so far, ``loss_nats`` is the mean over the step's loss tokens,
    ``learning_rate`` is the one used, ``grad_norm`` is taken before clipping.
    """

    step: int
    num_tokens: int
    loss_nats: float
    learning_rate: float
    grad_norm: float


class TrainingResult(NamedTuple):
    """What one training did."""

    num_steps: int
    num_tokens: int
    num_loss_tokens: int
    first_loss_nats: float | None
    final_loss_nats: float | None
    update_is_zero: bool
    weights_bytes: int
    train_seconds: float
    peak_memory_bytes: int


def tokenise_rows(
    rows: Sequence[TrainingRow], tokenizer: Any, config: TrainConfig, max_length: int
) -> list[Example]:
    """Turn rows into tokens, split where likelihoods are.

    Spaces at the end of a prompt are learned with the completion.

    Args:
        rows: prompt and completion as text.
        tokenizer: of the base model.
        config: says whether the prompt is learned too, and the longest example.
        max_length: the model's own limit in tokens.

    Raises:
        DataError: a completion alone does not fit, or has no tokens.
    """
    limit = min(config.max_length, max_length)
    encoder = TextEncoder(tokenizer)
    examples: list[Example] = []
    for index, row in enumerate(rows):
        prompt, completion = encoder.split(row.prompt, row.completion)
        tokens, num_completion = prompt + completion, len(completion)
        if not 0 < num_completion < limit:
            raise DataError(
                f"training row {index}: its completion has {num_completion} tokens and an example "
                f"may have {limit}. Raise train.max_length or shorten the row."
            )
        kept = tuple(tokens[-limit:])
        num_loss = len(kept) - 1 if config.loss_on == "all" else num_completion
        examples.append(Example(kept, num_loss, is_truncated=len(tokens) > limit))
    return examples


def num_optimizer_steps(num_examples: int, config: TrainConfig, epochs: int) -> int:
    """Steps over all epochs; the last step of an epoch may see fewer examples."""
    per_step = config.batch_size * config.gradient_accumulation_steps
    return math.ceil(num_examples / per_step) * epochs


def train_lora(
    base_model: nn.Module,
    examples: Sequence[Example],
    run: PlannedRun,
    config: TrainConfig,
    *,
    folder: Path,
    pad_id: int,
    base_model_name: str,
    use_rslora: bool,
    precision: ResolvedPrecision,
    on_step: Callable[[StepMetrics], None],
    advance: Advance = lambda _: None,
) -> TrainingResult:
    """Train one adapter on the frozen base, save it into ``folder``, and take it off again.

    Adapter and optimizer state are float32 whatever the base's precision.

    Raises:
        DivergedError: a loss was not finite; nothing is saved.
    """
    assert run.rank is not None
    assert run.alpha is not None
    assert run.seed is not None
    adapted = adapters.attach_lora(
        base_model,
        rank=run.rank,
        alpha=run.alpha,
        target_modules=run.target_modules,
        dropout=config.dropout,
        use_rslora=use_rslora,
        seed=run.seed,
        base_model_name=base_model_name,
    )
    loop = _Loop(adapted, examples, run, config, pad_id, precision)
    try:
        outcome = loop.run(on_step, advance)
        weights_bytes = adapters.save_adapter(adapted, folder)
        is_zero = adapters.is_zero_update(adapted)
    finally:
        adapters.detach(adapted)
    return outcome._replace(weights_bytes=weights_bytes, update_is_zero=is_zero)


def train_full(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    run: PlannedRun,
    config: TrainConfig,
    *,
    folder: Path,
    pad_id: int,
    precision: ResolvedPrecision,
    on_step: Callable[[StepMetrics], None],
    advance: Advance = lambda _: None,
) -> TrainingResult:
    """Train every weight of ``model`` (a float32 copy of the base) and save it into ``folder``.

    With bfloat16 precision the matrix products run in bfloat16 and the weights stay float32.

    Raises:
        DivergedError: a loss was not finite; nothing is saved.
    """
    model.requires_grad_(True)
    before = _weight_sums(model)
    loop = _Loop(model, examples, run, config, pad_id, precision)
    outcome = loop.run(on_step, advance)
    is_zero = before == _weight_sums(model)
    with writing(folder):
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    weights_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return outcome._replace(weights_bytes=weights_bytes, update_is_zero=is_zero)


def _weight_sums(model: nn.Module) -> list[tuple[float, float]]:
    """Sum and absolute sum of every weight tensor, in float64: they differ if a weight moved."""
    return [
        (float(weights.sum()), float(weights.abs().sum()))
        for weights in (parameter.detach().double() for parameter in model.parameters())
    ]


class _Loop:
    """The optimizer steps of one run; its randomness depends on the run's seed alone."""

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[Example],
        run: PlannedRun,
        config: TrainConfig,
        pad_id: int,
        precision: ResolvedPrecision,
    ) -> None:
        self._model, self._examples, self._run, self._config = model, examples, run, config
        self._pad_id, self._precision = pad_id, precision
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._device = self._weights[0].device
        self._num_tokens = 0
        self._num_loss_tokens = 0

    def run(self, on_step: Callable[[StepMetrics], None], advance: Advance) -> TrainingResult:
        config, run = self._config, self._run
        assert run.learning_rate is not None
        assert run.seed is not None
        optimizer = torch.optim.AdamW(
            self._weights, lr=run.learning_rate, weight_decay=config.weight_decay
        )
        scheduler: Any = get_scheduler(
            _SCHEDULES[config.schedule],
            optimizer,
            num_warmup_steps=math.ceil(config.warmup_ratio * run.num_steps),
            num_training_steps=run.num_steps,
        )
        memory = PeakMemory(self._device)
        losses: list[float] = []
        started = time.perf_counter()
        self._model.train()
        cuda = [self._device] if self._device.type == "cuda" else []
        with memory.measured(), torch.random.fork_rng(cuda):
            torch.manual_seed(run.seed)
            for step, batch in enumerate(self._effective_batches(), start=1):
                loss = self._accumulate(batch, step)
                norm = float(nn.utils.clip_grad_norm_(self._weights, config.max_grad_norm))
                if not math.isfinite(norm):
                    raise DivergedError(f"the gradient's norm was {norm} at step {step}")
                rate = float(scheduler.get_last_lr()[0])
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss)
                advance(sum(len(example.tokens) for example in batch))
                on_step(
                    StepMetrics(
                        step=step,
                        num_tokens=self._num_tokens,
                        loss_nats=loss,
                        learning_rate=rate,
                        grad_norm=norm,
                    )
                )
        self._model.eval()
        return TrainingResult(
            num_steps=len(losses),
            num_tokens=self._num_tokens,
            num_loss_tokens=self._num_loss_tokens,
            first_loss_nats=losses[0],
            final_loss_nats=losses[-1],
            update_is_zero=False,
            weights_bytes=0,
            train_seconds=time.perf_counter() - started,
            peak_memory_bytes=memory.bytes,
        )

    def _effective_batches(self) -> Iterator[list[Example]]:
        """Examples of each optimizer step, in an order that depends on the seed alone."""
        assert self._run.seed is not None
        generator = torch.Generator().manual_seed(self._run.seed)
        size = self._config.batch_size * self._config.gradient_accumulation_steps
        assert self._run.epochs is not None
        for _ in range(self._run.epochs):
            order = torch.randperm(len(self._examples), generator=generator).tolist()
            for start in range(0, len(order), size):
                yield [self._examples[index] for index in order[start : start + size]]

    def _accumulate(self, batch: Sequence[Example], step: int) -> float:
        """Gradients of the mean loss over the loss tokens of the effective batch."""
        num_loss_tokens = sum(example.num_loss_tokens for example in batch)
        total = 0.0
        for start in range(0, len(batch), self._config.batch_size):
            micro_batch = batch[start : start + self._config.batch_size]
            loss = self._summed_loss(micro_batch) / num_loss_tokens
            value = float(loss.detach())
            if not math.isfinite(value):
                raise DivergedError(f"the loss was {value} at step {step}")
            loss.backward()
            total += value
        self._num_tokens += sum(len(example.tokens) for example in batch)
        self._num_loss_tokens += num_loss_tokens
        return total

    def _summed_loss(self, examples: Sequence[Example]) -> Float[Tensor, ""]:
        """Cross-entropy in nats, summed over loss tokens; logits from the first of them on."""
        rows = [example.tokens[:-1] for example in examples]
        batch = left_padded(rows, self._pad_id, self._device)
        kept = max(example.num_loss_tokens for example in examples)
        targets = torch.full((len(examples), kept), -100, dtype=torch.long)
        for row, example in enumerate(examples):
            count = example.num_loss_tokens
            targets[row, kept - count :] = torch.tensor(example.tokens[-count:])
        with torch.autocast(
            self._device.type, dtype=torch.bfloat16, enabled=self._precision == "bfloat16"
        ):
            logits: Tensor = self._model(
                **batch._asdict(), logits_to_keep=kept, use_cache=False
            ).logits
        return nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            targets.to(self._device).flatten(),
            ignore_index=-100,
            reduction="sum",
        )
