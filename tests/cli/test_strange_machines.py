"""Machines unlike ours: each has its study, or one sentence that is true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.small_studies import write_study

SETTINGS = """
name: small
train: {task: sums, epochs: 1, batch_size: 4, gradient_accumulation_steps: 1}
methods: {lora: {ranks: [1, 2]}, full: null}
evaluation: {retention: [colours], num_train_items: 0}
"""
NOWHERE = "http://127.0.0.1:9"
MACHINES = {
    "no home": {"HOME": None, "XDG_CACHE_HOME": None},
    "a home that is not there": {"HOME": "/nonexistent/home"},
    "no folder for temporary files": {"TMPDIR": "/nonexistent/tmp"},
    "a proxy that leads nowhere": dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), NOWHERE),
    "the language C, in ASCII": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    "60 columns": {"COLUMNS": "60"},
}


def called(*arguments: object, folder: Path, **changes: str | None) -> tuple[int, str, str]:
    """The command from a folder, with variables that are set or (None) taken away."""
    kept = {name: value for name, value in os.environ.items() if name not in changes}
    environment = kept | {name: value for name, value in changes.items() if value is not None}
    command = [sys.executable, "-m", "rankwise", *map(str, arguments)]
    none = subprocess.DEVNULL
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, stdin=none, check=False
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A study file in a folder with a space and letters of other scripts."""
    folder = tmp_path_factory.mktemp("Übung 漢字")
    return write_study(folder, tiny_model_folder, SETTINGS)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_study_ends_in_its_report(file: Path, machine: str, tmp_path: Path) -> None:
    folder = tmp_path / "Studie ä"
    code, out, said = called(
        "run", file, "--study-dir", folder, folder=file.parent, **MACHINES[machine]
    )
    assert code == 0, said
    assert (folder / "report.html").stat().st_size > 100_000
    assert "Traceback" not in out + said


def test_a_cache_that_cannot_be_written_is_said_with_the_way_out(tmp_path: Path) -> None:
    code, _, said = called("plan", folder=tmp_path, HOME="/dev/null/home", RANKWISE_CACHE=None)
    assert code != 0
    assert "the embedded model cannot be kept in /dev/null/home/.cache/rankwise" in said
    assert "RANKWISE_CACHE to another folder." in said
    assert "Free some space" not in said
    assert len(said.splitlines()) <= 3
