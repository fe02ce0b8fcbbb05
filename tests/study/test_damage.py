"""Broken files are noticed by every verb, and `run` sets them aside and makes them again."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import NewerRecordError, RecordError, StorageError
from rankwise.records.folder import StudyFolder
from rankwise.study.damage import find_damage, set_aside
from rankwise.study.status import study_status
from tests.support.command_line import rankwise, words
from tests.support.records import change, items_as_they_are
from tests.support.small_studies import Study


def flip(path: Path, place: int = -3) -> None:
    """Change one byte, and nothing that a listing shows but the time."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


WEIGHTS: dict[str, Callable[[Study], Any]] = {
    "emptied": lambda study: study.adapter().write_bytes(b""),
    "halved": lambda study: os.truncate(study.adapter(), study.adapter().stat().st_size // 2),
    "deleted": lambda study: study.adapter().unlink(),
    "flipped": lambda study: flip(study.adapter()),
    "another config": lambda study: flip(study.adapter().with_name("adapter_config.json"), 30),
}


@pytest.mark.parametrize("damage", WEIGHTS)
def test_broken_weights_are_noticed_and_trained_again(study: Study, damage: str) -> None:
    before, weights = study.adapter().read_bytes(), study.adapter()
    WEIGHTS[damage](study)
    (found,) = find_damage(study.folder)
    assert found.path.parent == weights.parent
    name = study.runs[0].name
    assert str(found).endswith(f"; it was made by training {name}")
    (line,) = [line for line in study_status(StudyFolder(study.folder.root)) if line.damaged]
    assert (line.model, line.training, line.tasks_scored) == (name, "not started", ())
    with pytest.raises(RecordError, match=r"adapter.* Run the study again: the run is made again"):
        study.folder.weights(study.runs[0])
    for verb in ("status", "verify"):
        done = rankwise(verb, study.folder.root)
        assert f"damaged: {found.path}" in done.stdout
    for verb in ("verdict", "report", "export"):  # the scores stand
        done = rankwise(verb, study.folder.root)
        assert done.exit_code == 0
        assert f"damaged: {found.path}" in done.stderr
    _, recorder = study.again()
    assert "training" in {stage for _, stage in recorder.stages}
    assert weights.read_bytes() == before
    (why,) = (study.folder.root / "quarantine").glob("*/why.txt")
    assert str(found) in why.read_text()
    assert (why.parent / "runs" / name / "run.json").exists()
    assert find_damage(study.folder, thorough=True) == []
    assert rankwise("verify", study.folder.root).exit_code == 0


@pytest.mark.usefixtures("ends")
def test_pipes_in_place_of_files_are_noticed_and_made_again(study: Study) -> None:
    name = study.runs[0].name
    files = [
        study.folder.root / "recommendation.json",
        study.folder.run_file(name),
        study.folder.evaluation_file(name, "colours"),
        study.folder.samples_file(name, "sums"),
        study.adapter(),
        study.folder.metrics_file(name),
    ]
    for file in files:
        file.unlink()
        os.mkfifo(file)
    for verb in ("status", "plan", "verdict", "report", "export", "verify"):
        done = rankwise(verb, study.folder.root)
    assert done.exit_code == 1
    for file in files[:2]:
        assert f"damaged: {file} is not a readable" in done.stdout
    study.again()
    assert all(file.is_file() for file in files)
    assert rankwise("verify", study.folder.root).exit_code == 0


def test_one_adapter_in_the_folder_of_another_is_noticed(study: Study) -> None:
    first, second = study.adapter(0), study.adapter(1)
    shutil.copytree(second.parent, first.parent, dirs_exist_ok=True)
    damaged = find_damage(study.folder)
    assert {damage.path.parent for damage in damaged} == {first.parent}


def test_a_disk_that_loses_bits_is_noticed_by_verify(study: Study) -> None:
    """Where the system's times say that nothing was written, only reading everything tells."""
    path = study.adapter()
    find_damage(study.folder)  # remembers every file
    memory = study.folder.root / ".checked.json"
    known = json.loads(memory.read_text())
    flip(path)
    stat = path.stat()
    entry = known[path.relative_to(study.folder.root).as_posix()]
    entry[:4] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    memory.write_text(json.dumps(known))
    folder = StudyFolder(study.folder.root)
    assert find_damage(folder) == []
    (found,) = find_damage(folder, thorough=True)
    assert found.path == path
    done = rankwise("verify", study.folder.root)
    assert done.exit_code == 1
    assert f"damaged: {path} has other bytes than when it was written" in words(done.stdout)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "null"])
