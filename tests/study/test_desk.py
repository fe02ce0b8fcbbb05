"""What the tasks of a cluster hand over, and that only one attempt at a unit is heard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import StorageError
from rankwise.records.folder import StudyFolder
from rankwise.study.executors.desk import (
    Attempt,
    Desk,
    Letter,
    SupersededError,
    UnitOffer,
    Worker,
    take_in,
)
from rankwise.study.executors.task import StudyCopy, heard_of
from rankwise.study.observer import Advanced
from tests.planted.results import planted_study

UNIT, RUN = "pass-0123456789ab", "run-a"
FIRST = Attempt(UNIT, "11 on here", "11-a")
SECOND = Attempt(UNIT, "12 on here", "12-b")


class Called:
    """A desk as a task calls it."""

    def __init__(self, root: Path) -> None:
        self.desk = Desk(root, "the leader")

    def __call__(self, name: str, *given: Any) -> Any:
        return getattr(self.desk, name)(*given)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A study with a scored base."""
    written(tmp_path / "study" / "base" / "eval" / "sums.json", "base")
    written(tmp_path / "study" / "study.json", "{}")
    written(tmp_path / "study" / ".leader", "the leader")
    return tmp_path / "study"


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def copy_of(call: Called, attempt: Attempt, place: Path, study: Path | None) -> StudyCopy:
    """Of an attempt that has begun."""
    call("begin", attempt)
    assert call("is_ready", UNIT)
    copy = StudyCopy(place, study, attempt, [RUN], call)
    copy.bring()
    return copy


@pytest.mark.parametrize("sees_the_folder", [True, False])
def test_a_task_gets_what_it_needs_and_hands_over_what_it_made(
    root: Path, tmp_path: Path, sees_the_folder: bool
) -> None:
    written(root / "runs" / RUN / "eval" / "old.json", "of other weights")
    written(root / "runs" / "another" / "run.json", "not needed")
    call, folder = Called(root), StudyFolder(root)
    place = folder.task_folder(UNIT, FIRST.id) if sees_the_folder else tmp_path / "node"
    copy = copy_of(call, FIRST, place, root if sees_the_folder else None)
    assert (place / "base" / "eval" / "sums.json").read_text() == "base"
    assert not (place / "runs" / "another").exists()
    (place / "runs" / RUN / "eval" / "old.json").unlink()
    written(place / "runs" / RUN / "run.json", "record")
    big = os.urandom(3 << 20)
    (place / "runs" / RUN / "adapter").mkdir()
    (place / "runs" / RUN / "adapter" / "weights").write_bytes(big)
    assert not (root / "runs" / RUN / "run.json").exists()  # only who leads writes there
    copy.tell([Advanced("t", 1.0, 0)], hands_over=True)
    (letter,) = call("take")
    assert sorted(letter.made) == [f"runs/{RUN}/adapter/weights", f"runs/{RUN}/run.json"]
    assert letter.removed == (f"runs/{RUN}/eval/old.json",)
    take_in(root, letter)
    assert (root / "runs" / RUN / "adapter" / "weights").read_bytes() == big
    assert (root / "runs" / RUN / "run.json").read_text() == "record"
    assert not (root / "runs" / RUN / "eval" / "old.json").exists()
    assert not (place / "runs" / RUN / "eval" / "old.json").exists()  # nor is it brought back
    copy.tell([], hands_over=True)  # nothing new
    (letter,) = call("take")
    assert (letter.made, letter.removed) == ((), ())


def test_an_attempt_that_comes_back_is_not_heard(root: Path, tmp_path: Path) -> None:
    call = Called(root)
    late = copy_of(call, FIRST, tmp_path / "first", None)
    copy_of(call, SECOND, tmp_path / "second", None)
    written(tmp_path / "first" / "runs" / RUN / "run.json", "late")
    with pytest.raises(SupersededError):
        late.tell([], hands_over=True)
    with pytest.raises(SupersededError):
        late.send_state(written(tmp_path / "first" / "runs" / RUN / "training.pt", "late"))
    assert call("take") == []
    assert not list(root.rglob("run.json"))
    assert not list(root.rglob("training.pt"))


