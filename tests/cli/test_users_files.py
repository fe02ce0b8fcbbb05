"""Verbs that write where a user says, or into a study's folder, among files of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rankwise.records.folder import StudyFolder
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.planted.score_tables import scores, write_csv
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences

FOREIGN = "was not written by rankwise; move it away, choose another place, or give --overwrite"
CHANGED = "was changed since rankwise wrote it; move it away"

Call = Callable[[Path, Path], Sequence[object]]


def export(kind: str) -> Call:
    return lambda study, out: ("export", study, "--format", kind, "--output", out)


def verdict(study: Path, out: Path) -> Sequence[object]:
    return "verdict", study.parent / "scores.csv", "--output", out


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
    "verdict": (lambda study, out: verdict(study, out), "study.json"),
    "verdict again": (lambda study, out: verdict(study, out), "looks.json"),
    "verdict's page": (lambda study, out: verdict(study, out), "report.html"),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that recommends rank 16, and a table of scores beside it."""
    root = tmp_path_factory.mktemp("planted")
    write_study(StudyFolder(root / "study"), planted_study())
    write_csv(root / "scores.csv", scores(base=[0, 1, 0], r4=[1, 1, 0], r8=[1, 1, 1]))
    return root / "study"


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file, through no link, but what the system locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


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


def test_a_report_through_a_link(study: Path, tmp_path: Path, sentence: Sentences) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    for folder in (victim, out):
        folder.mkdir()
    (victim / "mine.csv").write_text("mine")
    (out / "report").symlink_to(victim)
    done = rankwise("report", study, "--output", out, "--overwrite")
    assert done.exit_code == 2
    sentence(words(done.stderr), names=("report",))
    assert [path.name for path in victim.iterdir()] == ["mine.csv"]
    (out / "report").unlink()
    (tmp_path / "to").symlink_to(out)  # the folder that was named may be one
    assert rankwise("report", study, "--output", tmp_path / "to").exit_code == 0
    assert (out / "report.html").is_file()


def test_in_the_folder_of_the_study(tmp_path: Path, sentence: Sentences) -> None:
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study())
    assert rankwise("report", folder.root).exit_code == 0
    (folder.root / "report" / "mine.png").write_text("mine")
    folder.report_file.write_text("with my notes")
    for again in ("report", "run"):  # before a run begins to train
        done = rankwise(again, folder.root)
        assert done.exit_code == 2
        sentence(words(done.stderr), str(again), names=("report.html",))
    assert f"`rankwise report {folder.root} --overwrite`" in words(done.stderr)
    assert folder.report_file.read_text() == "with my notes"
    assert rankwise("report", folder.root, "--overwrite").exit_code == 0
    assert (folder.root / "report" / "mine.png").read_text() == "mine"
    (folder.root / "export").symlink_to(tmp_path)
    done = rankwise("export", folder.root, "--format", "csv")
    assert done.exit_code == 2
    sentence(words(done.stderr), "export", names=("export",))
    assert not (tmp_path / "csv").exists()


FOREIGN_BESIDE = ("runs/exp1/events", "base/photo.png", "runs/note.md", "base/eval/mine.json")
"""``runs`` is where a Trainer and TensorBoard write, too."""

BESIDE_A_STUDY = ("search.json", "stacks.json", "own_texts.json", "failures/mine.json")
"""They would be read as the records of the study."""


