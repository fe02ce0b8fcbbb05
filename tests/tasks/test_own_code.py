"""Users' code: the file that is read runs, what it returns is a number, what it raises is named."""

from __future__ import annotations

import inspect
import json
import os
import py_compile
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import Stopped, TaskError
from rankwise.records.config.own_rows import CheckConfig
from rankwise.tasks import own_code
from rankwise.tasks.answer_checks import Check, checker
from rankwise.tasks.own_code import MOST_CODE_BYTES, module_of
from rankwise.tasks.resolution import load_tasks
from tests.support.sentences import Sentences

HEAD = """
import numpy as np
from fractions import Fraction

class Bare(BaseException):
    pass

class Key(KeyboardInterrupt):
    pass

def throw(error):
    raise error

"""


def made(folder: Path, body: str) -> Check:
    (folder / "check.py").write_text(f"{HEAD}\ndef score(row, answer):\n    {body}\n")
    config = CheckConfig(code=f"{folder / 'check.py'}:score")
    return checker(config, {}, "rows.jsonl", allow_code=True)


def judged(folder: Path, body: str) -> Any:
    return made(folder, body)("x", {"row": "{}", "place": "line 7"})["code"]


@pytest.mark.parametrize(
    ("returned", "value"),
    [
        ("np.True_", 1.0),
        ("(np.ones(2) == np.ones(2)).all()", 1.0),
        ("np.float32(0.25)", 0.25),
        ("np.float64(0.25)", 0.25),
        ("np.longdouble(0.25)", 0.25),
        ("np.int64(1)", 1.0),
        ("np.array(0.25)", 0.25),
        ("np.array(False)", 0.0),
        ("np.array(None)", None),
        ("Fraction(1, 4)", 0.25),
    ],
)
def test_numbers_of_numpy_are_numbers(tmp_path: Path, returned: str, value: float | None) -> None:
    found = judged(tmp_path, f"return {returned}")
    assert found == value
    assert found is None or type(found) is float


@pytest.mark.parametrize(
    "returned",
    ["np.array([1.0])", "np.float32(1.5)", "np.float32('nan')", "np.array('x')", "1j", "[1]", "''"],
)
def test_all_else_is_refused_with_the_row(
    tmp_path: Path, returned: str, sentence: Sentences
) -> None:
    with pytest.raises(TaskError) as caught:
        judged(tmp_path, f"return {returned}")
    sentence(caught.value, names=("check.py",))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("throw(Bare('no'))", "Bare: no"),
        ("throw(Key())", "Key"),
        ("throw(GeneratorExit())", "GeneratorExit"),
        ("throw(SystemExit(3))", "SystemExit: 3"),
        ("throw(StopIteration())", "StopIteration"),
        ("return 10**400", "OverflowError"),
        ("return score(row, answer)", "RecursionError"),
        ("return type('X', (float,), {'__float__': lambda _: throw(Bare())})(1)", "Bare"),
    ],
)
def test_whatever_code_raises_is_a_sentence(tmp_path: Path, body: str, name: str) -> None:
    with pytest.raises(TaskError, match=f"check.py:score on line 7 fails: {name}"):
        judged(tmp_path, body)


def test_a_file_that_raises_anything_cannot_be_loaded(tmp_path: Path, sentence: Sentences) -> None:
    (tmp_path / "check.py").write_text("raise BaseException('no')")
    config = CheckConfig(code=f"{tmp_path / 'check.py'}:score")
    with pytest.raises(TaskError) as caught:
        checker(config, {}, "rows.jsonl", allow_code=True)
    sentence(caught.value, names=("check.py",))


def test_ctrl_c_stops_the_study_and_not_the_row(tmp_path: Path) -> None:
    check = made(tmp_path, "import signal; signal.raise_signal(signal.SIGINT)")
    doc = {"row": "{}", "place": "line 7"}
    with pytest.raises(KeyboardInterrupt) as caught:
        check("x", doc)
    assert type(caught.value) is KeyboardInterrupt

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGINT, stop)
    try:
        with pytest.raises(Stopped):
            check("x", doc)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_function_that_does_not_end_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(own_code, "MOST_SECONDS", 0.2)
    body = """
    while True:
        try:
            import re; re.search('^(a|a)*$', 'a' * 60 + 'b')
        except Exception:
            pass
"""
    with pytest.raises(TaskError) as caught:
        judged(tmp_path, body)
    sentence(caught.value, names=("check.py", "0.2"))
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert judged(tmp_path, "return 1") == 1.0


def test_it_is_called_in_other_threads_and_under_other_alarms(tmp_path: Path) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(judged(tmp_path, "return 0.5")))
    thread.start()
    thread.join()
    assert found == [0.5]
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        assert judged(tmp_path, "return 0.5") == 0.5
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


CLEAN, EVIL = "def score(row, answer):\n    return 0\n", "def score(row, answer):\n    return 1\n"


def leave_compiled(file: Path, source: str, mode: py_compile.PycInvalidationMode) -> None:
    """Beside a file with ``CLEAN``, the compiled code of another source, as if it were its own."""
    file.write_text(source)
    os.utime(file, (1_000_000_000, 1_000_000_000))
    py_compile.compile(str(file), invalidation_mode=mode, doraise=True)
    file.write_text(CLEAN)
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert list((file.parent / "__pycache__").glob("*.pyc"))


MODES = [py_compile.PycInvalidationMode.TIMESTAMP, py_compile.PycInvalidationMode.UNCHECKED_HASH]


@pytest.mark.parametrize("mode", MODES)
def test_compiled_code_beside_a_check_does_not_run(
    tmp_path: Path, mode: py_compile.PycInvalidationMode
) -> None:
    leave_compiled(tmp_path / "check.py", EVIL, mode)
    config = CheckConfig(code=f"{tmp_path / 'check.py'}:score")
    check = checker(config, {}, "rows.jsonl", allow_code=True)
    assert check("x", {"row": "{}", "place": "line 1"}) == {"code": 0.0}


@pytest.mark.parametrize("mode", MODES)
def test_compiled_code_beside_a_task_file_does_not_run(
    tmp_path: Path, mode: py_compile.PycInvalidationMode
) -> None:
    leave_compiled(tmp_path / "mine.py", EVIL, mode)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "a"}) + "\n")
    (tmp_path / "own.yaml").write_text(
        "task: own_code_task\ndataset_path: json\noutput_type: generate_until\ntest_split: test\n"
        "doc_to_text: question\ndoc_to_target: question\nprocess_results: !function mine.score\n"
        f"dataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
        "metric_list: [{metric: code, aggregation: mean, higher_is_better: true}]\n"
    )
    (loaded,) = load_tasks(["own_code_task"], [tmp_path], allow_code=True)["own_code_task"]  # type: ignore[misc]
    function = loaded.task.config.process_results  # type: ignore[union-attr]
    assert function(None, None) == 0
    assert inspect.getsource(function) == CLEAN


def test_the_source_of_a_module_is_what_runs(tmp_path: Path) -> None:
    file = tmp_path / "check.py"
    file.write_text("\x0c\n# a form feed is no end of a line\n" + CLEAN)
    module, _ = module_of(file, "check")
    file.write_text(EVIL)
    assert inspect.getsource(module.score) == CLEAN
    assert module.score(None, None) == 0


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, sentence: Sentences) -> None:
    (tmp_path / "check.py").write_text("#" * MOST_CODE_BYTES + "#")
    config = CheckConfig(code=f"{tmp_path / 'check.py'}:score")
    with pytest.raises(TaskError) as caught:
        checker(config, {}, "rows.jsonl", allow_code=True)
    sentence(caught.value, names=("check.py",))
