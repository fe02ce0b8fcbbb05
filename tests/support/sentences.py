"""Sentences that a user reads, kept in ``tests/sentences``: a page for every file of tests.

A page holds plain text: a heading for a test, a line for a case of it, and what is said, indented::

    ## an adapter of no use is refused

    - rank 0
        FOLDER/bad: adapter_config.json cannot be used: r: 0 (…). Save the adapter again.

Cases that stand together say the same. FOLDER is a folder of the test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.data import Snapshot, SnapshotCollection, SnapshotCollections
from syrupy.extensions.base import AbstractSyrupyExtension
from syrupy.location import PyTestLocation

FOLDER = Path(__file__).resolve().parents[1] / "sentences"
REPOSITORY = FOLDER.parents[1]
_INDENT = " " * 4


class SentencePages(AbstractSyrupyExtension):
    """Keeps the sentences of a file of tests in a page of the same name."""

    file_extension = "md"

    @classmethod
    def dirname(cls, *, test_location: PyTestLocation) -> str:
        return str(FOLDER)

    @classmethod
    def discovery_dirname(cls, *, test_location: PyTestLocation) -> str:
        """Another one for each file of tests, so that each asks for its own page."""
        return str(FOLDER / test_location.basename)

    @classmethod
    def get_snapshot_name(cls, *, test_location: PyTestLocation, index: str | int = 0) -> str:
        case = _case(test_location.item)
        parts = [part for part in (case, index if isinstance(index, str) else "") if part]
        return _name(test_location.methodname, " / ".join(parts))

    def discover_snapshots(
        self, *, test_location: PyTestLocation, ignore_extensions: list[str] | None = None
    ) -> SnapshotCollections:
        """What this run should have asserted of the page; the rest of it is not stale."""
        location = self.get_location(test_location=test_location, index=0)
        page = SnapshotCollection(location)
        for snapshot in self.read_snapshot_collection(snapshot_location=location):
            if is_asked_for(snapshot.name, test_location.item):
                page.add(snapshot)
        found = SnapshotCollections()
        if page.has_snapshots:
            found.add(page)
        return found

    def serialize(self, data: object, **_: object) -> str:
        return str(data)

    def read_snapshot_collection(self, *, snapshot_location: str) -> SnapshotCollection:
        page = SnapshotCollection(snapshot_location)
        path = Path(snapshot_location)
        if path.is_file():
            for name, text in _read(path.read_text(encoding="utf-8").splitlines()):
                page.add(Snapshot(name, text))
        return page

    def read_snapshot_data_from_location(
        self, *, snapshot_location: str, snapshot_name: str, session_id: str
    ) -> str | None:
        page = self.read_snapshot_collection(snapshot_location=snapshot_location)
        snapshot = page.get(snapshot_name)
        return None if snapshot is None else str(snapshot.data)

    @classmethod
    def write_snapshot_collection(
        cls, *, snapshot_collection: SnapshotCollection, name_order: dict[str, int] | None = None
    ) -> None:
        page = cls().read_snapshot_collection(snapshot_location=snapshot_collection.location)
        page.merge(snapshot_collection)
        _write(page)

    def delete_snapshots(self, *, snapshot_location: str, snapshot_names: set[str]) -> None:
        page = self.read_snapshot_collection(snapshot_location=snapshot_location)
        for name in snapshot_names:
            page.remove(name)
        _write(page)


class Sentences:
    """Asserts what is said to a user, by its page in ``tests/sentences``.

    Args:
        snapshot: syrupy's, of this test.
        folders: those of pytest, whose names differ from run to run.
    """

    def __init__(self, snapshot: SnapshotAssertion, folders: Path) -> None:
        self._snapshot = snapshot.use_extension(SentencePages)
        self._folders = folders
        self._said: dict[str, str] = {}

    def __call__(
        self,
        said: object,
        case: str = "",
        *,
        names: Iterable[object] = (),
        part: bool = False,
        **placeholders: str,
    ) -> None:
        """Assert a sentence; the same case of one test says the same each time.

        Args:
            said: an error, a text, or several texts.
            case: which of several sentences of one test it is.
            names: what it must name, however it is worded: key, file, value.
            part: keep the lines that name all of it, or the sentences in a text of one line.
            placeholders: words by the regular expression of what they stand for.
        """
        wanted = [*map(str, names)]
        text = "\n".join(said) if isinstance(said, list | tuple) else str(said)
        text = _part(text, wanted) if part else text
        missing = [name for name in wanted if name not in text]
        assert missing == [], f"{missing} not in: {text}"
        shown = self.shown(text, **placeholders)
        assert self._said.setdefault(case, shown) == shown, "another sentence needs a name"
        page = self._snapshot(name=case)
        assert shown == page, f"said:\n{shown}\nin tests/sentences:\n{page!r}"

    def shown(self, text: str, **placeholders: str) -> str:
        """A text as a page has it: without what differs between machines and runs."""
        for word, pattern in placeholders.items():
            text = re.sub(pattern, word, text)
        text = re.sub(rf"{re.escape(str(self._folders))}/[\w-]+", "FOLDER", text)
        text = text.replace(str(REPOSITORY), "REPOSITORY")
        text = re.sub(r"(?<=-s)(\d+)-[0-9a-f]{8}\b", r"\1-FINGERPRINT", text)
        text = re.sub(r"\brankwise \d+\.\d+\.\d+", "rankwise VERSION", text)
        return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _part(text: str, names: list[str]) -> str:
    """The lines with these names, or the sentences in a text of one line; all of it if none has."""
    pieces = text.splitlines() if "\n" in text.strip() else re.split(r"(?<=[.!?]) +| +(?=- )", text)
    found = [piece.strip() for piece in pieces if all(name in piece for name in names)]
    return "\n".join(found) or text


def _case(item: pytest.Item) -> str:
    """Name of a test's case in its table; empty without one."""
    callspec = getattr(item, "callspec", None)
    return "" if callspec is None else str(callspec.id)


