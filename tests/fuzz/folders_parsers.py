"""Folders of strangers through the verbs: damaged studies, files of other programs, odd names.

Whatever is in a folder and however it is called, a verb ends in a result or a sentence, nothing
acts on a terminal, and what rankwise did not write stays, byte for byte.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from rankwise.errors import RankwiseError
from rankwise.records.folder import StudyFolder
from rankwise.records.names import MANIFEST
from tests.fuzz.names_parsers import names, said
from tests.fuzz.strategies import NASTY_TEXTS
from tests.planted.score_tables import write_csv
from tests.support.command_line import rankwise
from tests.support.rights import as_a_user

Call = Callable[[Path, Path], Sequence[object]]
"""The command for a folder, and for a place beside it that has a good study and a table."""

OF_A_FOLDER: dict[str, Call] = {
    "status": lambda root, _: ("status", root),
    "status --json": lambda root, _: ("status", root, "--json"),
    "verdict": lambda root, _: ("verdict", root),
    "verdict --delta": lambda root, _: ("verdict", root, "--delta", 9),
    "verdict --cluster": lambda root, _: ("verdict", root, "--cluster", "scores=passage"),
    "report": lambda root, _: ("report", root),
    "verify": lambda root, _: ("verify", root),
    "plan": lambda root, _: ("plan", root),
    "run": lambda root, _: ("run", root),
    "extend": lambda root, _: ("extend", root, "--seeds", 1),
    "heads": lambda root, _: ("heads", root, "--run", "r8", "--tasks", "scores"),
    "repair": lambda root, _: ("repair", root, "--run", "r8", "--max-loss", 1),
    "export csv": lambda root, _: ("export", root, "--format", "csv"),
    "export model-card": lambda root, _: ("export", root, "--format", "model-card"),
    "export --to hub": lambda root, _: (
        *("export", root, "--to", "hub", "--repo", "a/b", "--dry-run"),
    ),
    "report of it": lambda root, place: ("report", root, "--output", place / "out"),
    "export of it": lambda root, place: (
        *("export", root, "--format", "markdown", "--output", place / "out"),
    ),
}
INTO_A_FOLDER: dict[str, Call] = {
    "verdict --output": lambda root, place: ("verdict", place / "scores.csv", "--output", root),
    "report --output": lambda root, place: ("report", place / "good", "--output", root),
    "export --output": lambda root, place: (
        *("export", place / "good", "--format", "csv", "--output", root),
    ),
    "init": lambda root, _: ("init", root / "study.yaml"),
    "init the folder": lambda root, _: ("init", root),
}
_CALLS = OF_A_FOLDER | INTO_A_FOLDER
_any_verb = st.sampled_from([*OF_A_FOLDER, *(["verdict --output"] * 4), *INTO_A_FOLDER])

_JUDGED_AGAIN = {"recommendation.json", "findings.json", "looks.json"}
"""Records that ``verdict DIR`` and ``report DIR`` make from the others, whatever they were."""


_WORKING = {".leader", ".progress.json", ".finished", ".checked.json"}
"""What a study works with; without a readable ``study.json`` they are somebody else's."""

_OWN_NAMES = _JUDGED_AGAIN | _WORKING


@cache
def _files() -> Mapping[str, bytes]:
    """Every file of a small study of scores with its report, and the table that it is made from."""
    with tempfile.TemporaryDirectory() as place:
        rows = [
            {"id": f"q{number}", "model": model, "acc": int(number % (index + 2) == 0)}
            for number in range(12)
            for index, model in enumerate(["base", "r8", "r16"])
        ]
        path, root = write_csv(Path(place, "scores.csv"), rows), Path(place, "study")
        assert rankwise("verdict", path, "--output", root).exit_code == 0
        found = {each for each in root.rglob("*") if each.is_file() and each.name != ".lock"}
        kept = {each.relative_to(root).as_posix(): each.read_bytes() for each in sorted(found)}
        return {"": path.read_bytes(), **kept}


def _write_study(root: Path) -> None:
    for name, content in _files().items():
        if name:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)


