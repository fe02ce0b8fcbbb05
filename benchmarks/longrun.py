"""Does rankwise stay quick in a study of a thousand runs, and healthy in a process of many studies?

    python -m benchmarks.longrun [--runs 1000] [--items 200] [--imported 200] [--studies 20]
                                 [--folder FOLDER] [--parts PART ...] [--profile] [--shrink 1]

Reading: a finished study of ``--runs`` runs on five tasks of ``--items`` items is written, with
spectra of about 50 KB a run, and then read by what each command calls. Planning: as many runs of
a tiny model, and ``--imported`` imported adapters. Health: ``--studies`` small studies of ten runs
are run in this process; memory, open files and threads are noted after each. Slopes are least
squares over the last three quarters; seconds are of one core.

Growth: each command on studies of three sizes, see ``longrun_growth``; ``--shrink 10`` takes a
tenth of the sizes, 0 leaves it out.

``--folder`` keeps the study that was written and uses it again; ``--profile`` prints where the time
of each part goes, which then takes longer (the report needs ``conclude``). The last line of output
is one JSON object.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import pstats
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from scipy import stats

from benchmarks.longrun_growth import PARTS as PARTS_THAT_GROW
from benchmarks.longrun_growth import exponent, growth
from rankwise.records.folder import StudyFolder
from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.study_file import load_config
from rankwise.report.page import write_report
from rankwise.study.conclusion import StudyOutcome, conclude
from rankwise.study.damage import find_damage
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.study.stages.graph import finished_work, stages
from rankwise.study.stages.spectra import AnalyseWeights
from rankwise.study.status import study_status
from tests.planted.folders import samples_of
from tests.planted.results import planted_study
from tests.planted.weights import matrix, record
from tests.support.observers import Silent
from tests.support.tiny_models import tiny
from tests.support.tiny_tasks import tiny_tokenizer, write_tiny_tasks

RANKS_AND_FULL = 25
NUM_MATRICES = 30
"""Of a run's spectra: a record of about 50 KB."""
PARTS = ("damage", "damage_again", "status", "stages", "conclude", "report")


