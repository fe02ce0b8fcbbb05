"""Verbs that write where a user says, or into a study's folder, among files of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rankwise.records.folder import StudyFolder
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.support.command_line import rankwise, words

FOREIGN = "was not written by rankwise; move it away, choose another place, or give --overwrite"
CHANGED = "was changed since rankwise wrote it; move it away"

Call = Callable[[Path, Path], Sequence[object]]


def export(kind: str) -> Call:
    return lambda study, out: ("export", study, "--format", kind, "--output", out)


VERBS: dict[str, tuple[Call, str]] = {
    "report": (lambda study, out: ("report", study, "--output", out), "report.html"),
    "csv": (export("csv"), "runs.csv"),
    "parquet": (export("parquet"), "scores.parquet"),
    "markdown": (export("markdown"), "results.md"),
    "latex": (export("latex"), "results.tex"),
    "figures": (export("figures"), "score-by-rank.svg"),
    "model card": (export("model-card"), "README.md"),
    "trl": (export("trl"), "trl.yaml"),
    "init": (lambda _, out: ("init", out / "study.yaml"), "study.yaml"),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that recommends rank 16."""
    folder = StudyFolder(tmp_path_factory.mktemp("planted") / "study")
    write_study(folder, planted_study())
    return folder.root


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_of_the_users_is_named_and_stays(study: Path, tmp_path: Path, verb: str) -> None:
    call, name = VERBS[verb]
    arguments, mine = call(study, tmp_path / "out"), tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    done = rankwise(*arguments)
    assert (done.exit_code, mine.read_text()) == (2, "mine")
    assert f"{name} {FOREIGN}" in words(done.stderr)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert rankwise(*arguments, "--overwrite").exit_code == 0
    assert rankwise(*arguments).exit_code == 0
    mine.write_bytes(edited := mine.read_bytes() + b" ")
    done = rankwise(*arguments)
    assert (done.exit_code, mine.read_bytes()) == (2, edited)
    assert f"{name} {CHANGED}" in words(done.stderr)


def test_a_report_among_the_users_own_figures(study: Path, tmp_path: Path) -> None:
    names = ("report/mine.png", "report/mine.svg", "report/mine.csv", "items.html", "mine.html")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    assert rankwise("report", study, "--output", tmp_path).exit_code == 0
    assert {(tmp_path / name).read_text() for name in names} == {"mine"}


def test_a_report_through_a_link(study: Path, tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    for folder in (victim, out):
        folder.mkdir()
    (victim / "mine.csv").write_text("mine")
    (out / "report").symlink_to(victim)
    done = rankwise("report", study, "--output", out, "--overwrite")
    assert done.exit_code == 2
    assert "would go through report, which is not a folder" in words(done.stderr)
    assert [path.name for path in victim.iterdir()] == ["mine.csv"]
    (out / "report").unlink()
    (tmp_path / "to").symlink_to(out)  # the folder that was named may be one
    assert rankwise("report", study, "--output", tmp_path / "to").exit_code == 0
    assert (out / "report.html").is_file()


def test_in_the_folder_of_the_study(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study())
    assert rankwise("report", folder.root).exit_code == 0
    (folder.root / "report" / "mine.png").write_text("mine")
    folder.report_file.write_text("with my notes")
    for again in ("report", "run"):  # before a run begins to train
        done = rankwise(again, folder.root)
        assert done.exit_code == 2
        assert "report.html was changed since rankwise wrote it; move it" in words(done.stderr)
    assert f"`rankwise report {folder.root} --overwrite`" in words(done.stderr)
    assert folder.report_file.read_text() == "with my notes"
    assert rankwise("report", folder.root, "--overwrite").exit_code == 0
    assert (folder.root / "report" / "mine.png").read_text() == "mine"
    (folder.root / "export").symlink_to(tmp_path)
    done = rankwise("export", folder.root, "--format", "csv")
    assert done.exit_code == 2
    assert "would go through export, which is not a folder" in words(done.stderr)
    assert not (tmp_path / "csv").exists()
