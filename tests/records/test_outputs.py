"""What is written where a user says: nothing of the user's is replaced, removed or followed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rankwise.errors import ConfigError, StorageError
from rankwise.records.files import read_record, remove_leftovers, temporary_beside, write_record
from rankwise.records.names import MANIFEST
from rankwise.records.outputs import WrittenFiles, refuse_foreign, write_outputs
from tests.support.sentences import Sentences

PAGE, FIGURE = "report.html", "report/a.png"
FIRST = {PAGE: "first", FIGURE: "drawn"}
FOREIGN, CHANGED = "was not written by rankwise; ", "was changed since rankwise wrote it; "
AWAY = "move it away, or choose another place"
HOW = "move it away, choose another place, or give --overwrite"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, through no link."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != MANIFEST
    }


def refused(write: Callable[[], object], place: Path) -> tuple[str, ...]:
    """The problems with an output; asserts that nothing has changed."""
    before = tree(place)
    with pytest.raises(ConfigError) as caught:
        write()
    assert tree(place) == before
    return caught.value.problems


@pytest.mark.parametrize("earlier", ["nothing", "an empty folder", "its own"])
def test_its_own_is_replaced_without_a_word(tmp_path: Path, earlier: str) -> None:
    out = tmp_path / "a" / "out"
    if earlier == "an empty folder":
        out.mkdir(parents=True)
    if earlier == "its own":
        write_outputs(out, FIRST)
    write_outputs(out, {PAGE: "second", FIGURE: b"again"})
    assert tree(out) == {PAGE: b"second", FIGURE: b"again"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [PAGE, FIGURE])
def test_a_file_of_the_users_is_named_and_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    (tmp_path / "report.txt").write_text("mine")
    assert refused(lambda: write_outputs(tmp_path, FIRST), tmp_path) == (f"{name} {FOREIGN}{HOW}",)
    assert refused(lambda: refuse_foreign(tmp_path, FIRST), tmp_path) == (f"{name} {FOREIGN}{HOW}",)
    write_outputs(tmp_path, FIRST, overwrite=True)
    assert tree(tmp_path) == {PAGE: b"first", FIGURE: b"drawn", "report.txt": b"mine"}
    write_outputs(tmp_path, FIRST | {name: "later"})


def test_what_was_changed_by_hand_is_the_users(tmp_path: Path) -> None:
    write_outputs(tmp_path, FIRST)
    (tmp_path / PAGE).write_text("first, and a note")
    assert refused(lambda: write_outputs(tmp_path, FIRST), tmp_path) == (f"{PAGE} {CHANGED}{HOW}",)
    (tmp_path / PAGE).write_text("second")
    write_outputs(tmp_path, {PAGE: "second"})  # which loses nothing


def test_many_are_counted(tmp_path: Path) -> None:
    names = [f"{n:02}.csv" for n in range(12)]
    for name in names:
        (tmp_path / name).write_text("mine")
    problems = refused(lambda: write_outputs(tmp_path, dict.fromkeys(names, "")), tmp_path)
    assert (len(problems), problems[-1]) == (11, "and 2 more")


def test_only_its_own_is_removed(tmp_path: Path) -> None:
    old = {f"report/{name}.png": name for name in ("gone", "changed")} | {"other.csv": "1"}
    write_outputs(tmp_path, FIRST | old)
    for name in ("mine.png", "mine.csv", "changed.png"):
        (tmp_path / "report" / name).write_text("mine")
    write_outputs(tmp_path, FIRST, replaces=("report/",))
    assert sorted(tree(tmp_path)) == [
        *("other.csv", PAGE, FIGURE),
        *("report/changed.png", "report/mine.csv", "report/mine.png"),
    ]


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_link_is_followed(tmp_path: Path, overwrite: bool) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    write_outputs(out, FIRST | {"report/old.png": "old"})
    (out / "report").rename(victim)
    (out / "report").symlink_to(victim)
    before = tree(victim)

    def write() -> None:
        write_outputs(out, {FIGURE: "new"}, overwrite=overwrite, replaces=("report/",))

    problem = f"{FIGURE} would go through report, which is not a folder; {AWAY}"
    assert refused(write, out) == (problem,)
    write_outputs(out, {PAGE: "new"}, overwrite=overwrite, replaces=("report/",))
    assert tree(victim) == before


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_text("mine")
    out.mkdir()
    (out / PAGE).symlink_to(victim)
    assert refused(lambda: write_outputs(out, FIRST), out) == (f"{PAGE} {FOREIGN}{HOW}",)
    write_outputs(out, FIRST, overwrite=True)
    assert (victim.read_text(), tree(out)[PAGE]) == ("mine", b"first")


def test_the_place_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    write_outputs(tmp_path / "out", FIRST)
    write_outputs(tmp_path / "out", {PAGE: "second"}, replaces=("report/",))
    assert tree(tmp_path / "real") == {PAGE: b"second"}
    assert (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("name", ["../victim.png", "/{root}/victim.png", "report/../../victim.png"])
def test_a_forged_manifest_is_believed_in_nothing(tmp_path: Path, name: str) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim.png"
    write_outputs(out, FIRST)
    victim.write_bytes((out / PAGE).read_bytes())  # so that its hash is known
    hashes = read_record(out / MANIFEST, WrittenFiles).files[PAGE]
    forged = {name.format(root=tmp_path): hashes, PAGE: hashes}
    write_record(out / MANIFEST, WrittenFiles.model_construct(files=forged))
    problems = refused(
        lambda: write_outputs(out, {PAGE: "2"}, replaces=("", "/", "..", "report/")), out
    )
    assert problems == (f"{PAGE} {FOREIGN}{HOW}",)
    write_outputs(out, {PAGE: "2"}, overwrite=True, replaces=("", "/", "..", "report/"))
    assert victim.exists()


@pytest.mark.parametrize("broken", ["{}", "", "a link", "a folder"])
def test_a_manifest_that_is_none(tmp_path: Path, broken: str) -> None:
    out = tmp_path / "out"
    write_outputs(out, FIRST)
    manifest = out / MANIFEST
    whole = manifest.rename(tmp_path / "manifest")
    if broken == "a link":
        manifest.symlink_to(whole)
    elif broken == "a folder":
        manifest.mkdir()
    else:
        manifest.write_text(broken)
    assert refused(lambda: write_outputs(out, {PAGE: "2"}), out) == (f"{PAGE} {FOREIGN}{HOW}",)


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / PAGE).mkdir()
    (tmp_path / "report").write_text("mine")
    problems = refused(lambda: write_outputs(tmp_path, FIRST, overwrite=True), tmp_path)
    assert problems == (
        f"{FIGURE} would go through report, which is not a folder; {AWAY}",
        f"{PAGE} is a folder; {AWAY}",
    )


def test_a_place_that_is_none(tmp_path: Path, sentence: Sentences) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "file/below"):
        with pytest.raises((ConfigError, StorageError)):
            write_outputs(tmp_path / name, FIRST, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(StorageError, match=r"/sys/rankwise cannot be written: "):
        write_outputs(Path("/sys/rankwise"), FIRST)
    with pytest.raises(StorageError) as caught:
        write_outputs(tmp_path / "loop", FIRST)
    sentence(caught.value)


@pytest.mark.parametrize("which", [1, 2])
def test_a_process_that_was_killed_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    write_outputs(tmp_path, FIRST)
    real, moved = Path.replace, list[Path]()

    def kill(path: Path, target: Path) -> Path:
        if target.parent in (tmp_path, tmp_path / "report") and target.name != MANIFEST:
            moved.append(target)
            if len(moved) == which:
                raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            write_outputs(tmp_path, {PAGE: "second", FIGURE: "second"})
    assert b"second" not in list(tree(tmp_path).values())[which - 1 :]
    write_outputs(tmp_path, {PAGE: "third", FIGURE: "third"})
    assert set(tree(tmp_path).values()) == {b"third"}


def test_what_a_killed_process_left_is_taken_away_with_its_other_leftovers(tmp_path: Path) -> None:
    left = temporary_beside(tmp_path / "study")
    write_outputs(left, FIRST)
    (tmp_path / f"{left.name}-of-mine").mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{left.name}-of-mine"]
