"""What a new user sees in the first minutes: does the default study settle, and how long it takes.

    python -m benchmarks.first_run [--seeds 10] [--out FOLDER] [--only study report lanes]

*study* runs the default study with each seed (``rankwise run "seeds=[N]"``), one after another,
in FOLDER/seed-N. A seed that is finished there is not run again: FOLDER/seconds.json has its
seconds. A study before them, which is not counted, fills the caches: the model, and the
decompositions of the base. *report* times ``rankwise report`` and ``rankwise run`` on the first
seed's study, which is finished. *lanes* takes some steps of the default study's adapters in fresh
processes that alternate: with one lane a core, and with all threads on every product.

Nothing else should run. The last line of the output is one JSON object; what was not measured is
null. Bars: settled_share 0.9, seconds_median 240, tokens_per_second_lanes_over_threads 1.4,
report_seconds 5, rerun_seconds 4.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rankwise.engine.models.devices import limit_kernel_cache
from rankwise.engine.models.lanes import num_lanes
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.start import fetch_weights
from rankwise.engine.models.structure import adaptable_shapes
from rankwise.engine.models.trained_adapters import adapted
from rankwise.engine.training.loop import TrainingResult, train_pass
from rankwise.engine.training.trainees import AdapterTrainee, StepMetrics, Trainee, lora_adapter
from rankwise.errors import RankwiseError
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("study", "report", "lanes")
NUM_STEPS = 10
"""Of the lanes' measurement; the first two make kernels and are not timed."""
UNTIMED_STEPS = 2
NUM_PAIRS = 3


def rankwise(*arguments: str, folder: Path) -> float:
    """Seconds of a command, from its start to its end; its output goes to stderr.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    command = [sys.executable, "-m", "rankwise", *arguments]
    subprocess.run(command, cwd=folder, env=environment, stdout=sys.stderr, check=True)
    return time.perf_counter() - started


def studied(seeds: Sequence[int], folder: Path) -> dict[str, Any]:
    """The default study with each seed: what it says, and its seconds."""
    seconds_file = folder / "seconds.json"
    seconds: dict[str, float] = {}
    if seconds_file.exists():
        seconds = json.loads(seconds_file.read_text(encoding="utf-8"))
    missing = [seed for seed in seeds if str(seed) not in seconds]
    if missing:
        few = ["train.max_examples=8", "train.epochs=1", "evaluation.limit=2"]
        with tempfile.TemporaryDirectory() as caches:
            rankwise("run", *few, "--study-dir", f"{caches}/study", folder=folder)
    for seed in missing:
        took = rankwise("run", f"seeds=[{seed}]", "--study-dir", f"seed-{seed}", folder=folder)
        seconds[str(seed)] = round(took, 1)
        seconds_file.write_text(json.dumps(seconds), encoding="utf-8")
    is_settled: list[bool] = []
    for seed in seeds:
        text = (folder / f"seed-{seed}" / "recommendation.json").read_text(encoding="utf-8")
        (part,) = json.loads(text)["by_train_task"]
        is_settled.append(any(verdict["qualifies"] for verdict in part["verdicts"]))
        print(f"seed {seed}: {seconds[str(seed)]:.0f} s: {part['statement']}", file=sys.stderr)
    of_seeds = [seconds[str(seed)] for seed in seeds]
    return {
        "settled_share": statistics.mean(is_settled),
        "seconds_median": round(statistics.median(of_seeds), 1),
        "seconds_max": max(of_seeds),
    }


def reported(seed: int, folder: Path) -> dict[str, float]:
    """Seconds to write the report of a finished study anew, and to find that nothing is left."""
    study = f"seed-{seed}"
    report = rankwise("report", study, folder=folder)
    rerun = rankwise("run", f"seeds=[{seed}]", "--study-dir", study, folder=folder)
    return {"report_seconds": round(report, 1), "rerun_seconds": round(rerun, 1)}


class Observer:
    """Remembers when the last trainee of a pass has taken each step."""

    def __init__(self, last: Trainee) -> None:
        self.ends: list[float] = []
        self._last = last

    def stepped(self, trainee: Trainee, metrics: StepMetrics) -> None:
        if trainee is self._last:
            self.ends.append(time.perf_counter())

    def reached(self, trainee: Trainee, result: TrainingResult) -> None: ...

    def dropped(self, trainee: Trainee, error: RankwiseError) -> None:
        raise error

    def shrunk(self, max_tokens: int) -> None: ...


def tokens_per_second(max_lanes: int) -> float:
    """Of the adapters of the default study in one pass, the median over its steps."""
    limit_kernel_cache()
    config = load_config(None)
    plan = plan_study(config)
    precision, device = plan.record.precision, plan.device
    base = load_frozen(fetch_weights(plan.base), precision, device)
    shapes = adaptable_shapes(base)
    trainees = [
        AdapterTrainee(
            run,
            plan.examples[run.train_task],
            config.train,
            lora_adapter(shapes, run, config, device, precision),
            [NUM_STEPS],
        )
        for run in plan.record.runs
        if run.method == "lora"
    ]
    observer = Observer(trainees[-1])
    with adapted(base, [*trainees[0].adapter.factors]) as bank:
        train_pass(
            base,
            trainees,
            bank=bank,
            max_tokens=plan.record.passes[0].max_tokens,
            precision=precision,
            gradient_checkpointing=False,
            observer=observer,
            max_lanes=max_lanes,
        )
    tokens = [sum(len(example.tokens) for example in batch) for batch in trainees[0].batches]
    rates = [
        len(trainees) * tokens[step] / (observer.ends[step] - observer.ends[step - 1])
        for step in range(UNTIMED_STEPS, NUM_STEPS)
    ]
    return statistics.median(rates)


def in_lanes() -> dict[str, float]:
    """Tokens per second with lanes over those with threads, the median of neighbouring pairs."""
    environment = {"OMP_WAIT_POLICY": "passive"} | os.environ  # as the command sets it
    command = [sys.executable, "-m", "benchmarks.first_run", "--max-lanes"]
    ratios: list[float] = []
    for _ in range(NUM_PAIRS):
        rates: list[float] = []
        for lanes in (num_lanes(torch.device("cpu")), 1):
            done = subprocess.run(
                [*command, str(lanes)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            rates.append(float(done.stdout.splitlines()[-1]))
            print(f"{lanes} lanes: {rates[-1]:.0f} tokens/s", file=sys.stderr)
        ratios.append(rates[0] / rates[1])
    return {"tokens_per_second_lanes_over_threads": round(statistics.median(ratios), 2)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=None, help="keeps the studies")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--max-lanes", type=int, default=None, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.max_lanes is not None:
        print(tokens_per_second(chosen.max_lanes))
        return
    names = ("settled_share", "seconds_median", "seconds_max")
    names += ("tokens_per_second_lanes_over_threads", "report_seconds", "rerun_seconds")
    figures: dict[str, float | None] = dict.fromkeys(names)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if chosen.out is None else chosen.out.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        seeds = range(chosen.seeds)
        if "study" in chosen.only:
            figures |= studied(seeds, folder)
        if "report" in chosen.only:
            if not (folder / "seed-0").exists():
                raise SystemExit("report needs a study: give study too, or --out with seed-0 in it")
            figures |= reported(0, folder)
        if "lanes" in chosen.only:
            figures |= in_lanes()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
