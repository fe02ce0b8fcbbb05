"""What is known of the stages of a study from its folder: what is left, and what the rest took."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.records.folder import StudyFolder
from rankwise.study.observer import StageOutline
from rankwise.study.stages.graph import stages, study_outline
from tests.planted.folders import write_study
from tests.planted.results import planted_study


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """Three adapters, 30 s each, and a full fine-tuning; a second for each scoring of each."""
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study())
    return folder


def outline(folder: StudyFolder) -> dict[tuple[str, str], StageOutline]:
    stages_of = study_outline(stages(folder.read_study()), folder)
    return {(each.model, each.name): each for each in stages_of}


def test_where_more_of_a_kind_is_left_finished_stages_have_the_seconds_of_their_records(
    folder: StudyFolder,
) -> None:
    whole = outline(folder)["imported: 3 adapters", "training"]
    assert (whole.seconds, whole.is_finished, whole.work_left) == (None, True, 0.0)
    folder.run_file("kinship-full-s0-dd3d4caa").unlink()
    found = outline(folder)
    training = found["imported: 3 adapters", "training"]
    assert (training.seconds, training.is_finished, training.work_left) == (90.0, True, 0.0)
    assert found["base", "kinship"].seconds == 1.0
    assert found["imported: 3 adapters", "kinship"].seconds == 3.0
    weights = found["weights", "spectra"]
    assert (weights.seconds, weights.is_finished) == (None, False)
    assert weights.work_left == weights.work > 0


def test_of_a_pass_that_is_half_done_the_rest_is_left(folder: StudyFolder) -> None:
    run = folder.read_study().runs[0]
    folder.run_file(run.name).unlink()
    training = outline(folder)["imported: 3 adapters", "training"]
    assert (training.is_finished, training.seconds) == (False, None)
    assert training.work_left == 2.5 * run.num_tokens
    assert training.work == 3 * training.work_left


def test_a_run_that_diverged_says_nothing_of_the_speed(folder: StudyFolder) -> None:
    run = folder.read_study().runs[0]
    record = folder.finished_run(run)
    assert record is not None
    folder.write(folder.run_file(run.name), record.model_copy(update={"status": "diverged"}))
    folder.run_file("kinship-full-s0-dd3d4caa").unlink()
    assert outline(folder)["imported: 3 adapters", "training"].seconds is None
