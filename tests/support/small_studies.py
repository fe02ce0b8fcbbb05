"""A finished study of seconds, to be spoilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun
from tests.support.studies import run
from tests.support.tiny_tasks import write_tiny_tasks

SMALL = ("evaluation.out_of_domain=[sums]", "evaluation.held_out_text=[]", "methods.full=null")


SEARCHED = """
train:
  task: colours
  epochs: 2
  learning_rate: {lora: 1e-2, full: 1e-3}
  precision: float32
  batch_size: 2
  gradient_accumulation_steps: 1
evaluation: {retention: [sums], num_train_items: 0}
analysis: {spectra: false, heads: false}
search: {validation_items: 6}
"""
"""Of a study with validation items: 18 of 24 rows are left to train on, 9 steps an epoch."""


def write_study(root: Path, model: Path, settings: str) -> Path:
    """Write the tiny tasks and a study file that uses them, with these settings besides."""
    write_tiny_tasks(root / "tasks")
    file = root / "tiny.yaml"
    places = f"base_model: {model}\ntasks_path: {root / 'tasks'}\nallow_task_code: true\n"
    file.write_text(f"{places}{settings}")
    return file


class Study(NamedTuple):
    file: Path
    folder: StudyFolder

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        return self.folder.read_study().runs

    def adapter(self, number: int = 0) -> Path:
        return self.folder.weights_folder(self.runs[number]) / "adapter_model.safetensors"

    def again(self) -> Any:
        return run(self.file, self.folder.root, *SMALL)
