r"""DPO at five ranks in one pass, or one after another with TRL: is it as fast as it says?

    python -m benchmarks.preference [--pairs 40] [--repeats 2] [--dtype bfloat16]
                                    [--model FOLDER] [--device auto]

The peer is TRL's DPOTrainer (``pip install trl``), which trains one adapter after another; ours is
``train_pass`` with all ranks at once. Both read the same tokens in the same order from the same
initial weights: a question of GSM8K, its rationale as the chosen answer and that of the next row as
the rejected one; q/k/v/o, 2 x 4 pairs a step, one epoch, beta 0.1, AdamW, linear schedule with
warm-up, gradients clipped at 1.

Every measurement is a fresh process; ours and the peer alternate. Seconds are those of the steps,
after an untimed step: ours with the base's reading of all pairs, the peer's from its first step's
begin to its last step's end. The peer's settings are the best that we know: a bfloat16 base under
autocast, no gradient checkpointing (its default is slower), the attention that ``--attention``
names, losses fetched at the end. ``ratio`` is the peer's time over ours, the median over pairs of
neighbouring processes; ``max_loss_difference`` is in nats, over every step of every rank. Until the
third step it says nothing: the first has a rate of zero, so both losses are ln 2. How far the
losses go from there is ``max_loss_change``. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from benchmarks.training import MAX_TOKENS, Observer
from benchmarks.training_peer import (
    ROOT,
    STEP_SIZE,
    TRAIN,
    Timer,
    adapted_shapes,
    load_examples,
    load_model,
    new_adapter,
    now,
    planned,
    trl_arguments,
    with_adapter,
)
from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.devices import DTYPES, choose_device, device_name
from rankwise.engine.models.loading import load_tokenizer
from rankwise.engine.models.start import fetch_weights
from rankwise.engine.models.trained_adapters import adapted
from rankwise.engine.training.loop import train_pass
from rankwise.engine.training.micro_batches import base_readings
from rankwise.engine.training.trainees import AdapterTrainee, effective_batches
from rankwise.records.config.study import BaseModelConfig
from rankwise.records.config.training import ObjectiveConfig
from rankwise.tasks.training_rows import Example

DPO = TRAIN.model_copy(update={"objective": ObjectiveConfig.model_validate({"dpo": {}})})


class Measured(NamedTuple):
    """What one process says: seconds of all adapters' steps, and by rank the loss of each."""

    seconds: float
    losses: dict[str, list[float]]
    device: str


def load_pairs(options: argparse.Namespace) -> list[Example]:
    """Every question with its own rationale and that of the next row."""
    rows, _ = load_examples(options)
    pairs: list[Example] = []
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        prompt = row.tokens[: -row.num_loss_tokens]
        answer = other.tokens[-other.num_loss_tokens :]
        rejected = Example(prompt + answer, len(answer), is_truncated=False)
        pairs.append(row._replace(rejected=rejected))
    return pairs


def measure_ours(options: argparse.Namespace, device: torch.device) -> Measured:
    """All ranks in one pass."""
    pairs, model = load_pairs(options), load_model(options, device, None)
    max_tokens = MAX_TOKENS[device.type]

    def train(rows: Sequence[Example]) -> tuple[float, list[AdapterTrainee]]:
        started = now(device)
        known = base_readings(model, rows, max_tokens=max_tokens)
        read = [known[row] for row in rows]  # in the peer's order
        trainees = [
            AdapterTrainee(
                planned(rank, len(rows)),
                read,
                DPO,
                new_adapter(model, rank, device, DTYPES[options.dtype]),
            )
            for rank in options.ranks
        ]
        with adapted(model, list(adapted_shapes(model))) as bank:
            train_pass(
                model,
                trainees,
                bank=bank,
                max_tokens=max_tokens,
                precision=options.dtype,
                gradient_checkpointing=False,
                observer=Observer(max_tokens),
            )
        return now(device) - started, trainees

    train(pairs[:STEP_SIZE])
    gc.collect()
    seconds, trainees = train(pairs)
    losses = {str(t.run.rank): [line.loss_nats for line in t.metrics] for t in trainees}
    return Measured(seconds, losses, device_name(device))


