"""Leases: one worker at a time has a unit, whoever is killed, frozen or slow."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from rankwise.errors import LeaseLostError, StorageError, StudyLockedError
from rankwise.records import leases
from rankwise.records.folder import StudyFolder
from rankwise.records.leases import Crew, are_at_work
from rankwise.records.study import StageFailure
from tests.support.crews import begun, do_units, hold, joined, wait_for


def lines(root: Path) -> list[list[str]]:
    log = root / "log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def elsewhere(crew: Crew) -> Path:
    """Let a worker be of another machine, whose lock says nothing here."""
    (file,) = crew._crew.glob(f"{crew.name}.worker")
    content = file.read_bytes()
    file.write_bytes(content[:20] + b'{"machine": "another"}')
    return file


def test_one_of_two_has_a_unit_until_it_gives_it_back(tmp_path: Path) -> None:
    one, two = joined(tmp_path), joined(tmp_path)
    assert (one.is_first, two.is_first) == (True, False)
    assert one.others() == [two.name]
    assert one.take("a")
    assert not two.take("a")
    assert two.take("b")
    one.give_back()
    two.give_back()
    assert two.take("a")
    assert not one.take("a")
    two.leave()  # and gives it back
    assert one.take("a")
    assert one.others() == []
    one.leave()


def test_what_is_marked_is_known_to_the_crew_alone(tmp_path: Path) -> None:
    one, two = joined(tmp_path), joined(tmp_path)
    assert not two.is_marked("failed")
    one.mark("failed")
    assert two.is_marked("failed")
    one.leave()
    assert joined(tmp_path).is_marked("failed")  # two is still there
    two.leave()


def test_the_next_crew_begins_anew(tmp_path: Path) -> None:
    one = joined(tmp_path)
    one.take("a")
    one.mark("failed")
    one.leave()
    two = joined(tmp_path)
    assert two.is_first
    assert not two.is_marked("failed")
    assert two.take("a")
    two.leave()
    with StudyFolder(tmp_path).lock():
        assert not (tmp_path / ".workers").exists()


def test_ten_processes_do_each_of_sixty_units_once(tmp_path: Path) -> None:
    workers = [begun(do_units, tmp_path, 60, 0.001) for _ in range(10)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 10
    begins = Counter(number for what, number, _ in lines(tmp_path) if what == "begin")
    ends = Counter(number for what, number, _ in lines(tmp_path) if what == "end")
    assert begins == ends == {str(number): 1 for number in range(60)}


def test_units_of_killed_processes_are_done_by_others_at_once(tmp_path: Path) -> None:
    generator, killed = random.Random(0), 0
    workers = [begun(do_units, tmp_path, 30, 0.02) for _ in range(4)]
    started = time.monotonic()
    wait_for(lambda: lines(tmp_path))
    while killed < 6:
        time.sleep(0.02 + 0.06 * generator.random())
        victim = generator.randrange(4)
        workers[victim].kill()
        workers[victim].join()
        killed += 1
        workers[victim] = begun(do_units, tmp_path, 30, 0.02)
    for worker in workers:
        worker.join()
    assert time.monotonic() - started < leases.LEASE_SECONDS / 2  # nobody waited for a lease
    log = lines(tmp_path)
    begins = Counter(number for what, number, _ in log if what == "begin")
    ends = Counter(number for what, number, _ in log if what == "end")
    assert ends.keys() == {str(number) for number in range(30)}
    # a unit may be done again only where a worker died in it, or after it and before it said so
    assert sum(begins.values()) <= 30 + killed
    assert sum(ends.values()) <= 30 + killed


def test_a_frozen_worker_loses_its_unit_and_notices_before_it_writes(tmp_path: Path) -> None:
    seconds = 4.5  # a machine that stalls for less does no harm
    frozen = begun(hold, tmp_path, seconds)
    wait_for(lambda: lines(tmp_path), frozen)
    assert frozen.pid is not None
    two = joined(tmp_path, seconds)
    assert not two.take("unit")
    os.kill(frozen.pid, signal.SIGSTOP)
    before = time.monotonic()
    wait_for(lambda: two.take("unit"), frozen)
    assert time.monotonic() - before >= seconds / 2  # not before it was still for long
    (tmp_path / "go").touch()
    os.kill(frozen.pid, signal.SIGCONT)
    frozen.join()
    assert [what for what, _ in lines(tmp_path)] == ["took", "lost"]
    two.require()
    two.leave()


def test_a_worker_elsewhere_has_its_unit_as_long_as_it_counts(tmp_path: Path) -> None:
    seconds = 3.0  # a machine that stalls for less does no harm
    one, two = joined(tmp_path, seconds), joined(tmp_path, seconds)
    assert one.take("a")
    elsewhere(one)
    end = time.monotonic() + 2 * seconds
    while time.monotonic() < end:
        assert not two.take("a")
        time.sleep(0.05)
    one._leaves.set()  # it counts no more
    before = time.monotonic()
    wait_for(lambda: two.take("a"))
    assert time.monotonic() - before > seconds / 2
    with pytest.raises(LeaseLostError, match="not heard of for 2 seconds"):
        one.require()
    two.leave()


def test_of_many_that_take_over_one_does(tmp_path: Path) -> None:
    dead = joined(tmp_path)
    assert dead.take("a")
    crews = [joined(tmp_path) for _ in range(8)]
    dead._file.unlink()  # as if it had ended
    took, barrier = list[str](), threading.Barrier(8)

    def take(crew: Crew) -> None:
        barrier.wait()
        if crew.take("a"):
            took.append(crew.name)

    threads = [threading.Thread(target=take, args=(crew,)) for crew in crews]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == 1


def test_who_is_slow_to_take_over_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between seeing that a unit is free and taking it, others take it, and give it back."""
    one, two = joined(tmp_path), joined(tmp_path)
    found = two._last

    def slow(unit: str) -> object:
        last = found(unit)
        assert one.take(unit)
        one.give_back()
        return last

    monkeypatch.setattr(two, "_last", slow)
    assert not two.take("a")
    monkeypatch.undo()
    assert two.take("a")
    one.leave()
    two.leave()


