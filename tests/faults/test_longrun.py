"""A long study is read in full, and many studies in one process leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.longrun import (
    PARTS,
    health,
    planning_seconds,
    planted_long_study,
    reading_seconds,
    slope,
    write_long_study,
    write_small_study,
)
from benchmarks.longrun_growth import exponent, many_tasks, more_tasks, seconds_of_a_stage
from rankwise.findings.odds import ITEM_FACTORS, MOST_GROWN
from rankwise.findings.recommendation import recommend
from rankwise.records import files
from rankwise.records.folder import StudyFolder
from rankwise.records.study import StudyRecord
from rankwise.study.stages.graph import stages
from rankwise.study.status import study_status

LEAK = 0.4
"""Handles a study: one in two studies is 0.5; what something else opens once is 0.3 of six."""


@pytest.fixture(scope="module")
def long_study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """Fifty runs on five tasks of eight items."""
    folder = StudyFolder(tmp_path_factory.mktemp("long") / "study")
    write_long_study(folder, planted_long_study(50, 8))
    return folder


def test_the_parts_of_the_benchmark_read_the_whole_study(long_study: StudyFolder) -> None:
    assert {*reading_seconds(long_study.root)} == {*PARTS}
    lines = study_status(long_study)
    assert len(lines) == 51
    assert not any(line.left or line.damaged for line in lines)
    assert all(len(line.tasks_scored) == 5 for line in lines)


def test_a_status_reads_every_record_once(
    long_study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original = files.read_record

    def counting(path: Path, kind: type[StudyRecord]) -> StudyRecord:
        read.append(path)
        return original(path, kind)

    monkeypatch.setattr("rankwise.records.folder.read_record", counting)
    study_status(StudyFolder(long_study.root))
    records = [path for path in read if path.name != "study.json"]
    assert len(records) > 300
    assert len(records) == len({*records})


def test_a_record_that_changes_is_read_again(long_study: StudyFolder) -> None:
    study = long_study.read_study()
    run = study.runs[0]
    (scoring,) = [stage for stage in stages(study) if stage.kind == "scoring"][-1:]
    model = scoring.models[0]
    path = scoring.path_of(long_study, model)
    assert scoring.is_finished(long_study)
    content = path.read_bytes()
    assert model is not None
    record = long_study.earlier_evaluation(model.name, scoring.name)
    assert record is not None
    long_study.write(path, record.model_copy(update={"fingerprint": "0" * 64}))
    assert not scoring.is_finished(long_study)
    path.write_bytes(content)
    assert scoring.is_finished(long_study)
    path.unlink()
    assert not scoring.is_finished(long_study)
    path.write_bytes(content)
    finished = long_study.finished_run(run)
    assert finished is not None
    long_study.write(
        long_study.run_file(run.name), finished.model_copy(update={"status": "diverged"})
    )
    again = long_study.finished_run(run)
    assert again is not None
    assert again.status == "diverged"
    long_study.write(long_study.run_file(run.name), finished)


def test_a_leak_shows_in_the_slope_and_a_single_jump_does_not() -> None:
    assert slope([9.0, 9.0, 10.0, 10.0, 11.0, 11.0]) > LEAK  # one in two studies
    assert all(slope([9.0] * n + [10.0] * (6 - n)) < LEAK for n in range(7))
    assert slope([45.0, 46.0, 46.0, 46.0, 45.0, 52.0]) < LEAK  # what a busy machine once had


def test_many_studies_in_one_process_leave_no_memory_files_or_threads(tmp_path: Path) -> None:
    noted = health(tmp_path, 6)
    assert slope(noted["open_files"]) < LEAK, noted
    assert slope(noted["threads"]) < LEAK, noted
    assert slope(noted["rss_mb"]) < 5.0  # of ten runs; a base model and its optimizer are 1 MB


def test_the_growth_of_commands_is_measured_on_studies_of_that_size(tmp_path: Path) -> None:
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    (verdict,) = recommend(many_tasks(12)).by_train_task
    assert verdict.rank is None  # else nobody looks ahead, which takes longest
    prospects = [each.num_items for each in verdict.prospects if len(each.num_items) == 1]
    assert len(prospects) == MOST_GROWN + len(ITEM_FACTORS)  # of 12 tasks, and of in-domain items
    file = write_small_study(tmp_path)
    overrides = more_tasks(tmp_path, 2, 3)
    number, seconds = seconds_of_a_stage(
        file, tmp_path / "study", [*overrides, "methods.full=null"]
    )
    assert number >= 2 * 3  # the base and the adapters on at least three tasks
    assert seconds > 0.0


def test_planning_of_the_benchmark(tmp_path: Path) -> None:
    assert {*planning_seconds(tmp_path, 50, 5)} == {"plan", "plan_stages", "plan_imported"}