def measure_peer(options: argparse.Namespace, device: torch.device) -> Measured:
    """One rank after another, in our order of the pairs."""
    pairs, base = load_pairs(options), load_model(options, device, options.attention)
    run = planned(1, len(pairs))
    rows = [pair for batch in effective_batches(pairs, run, DPO) for pair in batch]
    train_peer(options, base, options.ranks[0], rows[:STEP_SIZE])
    seconds, losses = 0.0, dict[str, list[float]]()
    for rank in options.ranks:
        taken, losses[str(rank)] = train_peer(options, base, rank, rows)
        seconds += taken
    return Measured(seconds, losses, device_name(device))


def train_peer(
    options: argparse.Namespace, base: Any, rank: int, rows: Sequence[Example]
) -> tuple[float, list[float]]:
    """Seconds of the steps of one adapter, and the loss of each."""
    import trl
    from datasets import Dataset

    class Trainer(trl.DPOTrainer):
        """Reads tokens that are there already."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    tokens = [
        {
            "prompt_ids": row.tokens[: -row.num_loss_tokens],
            "chosen_ids": row.tokens[-row.num_loss_tokens :],
            "rejected_ids": row.rejected.tokens[-row.rejected.num_loss_tokens :],
        }
        for row in rows
        if row.rejected is not None
    ]
    model, num_steps = with_adapter(base, rank), -(-len(rows) // STEP_SIZE)
    timer = Timer(next(base.parameters()).device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=trl.DPOConfig(
                folder,
                per_device_train_batch_size=DPO.batch_size,
                train_sampling_strategy="sequential",
                **trl_arguments(options, DPO, num_steps),
            ),
            train_dataset=Dataset.from_list(tokens),
            processing_class=load_tokenizer(Path(options.model)),
            callbacks=[timer],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "grad_norm" in line]
    trainer.model.unload()
    del trainer, model
    gc.collect()
    return timer.ended - timer.started, losses


def ask(options: argparse.Namespace, side: str) -> Measured:
    """One measurement in a process of its own; said on stderr."""
    command = [sys.executable, "-m", "benchmarks.preference", f"--worker={side}"]
    for name in ("model", "pairs", "dtype", "device", "attention"):
        command.append(f"--{name}={getattr(options, name)}")
    command += ["--ranks", *map(str, options.ranks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[1:])} failed:\n{done.stderr[-4000:]}")
    found = Measured(**json.loads(done.stdout.splitlines()[-1]))
    print(f"{side}: {found.seconds:.2f} s", file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both sides, one line for each process to stderr, and the summary to stdout."""
    parser = argparse.ArgumentParser(description="DPO at five ranks, against TRL.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name or folder")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--attention", default="sdpa", help="of the peer")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = choose_device().type
    options.examples, options.random_8b = options.pairs, False
    if options.worker:
        measure = measure_ours if options.worker == "ours" else measure_peer
        print(json.dumps(measure(options, torch.device(options.device))._asdict()))
        return
    base = find_base_model(BaseModelConfig(name=options.model))
    options.model = str(fetch_weights(base).resolve())
    found = [(ask(options, "ours"), ask(options, "peer")) for _ in range(options.repeats)]
    settings = {"dtype": options.dtype, "pairs": options.pairs, "ranks": options.ranks}
    print(json.dumps(compared(found) | settings | {"device": found[0][0].device}))


def compared(found: Sequence[tuple[Measured, Measured]]) -> dict[str, Any]:
    """Of ours and the peer's, neighbours together: the ratio, and how far losses are apart."""
    differences = [
        abs(mine - theirs)
        for ours, peer in found
        for rank, losses in peer.losses.items()
        for mine, theirs in zip(ours.losses[rank], losses, strict=True)
    ]
    changes = [
        abs(loss - math.log(2))
        for _, peer in found
        for losses in peer.losses.values()
        for loss in losses
    ]
    return {
        "ratio": round(statistics.median(peer.seconds / ours.seconds for ours, peer in found), 3),
        "max_loss_difference": float(f"{max(differences):.3g}"),
        "max_loss_change": float(f"{max(changes):.3g}"),
        "ours_seconds": [round(ours.seconds, 2) for ours, _ in found],
        "peer_seconds": [round(peer.seconds, 2) for _, peer in found],
    }


if __name__ == "__main__":
    main()