def _name(test: str, case: str) -> str:
    return f"{test}: {case}" if case else test


def is_asked_for(name: str, item: pytest.Item) -> bool:
    """Whether the test that an entry belongs to is run, or is gone from a file that is run whole.

    Args:
        name: that of the entry.
        item: any test of the file.
    """
    test, _, case = name.partition(": ")
    owners = [other for other in item.session.items if _owns(other, item.path, test, case)]
    is_whole = not any("::" in argument for argument in item.config.args)
    left_out = item.config.stash.get(LEFT_OUT, [])
    is_left_out = any(_owns(other, item.path, test, case) for other in left_out)
    return bool(owners) or (is_whole and not is_left_out)


LEFT_OUT = pytest.StashKey[list[pytest.Item]]()
"""Tests that were found, and that an option leaves out of this run."""


def _owns(item: pytest.Item, path: Path, test: str, case: str) -> bool:
    if item.path != path or getattr(item, "originalname", None) != test:
        return False
    own = _case(item)
    return not own or case == own or case.startswith(f"{own} / ")


def _read(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Name and text of the entries of a page; cases that stand together say the same."""
    test, cases, text = "", [""], list[str]()
    for line in [*lines, "## "]:
        starts = line.startswith(("## ", "- "))
        if starts and any(text):
            for case in cases:
                yield _name(test, case), "\n".join(text).strip("\n")
            cases, text = [], []
        if line.startswith("## "):
            test, cases = "test_" + line[3:].replace(" ", "_"), []
        elif line.startswith("- "):
            cases.append(line[2:])
        elif line.startswith(_INDENT):
            cases = cases or [""]
            text.append(line[len(_INDENT) :])
        elif not line:
            text.append(line)


def _write(page: SnapshotCollection) -> None:
    """Write a page, its tests in the order of their file, or remove one that is empty."""
    path = Path(page.location)
    if not page.has_snapshots:
        path.unlink(missing_ok=True)
        return
    tests: dict[str, dict[tuple[bool, str], list[str]]] = {}
    for snapshot in page:
        test, _, case = snapshot.name.partition(": ")
        tests.setdefault(test, {}).setdefault((case != "", str(snapshot.data)), []).append(case)
    lines = [f"# {path.stem.removeprefix('test_').replace('_', ' ').capitalize()}"]
    for test in sorted(tests, key=_order(path.stem)):
        lines += ["", f"## {test.removeprefix('test_').replace('_', ' ')}"]
        for (_, text), cases in sorted(tests[test].items(), key=lambda item: item[0][0]):
            lines += ["", *(f"- {case}" for case in cases if case)]
            lines += [f"{_INDENT}{line}".rstrip() for line in text.split("\n")]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _order(stem: str) -> Callable[[str], int]:
    """Place of a test in its file."""
    (source,) = FOLDER.parent.rglob(f"{stem}.py")
    order = re.findall(r"^def (test_\w+)", source.read_text(encoding="utf-8"), re.MULTILINE)
    return lambda test: order.index(test) if test in order else len(order)
