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
from rankwise.study.damage import find_damage
from rankwise.study.quarantine import set_aside
from rankwise.study.status import study_status
from tests.support.command_line import rankwise, words
from tests.support.records import change, items_as_they_are
from tests.support.sentences import Sentences
from tests.support.small_studies import SMALL, Study


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
def test_broken_weights_are_noticed_and_trained_again(
    study: Study, damage: str, sentence: Sentences
) -> None:
    before, weights = study.adapter().read_bytes(), study.adapter()
    WEIGHTS[damage](study)
    (found,) = find_damage(study.folder)
    assert found.path.parent == weights.parent
    name = study.runs[0].name
    assert str(found).endswith(name)
    (line,) = [line for line in study_status(StudyFolder(study.folder.root)) if line.damaged]
    assert (line.model, line.training, line.tasks_scored) == (name, "not started", ())
    with pytest.raises(RecordError) as caught:
        study.folder.weights(study.runs[0])
    sentence(caught.value, names=(weights.parent,))
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
def test_pipes_in_place_of_files_are_noticed_and_made_again(
    study: Study, sentence: Sentences
) -> None:
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
        sentence(done.stdout, file.name, names=(file,), part=True)
    study.again()
    assert all(file.is_file() for file in files)
    assert rankwise("verify", study.folder.root).exit_code == 0


def test_one_adapter_in_the_folder_of_another_is_noticed(study: Study) -> None:
    first, second = study.adapter(0), study.adapter(1)
    shutil.copytree(second.parent, first.parent, dirs_exist_ok=True)
    damaged = find_damage(study.folder)
    assert {damage.path.parent for damage in damaged} == {first.parent}


def test_a_disk_that_loses_bits_is_noticed_by_verify(study: Study, sentence: Sentences) -> None:
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
    sentence(done.stdout, names=(path,), part=True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', "null"])
def test_what_is_remembered_of_files_is_a_convenience(study: Study, content: str) -> None:
    (study.folder.root / ".checked.json").write_text(content)
    assert find_damage(StudyFolder(study.folder.root)) == []


def test_one_digit_of_an_item_is_noticed(study: Study, sentence: Sentences) -> None:
    """A 0 that became a 1 changed the recommendation, while its record had the old mean."""
    path = study.folder.samples_file(study.runs[0].name, "colours")
    before = path.read_bytes()
    text = before.decode()
    wrong = '"acc": 0.0' if '"acc": 0.0' in text else '"acc": 1.0'
    path.write_text(text.replace(wrong, '"acc": 1.0' if wrong.endswith("0.0") else '"acc": 0.0', 1))
    for verb in ("verdict", "report"):
        done = rankwise(verb, study.folder.root)
        assert done.exit_code == 1
        sentence(words(done.stderr), names=("RecordError", path), part=True)
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
def test_a_line_that_is_no_item(
    study: Study, line: str, is_known: bool, sentence: Sentences
) -> None:
    name = study.runs[1].name
    path = study.folder.samples_file(name, "colours")
    lines = path.read_text().split("\n")
    path.write_text("\n".join([LINES[line], *lines[1:]]))
    if is_known:
        items_as_they_are(study.folder, name, "colours")
    for verb in ("verdict", "report", "export"):
        done = rankwise(verb, study.folder.root)
        assert done.exit_code == 1
        parser = r"(?<=cannot be read: )[^.]* at line 1 column \d+"
        sentence(words(done.stderr), names=("RecordError", path), PARSER=parser)
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


@pytest.mark.parametrize("name", ["study.json", "base/eval/sums.json"])
def test_a_record_of_a_newer_version_is_never_overwritten(study: Study, name: str) -> None:
    root, path = study.folder.root, study.folder.root / name
    change(path, schema_version=2)

    def contents() -> dict[Path, bytes]:
        files = (each for each in root.rglob("*") if each.is_file())
        return {each: each.read_bytes() for each in files if not each.name.startswith(".")}

    before = contents()
    with pytest.raises(NewerRecordError, match="Upgrade rankwise"):
        study.again()
    said = [rankwise(verb, root) for verb in ("run", "status", "verdict", "report", "verify")]
    said += [run_again(study), run_again(study, "recommendation.delta_points=7")]
    said += [rankwise("plan", study.file, *SMALL, "--study-dir", root)]
    for done in said:
        assert (done.exit_code, "NewerRecordError" in done.stderr) == (1, True), done.stderr
    assert contents() == before


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
    study: Study, monkeypatch: pytest.MonkeyPatch, what: str, sentence: Sentences
) -> None:
    """A colleague's file must not be set aside and trained again."""
    path = study.adapter()
    if what == "record":
        path = study.folder.run_file(study.runs[0].name)
    content = path.read_bytes()
    (study.folder.root / ".checked.json").unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        unreadable(path, patch)
        with pytest.raises(StorageError) as caught:
            find_damage(StudyFolder(study.folder.root))
        sentence(caught.value, names=(path, "Permission denied"))
        for verb in ("status", "run"):
            done = rankwise(verb, study.folder.root)
            assert done.exit_code == 1
            assert words(f"StorageError: {caught.value}") in words(done.stderr)
    assert not (study.folder.root / "quarantine").exists()
    assert path.read_bytes() == content


