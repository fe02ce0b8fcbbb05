"""Five adapters scored in one pass, or one after another by lm-eval: as fast, and the same answers?

    python -m benchmarks.evaluation [--repeats 3] [--items 16 32 32] [--model FOLDER | --random-8b]

Three workloads on items of ../shared/tasks: MMLU by letter with 5 examples (each option one token),
ARC-Easy by the options' own text without examples, and GSM8K answers of up to 256 tokens. Models
are the base with five LoRA adapters on q/k/v/o (ranks 8 ... 128, random, each update 3 % of its
weight's norm). The peer is lm-eval's HFLM, with peft's model as ``peft=`` makes it, one adapter
after another, with the batch size that is fastest in a short trial of one adapter. Ours is
``ResidentScorer`` with all adapters in one call. Both start from the same lm-eval instances, from
the text on; loading is not timed, and each has answered a few items before.

Each side is one process; ours and the peer alternate workload by workload, and the one that is not
asked waits. Ratios are the peer's seconds over ours, medians over the pairs. ``base_only`` is the
base without adapters on both sides.

A decision is which option wins an item, by likelihood and (ARC-Easy) by likelihood per character,
or the number that lm-eval's filters find in an answer. ``mismatched_decisions`` counts items of a
model that are decided differently in bfloat16, of ``items_compared``. Every one is listed beside
its margin in float32 and the rounding noise (``margins``): of an answer, the margin is that of the
first token in which the two texts differ, and the noise that of MMLU's options, also single tokens.
How far bfloat16 alone goes is said beside it: ``mismatched_with_float32`` are each side's decisions
that differ from our own in float32, ``peer_mismatched_with_itself`` those of the peer in its
smallest and largest batches of the trial. In float32 the first items are decided by both sides
again, and nothing may differ. ``tokens_run_over_distinct`` counts all prompts and options of
bfloat16, ``decode_row_occupancy`` the generations. The last line of output is one JSON object; the
exit code is 1 if a decision differs in float32.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
import peft
import torch
import transformers

from benchmarks import evaluation_sides as sides
from benchmarks.evaluation_answers import (
    Answers,
    decided,
    float32_differences,
    mismatched,
    num_different,
)
from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.devices import DTYPES, STEP_TOKENS, choose_device
from rankwise.engine.models.loading import load_tokenizer
from rankwise.engine.models.start import fetch_weights
from rankwise.records.config.study import BaseModelConfig

UPDATE_SIZE = 0.03
TRIAL_ITEMS = 32
BATCH_SIZES = {
    "cpu": {"mmlu_5shot": (1, 4, 16), "arc_easy_0shot": (4, 16, 64), "gsm8k_generation": (16, 32)},
    "cuda": {
        "mmlu_5shot": (8, 32, 128),
        "arc_easy_0shot": (16, 64, 256),
        "gsm8k_generation": (32, 128),
    },
}
BASE_ONLY = "mmlu_5shot_base_only"


class Pair:
    """Our process and the peer's, in one dtype."""

    def __init__(self, options: argparse.Namespace, dtype: str, folders: dict[str, str]) -> None:
        self.ours = sides.Side(options, "ours", dtype)
        if not Path(next(iter(folders.values()))).is_dir():
            self.ours.ask("save_adapters", folders=folders, size=UPDATE_SIZE)
        self.peer = sides.Side(options, "peer", dtype)
        self.device: str = self.ours.ask("put_on", folders=folders)["device"]
        self.peer.ask("put_on", folders=folders)
        self._warm: set[tuple[str, bool]] = set()

    def measure(
        self, workload: str, items: int, names: Sequence[str | None], batch_size: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both sides on the same items, one after the other."""
        pair: list[dict[str, Any]] = []
        for side in (self.ours, self.peer):
            if (workload, side is self.ours) not in self._warm:
                self._warm.add((workload, side is self.ours))
                side.measure(workload, sides.WARM_UP_ITEMS, names[:1], batch_size)
            pair.append(side.measure(workload, items, names, batch_size))
        return pair[0], pair[1]

    def trial(
        self, workload: str, items: int, name: str, tried: Sequence[int]
    ) -> tuple[int, list[Any]]:
        """The peer's fastest batch size on one adapter, and its answers in least and largest."""
        self.peer.measure(workload, sides.WARM_UP_ITEMS, [name], tried[0])
        found = {size: self.peer.measure(workload, items, [name], size) for size in tried}
        best = min(tried, key=lambda size: found[size]["seconds"])
        return best, [found[size]["answers"][0] for size in (tried[0], tried[-1])]

    def close(self) -> None:
        for side in (self.ours, self.peer):
            side.close()


def compare(options: argparse.Namespace, folders: dict[str, str]) -> dict[str, Any]:
    """Measure everything in bfloat16, decide again in float32, and sum up."""
    names, items = list(folders), dict(zip(sides.WORKLOADS, options.items, strict=True))
    with contextlib.closing(Pair(options, "bfloat16", folders)) as pair:
        trials = {
            workload: pair.trial(
                workload, min(count, TRIAL_ITEMS), names[0], BATCH_SIZES[options.device][workload]
            )
            for workload, count in items.items()
        }
        sizes = {workload: size for workload, (size, _) in trials.items()}
        found: dict[str, list[tuple[Any, Any]]] = {name: [] for name in (*items, BASE_ONLY)}
        for _ in range(options.repeats):
            for workload, count in items.items():
                found[workload].append(pair.measure(workload, count, names, sizes[workload]))
            first = "mmlu_5shot"
            found[BASE_ONLY].append(pair.measure(first, items[first], [None], sizes[first]))
        work, device = pair.ours.ask("work"), pair.device
    answers = Answers(options, items, names, {name: pairs[-1] for name, pairs in found.items()})
    with contextlib.closing(Pair(options, "float32", folders)) as pair:
        margins, from_exact = mismatched(answers, pair.ours)
        exact = float32_differences(pair, answers, options.float32_items, sizes)
    by_workload = answers.num_mismatched(margins)
    return {
        **{
            f"ratio_{name}": round(statistics.median(b["seconds"] / a["seconds"] for a, b in of), 3)
            for name, of in found.items()
        },
        "mismatched_decisions": sum(different for different, _ in by_workload.values()),
        "items_compared": sum(compared for _, compared in by_workload.values()),
        "tokens_run_over_distinct": round(work["tokens_read"] / work["distinct_tokens"], 4),
        "decode_row_occupancy": round(work["decode_row_occupancy"], 4),
        "margins": [each._asdict() | {"is_rounding": each.is_rounding} for each in margins],
        "mismatched_by_workload": by_workload,
        "mismatched_with_float32": from_exact,
        "peer_mismatched_with_itself": {
            workload: peer_with_itself(options, workload, *given)
            for workload, (_, given) in trials.items()
        },
        "differing_texts": answers.num_differing_texts,
        **exact,
        "seconds": {
            name: [[round(side["seconds"], 3) for side in pair] for pair in of]
            for name, of in found.items()
        },
        "peer_batch_sizes": sizes,
        "device": device,
    }


def peer_with_itself(
    options: argparse.Namespace, workload: str, one: Sequence[Any], other: Sequence[Any]
) -> list[int]:
    """Items that the peer decides differently in other batches, and how many there are."""
    count = min(dict(zip(sides.WORKLOADS, options.items, strict=True))[workload], TRIAL_ITEMS)
    tokenizer = load_tokenizer(Path(options.tokenizer))
    task = sides.prepared(workload, tokenizer, sides.LONGEST, count)
    return [num_different(decided(task, one), decided(task, other)), count]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both sides, one line for each measurement to stderr, and the summary to stdout."""
    parser = argparse.ArgumentParser(description="Scoring five adapters, against lm-eval.")
    models_of = parser.add_mutually_exclusive_group()
    models_of.add_argument("--model", default="smollm2-135m-instruct", help="name or folder")
    models_of.add_argument("--random-8b", action="store_true", help="random weights, Llama-3.1-8B")
    parser.add_argument(
        "--items", type=int, nargs=3, default=[16, 32, 32], help="of MMLU, ARC-Easy, GSM8K"
    )
    parser.add_argument("--float32-items", type=int, default=6, help="of each, in float32")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-batch-tokens", type=int, help="ours; 4096, CUDA 32768")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=tuple(DTYPES), help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = choose_device().type
    if options.worker:
        sides.serve(options)
        return
    options.max_batch_tokens = options.max_batch_tokens or STEP_TOKENS[options.device]
    name = "random 8B" if options.random_8b else Path(options.model).name
    # random weights are asked in the embedded model's tokens
    base = find_base_model(BaseModelConfig(name=options.model))
    options.model = options.tokenizer = str(fetch_weights(base).resolve())
    with tempfile.TemporaryDirectory() as work:
        folders = {f"r{rank}": str(Path(work) / f"r{rank}") for rank in options.ranks}
        summary = compare(options, folders)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft, lm_eval)}
    summary |= {
        "model": name,
        "items": options.items,
        "ranks": options.ranks,
        "max_batch_tokens": options.max_batch_tokens,
        "versions": versions,
    }
    print(json.dumps(summary))
    sys.exit(0 if summary["mismatched_decisions_float32"] == 0 else 1)


if __name__ == "__main__":
    main()
