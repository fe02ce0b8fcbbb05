"""A finished study of seconds, to be spoilt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from rankwise.records.folder import StudyFolder
from rankwise.records.study import PlannedRun, StudyRecord
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import StudyPlan, plan_study
from tests.support.observers import Recorder
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


ONE_BY_ONE = "train.max_micro_batch_tokens=1"
"""One sequence at a time, so that what is read together does not change how sums are rounded."""


class Finished(NamedTuple):
    """A study of a test's own settings, once it was run."""

    file: Path
    folder: StudyFolder
    outcome: Any
    recorder: Recorder

    @property
    def study(self) -> StudyRecord:
        return self.folder.read_study()


def finished_study(root: Path, model: Path, settings: str, *overrides: str) -> Finished:
    """Run the settings in a folder below ``root``."""
    file = write_study(root, model, settings)
    return Finished(file, StudyFolder(root / "study"), *run(file, root / "study", *overrides))


def planned(file: Path, *overrides: str) -> StudyPlan:
    return plan_study(load_config(file, overrides))


def weights_of(folder: StudyFolder, model: PlannedRun) -> dict[str, torch.Tensor]:
    return load_file(folder.weights(model) / WEIGHTS_FILE)


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