def planted_long_study(num_runs: int, num_items: int) -> StudyResults:
    """A finished study of 24 ranks and full fine-tuning, with as many seeds as that takes."""
    num_keys = min(RANKS_AND_FULL, num_runs)
    keys: list[Any] = [*(2 * number for number in range(1, num_keys)), "full"]
    share = {key: index / num_keys for index, key in enumerate(keys)}
    results = planted_study(
        {key: 0.6 + 0.2 * share[key] for key in keys},
        {key: 0.9 - 0.1 * share[key] for key in keys},
        {key: 0.5 - 0.05 * share[key] for key in keys},
        {key: 2.5 + 0.2 * share[key] for key in keys},
        num_in_domain=num_items,
        num_retention=num_items,
        num_held_out=num_items,
        seeds=range(-(-num_runs // num_keys)),
    )
    analysis = results.study.config.analysis.model_copy(update={"heads": False})
    config = results.study.config.model_copy(update={"analysis": analysis})
    study = results.study.model_copy(update={"config": config})
    return results.model_copy(update={"study": study})


def write_long_study(folder: StudyFolder, results: StudyResults) -> None:
    """Write everything that a finished study has, but for the calls that make it durable."""
    documents = [
        {"question": f"Item {number}: {'which of these is so? ' * 12}", "choices": list("ABCD")}
        for number in range(1000)
    ]
    with mock.patch.object(os, "fsync"):
        folder.write(folder.study_file, results.study)
        for model in (results.base, *results.runs):
            _write_model(folder, results, model, documents)


def _write_model(
    folder: StudyFolder, results: StudyResults, model: ModelResults, documents: Sequence[Any]
) -> None:
    if model.run is not None:
        run = model.run.planned
        folder.start_run(run)
        weights = folder.weights_folder(run)
        weights.mkdir(parents=True)
        (weights / "adapter_model.safetensors").write_bytes(run.name.encode() * 100)
        folder.finish_run(model.run)
        matrices = tuple(
            matrix("self_attn.q_proj", layer, rank=run.rank, norm=1.0 + layer / 100)
            for layer in range(NUM_MATRICES)
        )
        wanted = AnalyseWeights.wanted(results.study, run)
        spectra = record(run, matrices).model_copy(update={"fingerprint": wanted})
        folder.write(AnalyseWeights.path(folder, run.name), spectra)
    for task, evaluation in model.evaluations.items():
        items = model.items[task]
        lines = samples_of(evaluation, items, documents[: len(items.values)])
        folder.write_evaluation(evaluation, lines)


def reading_seconds(
    root: Path, chosen: Sequence[str] = PARTS, *, is_profiled: bool = False
) -> dict[str, float]:
    """How long each command's reading takes; each begins with nothing in memory."""
    (root / ".checked.json").unlink(missing_ok=True)
    models = [run.name for run in StudyFolder(root).read_study().runs]
    outcomes: list[StudyOutcome] = []

    def report(_: StudyFolder) -> None:
        (outcome,) = outcomes
        write_report(root, outcome.results, outcome.recommendation, outcome.findings)

    def walk(folder: StudyFolder) -> None:
        graph = stages(folder.read_study())
        finished_work(graph, folder)
        assert all(stage.is_finished(folder) for stage in graph)

    parts: dict[str, Callable[[StudyFolder], Any]] = {
        "damage": lambda folder: find_damage(folder, models),
        "damage_again": lambda folder: find_damage(folder, models),
        "status": study_status,
        "stages": walk,
        "conclude": lambda folder: outcomes.append(conclude(folder)),
        "report": report,
    }
    assert tuple(parts) == PARTS
    seconds: dict[str, float] = {}
    for name, part in parts.items():
        if name not in chosen:
            continue
        gc.collect()
        profile = cProfile.Profile() if is_profiled else None
        started = time.process_time()
        if profile is None:
            part(StudyFolder(root))
        else:
            profile.runcall(part, StudyFolder(root))
        seconds[name] = time.process_time() - started
        if profile is not None:
            pstats.Stats(profile, stream=sys.stdout).sort_stats("cumulative").print_stats(45)
    return seconds


def write_small_study(root: Path) -> Path:
    """The study file of a tiny model and its tasks."""
    tokenizer = tiny_tokenizer()
    model = tiny("Llama", vocab_size=len(tokenizer), max_position_embeddings=256)
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    write_tiny_tasks(root / "tasks")
    file = root / "small.yaml"
    file.write_text(
        f"""
base_model: {root / "model"}
tasks_path: tasks
allow_task_code: true
train:
  task: colours
  epochs: 1
  max_examples: 8
  learning_rate: {{lora: 1e-2, full: 1e-3}}
  precision: float32
methods: {{lora: {{ranks: [2, 3, 4, 5], target_modules: attention}}}}
evaluation: {{out_of_domain: [], held_out_text: [], limit: 4}}
""",
        encoding="utf-8",
    )
    return file


def planning_seconds(root: Path, num_runs: int, num_imported: int) -> dict[str, float]:
    """How long it takes to plan many runs, and many imported adapters."""
    file = write_small_study(root)
    ranks, seeds = list(range(1, 25)), list(range(-(-num_runs // 25)))
    seconds: dict[str, float] = {}
    started = time.process_time()
    plan = plan_study(load_config(file, [f"methods.lora.ranks={ranks}", f"seeds={seeds}"]))
    seconds["plan"] = time.process_time() - started
    assert len(plan.record.runs) >= num_runs
    started = time.process_time()
    stages(plan.record)
    seconds["plan_stages"] = time.process_time() - started
    one = plan_study(load_config(file, ["methods.full=null", "methods.lora.ranks=[2]"]))
    trained = StudyFolder(root / "one")
    run_study(one, trained, Silent())
    adapter = trained.weights_folder(one.record.runs[0])
    entries = [
        {"adapter": str(adapter), "name": f"imported{number}"} for number in range(num_imported)
    ]
    overrides = [
        f"methods.imported={json.dumps(entries)}",
        "methods.lora=null",
        "methods.full=null",
    ]
    started = time.process_time()
    plan_study(load_config(file, overrides))
    seconds["plan_imported"] = time.process_time() - started
    return seconds


def health(root: Path, num_studies: int) -> dict[str, list[float]]:
    """Memory in MB, open files and threads after each of several studies of ten runs."""
    file, process = write_small_study(root), psutil.Process()
    noted: dict[str, list[float]] = {"rss_mb": [], "open_files": [], "threads": []}
    for number in range(num_studies):
        seeds = f"seeds=[{2 * number}, {2 * number + 1}]"
        run_study(
            plan_study(load_config(file, [seeds])), StudyFolder(root / f"study-{number}"), Silent()
        )
        gc.collect()
        noted["rss_mb"].append(process.memory_info().rss / 1e6)
        noted["open_files"].append(float(process.num_fds()))
        noted["threads"].append(float(threading.active_count()))
    return noted


def growth_of_commands(root: Path, num_items: int, shrink: int) -> dict[str, Any]:
    """Of each part: seconds by size, the exponent, and the bar at the largest size."""

    def many_runs(number: int) -> StudyResults:
        return planted_long_study(number, num_items)

    found = growth(root, write_small_study(root), write_long_study, many_runs, shrink)
    return {
        name: {
            "seconds": {f"{size:g}": value for size, value in seconds.items()},
            "exponent": exponent([*seconds], [*seconds.values()]),
            "bar": PARTS_THAT_GROW[name].bar,
        }
        for name, seconds in found.items()
    }


def slope(values: Sequence[float]) -> float:
    """Per value, the median of all pairs of the last three quarters: one odd value moves little."""
    last = values[len(values) // 4 :]
    return float(stats.theilslopes(last)[0])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--imported", type=int, default=200)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--shrink", type=int, default=1)
    options = parser.parse_args()
    found: dict[str, Any] = {"runs": options.runs, "items": options.items}
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary, "long")
        if not root.exists():
            write_long_study(StudyFolder(root), planted_long_study(options.runs, options.items))
        found["seconds"] = reading_seconds(root, options.parts, is_profiled=options.profile)
        planned = Path(temporary, "planned")
        planned.mkdir()
        if options.imported:
            found["seconds"] |= planning_seconds(planned, options.runs, options.imported)
        if options.shrink:
            growing = Path(temporary, "growing")
            growing.mkdir()
            found["growth"] = growth_of_commands(growing, options.items, options.shrink)
        healthy = Path(temporary, "healthy")
        healthy.mkdir()
        if options.studies:
            noted = health(healthy, options.studies)
            found["health"] = {name: [values[0], values[-1]] for name, values in noted.items()}
            found["slopes_per_study"] = {name: slope(values) for name, values in noted.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