@pytest.mark.parametrize("name", [*FOREIGN_BESIDE, *BESIDE_A_STUDY])
def test_scores_are_kept_in_no_folder_with_models_of_others(
    study: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "scores.csv"
    table.write_bytes((study.parent / "scores.csv").read_bytes())
    mine = tmp_path / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    before = files_below(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = rankwise("verdict", table, "--output", ".")
    named = "failures" if name.startswith("failures") else name
    assert (done.exit_code, f"{named} " in words(done.stderr)) == (2, True), done.stderr
    assert files_below(tmp_path) == before
    assert not (tmp_path / ".lock").exists()
    done = rankwise("verdict", table, "--output", ".", "--overwrite")
    assert done.exit_code == (0 if name in FOREIGN_BESIDE else 2), done.stderr
    assert {**before, **files_below(tmp_path)} == files_below(tmp_path)
    assert mine.read_text() == "mine"


def test_notes_beside_scores_that_are_kept_again_stay(
    study: Path, tmp_path: Path, sentence: Sentences
) -> None:
    table, out = tmp_path / "scores.csv", tmp_path / "out"
    write_csv(table, scores(base=[0, 1, 0], r4=[1, 1, 0], r8=[1, 1, 1]))
    out.mkdir()
    (out / "todo.txt").write_text("mine")
    assert rankwise("verdict", table, "--output", out).exit_code == 0
    models = sorted((out / "runs").iterdir())
    notes = [out / "runs" / "note.md", models[0] / "note.md", out / "base" / "eval" / "note.md"]
    for note in notes:
        note.write_text("mine")
    assert rankwise("verdict", out).exit_code == 0  # writes its records again
    write_csv(table, scores(base=[0, 1, 0], r16=[1, 1, 0], r8=[1, 0, 1]))
    done = rankwise("verdict", table, "--output", out)
    assert done.exit_code == 0, done.stderr
    assert {note.read_text() for note in (*notes, out / "todo.txt")} == {"mine"}
    assert [path.name for path in models[0].iterdir()] == ["note.md"]  # of the model that is gone
    assert not (out / "runs" / models[1].name / "adapter").exists()
    assert rankwise("verify", out).exit_code == 0
    changed = next((out / "base" / "eval").glob("*.samples.jsonl"))
    changed.write_text("by hand\n")
    done = rankwise("verdict", table, "--output", out)
    assert (done.exit_code, changed.read_text()) == (2, "by hand\n")
    sentence(words(done.stderr), names=(changed.relative_to(out),))
    done = rankwise("verify", out)
    command = f"rankwise verdict FILES --output {out} --overwrite"
    assert (done.exit_code, command in words(done.stderr)) == (1, True)
    assert rankwise("verdict", table, "--output", out, "--overwrite").exit_code == 0
    assert rankwise("verify", out).exit_code == 0


@pytest.mark.parametrize("name", ["runs", "base", "report"])
def test_scores_are_not_kept_through_a_link(
    study: Path, tmp_path: Path, name: str, sentence: Sentences
) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.mkdir()
    out.mkdir()
    (victim / "mine").write_text("mine")
    (out / name).symlink_to(victim)
    for more in ((), ("--overwrite",)):
        done = rankwise(*verdict(study, out), *more)
        assert done.exit_code == 2
        sentence(words(done.stderr), str(more[0]) if more else "", names=(name,))
    assert [path.name for path in victim.iterdir()] == ["mine"]


@pytest.mark.parametrize("damage", ["half", "empty"])
def test_a_damaged_plan_of_scores_names_the_command_that_makes_it_again(
    study: Path, tmp_path: Path, damage: str
) -> None:
    folder = StudyFolder(tmp_path / "out")
    assert rankwise(*verdict(study, folder.root)).exit_code == 0
    content = folder.study_file.read_bytes()
    folder.study_file.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
    for verb in ("run", "status", "verdict", "verify", "report"):
        done = rankwise(verb, folder.root)
        command = f"rankwise verdict FILES --output {folder.root} --overwrite"
        assert (done.exit_code, command in words(done.stderr)) == (1, True)
    assert rankwise(*verdict(study, folder.root)).exit_code == 2
    assert rankwise(*verdict(study, folder.root), "--overwrite").exit_code == 0
    assert rankwise("verify", folder.root).exit_code == 0


WORKED_WITH = (
    *(".tasks/build/x", ".tasks/train-0123456789ab/1/runs/r8/training.pt", ".tasks/note"),
    *("runs/r8/training.pt", "runs/r8/run.json", "runs/r8/note"),
)
"""What a study makes and takes away while it runs, or some other program keeps."""


@pytest.mark.parametrize("damage", [None, b"{}", b""])
def test_to_lead_a_folder_takes_nothing_of_others_away(
    tmp_path: Path, damage: bytes | None
) -> None:
    """Only a study that can be read has states and tasks of its own."""
    for name in WORKED_WITH:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    folder = StudyFolder(tmp_path)
    if damage is not None:
        folder.study_file.write_bytes(damage)
    before = files_below(tmp_path)
    with folder.lock():
        pass
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("name", ["report/runs.csv", "report/scores.csv", "report"])
def test_a_report_in_the_way_is_named_before_the_scores_are_kept(
    study: Path, tmp_path: Path, name: str
) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    done = rankwise(*verdict(study, tmp_path))
    assert (done.exit_code, f"{name}" in words(done.stderr)) == (2, True)
    assert files_below(tmp_path) == {name: b"mine"}
    if name != "report":
        assert rankwise(*verdict(study, tmp_path), "--overwrite").exit_code == 0