def test_an_error_of_an_attempt_counts_only_while_it_is_heard(root: Path, tmp_path: Path) -> None:
    """Another attempt removes its folder: what it writes then fails."""
    call, error = Called(root), StorageError("its folder is gone")
    copy_of(call, FIRST, tmp_path / "first", None)
    with pytest.raises(StorageError), heard_of(FIRST, call):
        raise error
    copy_of(call, SECOND, tmp_path / "second", None)
    with pytest.raises(SupersededError), heard_of(FIRST, call):
        raise error
    with pytest.raises(ZeroDivisionError), heard_of(FIRST, call):
        raise ZeroDivisionError  # a defect is told as what it is


def test_the_next_attempt_waits_for_what_the_last_has_told(root: Path, tmp_path: Path) -> None:
    call = Called(root)
    first = copy_of(call, FIRST, StudyFolder(root).task_folder(UNIT, FIRST.id), root)
    written(StudyFolder(root).task_folder(UNIT, FIRST.id) / "runs" / RUN / "run.json", "first")
    first.tell([], hands_over=True)
    call("begin", SECOND)
    assert not call("is_ready", UNIT)
    (letter,) = call("take")
    assert not call("is_ready", UNIT)  # it is being taken in
    take_in(root, letter)
    assert call("take") == []
    assert call("is_ready", UNIT)
    second = StudyCopy(tmp_path / "second", None, SECOND, [RUN], call)
    second.bring()
    assert (tmp_path / "second" / "runs" / RUN / "run.json").read_text() == "first"


@pytest.mark.parametrize("sees_the_folder", [True, False])
def test_another_attempt_goes_on_from_the_last_state(
    root: Path, tmp_path: Path, sees_the_folder: bool
) -> None:
    call, folder = Called(root), StudyFolder(root)
    place = folder.task_folder(UNIT, FIRST.id) if sees_the_folder else tmp_path / "first"
    first = copy_of(call, FIRST, place, root if sees_the_folder else None)
    state = written(place / "runs" / RUN / "training.pt", "step 7")
    if not sees_the_folder:
        first.send_state(state)
    copy_of(call, SECOND, tmp_path / "second", None)
    assert (tmp_path / "second" / "runs" / RUN / "training.pt").read_text() == "step 7"
    assert not folder.task_folder(UNIT, FIRST.id).exists()


def test_a_state_that_was_cut_on_its_way_counts_for_nothing(root: Path, tmp_path: Path) -> None:
    call = Called(root)
    copy_of(call, FIRST, tmp_path / "first", None)
    name = f"runs/{RUN}/training.pt"
    call("write", FIRST, name, 0, b"half", False)
    assert [path.read_text() for path in root.rglob(".training.pt")] == ["half"]  # it was taken
    copy_of(call, SECOND, tmp_path / "second", None)
    assert not (tmp_path / "second" / name).exists()


def test_whoever_leads_next_keeps_the_states_of_tasks_that_are_gone(root: Path) -> None:
    folder = StudyFolder(root)
    folder.write(folder.study_file, planted_study({4: 0.7}, num_in_domain=4).study)
    foreign = [
        written(root / ".tasks" / name, "mine")
        for name in ("notes.txt", "mine/note", "pass-1/11-a/runs/part/training.pt")
    ]
    for run, text in (("whole", "old"), ("done", "late"), ("part", "step 3")):
        written(folder.task_folder(UNIT, FIRST.id) / "runs" / run / "training.pt", text)
    written(root / "runs" / "done" / "run.json", "finished meanwhile")
    os.utime(written(root / "runs" / "whole" / "training.pt", "newer"), (2e10, 2e10))
    with folder.lock():
        pass
    files = [path for path in (root / ".tasks").rglob("*") if path.is_file()]
    assert sorted(files) == sorted(foreign)
    assert (root / "runs" / "part" / "training.pt").read_text() == "step 3"
    assert (root / "runs" / "whole" / "training.pt").read_text() == "newer"
    assert not (root / "runs" / "done" / "training.pt").exists()


def test_what_an_earlier_leader_had_begun_is_not_heard(root: Path, tmp_path: Path) -> None:
    call = Called(root)
    late = copy_of(call, FIRST, tmp_path / "first", None)
    written(root / ".leader", "another one")
    for told in (
        lambda: late.tell([], hands_over=True),
        lambda: late.send_state(written(tmp_path / "first" / "runs" / RUN / "training.pt", "x")),
        lambda: call("begin", SECOND),
        lambda: call("is_ready", UNIT),
    ):
        with pytest.raises(SupersededError):
            told()


