"""The pages of sentences: what stands in one is read, and what no test says is found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from syrupy.data import Snapshot, SnapshotCollection

from tests.support.sentences import FOLDER, LEFT_OUT, SentencePages, Sentences, is_asked_for

TESTS = FOLDER.parent
ENTRIES = {
    "test_the_folder_of_a_test_is_none_of_its_sentences": "One line.",
    "test_a_page_is_read_as_it_was_written: a case": "Two\n  lines\n\nand a third.",
    "test_a_page_is_read_as_it_was_written: another": "One line.",
    "test_a_page_is_read_as_it_was_written: a third / a: b": "One line.",
    "test_a_page_is_read_as_it_was_written": "One line.",
}


def test_a_page_is_read_as_it_was_written(tmp_path: Path) -> None:
    page = SnapshotCollection(str(tmp_path / "test_sentences.md"))
    for name, text in ENTRIES.items():
        page.add(Snapshot(name, text))
    SentencePages.write_snapshot_collection(snapshot_collection=page)
    read = SentencePages().read_snapshot_collection(snapshot_location=page.location)
    assert {entry.name: entry.data for entry in read} == ENTRIES
    assert Path(page.location).read_text().count("One line.") == 3
    SentencePages().delete_snapshots(snapshot_location=page.location, snapshot_names={*ENTRIES})
    assert not Path(page.location).exists()


def test_a_sentence_must_name_what_it_is_about(sentence: Sentences) -> None:
    with pytest.raises(AssertionError, match=r"\['value'\] not in: "):
        sentence("a sentence with a key", names=("key", "value"))


def test_the_folder_of_a_test_is_none_of_its_sentences(
    tmp_path: Path, sentence: Sentences, tiny_model_folder: Path
) -> None:
    text = f"{tmp_path}. Not {tiny_model_folder}, {TESTS}/x after 3.1 s  \n"
    shown = sentence.shown(text, SECONDS=r"[\d.]+(?= s)")
    assert shown == "FOLDER. Not FOLDER/tiny-llama, REPOSITORY/tests/x after SECONDS s"


def test_a_part_of_a_text_is_what_names_it(sentence: Sentences) -> None:
    names = ("rank 8", "40 %")
    for text in ("Gain: none.\n rank 8 keeps 40 %. It\nrank 4", "Gain. rank 8 keeps 40 %. rank 4."):
        sentence(text, text[4], names=names, part=True)
    with pytest.raises(AssertionError, match="rank 16"):
        sentence("rank 8 keeps.\n40 %", "none", names=("rank 16",), part=True)


def item(name: str, case: str = "", arguments: tuple[str, ...] = ("tests",)) -> Any:
    """A test that pytest found."""
    return SimpleNamespace(
        path=Path("test_x.py"),
        originalname=name,
        callspec=SimpleNamespace(id=case) if case else None,
        config=SimpleNamespace(args=arguments, stash={}),
        session=SimpleNamespace(items=[]),
    )


def test_an_entry_without_a_test_is_stale_where_its_file_is_run_whole() -> None:
    one = item("test_a", "first")
    one.session.items += [one, item("test_b")]
    assert is_asked_for("test_a: first", one)
    assert is_asked_for("test_a: first / more", one)
    assert is_asked_for("test_b: any", one)
    assert is_asked_for("test_a: second", one)  # no such case, and all were found
    one.config.stash[LEFT_OUT] = [item("test_a", "second")]
    assert not is_asked_for("test_a: second", one)
    assert is_asked_for("test_gone", one)
    one.config.args = ("tests/test_x.py::test_a",)
    assert not is_asked_for("test_gone", one)
    assert not is_asked_for("test_a: third", one)
    assert is_asked_for("test_a: first", one)


def test_every_page_belongs_to_a_file_of_tests() -> None:
    files = {path.stem for path in TESTS.rglob("test_*.py")}
    assert [path.name for path in FOLDER.iterdir() if path.stem not in files] == []
