"""Checks the engine on a card and times it, meant to take ten minutes on one H100.

    python -m benchmarks.gpu [--output FILE] [--quick] [--section NAME] [--device cpu --tiny]

Needs torch, transformers, peft, accelerate and what rankwise's engine imports; no network and no
lm-eval. Every section is a process with a time limit, so a crash costs one section. Models have
random weights; of the ratios' 8B, 3B or 1B they are made on the card. A check has a value, a limit
and the reason for it; what means nothing on this device is skipped with the reason. Timings never
fail.

``--quick`` does the checks that find most, meant for 90 seconds. On a CPU sizes are always tiny:
this is for the tests. Progress goes to stderr. The last line of output is one JSON object, which is
written to ``--output`` too; the exit code is 1 if a check fails. docs/GPU.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from benchmarks.gpu import kernels, ratios, scoring, spectra, training
from benchmarks.gpu.setting import Found, Setup, card_bytes
from rankwise.engine.models.devices import choose_device, device_name, give_back_memory

ROOT = Path(__file__).resolve().parents[2]
Part = Callable[[Setup, Found], None]


class Section(NamedTuple):
    """Parts that share a process.

    Attributes:
        seconds: after which the process is stopped.
        quick: parts that ``--quick`` does.
        others: that it does not.
        gigabytes: of a card's memory; a smaller one skips the section.
        size: of its random model, see ``setting.SHAPES``. What is not of 8B is done where 8B does
            not fit, or by name.
    """

    seconds: int
    quick: tuple[Part, ...] = ()
    others: tuple[Part, ...] = ()
    gigabytes: int = 0
    size: str = "8b"

    def is_usual(self, gigabytes: float | None) -> bool:
        """Whether it is done unasked on a card of this memory; None: on a CPU."""
        return self.size == "8b" or (gigabytes is not None and gigabytes < OF_8B_GIGABYTES)


OF_8B_GIGABYTES = 60
_TRAINING = (ratios.roofline, ratios.training, ratios.all_linear_training, ratios.profile)
_SCORING = (ratios.log_likelihoods, ratios.texts)


# Few: each is a process that imports torch and transformers anew.
SECTIONS: dict[str, Section] = {
    "attention": Section(240, (kernels.attention,), (kernels.recompilations,)),
    "train": Section(
        300,
        (training.cpu_and_device,),
        (training.company, training.variants, training.resume, training.full),
    ),
    "score": Section(
        240,
        (scoring.log_likelihoods,),
        (scoring.flex, scoring.company, scoring.guard, scoring.texts, scoring.heads),
    ),
    "oom": Section(
        150,
        (training.out_of_memory,),
        (training.out_of_optimizer_memory, scoring.out_of_memory, scoring.host_reads),
    ),
    "spectra": Section(180, (), (spectra.decompositions, spectra.records, spectra.seconds)),
    "memory": Section(240, (), (training.memory, training.full_memory), OF_8B_GIGABYTES),
    "train_ratio": Section(300, (), _TRAINING, OF_8B_GIGABYTES),
    "more_ratios": Section(300, (), (ratios.wide_training, ratios.liger_training), OF_8B_GIGABYTES),
    "score_ratio": Section(300, (), _SCORING, OF_8B_GIGABYTES),
    "memory_3b": Section(180, (), (training.memory,), 22, "3b"),
    "train_ratio_3b": Section(300, (), _TRAINING, 22, "3b"),
    "score_ratio_3b": Section(240, (), _SCORING, 22, "3b"),
    "train_ratio_1b": Section(240, (), _TRAINING, 14, "1b"),
    "score_ratio_1b": Section(180, (), _SCORING, 14, "1b"),
}


def environment(device: torch.device) -> dict[str, Any]:
    """The card, the driver, versions and switches that change results or speed."""
    allocator = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    found: dict[str, Any] = {
        "device": device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "c_compiler": shutil.which("cc") or shutil.which("gcc"),
        "float32_products": torch.get_float32_matmul_precision(),
        "allocator": next((os.environ[name] for name in allocator if name in os.environ), None),
    }
    if device.type == "cuda":
        found |= {
            "cuda": torch.version.cuda,
            "compute_capability": torch.cuda.get_device_capability(device),
            "memory_gb": round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return found


def run_section(name: str, setup: Setup) -> Found:
    """All parts of a section in this process; one that raises is a check that fails."""
    found, section = Found(), SECTIONS[name]
    setup = setup._replace(size=section.size)
    if setup.is_cuda and not setup.is_tiny:
        total = card_bytes(setup) / 1e9
        if total < section.gigabytes:
            found.skip(name, f"it needs {section.gigabytes} GB, and the card has {total:.0f}")
            return found
    for part in (*section.quick, *(() if setup.is_quick else section.others)):
        try:
            part(setup, found)
        except Exception as error:  # noqa: BLE001  whatever it is, it is what was to be found
            module = part.__module__.rpartition(".")[2]
            found.failed(f"{name}.{module}.{part.__name__}", error)
        if setup.is_cuda:
            give_back_memory(setup.device)
    return found


def in_a_process(
    name: str, arguments: Sequence[str], variables: Mapping[str, str]
) -> dict[str, Any]:
    """What a section finds in a process of its own, or what became of it."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--worker", name, *arguments]
    started, limit = time.monotonic(), SECTIONS[name].seconds
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True,
            timeout=limit, check=False,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        found = {"checks": {name: {"ok": False, "error": f"not done after {limit} s"}}}
    except (IndexError, json.JSONDecodeError):
        found = {"checks": {name: {"ok": False, "error": f"it ended with {done.returncode}"}}}
    seconds = round(time.monotonic() - started, 1)
    bad = failed(found["checks"])
    told = f", failed: {', '.join(bad)}" if bad else ""
    print(f"{name}: {seconds} s{told}", file=sys.stderr, flush=True)
    return found


