"""The smallest study that has every kind of stage, and its records where nothing went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import StudyPlan, plan_study
from tests.support.killed_studies import finish
from tests.support.study_contents import comparable
from tests.support.tiny_tasks import write_tiny_tasks


@pytest.fixture(scope="session")
def smallest_study(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A study file: ranks 2 and 4 and full fine-tuning, saved after every step."""
    root = tmp_path_factory.mktemp("smallest")
    write_tiny_tasks(root / "tasks")
    file = root / "smallest.yaml"
    file.write_text(
        f"""
base_model: {tiny_model_folder}
tasks_path: tasks
allow_task_code: true
train:
  task: colours
  epochs: 1
  max_examples: 24
  save_every: 0.001s
  learning_rate: {{lora: 1e-2, full: 1e-3}}
  precision: float32
methods:
  lora: {{ranks: [2, 4], target_modules: [q_proj, k_proj, v_proj, o_proj]}}
evaluation: {{out_of_domain: [], held_out_text: [], limit: 4}}
analysis: {{null_draws: 1}}
"""
    )
    return file


@pytest.fixture(scope="session")
def smallest_plan(smallest_study: Path) -> StudyPlan:
    return plan_study(load_config(smallest_study))


@pytest.fixture(scope="session")
def undisturbed_study(
    tmp_path_factory: pytest.TempPathFactory, smallest_plan: StudyPlan
) -> dict[str, Any]:
    """The records and weights of a run that nothing stopped."""
    root = tmp_path_factory.mktemp("undisturbed") / "study"
    finish(smallest_plan, root)
    return comparable(root)


@pytest.fixture
def shapes_once(undisturbed_study: dict[str, Any]) -> Iterator[None]:
    """Shapes are checked in the undisturbed study; it would take a quarter of each other's time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
