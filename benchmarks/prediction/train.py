"""The studies of the collection, one after another; run again, it goes on where it stopped.

    python -m benchmarks.prediction.train OUTPUT [--only NAME ...]

Sixteen studies of the embedded model: eight tasks, 40 to 1,000 rows. Each trains ranks 2 to 64 at
rates by the rule r^-1/2, rank 8 at half and twice its rate too, and full fine-tuning; two seeds;
all LoRA runs in one pass. Tasks named local_ are those of ../shared/tasks; the others ship.
OUTPUT/NAME is the folder of a study. Two processes with other names and OMP_NUM_THREADS=1 trained
450 tokens a second on two cores, one process 260. A study takes about half an hour of one core.
Then

    python -m benchmarks.prediction.collect OUTPUT/NAME ... --measure
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.prediction.collected import data_set_of
from rankwise.records.config.training import RateRuleConfig

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT.parent / "shared" / "tasks"

RANKS = (2, 4, 8, 16, 32, 64)
BRACKETED = 8  # twice its rate is that of rank 2, half its rate that of rank 32
FACTORS = (0.5, 2.0)
# the default study's, chosen on other rows
RULE = RateRuleConfig(rule="r^-1/2", reference_rank=16, value=4e-4)
RETENTION = ("local_sciq", "local_arc_easy", "capitals")


class Cell(NamedTuple):
    """One study: a task, the rows that train, and how often they are read."""

    task: str
    rows: int
    epochs: int = 1

    @property
    def name(self) -> str:
        return f"{data_set_of(self.task)}-{self.rows}"


CELLS = (
    Cell("local_overruling", 160),
    Cell("kinship", 160),
    Cell("local_sciq", 160),
    Cell("local_medmcqa_cloze", 160),
    Cell("syllogism", 160),
    Cell("local_arc_easy", 160),
    Cell("local_legal_cloze", 160),
    Cell("local_mathqa", 160),
    Cell("local_overruling", 40, epochs=4),
    Cell("kinship", 40, epochs=4),
    Cell("local_sciq", 1000),
    Cell("syllogism", 40, epochs=4),
    Cell("kinship", 640),
    Cell("local_arc_easy", 40, epochs=4),
    Cell("local_arc_easy", 640),
    Cell("local_overruling", 1000),
)


def study_of(cell: Cell) -> dict[str, Any]:
    """The study file of a cell."""
    rates = [(rank, RULE.rate_of(rank)) for rank in RANKS]
    rates += [(BRACKETED, RULE.rate_of(BRACKETED) * factor) for factor in FACTORS]
    return {
        "name": cell.name,
        "base_model": "smollm2-135m-instruct",
        "tasks_path": [str(TASKS)],
        "train": {
            "task": cell.task,
            "max_examples": cell.rows,
            "epochs": cell.epochs,
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": {"full": 5e-5},
        },
        "methods": {
            "lora": {
                "_": [{"rank": rank, "learning_rate": rate} for rank, rate in rates],
                "target_modules": "attention",
            },
            "full": {},
        },
        "seeds": [0, 1],
        "evaluation": {
            "retention": [task for task in RETENTION if task != cell.task],
            "held_out_text": ["pydoc_topics"],
            "limit": 60,
        },
        "analysis": {"top_k": 100, "null_draws": 1, "heads": False},
    }


def run_studies(studies: Mapping[str, dict[str, Any]], about: str | None) -> Iterator[Path]:
    """Run the studies that the command line asks for; yields the folder of each that is done."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", nargs="*", default=[*studies])
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    for name, study in studies.items():
        if name not in asked.only:
            continue
        folder, file = asked.output / name, asked.output / f"{name}.yaml"
        file.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
        code = rankwise("run", file, "--study-dir", folder, "--allow-task-code")
        print(f"{name}: exit code {code}", flush=True)
        if code == 0:
            yield folder


def rankwise(*arguments: str | Path) -> int:
    """Run a verb; returns its exit code."""
    command = [sys.executable, "-m", "rankwise", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def main() -> None:
    """Run the studies that are asked for."""
    for _ in run_studies({cell.name: study_of(cell) for cell in CELLS}, __doc__):
        pass


if __name__ == "__main__":
    main()
