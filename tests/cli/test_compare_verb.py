"""rankwise compare: pages, terminal and JSON of studies in folders, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.records.folder import StudyFolder
from rankwise.study.comparing import study_names
from tests.planted.compared import compared_results
from tests.planted.folders import write_study
from tests.support.command_line import rankwise, words


def written(root: Path, *scores: float, **planted: Any) -> Path:
    """The folder of a planted study, under its name."""
    results = compared_results(root.name, *scores, **planted)
    write_study(StudyFolder(root), results)
    return root


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    return written(tmp_path / "first"), written(tmp_path / "second", 0.85, 0.88)


def content(*folders: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".checked.json"
    }


def test_two_studies(folders: tuple[Path, Path], tmp_path: Path) -> None:
    before = content(*folders)
    done = rankwise("compare", *folders)
    assert done.exit_code == 0
    shown = words(done.stdout)
    assert "The choice of second gains 5.0 points more (" in shown
    assert "and keeps 2.0 points less (" in shown
    assert "first and second have the same settings and the same software" in shown
    assert shown.endswith("page: comparison.html")
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "The choice of second gains 5.0 points more" in page
    assert content(*folders) == before


def test_two_stacks_are_not_pooled(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = written(tmp_path / "third", 0.85, torch="2.9.0")
    shown = words(rankwise("compare", folders[0], other).stdout)
    assert "first and third: they used different software stacks." in shown
    assert "by 1 to 3 points" in shown
    assert "gains" not in shown


def test_json_has_everything(folders: tuple[Path, Path]) -> None:
    done = rankwise("compare", *folders, "--json", "--output", "other.html")
    found = json.loads(done.stdout)
    assert [answer["choice"]["rank"] for answer in found["answers"]] == [16, 16]
    assert found["pairs"][0]["gain"]["estimate"] == pytest.approx(5.0)
    assert found["kind"] == "paired"
    assert Path("other.html").exists()


def test_its_own_page_is_replaced_and_nothing_else(folders: tuple[Path, Path]) -> None:
    page = Path("comparison.html")
    page.write_text("mine")
    refused = rankwise("compare", *folders)
    assert (refused.exit_code, refused.stdout, page.read_text()) == (2, "", "mine")
    assert words(refused.stderr) == (
        f"ConfigError: {Path.cwd()} has 1 problem comparison.html was not written by rankwise; "
        "move it away, choose another place, or give --overwrite"
    )
    assert rankwise("compare", *folders, "--overwrite").exit_code == 0
    first = page.read_text(encoding="utf-8")
    assert rankwise("compare", *reversed(folders)).exit_code == 0
    assert page.read_text(encoding="utf-8") != first


def test_what_cannot_be_compared_is_said_before_anything_is_read(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = folders
    (tmp_path / "link").symlink_to(first)
    cases = {
        (first,): f"only {first} is given; name two studies' folders or more",
        (first, second, first): f"{first} is given twice; name each study once",
        (first, tmp_path / "link"): f"{first} and {tmp_path / 'link'} are one folder; name each",
        (first, second, "--output", tmp_path): f"{tmp_path.name} is a folder; move it away, or",
    }
    for arguments, sentence in cases.items():
        done = rankwise("compare", *arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert sentence in words(done.stderr)
    assert rankwise("compare").exit_code == 2
    assert not (tmp_path / "comparison.html").exists()


def test_folders_that_are_no_studies_or_are_damaged(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = folders
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "nowhere"):
        done = rankwise("compare", first, nothing)
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"{nothing}/study.json is not there" in words(done.stderr)
    record = second / "base" / "eval" / "kinship.json"
    record.write_bytes(record.read_bytes()[:-40])
    done = rankwise("compare", first, second)
    assert done.exit_code == 2
    assert f"{record} is not a readable TaskEvaluation" in words(done.stderr)
    assert not (tmp_path / "comparison.html").exists()


def test_of_an_unfinished_study_what_is_there_is_compared(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    partial = written(tmp_path / "partial", in_domain_accuracy={4: 0.7, 16: 0.8})
    (run,) = partial.glob("runs/*r004*")
    (run / "eval" / "capitals.json").unlink()
    done = rankwise("compare", folders[0], partial)
    assert done.exit_code == 0
    said = f"left out of partial: {run.name} is not scored on capitals"
    assert said in words(done.stderr)
    assert run.name in (tmp_path / "comparison.html").read_text(encoding="utf-8")
    (only,) = folders[1].glob("runs/*")
    (only / "run.json").unlink()
    nothing = rankwise("compare", *folders)
    assert nothing.exit_code == 2
    assert f"no run of {folders[1]} is finished" in words(nothing.stderr)


def test_studies_of_one_name_are_told_apart_by_their_folders() -> None:
    a, b = Path("/x/one/study"), Path("/x/two/study")
    assert study_names(["s", "s"], [Path("p/a"), Path("q/b")]) == ["s (a)", "s (b)"]
    assert study_names(["s", "s"], [a, b]) == ["s (one/study)", "s (two/study)"]
    assert study_names(["s", "t"], [a, b]) == ["s", "t"]
    assert study_names(["s", "t", "s"], [Path("a"), Path("b"), Path("c")]) == [
        "s (a)",
        "t",
        "s (c)",
    ]
