"""Fingerprints are what they were before the package was laid out anew: old studies resume.

``old_fingerprints.json`` was written by the code at cbc9e88. A change that raises a revision in
``records/fingerprints.py`` changes the file on purpose; nothing else may.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.models import base as models
from rankwise.records import fingerprints as fingerprints_module
from rankwise.records.study import StudyRecord
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from tests.support.tiny_tasks import write_tiny_tasks

OLD = json.loads((Path(__file__).parent / "old_fingerprints.json").read_text())


def fingerprints(study: StudyRecord) -> dict[str, Any]:
    return {
        "runs": {run.name: run.fingerprint for run in study.runs},
        "tasks": study.task_fingerprints,
        "answers": study.answers_fingerprints,
    }


def test_a_tiny_study_has_the_fingerprints_that_it_had(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = models.find_base_model
    # the weights of the tiny model are drawn: another torch may draw others
    monkeypatch.setattr(
        models, "find_base_model", lambda *a, **k: find(*a, **k)._replace(fingerprint="tiny")
    )
    write_tiny_tasks(tmp_path / "tasks")
    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"base_model: {tiny_model_folder}\ntasks_path: tasks\nallow_task_code: true\n"
        "seeds: [0, 1]\n"
        "train: {task: [colours, sums], epochs: 2, precision: float32,"
        " learning_rate: {lora: 1e-2, full: 1e-3}}\n"
        "methods: {lora: {ranks: [2, 4]}, full: {}}\n"
        "evaluation: {out_of_domain: [sums], retention: [hues], held_out_text: [small_prose]}\n"
    )
    assert fingerprints(plan_study(load_config(file)).record) == OLD["tiny"]


def test_a_ladder_has_the_fingerprint_that_it_had_before_it_could_begin_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: list[Any] = []
    monkeypatch.setattr(fingerprints_module, "fingerprint", hashed.append)
    for first_rank in (32, 16):
        overrides = ["search.policy=ladder", f"search.first_rank={first_rank}"]
        fingerprints_module.study_fingerprint(load_config(None, overrides))
    then, now = (content["search"] for content in hashed)
    assert "first_rank" not in then
    assert now["first_rank"] == 16


@pytest.mark.slow
def test_the_quickstart_study_has_the_fingerprints_that_it_had() -> None:
    then = (  # what the preset has changed since
        "train.max_examples=320",
        "train.learning_rate.lora=5e-4",
        "evaluation.limit=null",
    )
    study = plan_study(load_config(None, ["train.precision=float32", *then])).record
    assert study.fingerprint == OLD["quickstart"]["study"]
    assert study.base_model_fingerprint == OLD["quickstart"]["base"]
    assert fingerprints(study) == {name: OLD["quickstart"][name] for name in fingerprints(study)}
