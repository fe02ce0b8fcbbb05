"""Records of somebody else whose names lead elsewhere: they are refused, and nothing is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import RecordError
from rankwise.records.files import FileDigest
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.names import task_file_name
from rankwise.records.study import Imported, RunRecord, StageFailure, StudyRecord, Training
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences

NAMES = ["../../victim", "/victim", "..", ".hidden", "a/b", "a\\b", "a\u202eb", "a\nb", ""]
SOMETHING = FileDigest.of(b"")


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A finished study below a folder that holds a victim."""
    folder = StudyFolder(tmp_path / "studies" / "study")
    write_study(folder, planted_study())
    victim = tmp_path / "victim"
    for name in ("run.json", "study.json"):
        victim.mkdir(exist_ok=True)
        (victim / name).write_text("secret")
    (tmp_path / "studies" / "victim.json").write_text("secret")
    return folder


def forged(record: StudyRecord, name: str, **changed: Any) -> StudyRecord:
    first, *others = record.runs
    run = first.model_copy(update=changed or {"name": name})
    return record.model_copy(update={"models": (run, *others)})


STUDIES: dict[str, Callable[[StudyRecord, str], StudyRecord]] = {
    "a run": forged,
    "what a checkpoint is of": lambda record, name: forged(
        record,
        name,
        of=Training.model_construct(name=name, fingerprint="1", num_steps=1),
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", STUDIES)
def test_a_study_with_a_forged_name(folder: StudyFolder, what: str, name: str) -> None:
    folder.write(folder.study_file, STUDIES[what](folder.read_study(), name))
    for verb in ("status", "report", "verify", "export"):
        done = rankwise(verb, folder.root)
        assert done.exit_code == 1, verb
        assert f"{folder.study_file} is not " in words(done.output)
        assert "secret" not in done.output
    assert not folder.report_file.exists()


def test_a_task_that_would_hide_what_stands_beside_it(
    folder: StudyFolder, sentence: Sentences
) -> None:
    record = folder.read_study()
    tasks = {"kinship": {"in_domain": ("kin\u202eship",)}}
    folder.write(folder.study_file, record.model_copy(update={"tasks": tasks}))
    with pytest.raises(RecordError) as caught:
        folder.read_study()
    sentence(caught.value, names=("kin\\u202eship",))


def test_a_failure_with_a_forged_name_removes_nothing(
    folder: StudyFolder, sentence: Sentences
) -> None:
    failure = StageFailure.model_construct(
        stage="../../victim", kind="k", name="n", model="m", runs=(), error="e", message="m",
        failed_at="",
    )  # fmt: skip
    folder.write(folder.failures_folder / "a.json", failure)
    with pytest.raises(RecordError) as caught:
        folder.keep_failures(())
    sentence(caught.value, names=("stage",))
    assert (folder.root.parent / "victim.json").exists()


@pytest.mark.parametrize("name", ["../../../victim/run.json", "a/../../b", "a\\b"])
def test_weights_that_would_lie_elsewhere(
    folder: StudyFolder, name: str, sentence: Sentences
) -> None:
    (first, *_) = folder.read_study().runs
    path = folder.run_file(first.name)
    record = folder.read(path, RunRecord)
    folder.write(path, record.model_copy(update={"files": {name: SOMETHING}}))
    with pytest.raises(RecordError) as caught:
        folder.read(path, RunRecord)
    sentence(caught.value)


def test_a_search_removes_nothing_of_others(folder: StudyFolder) -> None:
    victim = folder.root.parent.parent / "victim"
    (first, *_) = folder.read_study().runs
    folder.give_up(
        [
            first.model_copy(
                update={
                    "method": "full",
                    "role": "imported",
                    "imported": Imported(label="victim", folder=victim),
                }
            )
        ]
    )
    assert (victim / "run.json").exists()


@pytest.mark.parametrize("task", ["..", ".", "../../victim", ".hidden", "/victim"])
def test_no_task_leads_elsewhere(folder: StudyFolder, task: str) -> None:
    name = task_file_name(task)
    assert "/" not in name
    assert not name.startswith(".")
    place = folder.model_folder(BASE) / "eval"
    assert folder.evaluation_file(BASE, task).resolve().parent == place
