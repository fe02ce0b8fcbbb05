"""Calls in a process of their own: limits end the process and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rankwise.errors import WorkerLostError
from rankwise.tasks import bounded as module
from rankwise.tasks.bounded import BeyondLimit, bounded
from rankwise.tasks.limited_checks import matches, meets_schema

SLOW: Any = (["^(a|a)*$"], [], "a" * 60 + "b")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process is running, and none afterwards."""
    process = module._Process()
    monkeypatch.setattr(module, "_process", process)
    yield
    process.end()


def process_id() -> int:
    bounded(matches, [], [], "")
    assert module._process.pid is not None
    return module._process.pid


def test_one_process_answers_all_calls() -> None:
    first = process_id()
    assert [bounded(matches, ["b"], [], text) for text in ("abc", "", "é\ud800\nb")] == [1, 0, 1]
    assert process_id() == first


def test_a_call_that_takes_too_long_ends_and_the_next_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = process_id()
    monkeypatch.setattr(module, "SECONDS", 0.3)
    with pytest.raises(BeyondLimit):
        bounded(matches, *SLOW)
    assert bounded(matches, ["b"], [], "b")
    assert process_id() != first
    assert not psutil.pid_exists(first)


def allocate(size: int) -> int:
    return len(b"x" * size)


def fail(how: str) -> None:
    if how == "exit":
        os._exit(3)
    if how == "crash":
        os.abort()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError(how)


def test_a_call_that_takes_too_much_memory_ends() -> None:
    assert bounded(allocate, 10_000_000) == 10_000_000
    with pytest.raises(BeyondLimit):
        bounded(allocate, module.MOST_BYTES)
    assert bounded(allocate, 10) == 10


@pytest.mark.parametrize("how", ["exit", "crash", "kill"])
def test_a_call_whose_process_ends_has_no_answer(how: str) -> None:
    with pytest.raises(BeyondLimit):
        bounded(fail, how)


def test_a_fault_of_ours_is_none_of_the_answer() -> None:
    with pytest.raises(WorkerLostError, match="fail fails"):
        bounded(fail, "bug")


def test_a_process_that_is_killed_between_calls_is_replaced() -> None:
    first = process_id()
    os.kill(first, signal.SIGKILL)
    assert bounded(matches, ["b"], [], "b")
    assert process_id() != first


def test_ctrl_c_leaves_no_answer_behind() -> None:
    """Else the next call would read it."""
    first = process_id()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        bounded(matches, *SLOW)
    timer.join()
    assert bounded(matches, ["b"], [], "b") is True
    assert process_id() != first
    assert not psutil.pid_exists(first)


def test_threads_get_their_own_answers() -> None:
    found: dict[int, bool] = {}

    def ask(number: int) -> None:
        for _ in range(20):
            found[number] = bounded(meets_schema, f'{{"const": {number}}}', number % 5)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number < 5 for number in range(10)}


def test_a_forked_process_starts_its_own() -> None:
    first = process_id()
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        other = pool.apply(process_id)
    assert other != first
    assert process_id() == first


@pytest.mark.usefixtures("fresh")
def test_nothing_of_the_current_folder_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    for name in ("jsonschema", "json", "re", "resource", "rankwise"):
        (tmp_path / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert bounded(meets_schema, '{"type": "object"}', {}) is True
    assert not ran.exists()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("program", ["/bin/true", "/nowhere/python"])
def test_a_process_that_does_not_start_is_named(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(WorkerLostError, match=program):
        bounded(matches, [], [], "")