def test_a_folder_that_may_not_be_entered_is_no_traceback(
    study: Study, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    def refused(self: Path, **_: Any) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", refused)
        done = rankwise("status", study.folder.root)
    assert done.exit_code == 1
    sentence(words(done.stderr), names=("Permission denied",))


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


PLANS: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "null": lambda _: b"null",
    "another object": lambda _: b'{"schema_version": 9}',
    "one bit": lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
    "one bit of the version": lambda content: content.replace(
        b'"schema_version": 1', b'"schema_version": 9', 1
    ),
    "another checksum": lambda content: content[:-68] + b"0" * 64 + content[-4:],
    "no UTF-8": lambda content: content.replace(b'"name": "', b'"name": "\xff', 1),
    "deep": lambda _: b"[" * 100_000,
}


def run_again(study: Study, *more: str) -> Any:
    """By the command line, with the file and the overrides that the study was made with."""
    return rankwise("run", study.file, *SMALL, *more, "--study-dir", study.folder.root, "--quiet")


@pytest.mark.parametrize("damage", [*PLANS, "a folder", "a pipe"])
def test_a_damaged_plan_is_made_again_by_the_command_that_every_verb_names(
    study: Study, damage: str, sentence: Sentences
) -> None:
    root, path = study.folder.root, study.folder.study_file
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
        (path / "mine").write_text("mine")
    elif damage == "a pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(PLANS[damage](content))
    trained = sorted((root / "runs").iterdir())
    command = f"rankwise run STUDY.yaml --study-dir {root}"
    for verb in ("run", "plan", "verify", "status", "verdict", "report"):
        done = rankwise(verb, root)
        assert (done.exit_code, command in words(done.stderr)) == (1, True), (verb, done.stderr)
        sentence(words(done.stderr), verb)
    done = rankwise("plan", study.file, *SMALL, "--study-dir", root)
    assert (done.exit_code, f"damaged: {path}" in words(done.stderr)) == (0, True)
    done = run_again(study)
    assert done.exit_code == 0, done.stderr
    assert str(path) in words(done.stderr)
    aside = root / "quarantine" / "001" / "study.json"
    if damage == "a folder":
        assert (aside / "mine").read_text() == "mine"
    elif damage != "a pipe":
        assert aside.read_bytes() == PLANS[damage](content)
    assert sorted((root / "runs").iterdir()) == trained
    assert rankwise("verify", root).exit_code == 0


@pytest.mark.parametrize("what", ["run", "evaluation", "items"])
def test_other_margins_do_not_stop_at_what_is_damaged(study: Study, what: str) -> None:
    """Judging again reads every record."""
    name = study.runs[0].name
    file = {
        "run": study.folder.run_file(name),
        "evaluation": study.folder.evaluation_file(name, "colours"),
        "items": study.folder.samples_file(name, "colours"),
    }[what]
    flip(file, 60)
    done = run_again(study, "recommendation.delta_points=7")
    assert (done.exit_code, f"damaged: {file}") == (0, f"damaged: {file}"), done.stderr
    assert str(study.folder.root / "quarantine") in words(done.stderr)
    assert study.folder.read_study().config.recommendation.delta_points == 7
    assert rankwise("verify", study.folder.root).exit_code == 0


def test_what_the_disk_lost_without_a_write_is_made_again_by_the_next_run(study: Study) -> None:
    """The system's times say that nothing was written; the study is remembered as finished."""
    assert run_again(study).exit_code == 0
    path = study.folder.samples_file(study.runs[0].name, "colours")
    before = path.stat()
    flip(path, 60)
    memory = study.folder.root / ".checked.json"
    known = json.loads(memory.read_text())
    stat = path.stat()
    entry = known[path.relative_to(study.folder.root).as_posix()]
    entry[:4] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    memory.write_text(json.dumps(known))
    assert before.st_size == stat.st_size
    assert rankwise("verify", study.folder.root).exit_code == 1
    assert rankwise("run", study.folder.root, "--quiet").exit_code == 0
    assert rankwise("verify", study.folder.root).exit_code == 0


def test_a_study_of_try_names_its_own_file(study: Study) -> None:
    study.folder.settings_file.write_text("# a study\n")
    flip(study.folder.study_file, 100)
    place = study.folder.root
    for verb in ("run", "verify"):
        command = f"rankwise run {place / 'study.yaml'} --study-dir {place}"
        assert command in words(rankwise(verb, place).stderr)


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
