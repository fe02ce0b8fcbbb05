"""How the best learning rate depends on the rank when A is drawn, and when B is.

    python -m benchmarks.init_rates [--base-steps 600] [--steps 60] [--seeds 2] [--tiny]

A small Llama that predicts bytes learns Python's documentation with all its weights. Adapters, and
the whole model, then learn the source of Python's library for a few steps, at rates that differ by
factors of 2 and with the multiplier 1 (alpha = rank). The best rate is where the loss on source
that was not trained on is least: the vertex of the parabola through the least loss and its
neighbours, over the logarithm of the rate. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import pydoc_data.topics
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.training_peer import TARGETS
from rankwise.engine.models import base as models
from rankwise.engine.models.trained_adapters import Adapter, Piece, adapted
from rankwise.engine.training.loop import TrainingResult, train_pass
from rankwise.engine.training.trainees import AdapterTrainee, FullTrainee, StepMetrics, Trainee
from rankwise.errors import DivergedError
from rankwise.records.config.methods import LoraInit
from rankwise.records.config.training import LearningRateConfig, TrainConfig
from rankwise.records.study import PlannedRun
from rankwise.tasks.training_rows import Example

CPU = torch.device("cpu")
RANKS = (4, 16, 64)
INITS: tuple[LoraInit, ...] = ("A", "B")
LORA_RATES = tuple(2.5e-4 * 2**step for step in range(10))
FULL_RATES = tuple(1.25e-4 * 2**step for step in range(8))
LENGTH, BATCH = 64, 8
MODULES = ("argparse", "ast", "_pydecimal", "inspect", "typing", "tarfile", "zipfile", "turtle")


class Scale(NamedTuple):
    """How much is trained: steps of the base and of each run, seeds, held-out texts."""

    base_steps: int
    steps: int
    seeds: int
    held_out: int


def windows(text: str, count: int, rng: random.Random) -> list[Example]:
    """Pieces of a text as bytes, drawn with replacement; every byte but the first is learned."""
    data = text.encode("ascii", "replace")
    starts = [rng.randrange(len(data) - LENGTH) for _ in range(count)]
    return [Example(tuple(data[i : i + LENGTH]), LENGTH - 1, False) for i in starts]


def source() -> str:
    """Modules of Python's library, one after another."""
    folder = Path(copy.__file__).parent
    files = [path for name in MODULES for path in folder.glob(f"{name}*/__init__.py")]
    files += [folder / f"{name}.py" for name in MODULES if (folder / f"{name}.py").is_file()]
    return "".join(path.read_text(encoding="utf-8") for path in files)


def planned(name: str, num_steps: int, seed: int, rate: float, rank: int | None) -> PlannedRun:
    """A run as the trainer wants it; a rank makes it an adapter."""
    is_lora = rank is not None
    return PlannedRun(
        name=name,
        fingerprint="",
        method="lora" if is_lora else "full",
        train_task="source",
        rank=rank,
        alpha=float(rank) if is_lora else None,
        alpha_labels=("1r",) if is_lora else (),
        scaling=1.0 if is_lora else None,
        learning_rate=rate,
        rate_labels=(f"{rate:g}",),
        epochs=1,
        target_modules=TARGETS if is_lora else (),
        seed=seed,
        num_steps=num_steps,
        num_examples=num_steps * BATCH,
        num_tokens=0,
        num_trainable_parameters=0,
        trainable_share=0.0,
        estimated_memory_bytes=0,
    )


class _Observer:
    """Remembers who has diverged."""

    def __init__(self) -> None:
        self.lost: set[str] = set()

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None: ...

    def finished(self, trainee: Trainee, result: TrainingResult) -> None: ...

    def diverged(self, trainee: Trainee, error: DivergedError) -> None:
        self.lost.add(trainee.run.name)

    def shrunk(self, max_tokens: int) -> None: ...


def train_config() -> TrainConfig:
    """Of every run: one epoch, linear schedule with warm-up."""
    return TrainConfig(
        task="source",
        epochs=1,
        batch_size=BATCH,
        gradient_accumulation_steps=1,
        learning_rate=LearningRateConfig(lora=1e-3, full=1e-3),
    )


def train(model: Any, trainees: Sequence[Trainee], bank: Any) -> set[str]:
    """Train, and say which runs have diverged."""
    observer = _Observer()
    train_pass(
        model,
        trainees,
        bank=bank,
        max_tokens=4096,
        precision="float32",
        gradient_checkpointing=False,
        compile_layers=False,
        observer=observer,
    )
    return observer.lost