def failed(checks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of checks that did not hold."""
    return [name for name, check in checks.items() if not check.get("ok", "skipped" in check)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections and print the JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description="Checks and timings of the engine on a card.")
    parser.add_argument("--output", type=Path, help="also write the JSON object there")
    parser.add_argument("--quick", action="store_true", help="the most important checks")
    parser.add_argument(
        "--section", action="append", choices=tuple(SECTIONS), help="only this one; repeatable"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="toy sizes; always on a CPU")
    parser.add_argument("--worker", choices=tuple(SECTIONS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    if options.device == "auto":
        device = choose_device()
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device")
    setup = Setup(device, options.tiny or device.type == "cpu", options.quick)
    if options.worker:
        out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
        print(json.dumps(vars(run_section(options.worker, setup))), file=out, flush=True)
        return 0
    started = time.monotonic()
    passed_on = [f"--device={device.type}"]
    passed_on += ["--tiny"] * setup.is_tiny + ["--quick"] * setup.is_quick
    gigabytes = card_bytes(setup) / 1e9 if setup.is_cuda else None
    names = options.section or [
        name
        for name, section in SECTIONS.items()
        if section.quick or (not setup.is_quick and section.is_usual(gigabytes))
    ]
    checks: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        variables = {
            "TORCHINDUCTOR_CACHE_DIR": cache,  # kernels that one process compiles serve the next
            # transformers' Trainer would share rows out to every card that it sees
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0],
        }
        for name in names:
            found = in_a_process(name, passed_on, variables)
            checks |= found["checks"]
            timings |= found.get("timings", {})
    bad = failed(checks)
    summary = json.dumps(
        {
            "ok": not bad,
            "failed": bad,
            "env": environment(device),
            "checks": checks,
            "timings": timings,
            "seconds": round(time.monotonic() - started, 1),
        }
    )
    if options.output is not None:
        options.output.write_text(summary + "\n", encoding="utf-8")
    print(summary)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
