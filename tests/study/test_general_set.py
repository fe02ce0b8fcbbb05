"""``retention: general``: of the set, what is here and what the base can do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import PlanError
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study import able
from rankwise.study.conclusion import StudyOutcome
from rankwise.study.growing import Extension, extended
from rankwise.study.planning import tasks
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.tasks.resolution import list_tasks
from tests.support.command_line import rankwise
from tests.support.observers import Recorder
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study
from tests.support.studies import run

SETTINGS = """
train: {task: colours, epochs: 1, learning_rate: {lora: 1e-2}, precision: float32}
methods: {lora: {ranks: [2, 4], target_modules: [q_proj, v_proj]}, full: null}
evaluation: {retention: general, limit: 60, num_train_items: 0, trained_format: false}
analysis: {spectra: false, heads: false, gauges: false}
"""
MODULE = """
from datasets import Dataset, DatasetDict

def load(right, **_):
    rows = []
    for i in range(80):  # the shorter text is the likelier one, whatever the model
        choices = ["it", "it is"]
        label = 0 if i % 5 < right else 1
        rows.append({"question": f"Is the {i}th so?", "choices": choices, "label": label})
    return DatasetDict(test=Dataset.from_list(rows))
"""
TASK = """
task: {name}
custom_dataset: !function lengths.load
dataset_kwargs: {{right: {right}}}
dataset_path: ""
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}} Answer:"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
OF_SET = ["guessed", "known", "solved", "gone", "colours"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    root = tmp_path_factory.mktemp("general")
    file = write_study(root, tiny_model_folder, SETTINGS)
    (root / "tasks" / "lengths.py").write_text(MODULE)
    for name, right in {"guessed": 2, "known": 4, "solved": 5}.items():
        (root / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, right=right))
    return file


@pytest.fixture(autouse=True, scope="module")
def of_set() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "tasks_of_general", lambda: OF_SET)
        yield


@pytest.fixture(scope="module")
def outcome(file: Path) -> StudyOutcome:
    return run(file, file.parent / "study")[0]


def test_runs_are_scored_on_what_the_base_can_do(
    file: Path, outcome: StudyOutcome, sentence: Sentences
) -> None:
    study, folder = outcome.results.study, StudyFolder(file.parent / "study")
    assert study.tasks["colours"]["retention"] == ("known",)
    assert (study.tasks, study.unable) == (folder.read_study().tasks, folder.read_study().unable)
    for task in ("guessed", "known", "solved"):
        assert folder.earlier_evaluation(BASE, task) is not None
        for each in study.runs:
            scored = folder.earlier_evaluation(each.name, task)
            assert (scored is not None) == (task == "known")
    (verdict,) = outcome.recommendation.by_train_task
    assert verdict.retention_tasks == ("known",)
    reasons = [reason for reason in verdict.reasons if "of general" in reason.lower()]
    guessed, solved = reasons
    assert re.search(r"\b[34]\d %", guessed)
    sentence(guessed, "guessed", names=("guessed", "50 %"), SHARE=r"\b[34]\d(?= %)")
    sentence(solved, "solved", names=("solved", "100 %"))
    (warned,) = [warning for warning in study.warnings if "general" in warning]
    sentence(warned, "gone", names=("gone",))


def test_a_finished_study_has_nothing_left_to_do(file: Path, outcome: StudyOutcome) -> None:
    again, recorder = run(file, file.parent / "study")
    assert again.results.study.tasks == outcome.results.study.tasks
    assert not recorder.stages


def test_the_plan_says_what_is_left_out(
    file: Path, outcome: StudyOutcome, sentence: Sentences
) -> None:
    before = rankwise("plan", file, "--study-dir", file.parent / "new").stdout
    sentence(before, "before", names=("general: ",), part=True)
    assert "3 tasks" in before
    assert "180" in before
    after = rankwise("plan", file, "--study-dir", file.parent / "study").stdout
    sentence(after, "after", names=("general: ",), part=True)
    assert "1 task;" in after
    assert "60" in after


def test_more_items_are_of_the_same_tasks(file: Path, outcome: StudyOutcome) -> None:
    config = extended(load_config(file), Extension(num_items=20))
    folder = StudyFolder(file.parent / "study")
    grown = run_study(plan_study(config, folder=folder), folder, Recorder())
    assert grown.results.study.tasks == outcome.results.study.tasks
    assert len(grown.results.base.items["known"].doc_ids) == 80


def test_a_task_that_the_study_has_must_be_there(
    file: Path, outcome: StudyOutcome, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    loaded = tasks.load_tasks

    def without_known(*args: Any, **kwargs: Any) -> dict[str, Any]:
        found = loaded(*args, **kwargs)
        return found | {"known": found["gone"]}

    monkeypatch.setattr(tasks, "load_tasks", without_known)
    config = load_config(file)
    with pytest.raises(PlanError) as caught:
        plan_study(config, folder=StudyFolder(file.parent / "study"))
    sentence(caught.value, names=("general", "known"))
    plan = plan_study(config, folder=StudyFolder(file.parent / "another"))
    assert plan.record.groups["general"] == ("guessed", "solved")


def test_what_is_named_by_hand_stays(file: Path) -> None:
    chosen, _ = run(file, file.parent / "by-hand", "evaluation.retention=[general, guessed]")
    relations = chosen.results.study.tasks["colours"]
    assert relations["retention"] == ("known", "guessed")


def test_a_search_chooses_by_what_the_base_can_do(file: Path) -> None:
    search = ("search={policy: narrow, validation_items: 6}", "train.batch_size=2")
    chosen, _ = run(file, file.parent / "searched", *search)
    assert chosen.results.study.tasks["colours"]["retention"] == ("known",)


def test_a_base_that_can_do_nothing_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(able, "CEILING", 0.5)
    with pytest.raises(PlanError) as caught:
        run(file, file.parent / "nothing")
    sentence(caught.value, names=("general",), SHARE=r"\b\d\d(?= % right)")


def test_the_set_is_listed() -> None:
    assert "general" in {line.name for line in list_tasks(search="retention set")}
