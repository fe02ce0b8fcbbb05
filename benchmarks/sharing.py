"""One study on the embedded model, done in three ways: are its records the same?

    python -m benchmarks.sharing [--output FOLDER] [--only WAY ...]

Three ranks and full fine-tuning, two seeds, in float32: by one process; two units at a time by Ray
(with rankwise[ray]); and so that one of Ray's processes is killed (SIGKILL) at three random
moments. Each way has a folder of its own and begins from
nothing. The study is planned for two in all but the first, so passes are cut in another way there.
Compared with the first way: fingerprints of all runs and scores, and of every item whether it is
right, and its margin. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import rankwise as rw
from rankwise.records.folder import BASE, StudyFolder

STUDY = """
name: sharing
base_model: smollm2-135m-instruct
train: {task: kinship, max_examples: 48, epochs: 1, batch_size: 4, gradient_accumulation_steps: 1,
        precision: float32, save_every: 5s, learning_rate: {lora: 5.0e-4}}
methods: {lora: {ranks: [4, 16, 64], target_modules: attention}, full: {}}
seeds: [0, 1]
evaluation: {retention: [capitals], out_of_domain: [], held_out_text: [], limit: 40}
analysis: {top_k: 16, null_draws: 1}
"""

WAYS: dict[str, list[str]] = {
    "one": [],
    "two": ["--workers", "2"],
    "killed": ["--workers", "2"],
}
NUM_KILLS = 3


def run(way: str, file: Path, root: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the study in one way.

    Returns:
        Its seconds, its exit code and how many processes were killed.
    """
    began = time.perf_counter()
    command = [sys.executable, "-m", "rankwise", "run", str(file), "--study-dir", str(root)]
    with (root.parent / f"{way}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen([*command, *WAYS[way]], stdout=log, stderr=subprocess.STDOUT)
        num_kills = kill_some(process, say) if way == "killed" else 0
        code = process.wait()
    seconds = round(time.perf_counter() - began, 1)
    return {"seconds": seconds, "exit_code": code, "kills": num_kills}


def kill_some(process: subprocess.Popen[bytes], say: Callable[[str], None]) -> int:
    """Kill one of the processes that do units, at random moments."""
    dice, killed = random.Random(0), 0
    while killed < NUM_KILLS and process.poll() is None:
        time.sleep(dice.uniform(20, 60))  # imports take some of it; the whole takes minutes
        try:
            children = psutil.Process(process.pid).children(recursive=True)
            titles = {child: " ".join(child.cmdline()) for child in children}
        except psutil.Error:
            continue
        # the desk, at which they leave what they make, ends the study with it
        workers = [c for c, title in titles.items() if "ray::" in title and "Desk" not in title]
        if workers:
            victim = dice.choice(workers)
            victim.kill()
            killed += 1
            say(f"process {victim.pid} killed")
    return killed


def fingerprints(folder: StudyFolder) -> dict[str, str]:
    """Of every run and every score."""
    study, found = folder.read_study(), {}
    for model in study.models:
        record = folder.finished_run(model)
        found[model.name] = "missing" if record is None else record.planned.fingerprint
    for name in (BASE, *(model.name for model in study.models)):
        for task in study.scored_tasks():
            scored = folder.earlier_evaluation(name, task)
            found[f"{name} {task}"] = "missing" if scored is None else scored.fingerprint
    return found


def answers(root: Path) -> dict[tuple[str, str, int], tuple[bool, float | None]]:
    """Model, task and item → whether it is right, and its margin in nats where it has one."""
    rows = rw.open(root).items_df().to_dict("records")
    return {
        (row["model"], row["task"], row["doc_id"]): (row["is_right"], row["margin_nats"])
        for row in rows
    }


def difference(first: Path, other: Path) -> dict[str, Any]:
    """How far two studies are from each other."""
    ours, theirs = (fingerprints(StudyFolder(root)) for root in (first, other))
    right, compared = answers(first), answers(other)
    both = [(right[item], compared[item]) for item in right.keys() & compared.keys()]
    margins = [abs(a - b) for (_, a), (_, b) in both if a is not None and b is not None]
    return {
        "fingerprints_differ": sum(ours.get(k) != theirs.get(k) for k in {*ours, *theirs}),
        "num_fingerprints": len(ours),
        "num_items": len(both),
        "items_missing": len(right.keys() ^ compared.keys()),
        "items_judged_otherwise": sum(a != b for (a, _), (b, _) in both),
        "num_margins": len(margins),
        "margin_nats_apart_at_most": max(margins, default=None),
    }


def main() -> None:
    """Run the ways that are asked for, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", nargs="*", default=list(WAYS), choices=list(WAYS))
    asked = parser.parse_args()
    output = asked.output or Path(tempfile.mkdtemp())
    output.mkdir(parents=True, exist_ok=True)
    file = output / "sharing.yaml"
    file.write_text(STUDY, encoding="utf-8")
    found: dict[str, Any] = {}
    for way in asked.only:
        found[way] = run(way, file, output / way, say=lambda text: print(text, flush=True))
        if way != "one" and (output / "one").exists():
            found[way] |= difference(output / "one", output / way)
        print(f"{way}: {json.dumps(found[way])}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