def test_a_worker_whose_unit_was_taken_all_the_same_notices(tmp_path: Path) -> None:
    one, two = joined(tmp_path, 3.0), joined(tmp_path, 3.0)
    assert one.take("a")
    two._watch.is_live = lambda _: False  # as if a clock had jumped
    assert two.take("a")

    def is_lost() -> bool:
        try:
            one.require()
        except LeaseLostError:
            return True
        return False

    wait_for(is_lost)
    two.require()


def test_a_worker_of_an_earlier_crew_has_no_place(tmp_path: Path) -> None:
    one = joined(tmp_path)
    one._file.unlink()  # as if it had been away
    two = joined(tmp_path)
    assert two.is_first
    with pytest.raises(LeaseLostError):
        one.take("a")
    with pytest.raises(LeaseLostError):
        one.require()
    assert two.take("a")
    two.leave()


def test_nothing_is_written_once_a_lease_is_lost(tmp_path: Path) -> None:
    folder, crew = StudyFolder(tmp_path), joined(tmp_path)
    folder.guard = crew.require
    failure = StageFailure.model_construct(stage="training-1")
    crew._is_lost = True
    with pytest.raises(LeaseLostError):
        folder.write_failure(failure)
    with pytest.raises(LeaseLostError):
        folder.append_metrics("run", {"step": 1})
    assert not folder.failures_folder.exists()
    assert not folder.metrics_file("run").exists()


# --- the study's lock


def test_a_folder_at_work_is_held_by_those_alone_who_share_it(tmp_path: Path) -> None:
    folder, crew = StudyFolder(tmp_path), joined(tmp_path)
    with pytest.raises(StudyLockedError, match="rankwise run --worker"), folder.lock():
        pass
    with folder.lock(shares=True):
        assert (tmp_path / ".workers").exists()
    crew.leave()
    with folder.lock():
        assert not (tmp_path / ".workers").exists()


def test_one_that_died_elsewhere_is_watched_before_a_folder_is_held(tmp_path: Path) -> None:
    seconds = 3.0
    crew = joined(tmp_path, seconds)
    file = elsewhere(crew)
    assert are_at_work(tmp_path, lease_seconds=seconds)  # it counts
    crew._leaves.set()
    crew._thread.join()  # type: ignore[union-attr]
    before = time.monotonic()
    assert not are_at_work(tmp_path, lease_seconds=seconds)
    assert time.monotonic() - before >= seconds
    assert are_at_work(tmp_path, patient=False)
    assert file.exists()


def test_a_place_that_cannot_be_written_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    crew = joined(tmp_path)
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(StorageError, match="Free some space"):
        crew.take("a")
    monkeypatch.undo()
    crew.leave()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="Free some space"):
        joined(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob(".workers/*/*.worker"))
