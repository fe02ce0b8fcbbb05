"""What both sides of ``benchmarks.training`` train, and the peer: peft with transformers' Trainer.

The peer trains one adapter after another. Order of the examples and initial weights are ours, so
that both sides take the same steps; optimizer, schedule, batching and averaging are the Trainer's.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from rankwise.engine.models.devices import DTYPES, PeakMemory, device_name
from rankwise.engine.models.loading import load_frozen, load_tokenizer
from rankwise.engine.models.structure import LinearShape, adaptable_shapes, target_shapes
from rankwise.engine.models.trained_adapters import Adapter
from rankwise.engine.training.trainees import effective_batches
from rankwise.records.config.training import TrainConfig
from rankwise.records.study import PlannedRun
from rankwise.tasks.training_rows import Example

IGNORED = -100  # labels that are not learned, by transformers' convention
ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
TRAIN = TrainConfig(task="gsm8k", epochs=1, batch_size=2, gradient_accumulation_steps=4)  # pyright: ignore
STEP_SIZE = TRAIN.batch_size * TRAIN.gradient_accumulation_steps
LEARNING_RATE, SCALING, SEED = 2e-4, 2.0, 0
NUM_WARM_UP_STEPS = {"cpu": 1, "cuda": 2}
LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}


class Measured(NamedTuple):
    """What one process says.

    Attributes:
        seconds: of all adapters' steps.
        num_tokens: of the examples of all adapters.
        peak_bytes: of memory, while training.
        losses: by rank, of every step, in nats per learned token.
        roofline_fraction: of the fastest matrix product's rate; ours only.
        max_tokens: of a micro-batch at the end; ours only.
        data: the tokens, in words.
        device: in words.
    """

    seconds: float
    num_tokens: int
    peak_bytes: int
    losses: dict[str, list[float]]
    roofline_fraction: float
    max_tokens: int
    data: str
    device: str

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


def load_model(options: argparse.Namespace, device: torch.device, attention: str | None) -> Any:
    """The frozen base: ours as a study loads it, the peer's (with an attention) as transformers."""
    dtype = DTYPES[options.dtype]
    chosen = {} if attention is None else {"attn_implementation": attention}
    if options.random_8b:
        torch.manual_seed(SEED)
        with device:
            config = LlamaConfig(**LLAMA_8B)
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, **chosen)
        return model.requires_grad_(False).eval()
    if attention is None:
        return load_frozen(Path(options.model), options.dtype, device)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, **chosen)
    return model.to(device)


def load_examples(options: argparse.Namespace) -> tuple[list[Example], str]:
    """The examples, and where they come from in words."""
    if options.random_8b or not DATA.is_file():
        config: Any = LlamaConfig(**LLAMA_8B)
        if not options.random_8b:
            config = AutoConfig.from_pretrained(options.model, trust_remote_code=False)
        drawn = random_examples(options.examples, config.get_text_config().vocab_size)
        return drawn, "random tokens of GSM8K's lengths"
    tokenizer = load_tokenizer(Path(options.model))
    examples: list[Example] = []
    with DATA.open(encoding="utf-8") as lines:
        for text, _ in zip(lines, range(options.examples), strict=False):
            row = json.loads(text)
            prompt = tokenizer.encode(f"Question: {row['question']}\nAnswer:")
            completion = tokenizer.encode(f" {row['rationale']}", add_special_tokens=False)
            completion.append(tokenizer.eos_token_id)
            examples.append(Example((*prompt, *completion), len(completion), is_truncated=False))
    return examples, "GSM8K"


def random_examples(count: int, vocab_size: int) -> list[Example]:
    """Random tokens; lengths (90 to 440, mean 196) and learned shares are GSM8K's."""
    rng = random.Random(SEED)
    examples: list[Example] = []
    for _ in range(count):
        length = 90 + round(350 * rng.betavariate(1.7, 3.9))
        tokens = tuple(rng.randrange(vocab_size) for _ in range(length))
        examples.append(Example(tokens, round(length * rng.uniform(0.4, 0.85)), False))
    return examples


def planned(rank: int, num_examples: int) -> PlannedRun:
    """The run of one rank; both sides take order, rate and initial weights from it."""
    return PlannedRun(
        name=f"r{rank}",
        fingerprint="",
        method="lora",
        train_task="gsm8k",
        rank=rank,
        alpha=SCALING * rank,
        alpha_labels=(),
        scaling=SCALING,
        learning_rate=LEARNING_RATE,
        rate_labels=(),
        epochs=1,
        target_modules=TARGETS,
        seed=SEED,
        num_steps=math.ceil(num_examples / STEP_SIZE),
        num_examples=num_examples,
        num_tokens=0,
        num_trainable_parameters=0,
        trainable_share=0.0,
        estimated_memory_bytes=0,
    )


def adapted_shapes(model: Any) -> dict[str, LinearShape]:
    """The adapted layers."""
    return target_shapes(adaptable_shapes(model), TARGETS)


