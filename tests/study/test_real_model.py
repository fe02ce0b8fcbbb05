"""Studies on the real embedded model: minutes each, run by ``make test-full``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankwise.findings.statements import with_folder
from rankwise.records.folder import StudyFolder
from rankwise.records.results import StudyResults
from rankwise.records.study_file import load_config
from rankwise.report.page import write_report
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from tests.support.observers import Silent

pytestmark = pytest.mark.slow


def run(path: Path | None, folder: Path, *overrides: str) -> Any:
    plan = plan_study(load_config(path, overrides))
    outcome = run_study(plan, StudyFolder(folder), Silent())
    report = write_report(folder, outcome.results, outcome.recommendation, outcome.findings)
    (part,) = outcome.recommendation.by_train_task
    assert with_folder(part.statement, folder) in report.read_text(encoding="utf-8")
    return outcome


def above_chance(results: StudyResults, task: str) -> float:
    """Standard errors between the base's score and chance."""
    evaluation = results.base.evaluations[task]
    assert evaluation.chance is not None
    assert evaluation.decision.stderr is not None
    return (evaluation.decision.value - evaluation.chance) / evaluation.decision.stderr


def test_the_default_study_shows_learning_and_could_show_forgetting(tmp_path: Path) -> None:
    outcome = run(None, tmp_path / "study")
    results, comparisons = outcome.results, outcome.recommendation.by_train_task[0].comparisons
    in_domain = [c for c in comparisons if c.relation == "in_domain"]
    lora = [c for c in in_domain if "-lora-" in c.run]
    assert len(lora) == 3
    assert len(in_domain) == 4
    better = [c for c in lora if c.difference.estimate > 0 and (c.mcnemar_p_value or 1.0) < 0.01]
    assert better
    assert max(c.adapted_score for c in in_domain) <= 0.98 * 100
    for task in results.study.tasks["kinship"]["retention"]:
        assert above_chance(results, task) > 4, task


def test_overruling_from_shared_items_runs_to_a_report(tmp_path: Path, shared_tasks: Path) -> None:
    path = tmp_path / "overruling.yaml"
    path.write_text(
        f"""
base_model: smollm2-135m-instruct
tasks_path: {shared_tasks}
allow_task_code: true
train:
  task: local_overruling
  max_examples: 320
  epochs: 2
  batch_size: 16
  gradient_accumulation_steps: 1
  learning_rate: {{lora: 5e-4}}
methods:
  lora: {{ranks: [16]}}
  full: null
evaluation:
  out_of_domain: [local_sciq]
  retention: [local_arc_easy, local_mmlu_cloze]
  limit: 100
"""
    )
    outcome = run(path, tmp_path / "study")
    (comparison,) = [
        c for c in outcome.recommendation.by_train_task[0].comparisons if c.relation == "in_domain"
    ]
    assert comparison.num_examples == 100
    assert comparison.difference.estimate > 10
    assert comparison.mcnemar_p_value is not None
    assert comparison.mcnemar_p_value < 0.01