def train_full(base: Any, rows: Sequence[Example], rate: float, seed: int) -> Any | None:
    """A copy of the model after one epoch over the rows; None if it has diverged."""
    model = copy.deepcopy(base)
    config = train_config()
    run = planned("full", len(rows) // BATCH, seed, rate, None)
    lost = train(model, [FullTrainee(run, rows, config, model, "adamw")], None)
    return None if lost else model.requires_grad_(False).eval()


@torch.no_grad()
def loss_of(model: Any, rows: Sequence[Example]) -> float:
    """In nats per byte."""
    ids = torch.tensor([row.tokens for row in rows])
    logits = model(ids).logits[:, :-1]
    return float(cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def adapter_losses(
    base: Any, texts: Sequence[Sequence[Example]], held_out: Sequence[Example]
) -> dict[tuple[str, int, float], list[float]]:
    """(init, rank, rate) -> held-out loss of each seed, whose rows are in ``texts``."""
    shapes = models.target_shapes(models.adaptable_shapes(base), TARGETS)
    losses: dict[tuple[str, int, float], list[float]] = {}
    for (seed, rows), init in itertools.product(enumerate(texts), INITS):
        trainees: dict[tuple[str, int, float], AdapterTrainee] = {}
        for rank, rate in itertools.product(RANKS, LORA_RATES):
            settings: dict[str, Any] = {"dropout": 0.0, "device": CPU, "dtype": torch.float32}
            adapter = Adapter(shapes, rank=rank, scaling=1.0, seed=seed, init=init, **settings)
            run = planned(f"{rank} {rate:g}", len(rows) // BATCH, seed, rate, rank)
            trainees[init, rank, rate] = AdapterTrainee(run, rows, train_config(), adapter)
        with adapted(base, list(shapes)) as bank:
            lost = train(base, list(trainees.values()), bank)
            for key, trainee in trainees.items():
                with bank.rows_of([Piece(trainee.adapter, 0, len(held_out) * LENGTH, ())]):
                    loss = loss_of(base, held_out)
                losses.setdefault(key, []).append(math.inf if trainee.run.name in lost else loss)
        print(f"seed {seed}, random {init}: {len(trainees)} adapters", file=sys.stderr)
    return losses


def best_rate(losses: Mapping[float, float]) -> tuple[float, float, bool]:
    """The rate of least loss, that loss, and whether it is at the grid's edge."""
    rates = sorted(losses)
    place = min(range(len(rates)), key=lambda i: losses[rates[i]])
    least = losses[rates[place]]
    if place in (0, len(rates) - 1):
        return rates[place], least, True
    left, right = losses[rates[place - 1]], losses[rates[place + 1]]
    bend = left - 2 * least + right
    shift = 0.5 * (left - right) / bend if math.isfinite(bend) and bend > 0 else 0.0
    return rates[place] * 2**shift, least, False


def slope(rates: Sequence[float]) -> float:
    """The power of the rank that the best rate follows: least squares over logarithms."""
    return float(np.polyfit(np.log(RANKS), np.log(rates), 1)[0])


def measure(scale: Scale) -> dict[str, Any]:
    """Train everything and find the best rates."""
    torch.manual_seed(0)
    rng = random.Random(0)
    size: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    base: Any = LlamaForCausalLM(LlamaConfig(vocab_size=256, **size, **heads))
    prose = "\n".join(pydoc_data.topics.topics.values())
    base = train_full(base, windows(prose, scale.base_steps * BATCH, rng), 2e-3, 0)
    code = source()
    texts = [windows(code[len(code) // 5 :], scale.steps * BATCH, rng) for _ in range(scale.seeds)]
    held_out = windows(code[: len(code) // 5], scale.held_out, rng)
    found: dict[str, Any] = {"base_loss_nats": round(loss_of(base, held_out), 4)}
    losses = adapter_losses(base, texts, held_out)
    for init in INITS:
        best = [
            best_rate({rate: float(np.mean(losses[init, rank, rate])) for rate in LORA_RATES})
            for rank in RANKS
        ]
        found[f"best_rates_{init}"] = [float(f"{rate:.3g}") for rate, _, _ in best]
        found[f"least_losses_{init}"] = [round(loss, 4) for _, loss, _ in best]
        found[f"at_the_edge_{init}"] = [edge for _, _, edge in best]
        found[f"rank_power_{init}"] = round(slope([rate for rate, _, _ in best]), 3)
    of_full = {rate: _full_loss(base, texts, held_out, rate) for rate in FULL_RATES}
    rate, loss, edge = best_rate(of_full)
    found |= {"best_rate_full": float(f"{rate:.3g}"), "least_loss_full": round(loss, 4)}
    found["at_the_edge_full"] = edge
    return found


def _full_loss(
    base: Any, texts: Sequence[Sequence[Example]], held_out: Sequence[Example], rate: float
) -> float:
    trained = [train_full(base, rows, rate, seed) for seed, rows in enumerate(texts)]
    return float(np.mean([math.inf if m is None else loss_of(m, held_out) for m in trained]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description="The best rate by rank, with A or B random.")
    parser.add_argument("--base-steps", type=int, default=600, help="of the base")
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a few steps of everything")
    options = parser.parse_args(arguments)
    scale = Scale(options.base_steps, options.steps, options.seeds, 128)
    if options.tiny:
        scale = Scale(4, 2, 1, 4)
    print(json.dumps({**scale._asdict(), "ranks": RANKS, **measure(scale)}))


if __name__ == "__main__":
    main()