def _write_place(place: Path) -> None:
    """A table, a good study, and a folder of the user's, to which links lead."""
    (place / "scores.csv").write_bytes(_files()[""])
    _write_study(place / "good")
    (place / "mine").mkdir()
    for name in ("photo.png", "training.pt", "study.json", "run.json"):
        (place / "mine" / name).write_bytes(b"mine")


State = tuple[object, ...]


def state_of(folder: Path) -> dict[str, State]:
    """What stands at every name below a folder; through no link."""
    return {
        path.relative_to(folder).as_posix(): _state(path)
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def _state(path: Path) -> State:
    kind = stat.S_IFMT(path.lstat().st_mode)
    if kind == stat.S_IFLNK:
        return kind, os.readlink(path)
    return (kind, path.read_bytes()) if kind == stat.S_IFREG else (kind,)


def refuse_changes(before: Mapping[str, State], folder: Path) -> None:
    """Whatever was there is there, and as it was; folders may have got more."""
    after = state_of(folder)
    gone = {name: state for name, state in before.items() if after.get(name) != state}
    assert not gone, f"changed or removed: {sorted(gone)}"


def _call(verb: str, root: Path, place: Path) -> int:
    with as_a_user():
        return said(*_CALLS[verb](root, place))


# damaged studies


class Damage(NamedTuple):
    """What happens to a file of a study: a number that says which, a kind, and another number."""

    file: int
    kind: str
    number: int


def _swapped(path: Path, number: int) -> None:
    records = [content for name, content in sorted(_files().items()) if name.endswith(".json")]
    path.write_bytes(records[number % len(records)])


def _flipped(path: Path, number: int) -> None:
    content = bytearray(path.read_bytes())
    content[number % len(content)] ^= 1 << number % 8
    path.write_bytes(content)


def _written(content: bytes) -> Callable[[Path, int], object]:
    return lambda path, _: path.write_bytes(content)


def _instead(put: Callable[[Path], object]) -> Callable[[Path, int], object]:
    def replaced(path: Path, _: int) -> None:
        path.unlink()
        put(path)

    return replaced


def _folder_with_a_note(path: Path) -> None:
    path.mkdir()
    (path / "note.txt").write_bytes(b"mine")


def _link_to_mine(path: Path) -> None:
    mine = _mine(path) / path.name
    path.symlink_to(mine if mine.exists() else mine.with_name("photo.png"))


def _moved_away(path: Path, _: int) -> None:
    if not path.parent.is_symlink() and path.parent.name != "study":
        elsewhere = path.parent.with_name(f"{path.parent.name}-elsewhere")
        path.parent.rename(elsewhere)
        path.parent.symlink_to(elsewhere)


DAMAGES: Mapping[str, Callable[[Path, int], object]] = {
    "half": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "empty": _written(b""),
    "a flipped bit": _flipped,
    "null": _written(b"null"),
    "nested": _written(b"[" * 100_000),
    "other JSON": _written(b'{"schema_version": 1}'),
    "a newer version": _written(b'{"schema_version": 99}'),
    "not UTF-8": _written(b"\xff\xfe\x00"),
    "another record": _swapped,
    "gone": lambda path, _: path.unlink(),
    "a folder": _instead(_folder_with_a_note),
    "a link to elsewhere": _instead(_link_to_mine),
    "a link to itself": _instead(lambda path: path.symlink_to(path)),
    "a link to nothing": _instead(lambda path: path.symlink_to("nothing")),
    "a link to a pipe": _instead(lambda path: path.symlink_to(_pipe(path))),
    "a pipe": _instead(os.mkfifo),
    "its folder is a link": _moved_away,
}
MODES: Mapping[str, Callable[[Path], object]] = {
    "not to be read": lambda path: path.chmod(0),
    "its folder not to be entered": lambda path: path.parent.chmod(0),
    "its folder not to be listed": lambda path: path.parent.chmod(0o300),
    "its folder not to be written": lambda path: path.parent.chmod(0o500),
}
_damages = st.builds(
    Damage,
    st.integers(0, 10_000),
    st.sampled_from([*DAMAGES, *MODES]),
    st.integers(0, 100_000),
)


def _mine(path: Path) -> Path:
    return next(each / "mine" for each in path.parents if (each / "mine").is_dir())


def _pipe(path: Path) -> Path:
    pipe = path.with_name("pipe")
    if not pipe.exists():
        os.mkfifo(pipe)
    return pipe


def read_damaged(place: Path, drawn: tuple[str, list[Damage]]) -> None:
    """A verb over a study of scores in which files are damaged, beside notes of the user's."""
    verb, damages = drawn
    _write_place(place)
    root = place / "study"
    _write_study(root)
    for folder in (root, *root.rglob("*")):
        if folder.is_dir():
            (folder / "note.txt").write_bytes(b"mine")
    files = sorted(name for name in _files() if name)
    with contextlib.ExitStack() as modes:
        closed: list[Callable[[], object]] = []
        for damage in damages:
            path = root / files[damage.file % len(files)]
            if not path.is_file() or path.is_symlink():
                continue
            if damage.kind in MODES:
                closed.append(lambda path=path, damage=damage: MODES[damage.kind](path))
            else:
                DAMAGES[damage.kind](path, damage.number)
        before = state_of(place)
        modes.callback(_open_again, root)
        for close in closed:
            with contextlib.suppress(FileNotFoundError):
                close()
        _call(verb, root, place)
    if verb in INTO_A_FOLDER:
        kept = {name: state for name, state in before.items() if not _is_ours(name, state)}
    else:
        kept = {
            name: state
            for name, state in before.items()
            if name.removeprefix("study/") not in _JUDGED_AGAIN
            and not (name.startswith("study/report") and _is_ours(name, state))
        }
    kept.pop(f"study/{MANIFEST}", None)
    refuse_changes(kept, place)


def _is_ours(name: str, state: State) -> bool:
    """Whether rankwise wrote what stands there, and nobody changed it."""
    below = name.removeprefix("study/")
    return below in _files() and state == (stat.S_IFREG, _files()[below])


def _open_again(root: Path) -> None:
    for folder in (root, *root.rglob("*")):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(0o700)
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)


