"""Names of folders and files that cannot be recorded: each verb says so before any work."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import rankwise as rw
from rankwise.errors import ConfigError
from rankwise.records.folder import StudyFolder
from rankwise.records.outputs import write_outputs
from rankwise.records.study_file import load_config
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.planted.score_tables import scores, write_csv
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences

NAMES = {
    "not UTF-8": (os.fsdecode(b"a\xffb"), "is not UTF-8"),
    "an escape": ("a\x1b[2Jb", "has a control character"),
    "a line break": ("a\nb", "has a control character"),
    "letters that run backwards": ("a\u202eb", "has a control character"),
    "3,000 letters": ("n" * 3000, "is longer than the system takes"),
    "3,500 letters of short names": ("/".join(["n" * 100] * 35), "is longer than the system takes"),
}

OF_A_STUDY: dict[str, tuple[object, ...]] = {
    "status": ("status", "{}"),
    "verify": ("verify", "{}"),
    "verdict": ("verdict", "{}"),
    "report": ("report", "{}"),
    "export": ("export", "{}", "--format", "csv"),
    "extend": ("extend", "{}", "--seeds", 1),
    "heads": ("heads", "{}", "--run", "r4", "--tasks", "kinship"),
    "repair": ("repair", "{}", "--run", "r4", "--max-loss", 1),
    "run": ("run", "{}"),
    "plan": ("plan", "{}"),
}
OF_OUTPUTS: dict[str, tuple[object, ...]] = {
    "init": ("init", "{}"),
    "init --from": ("init", "--from", "{}"),
    "verdict --output": ("verdict", "scores.csv", "--output", "{}"),
    "report --output": ("report", "good", "--output", "{}"),
    "export --output": ("export", "good", "--format", "csv", "--output", "{}"),
    "run --study-dir": ("run", "train.epochs=1", "--study-dir", "{}"),
    "plan --study-dir": ("plan", "--study-dir", "{}"),
    "try": ("try", "{}"),
    "try --study-dir": ("try", "scores.csv", "--study-dir", "{}"),
    "audit": ("audit", "base", "{}"),
    "audit --output": ("audit", "base", "adapter", "--output", "{}"),
    "check": ("check", "{}", "adapter", "--tasks", "kinship"),
    "tasks": ("tasks", "--tasks-path", "{}"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies and a table of scores."""
    root = tmp_path_factory.mktemp("folders")
    for name in ("good", "twin"):
        write_study(StudyFolder(root / name), planted_study({4: 0.7}, num_in_domain=12))
    write_csv(root / "scores.csv", scores(base=[0, 1, 0], r4=[1, 1, 0]))
    return root


def named(call: tuple[object, ...], name: str) -> list[Any]:
    return [name if each == "{}" else each for each in call]


def listed(folder: Path) -> list[str]:
    return sorted(map(str, folder.rglob("*")))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", OF_A_STUDY | OF_OUTPUTS)
def test_a_name_that_cannot_be_recorded_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, verb: str, name: str
) -> None:
    monkeypatch.chdir(place)
    text, said = NAMES[name]
    before = listed(place)
    done = rankwise(*named((OF_A_STUDY | OF_OUTPUTS)[verb], text))
    assert (done.exit_code, said in words(done.stderr)) == (2, True), done.stderr[-500:]
    assert listed(place) == before


@pytest.mark.parametrize("verb", OF_A_STUDY)
def test_a_study_that_is_there_under_such_a_name_stays_as_it_is(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Also where a link to it has another name, or it is the current folder."""
    odd = tmp_path / NAMES["not UTF-8"][0]
    shutil.copytree(place / "good", odd)
    (tmp_path / "good").symlink_to(odd)
    before = listed(odd)
    for folder, name in ((tmp_path, odd.name), (tmp_path, "good"), (odd, ".")):
        monkeypatch.chdir(folder)
        call = named(OF_A_STUDY[verb], name)
        done = rankwise(
            *(place / each if each == "good" and name != "good" else each for each in call)
        )
        assert (done.exit_code, "is not UTF-8" in words(done.stderr)) == (2, True), done.stderr[
            -500:
        ]
    assert listed(odd) == before


@pytest.mark.parametrize("name", ["study.json", "base/eval/kinship.json", "runs/*/run.json"])
@pytest.mark.parametrize("verb", ["status", "verify", "verdict", "report", "export"])
def test_a_record_that_is_a_link_to_itself(
    place: Path, tmp_path: Path, verb: str, name: str
) -> None:
    """The system refuses even to say of what size it is; a verb ends as if it were not there."""
    ends: list[int] = []
    for root in (tmp_path / "without", tmp_path / "study"):
        shutil.copytree(place / "good", root)
        path = next(root.glob(name))
        path.unlink()
        if ends:
            path.symlink_to(path)
        ends.append(rankwise(*named(OF_A_STUDY[verb], str(root))).exit_code)
        assert path.is_symlink() == (len(ends) == 2)
    assert ends[0] == ends[1]


@pytest.mark.parametrize("number", [errno.EIO, errno.ELOOP, errno.ENOSPC, errno.EMFILE])
def test_an_error_of_the_disk_is_a_sentence_wherever_it_comes_from(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    monkeypatch.setattr("rankwise.study.damage.find_damage", refused)
    done = rankwise("verify", place / "good", "--json")
    said = f"StorageError: somewhere: {os.strerror(number)}. "
    assert (done.exit_code, said in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize("verb", ["run", "plan", "init", "verdict"])
def test_such_a_current_folder_is_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    odd = tmp_path / NAMES["not UTF-8"][0]
    odd.mkdir()
    monkeypatch.chdir(odd)
    more = (place / "scores.csv", "--output", "kept") if verb == "verdict" else ()
    done = rankwise(verb, *more)
    assert (done.exit_code, "is not UTF-8" in words(done.stderr)) == (2, True), done.stderr
    assert listed(odd) == []


def test_a_study_file_that_leads_there_is_refused(tmp_path: Path, sentence: Sentences) -> None:
    odd = tmp_path / NAMES["an escape"][0]
    odd.mkdir()
    (tmp_path / "link").symlink_to(odd)
    file = tmp_path / "study.yaml"
    file.write_text("base_model: m\ntrain: {data: link/rows.jsonl}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    sentence(caught.value, "1")
    (odd / "study.yaml").write_bytes(file.read_bytes())
    with pytest.raises(ConfigError) as caught:
        load_config(odd / "study.yaml")
    sentence(caught.value, "2")


def test_so_it_is_from_python(place: Path) -> None:
    odd = place / NAMES["not UTF-8"][0]
    for call in (
        lambda: rw.new(base="m", task="kinship", folder=odd),
        lambda: rw.open(odd),
        lambda: rw.open(place / "good").report(odd),
        lambda: rw.verdict(place / "scores.csv", folder=odd),
        lambda: write_outputs(odd, {"a.txt": ""}),
    ):
        with pytest.raises(ConfigError, match="is not UTF-8"):
            call()
    assert not odd.exists()


@pytest.mark.parametrize("name", ["a\\b", "..", "good/.."])
def test_a_file_to_write_has_a_name_of_its_own(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(place)
    before = listed(place)
    done = rankwise("init", name)
    assert (done.exit_code in (1, 2), "Traceback" in done.output) == (True, False)
    assert listed(place) == before
