"""What is measured before training, of some study files, and what that takes.

    python -m benchmarks.prediction.measure STUDY.yaml ... --output FILE.json
                                             [--allow-task-code] [--no-probe]

FILE.json gets, by the name of each study, its features (``feature_table``), the wall and CPU
seconds from the study file on, the process's peak memory, threads, and the machine's load before.
It is written after every study; entries of other studies in it stay. The last line of output is one
JSON object: the seconds and the peak by study.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.prediction.untrained import measure_features
from rankwise.records.files import write_atomically
from rankwise.records.study_file import load_config


def measured(path: Path, *, allow_task_code: bool, with_probe: bool) -> tuple[str, dict[str, Any]]:
    """The name of a study, and its entry."""
    load = os.getloadavg()[0]
    started, used = time.perf_counter(), time.process_time()
    config = load_config(path, ["allow_task_code=true"] if allow_task_code else [])
    features = measure_features(config, with_probe=with_probe)
    return config.name, {
        "features": features,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - used,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "num_threads": torch.get_num_threads(),
        "load_before": load,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the studies one after the other."""
    parser = argparse.ArgumentParser(description="What is measured before training.")
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--allow-task-code", action="store_true")
    parser.add_argument("--no-probe", action="store_true")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    if options.output.exists():
        found = json.loads(options.output.read_text())
    summary: dict[str, Any] = {}
    for path in options.studies:
        name, entry = measured(
            path, allow_task_code=options.allow_task_code, with_probe=not options.no_probe
        )
        found[name] = entry
        write_atomically(options.output, json.dumps(found, indent=1, sort_keys=True) + "\n")
        summary[name] = {key: value for key, value in entry.items() if key != "features"}
        print(
            f"{name}: {len(entry['features'])} features, {entry['seconds']:.0f} s "
            f"({entry['cpu_seconds']:.0f} s of CPU), {entry['peak_memory_bytes'] / 1e9:.1f} GB",
            file=sys.stderr,
        )
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