# folders of other programs

_FOREIGN_NAMES = (
    *("study.json", "study.yaml", "recommendation.json", "findings.json", "looks.json"),
    *("stacks.json", "search.json", "own_texts.json", "report.html", "items.html"),
    *("report/fig.png", "report/runs.csv", "report", "runs", "base", "export", "failures/a.json"),
    *("runs/exp1/events", "runs/exp1/training.pt", "runs/exp1/run.json", "base/photo.png"),
    *("runs/r8/run.json", "runs/r8/training.pt", "runs/r8/eval/scores.json", "base/eval/a.json"),
    *(".tasks/build/x", ".tasks/train-0123456789ab/1/runs/r8/training.pt", ".tasks/a", ".tasks"),
    *(".leader", ".progress.json", ".finished", ".checked.json", ".rankwise-written.json"),
    *("quarantine/a.json", "export/csv/runs.csv", "runs.csv", "scores.csv", "report.html.bak"),
    *("runs/r8/weights/adapter_config.json", "training.pt", "metrics.jsonl", "a.rankwise-tmp"),
    *(".git/config", ".env", ".tasks/.env", "runs/.hidden"),
)
_CONTENTS: Mapping[str, Callable[[Path], object]] = {
    "a note": lambda path: path.write_bytes(b"mine"),
    "a table": lambda path: path.write_bytes(b"id,acc\n1,1\n"),
    "an object": lambda path: path.write_bytes(b'{"name": "exp1", "files": {}}'),
    "a list": lambda path: path.write_bytes(b"[1, 2]"),
    "nothing": lambda path: path.write_bytes(b""),
    "a folder": _folder_with_a_note,
    "a link": _link_to_mine,
    "a link to a folder": lambda path: path.symlink_to(_mine(path)),
    "a pipe": os.mkfifo,
}
_foreign = st.lists(
    st.tuples(
        st.sampled_from(_FOREIGN_NAMES),
        st.one_of(st.just("a note"), st.sampled_from([*_CONTENTS])),
    ),
    min_size=1,
    max_size=4,
)