def test_what_is_remembered_of_files_is_a_convenience(study: Study, content: str) -> None:
    (study.folder.root / ".checked.json").write_text(content)
    assert find_damage(StudyFolder(study.folder.root)) == []


def test_one_digit_of_an_item_is_noticed(study: Study) -> None:
    """A 0 that became a 1 changed the recommendation, while its record had the old mean."""
    path = study.folder.samples_file(study.runs[0].name, "colours")
    before = path.read_bytes()
    text = before.decode()
    wrong = '"acc": 0.0' if '"acc": 0.0' in text else '"acc": 1.0'
    path.write_text(text.replace(wrong, '"acc": 1.0' if wrong.endswith("0.0") else '"acc": 0.0', 1))
    for verb in ("verdict", "report"):
        done = rankwise(verb, study.folder.root)
        assert done.exit_code == 1
        assert f"RecordError: {path} cannot be read: it has other bytes" in words(done.stderr)
    assert f"damaged: {path}" in rankwise("status", study.folder.root).stdout
    _, recorder = study.again()
    assert [stage for _, stage in recorder.stages] == ["colours"]
    assert path.read_bytes() == before


LINES = {
    "null": "null",
    "an empty item": "{}",
    "a number": "3",
    "nested": "[" * 100_000,
    "5,000 digits": "9" * 5_000,
    "no filter": '{"doc_id": 0}',
    "half a line": '{"doc_id": 0, "fil',
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("is_known", [True, False])
def test_a_line_that_is_no_item(study: Study, line: str, is_known: bool) -> None:
    name = study.runs[1].name
    path = study.folder.samples_file(name, "colours")
    lines = path.read_text().split("\n")
    path.write_text("\n".join([LINES[line], *lines[1:]]))
    if is_known:
        items_as_they_are(study.folder, name, "colours")
    for verb in ("verdict", "report", "export"):
        done = rankwise(verb, study.folder.root)
        assert done.exit_code == 1
        assert f"RecordError: {path}" in done.stderr
        assert f"{name} is scored on colours again" in words(done.stderr)
    if is_known:
        return
    _, recorder = study.again()
    assert [stage for _, stage in recorder.stages] == ["colours"]
    assert path.read_text().split("\n") == lines


RECORDS = ("study.json", "looks.json", "recommendation.json", "findings.json")


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("damage", ["flipped", "emptied", "halved", "nested"])
def test_a_broken_record_of_the_study_is_set_aside(study: Study, name: str, damage: str) -> None:
    path = study.folder.root / name
    content = path.read_bytes()
    spoilt = bytearray(content)
    spoilt[len(content) // 2] ^= 1
    path.write_bytes(
        {
            "flipped": bytes(spoilt),
            "emptied": b"",
            "halved": content[: len(content) // 2],
            "nested": b"[" * 100_000,
        }[damage]
    )
    (found,) = find_damage(study.folder)
    assert found.path == path
    assert rankwise("verify", study.folder.root).exit_code == 1
    _, recorder = study.again()
    assert recorder.stages == []
    assert find_damage(study.folder) == []
    assert path.exists()


@pytest.mark.parametrize("pattern", ["base/eval/*.json", "runs/*/*.json", "runs/*/eval/*.json"])
def test_every_flipped_byte_of_a_record_is_noticed(study: Study, pattern: str) -> None:
    for path in sorted(study.folder.root.glob(pattern))[:3]:
        content = path.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 40)):
            spoilt = bytearray(content)
            spoilt[place] ^= 1 << (place % 7)
            path.write_bytes(spoilt)
            damaged = find_damage(StudyFolder(study.folder.root))
            assert path in {damage.path for damage in damaged}, (path, place)
        path.write_bytes(content)


def test_a_record_of_a_newer_version_is_never_overwritten(study: Study) -> None:
    path = study.folder.study_file
    change(path, schema_version=2)
    before = path.read_bytes()
    with pytest.raises(NewerRecordError, match="Upgrade rankwise"):
        study.again()
    for verb in ("status", "verdict", "report", "verify"):
        done = rankwise(verb, study.folder.root)
        assert done.exit_code == 1
        assert "NewerRecordError" in done.stderr
    assert path.read_bytes() == before
    assert not (study.folder.root / "quarantine").exists()


def unreadable(path: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the system refuse to read a file, as it does to whom it is not given."""
    read, opened = Path.read_bytes, Path.open

    def refusing(do: Callable[..., Any]) -> Callable[..., Any]:
        def asked(self: Path, *arguments: Any, **named: Any) -> Any:
            if self == path:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return do(self, *arguments, **named)

        return asked

    patch.setattr(Path, "read_bytes", refusing(read))
    patch.setattr(Path, "open", refusing(opened))


@pytest.mark.parametrize("what", ["weights", "record"])
def test_what_may_not_be_read_is_not_damaged(
    study: Study, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A colleague's file must not be set aside and trained again."""
    path = study.adapter()
    if what == "record":
        path = study.folder.run_file(study.runs[0].name)
    content = path.read_bytes()
    (study.folder.root / ".checked.json").unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        unreadable(path, patch)
        with pytest.raises(StorageError, match="cannot be read: Permission denied"):
            find_damage(StudyFolder(study.folder.root))
        for verb in ("status", "run"):
            done = rankwise(verb, study.folder.root)
            assert done.exit_code == 1
            assert f"StorageError: {path} cannot be read: Permission denied" in words(done.stderr)
    assert not (study.folder.root / "quarantine").exists()
    assert path.read_bytes() == content


def test_a_folder_that_may_not_be_entered_is_no_traceback(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, **_: Any) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", refused)
        done = rankwise("status", study.folder.root)
    assert done.exit_code == 1
    assert ": Permission denied. Give yourself permission there." in words(done.stderr)


def test_weights_are_shared_as_the_umask_says(study: Study) -> None:
    """safetensors lets only their owner read what it writes."""
    record = study.folder.run_file(study.runs[0].name)
    assert study.adapter().stat().st_mode == record.stat().st_mode


@pytest.mark.parametrize("name", ["search.json", "stacks.json"])
def test_a_broken_record_that_a_study_may_have_is_set_aside(study: Study, name: str) -> None:
    path = study.folder.root / name
    path.write_text('{"schema_version": 1')
    (found,) = find_damage(study.folder)
    assert found.path == path
    assert rankwise("verify", study.folder.root).exit_code == 1
    _, recorder = study.again()
    assert recorder.stages == []
    assert not path.exists()
    assert len(list((study.folder.root / "quarantine").rglob(name))) == 1


def test_a_folder_without_a_readable_plan_asks_for_the_study_file(study: Study) -> None:
    flip(study.folder.study_file, 100)
    done = rankwise("run", study.folder.root)
    assert done.exit_code == 1
    said = words(done.stderr)
    assert "Give the study file that it was made with: rankwise run STUDY.yaml" in said
    assert "Run the study again" not in said
    _, recorder = study.again()
    assert recorder.stages == []


def test_what_lies_on_another_disk_is_set_aside_too(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``runs`` may be a link; a rename does not reach across."""
    flip(study.adapter())
    name = study.runs[0].name

    def refused(source: Any, target: Any, **_: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(target))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refused)
        target = set_aside(study.folder, [study.folder.model_folder(name)], "a flipped byte")
    assert (target / "runs" / name / "adapter" / "adapter_model.safetensors").exists()
    assert not study.folder.model_folder(name).exists()
