"""The disk that a study needs: what stays, and the states of one pass at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import StorageError
from rankwise.records.folder import StudyFolder
from rankwise.records.study import FullTraining, PlannedRun
from rankwise.study import acceptance
from rankwise.study.acceptance import disk_left, require_disk
from rankwise.study.stages.scoring import Score
from rankwise.study.stages.stage import Stage
from rankwise.study.stages.training import Train
from tests.planted.results import planted_run_record
from tests.support.passes import planned
from tests.support.sentences import Sentences


def run(name: str, size: int, **options: Any) -> PlannedRun:
    """An adapter of so many weights: 4 bytes each, and 12 in a state."""
    return planned(10, name=name, num_trainable_parameters=size, **options)


def checkpoint(of: PlannedRun, num_steps: int) -> PlannedRun:
    where = {"name": f"{of.name}-at{num_steps}", "num_steps": num_steps}
    return of.model_copy(update={**where, "of": of.training})


def one_pass(*runs: PlannedRun, saves_states: bool = True) -> Train:
    names = tuple(each.name for each in runs)
    disk = sum(each.stored_bytes for each in runs)
    return Train("pass", runs, names, (), 0.0, 0, disk, None, saves_states)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path)


def test_of_all_passes_the_states_of_the_largest_count(folder: StudyFolder) -> None:
    few, many = one_pass(run("a", 100)), one_pass(run("b", 200), run("c", 300))
    # weights of 600; states of 500, and a second one of 300
    assert disk_left([few, many], folder) == 600 * 4 + (500 + 300) * 12
    assert disk_left([many, few], folder) == disk_left([few, many], folder)
    assert disk_left([few], folder) == 100 * 4 + 200 * 12
    assert disk_left([], folder) == 0
    both = 600 * 4 + (500 + 300) * 12 + (100 + 100) * 12
    assert disk_left([few, many], folder, num_devices=2) == both
    assert disk_left([few, many], folder, num_devices=3) == both
    without = one_pass(run("b", 200), run("c", 300), saves_states=False)
    assert disk_left([without], folder) == 500 * 4


def test_what_is_finished_needs_nothing_more(folder: StudyFolder) -> None:
    done, left = run("a", 1000), run("b", 200)
    folder.write(folder.run_file("a"), planted_run_record(done, diverged=False))
    assert disk_left([one_pass(done, left)], folder) == 200 * 4 + 2 * 200 * 12
    assert disk_left([one_pass(done)], folder) == 0


def test_a_state_that_is_there_has_its_room(folder: StudyFolder) -> None:
    there, new = run("a", 100), run("b", 200)
    state = folder.training_state_file(there)
    state.parent.mkdir(parents=True)
    state.touch()
    assert disk_left([one_pass(there, new)], folder) == 300 * 4 + (200 + 200) * 12
    assert disk_left([one_pass(there)], folder) == 100 * 4 + 100 * 12  # the new one is beside it


def test_checkpoints_share_the_state_of_their_training(folder: StudyFolder) -> None:
    whole = run("a", 100)
    on_the_way = one_pass(checkpoint(whole, 3), checkpoint(whole, 6), whole)
    assert disk_left([on_the_way], folder) == 3 * 100 * 4 + 2 * 100 * 12
    # they save one whatever the study says of time
    without = one_pass(checkpoint(whole, 3), whole, saves_states=False)
    assert disk_left([without], folder) == 2 * 100 * 4 + 2 * 100 * 12


def test_states_of_trainings_that_wait_stay(folder: StudyFolder) -> None:
    rungs = [one_pass(checkpoint(run(name, 100), 3)) for name in "abc"]
    # three weights, three states, and for a moment a second one
    assert disk_left(rungs, folder) == 3 * 100 * 4 + (3 + 1) * 100 * 12


def test_full_fine_tuning_has_what_it_keeps(folder: StudyFolder) -> None:
    full = FullTraining(weights="bfloat16", optimizer="adamw_8bit")
    whole = run("full", 100, method="full", full=full)
    assert disk_left([one_pass(whole)], folder) == 100 * 2 + 2 * 100 * (2 + 2)
    elsewhere = whole.model_copy(update={"role": "imported"})
    assert disk_left([one_pass(elsewhere, saves_states=False)], folder) == 0


def test_a_run_asks_for_what_the_plan_says(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    trained = one_pass(run("a", 100))
    scored = Score("a", trained.models, ("s",), (), 0.0, 0, 77, "task", "base")
    graph: list[Stage] = [trained, scored]
    needed = disk_left(graph, folder)
    assert needed == 100 * 4 + 200 * 12 + 77
    monkeypatch.setattr(acceptance, "free_bytes", lambda _: needed)
    require_disk(folder, graph)
    monkeypatch.setattr(acceptance, "free_bytes", lambda _: needed - 1)
    with pytest.raises(StorageError) as caught:
        require_disk(folder, graph)
    sentence(caught.value, names=(folder.root,))


def test_workers_that_train_at_once_need_more(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    graph: list[Stage] = [one_pass(run(name, 100)) for name in "abc"]
    needed = 3 * 100 * 4 + 2 * 200 * 12  # all weights, and two passes' states with a second one
    monkeypatch.setattr(acceptance, "free_bytes", lambda _: needed)
    require_disk(folder, graph, 2)
    with pytest.raises(StorageError) as caught:
        require_disk(folder, graph, 3)
    sentence(caught.value, names=("3", folder.root))
