"""A task's name may be long, or in any script, and its study ends in a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.report.page import write_report
from tests.support.small_studies import SMALL
from tests.support.studies import run
from tests.support.tiny_tasks import COLOURS_YAML


@pytest.mark.parametrize("name", ["红" * 30, "a" * 240, "é" * 150])
def test_a_task_with_a_long_name(study_file: Path, tmp_path: Path, name: str) -> None:
    text = COLOURS_YAML.replace("task: colours", f"task: {name}")
    (tmp_path / "tasks" / "long.yaml").write_text(text)
    settings = (f"train.task={name}", "methods.lora.ranks=[2]", "analysis.spectra=false")
    outcome, _ = run(study_file, tmp_path / "study", *SMALL, *settings)
    assert outcome.failures == ()
    (model,) = outcome.results.runs
    assert model.name[0].isalpha()
    assert name in write_report(tmp_path / "study", *outcome).read_text()
    _, recorder = run(study_file, tmp_path / "study", *SMALL, *settings)
    assert recorder.stages == []