def new_adapter(model: Any, rank: int, device: torch.device, dtype: torch.dtype) -> Adapter:
    """Ours, untrained."""
    return Adapter(
        adapted_shapes(model),
        rank=rank,
        scaling=SCALING,
        dropout=0.0,
        seed=SEED,
        device=device,
        dtype=dtype,
    )


class Timer(TrainerCallback):
    """The first step's begin and the last step's end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.started = self.ended = math.nan

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if math.isnan(self.started):
            self.started = now(self._device)

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == state.max_steps:
            self.ended = now(self._device)


def trl_arguments(
    options: argparse.Namespace, train: TrainConfig, num_steps: int
) -> dict[str, Any]:
    """What every trainer of TRL is told, so that it takes the steps that ours takes."""
    return {
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "num_train_epochs": 1,
        "optim": "adamw_torch_fused",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": -(-num_steps // 10),
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "bf16": options.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "use_cpu": options.device == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


class _LossKeeper(Trainer):
    """Keeps the losses where they are, instead of fetching each one to log it."""

    parts: dict[int, list[Tensor]]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.parts.setdefault(self.state.global_step, []).append(loss)
        return loss


def measure_peer(options: argparse.Namespace, device: torch.device) -> Measured:
    """One rank after another, in our order of the examples."""
    examples, data = load_examples(options)
    base, run = load_model(options, device, options.attention), planned(1, len(examples))
    batches = effective_batches(examples, run, TRAIN)
    rows = [example for batch in batches for example in batch]
    warm_up_rows, size = rows[: NUM_WARM_UP_STEPS[device.type] * STEP_SIZE], options.peer_batch_size
    train_peer(base, options.ranks[0], warm_up_rows, 0, size)
    memory, seconds, losses = PeakMemory(device), 0.0, dict[str, list[float]]()
    with memory.measured():
        for rank in options.ranks:
            warm_up = math.ceil(TRAIN.warmup_ratio * run.num_steps)
            taken, losses[str(rank)] = train_peer(base, rank, rows, warm_up, size)
            seconds += taken
    num_tokens = len(options.ranks) * sum(len(example.tokens) for example in examples)
    return Measured(
        seconds, num_tokens, memory.bytes, losses, math.nan, 0, data, device_name(device)
    )


def train_peer(
    base: Any, rank: int, rows: Sequence[Example], num_warmup_steps: int, batch_size: int
) -> tuple[float, list[float]]:
    """Train one LoRA adapter on the base for an epoch.

    The base is used under autocast (``bf16=True``) if its weights are bfloat16, else as it is.

    Args:
        base: a causal language model of transformers; afterwards it is as before.
        rank: of the adapter.
        rows: one epoch, in order.
        num_warmup_steps: in which the rate rises.
        batch_size: rows that are read at once; as many batches as a step needs are accumulated.

    Returns:
        Seconds of its steps, and the loss of each in nats.
    """
    model, weight = with_adapter(base, rank), base.get_input_embeddings().weight
    timer = Timer(weight.device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=STEP_SIZE // batch_size,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            optim="adamw_torch_fused",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type=TRAIN.schedule,
            warmup_steps=num_warmup_steps,
            weight_decay=TRAIN.weight_decay,
            max_grad_norm=TRAIN.max_grad_norm,
            bf16=weight.dtype == torch.bfloat16,
            use_cpu=weight.device.type == "cpu",
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = _LossKeeper(
            model,
            args=arguments,
            train_dataset=list(rows),  # pyright: ignore[reportArgumentType]
            data_collator=_padded,
            callbacks=[timer],
        )
        trainer.parts = {}
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [float(sum(parts)) for _, parts in sorted(trainer.parts.items())]
    model.unload()
    del trainer, model
    gc.collect()
    return timer.ended - timer.started, losses


def with_adapter(base: Any, rank: int) -> Any:
    """The base in peft's model, with our initial weights."""
    ours = new_adapter(base, rank, torch.device("cpu"), torch.float32)
    targets = list(TARGETS)
    settings = peft.LoraConfig(
        r=rank, lora_alpha=int(SCALING * rank), target_modules=targets, task_type="CAUSAL_LM"
    )
    model: Any = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for name, (lora_A, lora_B) in ours.factors.items():
            layer = model.get_submodule(f"base_model.model.{name}")
            layer.lora_A["default"].weight.copy_(lora_A)
            layer.lora_B["default"].weight.copy_(lora_B)
    return model


def now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _padded(rows: Sequence[Example]) -> dict[str, Tensor]:
    """A batch as ``DataCollatorForSeq2Seq`` makes it; it needs no tokenizer."""
    ids = torch.zeros(len(rows), max(len(row.tokens) for row in rows), dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for index, row in enumerate(rows):
        length, tokens = len(row.tokens), torch.tensor(row.tokens)
        ids[index, :length] = tokens
        labels[index, length - row.num_loss_tokens : length] = tokens[-row.num_loss_tokens :]
        mask[index, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
