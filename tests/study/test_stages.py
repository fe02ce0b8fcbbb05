"""The graph of a study: the same from its record, what is left of it, and stages that fail."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.cli.terminal import status_table
from rankwise.engine.training import loop
from rankwise.errors import RecordError, StageFailedError
from rankwise.records.folder import StudyFolder
from rankwise.records.study import StageFailure
from rankwise.records.study_file import load_config
from rankwise.report.page import write_report
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.printer import Printer
from rankwise.study.reading import read_results
from rankwise.study.run import run_study
from rankwise.study.stages import training
from rankwise.study.stages.graph import stages
from rankwise.study.stages.heads import CompareHeads
from rankwise.study.stages.scoring import Score
from rankwise.study.stages.spectra import AnalyseWeights
from rankwise.study.stages.training import Train
from rankwise.study.status import study_status
from tests.support.command_line import rankwise, words
from tests.support.observers import Recorder, Silent
from tests.support.pages import Page
from tests.support.sentences import Sentences
from tests.support.tiny_tasks import write_tiny_tasks

FEW = ["evaluation.limit=6", "train.epochs=1", "analysis.null_draws=1"]


@pytest.fixture(scope="module")
def finished(
    tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StudyPlan, Path]:
    """A plan with two trained tasks, adapters and full fine-tunings, and its finished folder."""
    root = tmp_path_factory.mktemp("graph")
    write_tiny_tasks(root / "tasks")
    file = root / "graph.yaml"
    file.write_text(
        f"base_model: {tiny_model_folder}\ntasks_path: tasks\nallow_task_code: true\n"
        "train: {task: [colours, sums], epochs: 1, precision: float32}\n"
        "methods: {lora: {ranks: [2, 4], target_modules: attention}, full: {}}\n"
        "evaluation: {held_out_text: [small_prose], limit: 6}\n"
        "analysis: {null_draws: 1, head_prompts: 4}\n"
    )
    plan = plan_study(load_config(file))
    run_study(plan, StudyFolder(root / "study"), Silent())
    return plan, root / "study"


@pytest.fixture
def folder(finished: tuple[StudyPlan, Path], tmp_path: Path) -> StudyFolder:
    """A copy of the finished study."""
    return StudyFolder(Path(shutil.copytree(finished[1], tmp_path / "study")))


def test_the_graph_is_made_from_the_record_alone(finished: tuple[StudyPlan, Path]) -> None:
    plan, path = finished
    study = StudyFolder(path).read_study()
    graph = stages(study)
    assert graph == stages(plan.record)
    ids = [stage.id for stage in graph]
    assert len(set(ids)) == len(ids)
    before: set[str] = set()
    for stage in graph:
        assert before.issuperset(stage.needs)  # each comes after what it needs
        assert stage.is_finished(StudyFolder(path))
        assert stage.work > 0
        assert stage.memory_bytes > 0
        before.add(stage.id)


def test_scoring_needs_the_training_and_the_base_s_scores(
    finished: tuple[StudyPlan, Path],
) -> None:
    graph = stages(finished[0].record)
    trainings = {run.name: s.id for s in graph if isinstance(s, Train) for run in s.runs}
    base = {s.task: s.id for s in graph if isinstance(s, Score) and not s.runs}
    for stage in graph:
        if isinstance(stage, Score):
            wanted = {trainings[run.name] for run in stage.runs}
            wanted |= {base[stage.task]} if stage.runs else set()
            assert set(stage.needs) == wanted


def test_heads_and_weights_are_split_by_trained_task(finished: tuple[StudyPlan, Path]) -> None:
    graph = stages(finished[0].record)
    for kind in (AnalyseWeights, CompareHeads):
        parts = [stage for stage in graph if isinstance(stage, kind)]
        assert [part.train_task for part in parts] == ["colours", "sums"]
        for part in parts:
            assert {run.train_task for run in part.runs} == {part.train_task}
            assert len(part.runs) == 3


def test_status_lists_heads_that_run_would_go_on_with(folder: StudyFolder) -> None:
    assert not any(line.left for line in study_status(folder))
    run = folder.read_study().runs[1]
    CompareHeads.path(folder, run.name).unlink()
    lines = {line.model: line for line in study_status(folder)}
    assert "heads" in lines[run.name].left
    assert [name for name, line in lines.items() if line.left] == [run.name]
    (todo,) = [stage for stage in stages(folder.read_study()) if not stage.is_finished(folder)]
    assert (todo.kind, todo.left(folder)) == ("heads", (run,))
    printed = io.StringIO()
    Printer(width=200, file=printed).print(status_table(study_status(folder), folder.read_study()))
    (row,) = [text for text in printed.getvalue().splitlines() if run.name in text]
    assert row.split()[-1] == "heads"
    answered = rankwise("status", folder.root, "--json")
    models = json.loads(answered.stdout)["models"]
    assert ["heads" in line["others_left"] for line in models].count(True) == 1


def test_a_damaged_record_is_named_also_where_a_stage_failed(folder: StudyFolder) -> None:
    study = folder.read_study()
    run = study.runs[0]
    (stage,) = [s for s in stages(study) if s.kind == "spectra" and run in s.models]
    folder.write_failure(
        StageFailure(
            stage=stage.id,
            kind=stage.kind,
            name=stage.name,
            model=stage.model,
            runs=(run.name,),
            error="ModelError",
            message="planted",
            failed_at="2026-01-01T00:00:00+00:00",
        )
    )
    assert len(read_results(folder).runs) == len(study.runs)  # all is scored
    path = folder.evaluation_file(run.name, "colours")
    before = path.read_text()
    path.write_text(before[:100])
    with pytest.raises(RecordError) as caught:
        read_results(folder)
    assert str(path) in str(caught.value)
    path.unlink()
    assert run.name not in [model.name for model in read_results(folder).runs]


def exhausted(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_a_stage_that_fails_is_recorded_and_the_others_go_on(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, recorder = tmp_path / "study", Recorder()
    folder, plan = StudyFolder(path), plan_study(load_config(study_file, FEW))
    with monkeypatch.context() as patch:
        patch.setattr(training, "_train_full", exhausted)
        outcome = run_study(plan, folder, recorder)
    small, large, full = plan.record.runs
    (failure,) = outcome.failures
    assert (failure.kind, failure.error) == ("training", "OutOfMemoryError")
    assert failure.runs == (full.name,)
    assert [model.name for model in outcome.results.runs] == [small.name, large.name]
    (verdicts,) = [part.verdicts for part in outcome.recommendation.by_train_task]
    assert [verdict.rank for verdict in verdicts] == [2, 4]
    assert CompareHeads.path(folder, large.name).exists()  # of the runs that were trained
    page = write_report(path, outcome.results, outcome.recommendation, outcome.findings)
    shown = words(Page(page.read_text()).text)
    assert full.name in shown
    assert words(failure.message) in shown
    lines = {line.model: line for line in study_status(folder)}
    assert [name for name, line in lines.items() if line.failed] == [full.name]
    assert "training: " in lines[full.name].failed[0]
    assert 0 < recorder.done < recorder.work[0]
    again = run_study(plan, folder, Silent())
    assert again.failures == folder.failures() == ()
    assert len(again.results.runs) == 3
    assert not any(line.left or line.failed for line in study_status(folder))


def test_the_command_says_what_failed_and_ends_with_1(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(training, "_train_full", exhausted)
    answered = rankwise("run", study_file, *FEW, "--study-dir", tmp_path / "study")
    assert answered.exit_code == 1
    sentence(answered.stderr, "run", names=("colours-full-s0", "OutOfMemoryError"), part=True)
    shown = rankwise("status", tmp_path / "study").stdout
    sentence(shown, "status", names=("failed: colours-full-s0",), part=True)
    assert (tmp_path / "study" / "report.html").exists()


def test_where_nothing_can_be_concluded_all_failures_are_raised(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(loop, "train_pass", exhausted)
    plan = plan_study(load_config(study_file, FEW))
    with pytest.raises(StageFailedError) as caught:
        run_study(plan, StudyFolder(tmp_path / "study"), Silent())
    sentence(caught.value)
    assert len(caught.value.failures) == 2
