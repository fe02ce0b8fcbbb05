r"""Five adapters in one pass, or one after another: is training as fast and lean as it says?

    python -m benchmarks.training [--repeats 3] [--model FOLDER | --random-8b] [--device auto]
                                  [--peer-batch-size 2]

The peer is peft with transformers' Trainer, one adapter after another (``training_peer``); ours is
``train_pass`` with all ranks at once. Both train on the same tokens in the same order from the same
initial weights: "Question: ...\nAnswer:" and the learned rationale of GSM8K with the end token,
q/k/v/o, 2 x 4 examples a step, one epoch, AdamW, linear schedule with warm-up, gradients clipped
at 1. Without the data, or with ``--random-8b`` (random weights of Llama-3.1-8B's shape), tokens are
random, of GSM8K's lengths.

Every measurement is a fresh process; ours and the peer alternate. Seconds are those of the steps,
after a short untimed training (one step; two on CUDA, where attention is compiled for the first
shapes): of ours the whole of ``train_pass``, of the peer from its first step's begin to its last
step's end. Its settings are the best that we know: for bfloat16 a bfloat16 base under autocast
(``bf16=True``), losses not fetched; on a CPU the one of eager and sdpa attention with the
fastest short trial, on CUDA sdpa. Its batches are padded to their longest row, as its collators do;
``--peer-batch-size 1`` reads 1 x 8 examples a step instead, which needs no padding.

Ratios are the peer's time over ours, medians over the pairs of neighbouring processes;
``ratio_peer_default_float32`` is the peer's median in float32 over ours in bfloat16. Tokens per
second count the examples' tokens, no padding. Memory is the peak while training, of the process
(CUDA: of torch's allocator): ours of all ranks over a peer process that trains the middle rank
only, in the timed attention, and for ``peak_memory_ratio_leanest_peer`` in the leanest. The
roofline is the fastest square product in the same dtype, in our process before and after training;
operations are counted as 4 per frozen weight and token (6 per adapter weight), 4 per weight of the
head and learned token, and 12 per pair of attended positions and channel of a head.
Losses are compared at every step of every rank. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from benchmarks.training_peer import (
    NUM_WARM_UP_STEPS,
    ROOT,
    STEP_SIZE,
    TRAIN,
    Measured,
    adapted_shapes,
    load_examples,
    load_model,
    measure_peer,
    new_adapter,
    now,
    planned,
)
from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.devices import DTYPES, PeakMemory, choose_device, device_name
from rankwise.engine.models.start import fetch_weights
from rankwise.engine.models.structure import adaptable_shapes
from rankwise.engine.models.trained_adapters import adapted
from rankwise.engine.training.loop import TrainingResult, train_pass
from rankwise.engine.training.trainees import AdapterTrainee, StepMetrics, Trainee
from rankwise.errors import RankwiseError
from rankwise.records.config.study import BaseModelConfig
from rankwise.tasks.training_rows import Example

MAX_TOKENS = {"cpu": 2048, "cuda": 4096}
ATTENTIONS = {"cpu": ("eager", "sdpa"), "cuda": ("sdpa",)}
TRIAL_EXAMPLES = 2 * STEP_SIZE
NUM_TRIALS = 3  # a machine that stalls in one would choose the wrong one
PRODUCT_SIZES = {"cpu": (2048, 4096), "cuda": (4096, 8192)}


class Observer:
    """Hears of a pass; a training that diverges ends the benchmark."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None: ...

    def reached(self, trainee: Trainee, result: TrainingResult) -> None: ...

    def dropped(self, trainee: Trainee, error: RankwiseError) -> None:
        raise error

    def shrunk(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens


def measure_ours(options: argparse.Namespace, device: torch.device) -> Measured:
    """All ranks in one pass."""
    examples, data = load_examples(options)
    model, dtype = load_model(options, device, None), DTYPES[options.dtype]
    observer = Observer(options.max_tokens or MAX_TOKENS[device.type])

    def train(trainees: Sequence[AdapterTrainee]) -> float:
        with adapted(model, list(adapted_shapes(model))) as bank:
            started = now(device)
            train_pass(
                model,
                trainees,
                bank=bank,
                max_tokens=observer.max_tokens,
                precision=options.dtype,
                gradient_checkpointing=False,
                observer=observer,
            )
            return now(device) - started

    def new_trainees(rows: Sequence[Example]) -> list[AdapterTrainee]:
        return [
            AdapterTrainee(
                planned(rank, len(rows)),
                rows,
                TRAIN,
                new_adapter(model, rank, device, dtype),
            )
            for rank in options.ranks
        ]

    train(new_trainees(examples[: NUM_WARM_UP_STEPS[device.type] * STEP_SIZE]))
    gc.collect()
    rate = product_rate(device, dtype)
    trainees, memory = new_trainees(examples), PeakMemory(device)
    with memory.measured():
        seconds = train(trainees)
    rate = max(rate, product_rate(device, dtype))
    return Measured(
        seconds=seconds,
        num_tokens=sum(trainee.metrics[-1].num_tokens for trainee in trainees),
        peak_bytes=memory.bytes,
        losses={str(t.run.rank): [line.loss_nats for line in t.metrics] for t in trainees},
        roofline_fraction=num_operations(model, examples, options.ranks) / seconds / rate,
        max_tokens=observer.max_tokens,
        data=data,
        device=device_name(device),
    )


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the fastest large matrix product, the best of several tries."""
    rates: list[float] = []
    for size in PRODUCT_SIZES[device.type]:
        one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(6):
            started = now(device)
            torch.nn.functional.linear(one, other)
            rates.append(2 * size**3 / (now(device) - started))
    return max(rates)


def num_operations(model: Any, examples: Sequence[Example], ranks: Sequence[int]) -> int:
    """Floating-point operations of an epoch of every rank, as the module says."""
    config, shapes = model.config.get_text_config(), adaptable_shapes(model)
    frozen = sum(shape.in_features * shape.out_features for shape in shapes.values())
    per_rank = sum(s.in_features + s.out_features for s in adapted_shapes(model).values())
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    channels = config.num_hidden_layers * config.num_attention_heads * width
    read = sum(example.num_inputs for example in examples)
    learned = sum(example.num_loss_tokens for example in examples)
    pairs = sum(e.num_inputs * (e.num_inputs + 1) // 2 for e in examples)
    once = 4 * frozen * read + 4 * config.hidden_size * config.vocab_size * learned
    once += 12 * channels * pairs
    return once * len(ranks) + 6 * per_rank * sum(ranks) * read


def ask(options: argparse.Namespace, side: str, dtype: str, **changes: Any) -> Measured:
    """One measurement in a process of its own; said on stderr."""
    given: dict[str, Any] = vars(options) | {"worker": side, "dtype": dtype} | changes
    command = [sys.executable, "-m", "benchmarks.training"]
    names = ("worker", "dtype", "model", "attention", "examples", "max_tokens", "device")
    for name in (*names, "peer_batch_size"):
        command += [] if given[name] is None else [f"--{name.replace('_', '-')}={given[name]}"]
    command += ["--ranks", *map(str, given["ranks"])] + ["--random-8b"] * given["random_8b"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[1:])} failed:\n{done.stderr[-4000:]}")
    found = Measured(**json.loads(done.stdout.splitlines()[-1]))
    print(
        f"{side} {dtype} {given['attention'] or ''} "
        f"ranks {' '.join(map(str, given['ranks']))}: {found.seconds:.2f} s, "
        f"{found.tokens_per_second:.1f} tokens/s, {found.peak_bytes / 1e9:.2f} GB",
        file=sys.stderr,
        flush=True,
    )
    return found


def faster_attention(options: argparse.Namespace, dtype: str) -> str:
    """The peer's attention with the fastest of short alternating trials; on CUDA sdpa."""
    names = ATTENTIONS[options.device]
    if len(names) == 1:
        return names[0]
    trial = {"examples": min(options.examples, TRIAL_EXAMPLES), "ranks": options.ranks[:1]}
    seconds = [
        (ask(options, "peer", dtype, attention=name, **trial).seconds, name)
        for _ in range(NUM_TRIALS)
        for name in names
    ]
    return min(seconds)[1]


def max_relative_difference(pairs: Sequence[tuple[Measured, Measured]]) -> float | None:
    """Of our loss from the peer's, over all steps and ranks; None without a pair."""
    return max(
        (
            abs(mine - theirs) / theirs
            for ours, peer in pairs
            for rank, losses in peer.losses.items()
            for mine, theirs in zip(ours.losses[rank], losses, strict=True)
        ),
        default=None,
    )


def side_summary(runs: Sequence[Measured]) -> dict[str, Any]:
    """Seconds of every repeat, and the median rate."""
    return {
        "seconds": [round(run.seconds, 3) for run in runs],
        "tokens_per_second": round(statistics.median(r.tokens_per_second for r in runs), 1),
        "peak_gigabytes": round(max(run.peak_bytes for run in runs) / 1e9, 3),
    }


def summarise(
    options: argparse.Namespace,
    pairs: Mapping[str, Sequence[tuple[Measured, Measured]]],
    singles: Mapping[str, Measured],
    attentions: Mapping[str, str],
) -> dict[str, Any]:
    """The JSON object.

    Args:
        options: of the command line.
        pairs: of ours and the peer, by dtype.
        singles: peers of the middle rank alone, by attention.
        attentions: that the peer was timed with, by dtype.
    """
    half, full = pairs["bfloat16"], pairs["float32"]
    peaks = {name: single.peak_bytes for name, single in singles.items()}
    our_peak = statistics.median(ours.peak_bytes for ours, _ in half)
    first, seconds = half[0][0], statistics.median(ours.seconds for ours, _ in half)

    def ratio(of: Sequence[tuple[Measured, Measured]]) -> float | None:
        return statistics.median(p.seconds / o.seconds for o, p in of) if of else None

    default = statistics.median(p.seconds for _, p in full) / seconds if full else None
    figures = {
        "ratio_same_dtype": ratio(half),
        "ratio_peer_default_float32": default,
        "peak_memory_ratio": our_peak / peaks[attentions["bfloat16"]],
        "peak_memory_ratio_leanest_peer": our_peak / min(peaks.values()),
        "roofline_fraction": statistics.median(ours.roofline_fraction for ours, _ in half),
        "loss_max_relative_difference": max_relative_difference(half),
        "loss_max_relative_difference_float32": max_relative_difference(full),
        "ratio_same_dtype_float32": ratio(full),
    }
    sides = {
        f"{side}_{dtype}": side_summary([pair[index] for pair in found])
        for dtype, found in pairs.items()
        if found
        for index, side in enumerate(("ours", "peer"))
    }
    return {
        **{name: v if v is None else float(f"{v:.4g}") for name, v in figures.items()},
        **sides,
        "single_peer_rank": options.ranks[len(options.ranks) // 2],
        "single_peer_peak_gigabytes": {n: round(p / 1e9, 3) for n, p in peaks.items()},
        "peer_attention": dict(attentions),
        "peer_batch_size": options.peer_batch_size,
        "device": first.device,
        "model": "random 8B" if options.random_8b else options.name,
        "data": first.data,
        "examples": options.examples,
        "ranks": options.ranks,
        "max_tokens": first.max_tokens,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both sides, one line for each process to stderr, and the summary to stdout."""
    parser = argparse.ArgumentParser(description="Training five adapters, against peft.")
    models_of = parser.add_mutually_exclusive_group()
    models_of.add_argument("--model", default="smollm2-135m-instruct", help="name or folder")
    models_of.add_argument("--random-8b", action="store_true", help="random weights, Llama-3.1-8B")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--float32-repeats", type=int, default=1, help="0: leave float32 out")
    parser.add_argument("--peer-batch-size", type=int, choices=(1, 2, 4, 8), default=2)
    parser.add_argument("--max-tokens", type=int, help="of our micro-batches; 2048, CUDA 4096")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=tuple(DTYPES), help=argparse.SUPPRESS)
    parser.add_argument("--attention", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = choose_device().type
    if options.worker:
        device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
        measure = measure_ours if options.worker == "ours" else measure_peer
        print(json.dumps(measure(options, device)._asdict()))
        return
    options.name = Path(options.model).name
    if not options.random_8b:
        base = find_base_model(BaseModelConfig(name=options.model))
        options.model = str(fetch_weights(base).resolve())
    pairs: dict[str, list[tuple[Measured, Measured]]] = {}
    attentions: dict[str, str] = {}
    repeats = {"bfloat16": options.repeats, "float32": options.float32_repeats}
    for dtype, count in repeats.items():
        if count:
            attentions[dtype] = faster_attention(options, dtype)
        pairs[dtype] = [
            (
                ask(options, "ours", dtype),
                ask(options, "peer", dtype, attention=attentions[dtype]),
            )
            for _ in range(count)
        ]
    middle = options.ranks[len(options.ranks) // 2]
    singles = {
        name: ask(options, "peer", "bfloat16", attention=name, ranks=[middle])
        for name in ATTENTIONS[options.device]
    }
    print(json.dumps(summarise(options, pairs, singles, attentions)))


if __name__ == "__main__":
    main()