def read_foreign(place: Path, drawn: tuple[str, list[tuple[str, str]], bool]) -> None:
    """A verb over a folder of another program's; in some of them a good study was made, too."""
    verb, files, has_study = drawn
    _write_place(place)
    root = _write_foreign(place / "study", files)
    before = state_of(place)
    if has_study:
        with contextlib.suppress(OSError):
            _write_around(root, before)
    _call(verb, root, place)
    if has_study:  # they are its own, whoever wrote them
        own = _WORKING if verb in INTO_A_FOLDER else _OWN_NAMES
        before = {name: s for name, s in before.items() if name[6:] not in own}
    before.pop(f"study/{MANIFEST}", None)
    refuse_changes(before, place)


def _write_foreign(root: Path, files: Sequence[tuple[str, str]]) -> Path:
    root.mkdir()
    for name, content in files:
        path = root / name
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(path) and path.parent.resolve().is_relative_to(root.resolve()):
                _CONTENTS[content](path)
    return root


def _write_around(root: Path, taken: Mapping[str, State]) -> None:
    for name, content in _files().items():
        if name and f"study/{name}" not in taken:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)


def lead(place: Path, files: list[tuple[str, str]]) -> None:
    """What each verb that works on a study does first: it locks the folder, and clears it."""
    _write_place(place)
    root = _write_foreign(place / "study", files)
    before = state_of(place)
    with contextlib.suppress(RankwiseError), StudyFolder(root).lock():
        pass
    refuse_changes(before, place)


# names

_BYTES = st.one_of(
    st.sampled_from([
        *(b"a\xffb", b"\xff", b"\xed\xa0\x80", b"a\x1b[2Jb", b"a\nb", b"\x7f", b"\xc2\x9b31m"),
        *("a\u202eb".encode(), "\u200b".encode(), b"n" * 255, b"n" * 256, b"n" * 3000, b" ", b"."),
        *(b"n/" * 1800, "\u00e9\U0001f642".encode(), b"-x", b"--", b"~", b"~nobody/x", b"[/x]"),
        *(b"study.json", b".rankwise-written.json", b"a.rankwise-tmp", b"$(x)", b"a%20b", b"a:b"),
        *(b"..", b"../good", b"mine/../study", b"good/", b"mine/photo.png", b"mine/photo.png/x"),
    ]),
    names.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(NASTY_TEXTS).map(str.encode),
    st.binary(max_size=12),
)  # fmt: skip


def read_name(place: Path, drawn: tuple[str, bytes, bool]) -> None:
    """A verb over a folder of such a name, which is there or not; ``place`` is the current one."""
    verb, raw, is_there = drawn
    _write_place(place)
    name = os.fsdecode(raw).replace("\0", "").lstrip("/")
    root = Path(os.path.normpath(place / name))
    if root == place or not root.is_relative_to(place):
        return
    is_there = is_there and len(raw) < 300  # thousands of folders take minutes to look through
    if is_there:
        with contextlib.suppress(OSError):
            _write_study(root)
    before = state_of(place)
    with contextlib.chdir(place):
        _call(verb, Path(name), place)
    if verb in OF_A_FOLDER:
        again = {*_JUDGED_AGAIN, MANIFEST, "report.html"}
        before = {
            path: state
            for path, state in before.items()
            if not ((place / path).is_relative_to(root) and Path(path).name in again)
        }
    elif is_there:
        before = {n: s for n, s in before.items() if not (place / n).is_relative_to(root)}
    refuse_changes(before, place)


PARSERS: dict[str, tuple[Callable[[Path, Any], object], st.SearchStrategy[Any], int]] = {
    "a damaged study": (
        read_damaged,
        st.tuples(_any_verb, st.lists(_damages, min_size=1, max_size=3)),
        10,
    ),
    "a folder of another program": (
        read_foreign,
        st.tuples(_any_verb, _foreign, st.sampled_from([False, False, True])),
        10,
    ),
    "a folder that is locked": (lead, _foreign, 20),
    "a name of a folder": (read_name, st.tuples(_any_verb, _BYTES, st.booleans()), 10),
}