@pytest.mark.parametrize("sees_the_folder", [True, False])
@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_file_that_changes_after_it_was_listed_is_brought_as_it_is_now_or_left_out(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sees_the_folder: bool,
    is_replaced: bool,
) -> None:
    """As the state of a training that ends meanwhile, and between two pieces of a large file."""
    monkeypatch.setattr("rankwise.study.executors.desk.PIECE_BYTES", 2)
    state = written(root / "runs" / RUN / "training.pt", "step 3")
    call = Called(root)

    def changes(name: str, *given: Any) -> Any:
        answer = call(name, *given)
        is_first_piece = name == "read" and given[0].endswith(".pt") and given[2] == 0
        if (name == "files" if sees_the_folder else is_first_piece) and state.exists():
            if not is_replaced:
                state.unlink()
            elif state.read_text() == "step 3":
                written(root / "new", "step 40").replace(state)
        return answer

    call("begin", FIRST)
    assert call("is_ready", UNIT)
    place = StudyFolder(root).task_folder(UNIT, FIRST.id) if sees_the_folder else tmp_path / "node"
    StudyCopy(place, root if sees_the_folder else None, FIRST, [RUN], changes).bring()
    brought = place / "runs" / RUN / "training.pt"
    assert (brought.read_text() if brought.exists() else None) == (
        "step 40" if is_replaced else None
    )
    assert (place / "base" / "eval" / "sums.json").read_text() == "base"
    assert not [path for path in place.rglob(".*") if path.is_file()]


def test_what_is_taken_in_is_whole_or_not_there(root: Path) -> None:
    """A letter whose files are gone changes nothing of what is there."""
    kept = written(root / "runs" / RUN / "run.json", "before")
    letter = Letter(FIRST, (), (f"runs/{RUN}/run.json",))
    with pytest.raises(OSError, match=r"run\.json"):
        take_in(root, letter)
    assert kept.read_text() == "before"


# --- who does what


def offer(unit: str, memory_bytes: int = 1, not_on: frozenset[str] = frozenset()) -> UnitOffer:
    return UnitOffer(unit, (RUN,), (), memory_bytes, not_on)


A, B = (Worker(name, number, "here", f"node-{name}", 10) for name, number in (("a", 11), ("b", 12)))
OTHER = "pass-fedcba987654"


def test_a_worker_goes_on_with_what_is_offered_once_its_last_unit_is_taken_in(root: Path) -> None:
    desk = Desk(root, "the leader")
    assert desk.next(A) is False  # there is nothing
    desk.exchange([offer(UNIT), offer(OTHER)])
    given: Any = desk.next(A)
    first, what = given
    assert (first.unit, what.models) == (UNIT, (RUN,))
    assert (first.process, first.node, first.id[:3]) == ("11 on here", "node-a", "11-")
    desk.put(Letter(first, (Advanced("t", 1.0, 0),)))
    told = desk.exchange([offer(UNIT), offer(OTHER)])  # it is not offered while it is done
    assert (told.doing, told.ended, len(told.letters)) == ({"a": first}, [], 1)
    assert desk.next(A) is True  # its end is to be told, and what may follow to be offered
    assert desk.exchange([offer(UNIT), offer(OTHER)]).ended == [UNIT]
    assert desk.next(A) is True
    desk.exchange([offer(UNIT), offer(OTHER)])  # made after that: more of it may be done
    again: Any = desk.next(A)
    assert again[0].unit == UNIT
    assert again[0].id != first.id
    assert desk.next(B)[0].unit == OTHER  # pyright: ignore[reportIndexIssue]
    with pytest.raises(SupersededError):
        desk.put(Letter(first, ()))


def test_a_worker_takes_what_fits_and_what_its_node_has_not_lost(root: Path) -> None:
    desk = Desk(root, "the leader")
    offers = [offer("large", 11), offer("lost", 1, frozenset({"node-a"}))]
    desk.exchange(offers)
    assert desk.next(A) is False
    given: Any = desk.next(B)
    assert given[0].unit == "lost"
    given = desk.next(Worker("card", 13, "here", "node-a", None))
    assert given[0].unit == "large"


def test_what_a_lost_worker_did_is_offered_again(root: Path) -> None:
    desk = Desk(root, "the leader")
    desk.exchange([offer(UNIT)])
    desk.next(A)
    assert desk.next(A._replace(number=14)) is False  # Ray has begun it again by itself
    assert desk.exchange([offer(UNIT)]).doing.keys() == {"a"}
    assert desk.next(B) is False
    assert desk.exchange([offer(UNIT)], ["a"]).doing == {}
    given: Any = desk.next(B)
    assert given[0].unit == UNIT
