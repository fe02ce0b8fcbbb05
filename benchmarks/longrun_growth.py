"""How the time of each command grows with a study: seconds of a core, and the exponent of its size.

Fixed costs, such as looking at what one training step takes, are in the seconds; so exponents of
small sizes are small. One process measures all, the largest size last.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from rankwise.records.folder import StudyFolder
from rankwise.records.results import StudyResults
from rankwise.records.study_file import load_config
from rankwise.report.page import write_report
from rankwise.study.conclusion import conclude
from rankwise.study.forecast import forecast
from rankwise.study.planning.plan import plan_study
from rankwise.study.progress import Follower
from rankwise.study.run import run_study
from rankwise.study.stages.graph import stages
from tests.planted.results import planted_study

Write = Callable[[StudyFolder, StudyResults], None]

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question of {name}: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


class Growing(NamedTuple):
    """What grows, the sizes, and the most seconds of a core at the last of them."""

    sizes: tuple[int, ...]
    bar: float


PARTS: Mapping[str, Growing] = {
    "plan_runs": Growing((125, 250, 500), 3.0),
    "plan_tasks": Growing((75, 150, 300), 10.0),
    "plan_items": Growing((5_000, 10_000, 20_000), 15.0),
    "recommend_tasks": Growing((75, 150, 300), 5.0),
    "report_tasks": Growing((75, 150, 300), 15.0),
    "recommend_runs": Growing((250, 500, 1000), 10.0),
    "report_runs": Growing((250, 500, 1000), 30.0),
    "stage": Growing((250, 500, 1000), 0.020),
}


def many_tasks(num_tasks: int, num_items: int = 40) -> StudyResults:
    """Four ranks and full fine-tuning that are hardly better than the base: nothing is settled."""
    keys: list[Any] = [2, 8, 32, 128, "full"]
    share = {key: index / len(keys) for index, key in enumerate(keys)}
    results = planted_study(
        {key: 0.52 + 0.03 * share[key] for key in keys},
        {key: 0.88 - 0.02 * share[key] for key in keys},
        retention_tasks=[f"retained_{number}" for number in range(num_tasks)],
        out_of_domain_tasks=(),
        num_in_domain=num_items,
        num_retention=num_items,
        num_held_out=num_items,
        noise=0.2,
    )
    analysis = results.study.config.analysis.model_copy(update={"heads": False, "spectra": False})
    config = results.study.config.model_copy(update={"analysis": analysis})
    study = results.study.model_copy(update={"config": config})
    # a limit cut the tasks: what more items would do is looked at
    evaluations = {
        task: scored.model_copy(update={"limit": scored.num_examples})
        for task, scored in results.base.evaluations.items()
    }
    base = results.base.model_copy(update={"evaluations": evaluations})
    return results.model_copy(update={"study": study, "base": base})


def judging_seconds(root: Path, results: StudyResults, write: Write) -> tuple[float, float]:
    """How long recommending and reporting take."""
    write(StudyFolder(root), results)
    started = _now()
    outcome = conclude(StudyFolder(root))
    concluded = _now()
    write_report(root, outcome.results, outcome.recommendation, outcome.findings)
    return concluded - started, _now() - concluded


def planning_seconds(file: Path, folder: Path, overrides: Sequence[str]) -> float:
    """How long ``rankwise plan`` takes."""
    started = _now()
    plan = plan_study(load_config(file, overrides))
    forecast(plan, StudyFolder(folder), None, 100.0).content()
    return _now() - started


def more_tasks(root: Path, num_tasks: int, num_items: int) -> list[str]:
    """Writes task files of ``num_items`` items into ``root / "tasks"``; what names them."""
    rows = root / "tasks" / f"{num_items}.jsonl"
    items = (
        {"question": f"what is {n} of {n % 7}?", "choices": ["a", "b", f"c {n}"], "label": n % 3}
        for n in range(num_items)
    )
    rows.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    names = [f"more_{num_items}_{number}" for number in range(num_tasks)]
    for name in names:
        text = TASK.format(name=name, rows=rows)
        (root / "tasks" / f"{name}.yaml").write_text(text)
    return [f"evaluation.retention={json.dumps(names)}", "evaluation.limit=null"]


def seconds_of_a_stage(file: Path, folder: Path, overrides: Sequence[str]) -> tuple[int, float]:
    """The stages of a study of tiny tasks, and the seconds of each: what it scores included."""
    plan = plan_study(load_config(file, overrides))
    study = StudyFolder(folder)
    started = _now()
    with mock.patch("os.fsync"), Follower(study) as observer:
        run_study(plan, study, observer)
    number = len(stages(plan.record))
    return number, (_now() - started) / number


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of the logarithm of the seconds over that of the size, by least squares."""
    return float(np.polyfit([math.log(n) for n in sizes], [math.log(s) for s in seconds], 1)[0])


def growth(
    root: Path, file: Path, write: Write, many_runs: Callable[[int], StudyResults], shrink: int = 1
) -> dict[str, dict[float, float]]:
    """Seconds of each part by size.

    Args:
        root: a folder for the studies.
        file: a study of a tiny model, with its tasks beside it.
        write: a study's results into a folder.
        many_runs: results of so many runs.
        shrink: divides all sizes.
    """
    found: dict[str, dict[float, float]] = {name: {} for name in PARTS}
    for place in range(len(PARTS["stage"].sizes)):
        size = {name: max(part.sizes[place] // shrink, 2) for name, part in PARTS.items()}
        ranks, seeds = [*range(1, 25)], [*range(max(size["plan_runs"] // 25, 1))]
        runs = [f"methods.lora.ranks={ranks}", f"seeds={seeds}"]
        here = root / f"size_{place}"
        found["plan_runs"][size["plan_runs"]] = planning_seconds(file, here / "p", runs)
        tasks = more_tasks(file.parent, size["plan_tasks"], 8)
        found["plan_tasks"][size["plan_tasks"]] = planning_seconds(file, here / "p", tasks)
        items = more_tasks(file.parent, 1, size["plan_items"])
        found["plan_items"][size["plan_items"]] = planning_seconds(file, here / "p", items)
        for kind, results in (
            ("tasks", many_tasks(size["recommend_tasks"])),
            ("runs", many_runs(size["recommend_runs"])),
        ):
            of_both = judging_seconds(here / kind, results, write)
            for name, seconds in zip(("recommend", "report"), of_both, strict=True):
                found[f"{name}_{kind}"][size[f"{name}_{kind}"]] = seconds
        # each task is scored by the base, by the pass of adapters and by the full fine-tuning
        short = more_tasks(file.parent, max(size["stage"] // 3, 1), 2)
        off = ["analysis.spectra=false", "analysis.heads=false"]
        number, seconds = seconds_of_a_stage(file, here / "run", [*short, *off])
        found["stage"][number] = seconds
    return found


def _now() -> float:
    gc.collect()
    return time.process_time()
